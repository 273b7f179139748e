"""Two threads that factorise batches of matrices at the same time come to an end."""

import subprocess
import sys

PROGRAM = """
import threading
import amortgap.objectives
import jax, jax.numpy as jnp

@jax.jit
def work(x):
    return jax.lax.fori_loop(0, 200, lambda _, a: jnp.linalg.cholesky(a @ a.mT + jnp.eye(8)[None]), x)

start = jax.random.normal(jax.random.key(0), (512, 8, 8))
jax.block_until_ready(work(start))
threads = [threading.Thread(target=lambda: jax.block_until_ready(work(start))) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print("done")
"""


def test_batched_factorisations_in_threads_do_not_wait_for_each_other():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=240, check=False)
    assert done.stdout == "done\n", done.stderr
