"""Faults of files and devices that no other test tries: a full disk under a figure, changed data, shards."""

import os
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import sklearn.datasets

import amortgap as ag
from amortgap import figures


def test_a_figure_is_whole_or_as_it_was(tmp_path, monkeypatch):
    figure, ax = plt.subplots(figsize=(1, 1))
    ax.plot([0, 1])
    before = [path.read_bytes() for path in figures.save(figure, tmp_path, "figure")]

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"disk full: cannot write \d+ bytes to .*figure\.pdf \(\d+ bytes free"):
        figures.save(figure, tmp_path, "figure")
    assert [(tmp_path / name).read_bytes() for name in ("figure.pdf", "figure.png")] == before
    assert len(list(tmp_path.iterdir())) == 2
    plt.close(figure)


def test_data_that_are_not_the_known_ones_are_refused(monkeypatch):
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    images[17, 3] += 1
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda return_X_y: (images, labels))
    with pytest.raises(ValueError, match=r"digits have changed: sha256 [0-9a-f]{64}, expected 8f26b2bd"):
        ag.data.load_digits()


@pytest.mark.parametrize("xs", [np.array([[{}]], object), np.array([["a"]], object)], ids=["object", "text"])
def test_object_arrays_are_refused_as_data(key, xs):
    family = ag.families.MeanFieldNormal(1)
    with pytest.raises(ValueError, match="xs must be an array of numbers"):
        ag.fit_local(key, xs, model=ag.models.PoissonGamma(shape=1.0, rate=1.0), family=family)


SHARDS = """
import jax, jax.numpy as jnp, numpy as np
from amortgap._internal.devices import map_data, map_sharded

def descend(i, x):
    # Parameters that start from zeros and not from the data: in a mapped shard they could pass for replicated, and
    # their gradient for a sum over all devices.
    gradient = jax.grad(lambda phi: jnp.sum((phi - x) ** 2))
    return jax.lax.fori_loop(0, 20, lambda _, phi: phi - 0.1 * gradient(phi), jnp.zeros(2))

xs = jax.random.normal(jax.random.key(0), (11, 2))
assert jax.device_count() == 8
found = jax.jit(lambda xs: map_sharded(descend, xs, chunk_size=4, devices=tuple(jax.devices())))(xs)
np.testing.assert_allclose(found, map_data(descend, xs, chunk_size=4), rtol=1e-5)
np.testing.assert_allclose(found, (1 - 0.8**20) * xs, rtol=1e-5)
print("equal")
"""


def test_parameters_that_start_at_zero_are_fitted_to_the_data_of_their_own_shard():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    command = [sys.executable, "-W", "error", "-c", SHARDS]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"XLA_FLAGS": flags}, check=False)
    assert done.stdout == "equal\n", done.stderr
