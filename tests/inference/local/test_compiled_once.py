"""Fitters of one datum are compiled once: other keys, data, weights and starts trace nothing anew."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import amortgap as ag
from amortgap import inference

TRACES = []
FAMILY = ag.families.MeanFieldNormal(2)
SETTINGS = {"num_steps": 3, "num_samples": 4, "max_reruns": 0}


def log_joint(weights, z, x):
    """A Poisson model of one count with a log-linear rate."""
    TRACES.append(None)
    return -0.5 * jnp.sum(z**2) + x[0] * weights @ z - jnp.exp(weights @ z)


def model_of(weights):
    return ag.models.from_log_joint(log_joint, 2, params=weights)


def local_vi(key, start, x, model, **settings):
    return ag.local_vi(key, x, model=model, family=FAMILY, **SETTINGS, **settings).phi


def from_starts(key, start, x, model):
    given = {"num_starts": 2, "start_steps": 2, **SETTINGS}
    return inference.local_vi_from_starts(key, x, model=model, family=FAMILY, **given).phi


def refine(key, start, x, model, **settings):
    return inference.refine(key, start, x, model=model, family=FAMILY, num_steps=2, **settings).phi


def buffered(key, start, x, model, **settings):
    return inference.buffered_bound(key, start, x, model=model, family=FAMILY, num_steps=2, **settings)


CALLS = {
    "local_vi": local_vi,
    "local_vi from init": lambda key, start, x, model: local_vi(key, start, x, model, init=start),
    "local_vi, every start": lambda *given: local_vi(*given, init=given[1], every_start=True),
    "local_vi_from_starts": from_starts,
    "refine": refine,
    "buffered_bound": buffered,
}


@pytest.mark.parametrize("name", CALLS)
def test_a_second_call_traces_nothing_and_reads_its_arguments(name):
    call, key = CALLS[name], jax.random.key
    given = (key(0), FAMILY.standard(), jnp.array([2.0]), model_of(jnp.array([0.5, -0.3])))
    first = call(*given)
    traced = len(TRACES)
    assert traced > 0
    nearer = jnp.array([0.3, -0.2, -0.1, -0.1])
    changed = (key(1), nearer, jnp.array([5.0]), model_of(jnp.array([0.9, 0.4])))
    for place, value in enumerate(changed):
        other = call(*given[:place], value, *given[place + 1 :])
        # Only the calls that take the start read it.
        if not (place == 1 and name in ("local_vi", "local_vi_from_starts")):
            assert not np.allclose(first, other), place
    np.testing.assert_array_equal(first, call(*given))
    assert len(TRACES) == traced


@pytest.mark.parametrize("name", ["refine", "buffered_bound"])
def test_another_rate_traces_nothing(name):
    given = (jax.random.key(0), FAMILY.standard(), jnp.array([2.0]), model_of(jnp.array([0.5, -0.3])))
    first = CALLS[name](*given, learning_rate=0.1)
    traced = len(TRACES)
    assert not np.allclose(first, CALLS[name](*given, learning_rate=0.2))
    assert len(TRACES) == traced


@pytest.mark.parametrize("name", ["local_vi", "refine", "buffered_bound"])
def test_transformed_calls_equal_plain_ones(name):
    keys, xs = jax.random.split(jax.random.key(0), 2), jnp.array([[2.0], [4.0]])
    start, model = FAMILY.standard(), model_of(jnp.array([0.5, -0.3]))
    plain = jnp.stack([CALLS[name](key, start, x, model) for key, x in zip(keys, xs, strict=True)])
    mapped = jax.jit(jax.vmap(lambda key, x: CALLS[name](key, start, x, model)))(keys, xs)
    np.testing.assert_allclose(mapped, plain, rtol=1e-4, atol=1e-5)


def test_a_model_that_is_no_pytree_is_never_stale():
    """JAX cannot see a change inside an object of an unregistered class, so no compiled program may outlive it."""

    class Shifted:
        latent_dim = 2
        shift = 0.0

        def log_joint(self, z, x):
            return -0.5 * jnp.sum((z - self.shift) ** 2) - 0.5 * jnp.sum((x - z) ** 2)

    model = Shifted()
    given = jax.random.key(0), jnp.zeros(4), jnp.ones(2), model
    first = {name: CALLS[name](*given) for name in ("refine", "buffered_bound")}
    model.shift = 2.0
    for name, value in first.items():
        assert not np.allclose(value, CALLS[name](*given)), name
