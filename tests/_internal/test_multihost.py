"""Two processes that found each other through `jax.distributed` compute together what one computes."""

import socket
import subprocess
import sys

import numpy as np
import pytest

PROGRAM = """
import sys
import jax
port, number, out = sys.argv[1:]
if port != "alone":
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(number))
import jax.numpy as jnp, numpy as np
import amortgap as ag

model = ag.models.FactorAnalysis(
    loadings=jnp.array([[1.0, 0.9], [0.6, 1.2], [0.8, -0.5]]), mean=jnp.zeros(3), noise_variance=jnp.ones(3)
)
family = ag.families.MeanFieldNormal(2)
# Neither the data nor the batches divide by 2.
xs = np.array(jax.random.normal(jax.random.key(1), (11, 3)))
encoder = ag.encoders.linear(jax.random.key(2), 3, family, rank=1, standardize=xs)
common = {"model": model, "family": family, "devices": jax.devices()}
steps = {"num_steps": 8, "num_evaluations": 4, "batch_size": 5}
trained = ag.amortized_vi(jax.random.key(0), xs, encoder=encoder, **steps, **common)
local = ag.fit_local(
    jax.random.key(0), xs, encoder=trained.encoder, num_steps=6, warmup_steps=4, num_samples=4, max_reruns=1, **common
)
evidence = ag.evidence_of_data(
    jax.random.key(0), xs, method="importance", phis=local.phi, num_samples=20, **common
)
np.savez(
    out, processes=jax.process_count(), devices=len({device.process_index for device in jax.devices()}),
    encoder=jax.flatten_util.ravel_pytree(trained.encoder)[0], elbo=trained.trace.elbo, change=trained.change,
    phi=local.phi, local_elbo=local.elbo, log_evidence=evidence.log_evidence,
)
"""


def started(*args):
    return subprocess.Popen([sys.executable, "-W", "error", "-c", PROGRAM, *map(str, args)], stderr=subprocess.PIPE)


@pytest.mark.slow
def test_two_processes_compute_what_one_computes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    runs = {tmp_path / f"{number}.npz": started(port, number, tmp_path / f"{number}.npz") for number in range(2)}
    runs |= {tmp_path / "alone.npz": started("alone", 0, tmp_path / "alone.npz")}
    try:
        for process in runs.values():
            _, errors = process.communicate(timeout=400)
            assert process.returncode == 0, errors.decode()
    finally:
        for process in runs.values():
            process.kill()
    first, second, alone = (np.load(path) for path in runs)
    assert (first["processes"], first["devices"], alone["processes"]) == (2, 2, 1)
    for name in set(alone.files) - {"processes", "devices"}:
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_allclose(first[name], alone[name], rtol=1e-5, atol=1e-5, err_msg=name)
