"""The stage of a run that is kept, and its errors, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from amortgap.inference.local.certificate import Certificate
from amortgap.inference.local.selection import choose, select

NOISE = np.random.default_rng(0).normal(size=(4, 50)).astype(np.float32)


def stages(*means):
    """Draws of every stage with these exact means and differences whose deviation is about 1.4."""
    return jnp.asarray(NOISE - NOISE.mean(axis=1, keepdims=True) + np.array(means, np.float32)[:, None])


@pytest.mark.parametrize(
    ("means", "kept"),
    [
        ((0.0, 1.0, 2.0, 3.0), 3),  # each better than the one before
        ((0.0, 5.0, 2.0, 0.1), 1),  # two are better than the end beyond chance, and the best of them is kept
        ((0.0, 2.0, 5.0, 0.1), 2),
        ((0.0, 1.0, 1.1, 1.0), 3),  # better by chance alone, two standard errors being 0.4
        ((0.0, 1.0, 1.7, 1.0), 2),  # better beyond it
        ((2.0, 1.9, 1.8, 1.95), 0),  # no stage is better than the start
    ],
)
def test_kept_stage_and_its_gains_are_those_of_the_draws(means, kept):
    values = stages(*means)
    found = choose(values)
    assert int(found.index) == kept
    gain = np.asarray(values[kept] - values[2], float)
    np.testing.assert_allclose(found.gain, gain.mean(), atol=1e-5)
    np.testing.assert_allclose(found.gain_error, gain.std(ddof=1) / 50**0.5, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.over_start, means[kept] - means[0], atol=1e-5)


def test_what_is_beyond_chance_is_told_by_the_draws_shared_with_the_end():
    # The end follows the third stage draw by draw, a tenth below: small, and certain.
    values = stages(0.0, 1.0, 2.0, 1.9)
    assert int(choose(values).index) == 3
    assert int(choose(values.at[3].set(values[2] - 0.1)).index) == 2


def test_the_kept_stage_is_evaluated_on_its_own_draws():
    phis, seen = jnp.arange(8.0).reshape(4, 2), []

    def evaluate(phi, choice):
        seen.append((phi, choice))
        return jnp.array([1.0, 3.0, 4.0, 9.0, 0.5]), Certificate(*jnp.ones(3))

    selected = select(phis, stages(0.0, 5.0, 2.0, 0.1), evaluate)
    np.testing.assert_array_equal(selected.phi, phis[1])
    np.testing.assert_array_equal(seen[0][0], phis[1])
    assert int(seen[0][1].index) == 1
    np.testing.assert_allclose(selected.elbo, 3.5)
    np.testing.assert_allclose(selected.standard_error, np.std([1.0, 3.0, 4.0, 9.0, 0.5], ddof=1) / 5**0.5, rtol=1e-6)
    np.testing.assert_allclose(selected.start_elbo, 3.5 - 5.0, atol=1e-5)
    np.testing.assert_allclose(selected.horizon_gain, 5.0 - 2.0, atol=1e-5)
    assert selected.certificate.nats == 1
