"""What several studies share."""

import subprocess
import sys
import textwrap
import threading
import time
import types
from pathlib import Path

import jax
import numpy as np
import pytest


def test_a_thing_is_made_once_however_many_threads_ask():
    from studies.shared import Kept

    kept, made = Kept(), []

    def make():
        time.sleep(0.05)
        made.append(1)
        return len(made)

    found = []
    threads = [threading.Thread(target=lambda: found.append(kept.once("thing", make))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1, 1, 1, 1]
    # Making one thing may need another.
    assert kept.once("other", lambda: 10 * kept.once("thing", make)) == 10
    with pytest.raises(RuntimeError, match="no luck"):
        kept.once("failing", lambda: (_ for _ in ()).throw(RuntimeError("no luck")))
    assert kept.once("failing", lambda: 3) == 3


def test_every_purpose_and_number_has_a_key_of_its_own():
    from studies.shared import purpose_key

    keys = [purpose_key(root, ("a", "b"), name, n) for root in (0, 1) for name in ("a", "b") for n in (0, 1)]
    assert len({np.asarray(jax.random.key_data(key)).tobytes() for key in keys}) == 8
    with pytest.raises(ValueError, match="not in tuple"):
        purpose_key(0, ("a", "b"), "c")


@pytest.mark.parametrize(
    ("elbo", "step"),
    [
        ([-3.0, -2.0, -1.0], 0),
        ([-3.0, np.nan, -1.0], 20),
        ([-3.0, -2.0, -np.inf], 30),
    ],
)
def test_the_step_by_which_training_broke_down(elbo, step):
    from studies.shared import broken_at

    trace = types.SimpleNamespace(step=np.array([10, 20, 30]), batch_elbo=np.zeros(3), elbo=np.array(elbo))
    assert broken_at(trace) == step


@pytest.mark.skipif(sys.platform != "linux", reason="only the allocator of Linux is asked to give memory back")
def test_memory_that_was_freed_goes_back_to_the_system():
    # In a process of its own, whose heap has no holes yet. Small blocks are kept; the last pins the end of the heap.
    code = """
        import psutil
        from studies.shared import release_memory

        resident = lambda: psutil.Process().memory_info().rss
        before = resident()
        blocks = [bytearray(3000) for _ in range(100_000)]
        last, held = blocks[-1], resident() - before
        del blocks
        kept = resident() - before
        release_memory()
        print(held, kept, resident() - before)
    """
    folder = Path(__file__).parents[2] / "experiments"
    command = [sys.executable, "-c", textwrap.dedent(code)]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    held, kept, left = map(int, found.stdout.split())
    assert held > 2.5e8
    assert kept > 0.5 * held
    assert left < 0.2 * held
