"""Encoder training on several devices: what one device gives, whatever does not divide."""

import os
import subprocess
import sys

import jax
import pytest

import amortgap as ag

PROGRAM = '''
import sys
import jax, jax.numpy as jnp, numpy as np
import amortgap as ag

model = ag.models.FactorAnalysis(
    loadings=jnp.array([[1.0, 0.9], [0.6, 1.2], [0.8, -0.5]]), mean=jnp.zeros(3), noise_variance=jnp.ones(3)
)
family = ag.families.MeanFieldNormal(2)
# 11 data, 5 in a batch and 3 for validation: nothing divides by 8.
xs, validation = np.array(jax.random.normal(jax.random.key(1), (11, 3))), np.eye(3, dtype=np.float32)
encoder = ag.encoders.linear(jax.random.key(2), 3, family, rank=1, standardize=xs)
settings = {"model": model, "family": family, "num_steps": 8, "num_evaluations": 4, "batch_size": 5}

def numbers(fit):
    return jax.tree.leaves((fit.encoder, fit.model, fit.trace, fit.change, fit.change_standard_error))

def compare(left, right):
    for one, eight in zip(numbers(left), numbers(right), strict=True):
        np.testing.assert_allclose(eight, one, rtol=1e-5, atol=1e-6)

assert jax.device_count() == 8
def train(function=ag.train_vae, *, devices, **changed):
    return function(jax.random.key(0), xs, encoder=encoder, devices=devices, **settings | changed)

ONE = jax.devices()[:1]
def data(): compare(*[train(validation=validation, devices=devices) for devices in (ONE, None)])
def batch_of_one(): compare(*[train(batch_size=1, devices=devices) for devices in (ONE, jax.devices()[5:])])
def seeds():
    keys = jax.random.split(jax.random.key(3), 2)
    def run(devices):
        return jax.vmap(lambda key: ag.amortized_vi(key, xs, encoder=encoder, devices=devices, **settings))(keys)
    compare(run(None), run(jax.devices()))

def shares():
    """Each device holds its share of the data, and computes on its share of the batch."""
    from amortgap._internal.devices import Layout, mean_over_rows
    (placed,) = Layout(jax.devices()).padded((jnp.asarray(xs),))
    assert [shard.data.shape for shard in placed.addressable_shards] == [(2, 3)] * 8
    mean = jax.jit(lambda rows: mean_over_rows(lambda x: jnp.sum(x @ x[:, None]), (rows,), tuple(jax.devices())))
    assert "f32[1,3]" in mean.lower(jnp.asarray(xs[:5])).compile().as_text(), "the batch is not split"
    np.testing.assert_allclose(mean(jnp.asarray(xs[:5])), np.mean(np.sum(xs[:5] ** 2, 1)), rtol=1e-6)

globals()[sys.argv[1]]()
print("equal")
'''


@pytest.mark.parametrize(
    "part", ["shares", "data", *(pytest.param(name, marks=pytest.mark.slow) for name in ("batch_of_one", "seeds"))]
)
def test_eight_devices_train_what_one_trains(part):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    command = [sys.executable, "-W", "error", "-c", PROGRAM, part]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"XLA_FLAGS": flags}, check=False)
    assert done.stdout == "equal\n", done.stderr


def test_no_devices_are_refused(key):
    family = ag.families.MeanFieldNormal(1)
    model = ag.models.PoissonGamma(shape=1.0, rate=1.0)
    with pytest.raises(ValueError, match="devices must hold at least one device, got none"):
        ag.amortized_vi(
            key,
            jax.numpy.ones((4, 2)),
            model=model,
            family=family,
            encoder=ag.encoders.constant(key, 2, family),
            devices=[],
        )
