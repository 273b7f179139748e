"""What an encoder loses that sees only part of x: the closed form against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import amortgap as ag
from amortgap.gaps import conditioning_gap

KEY = jax.random.key(0)
FA = ag.models.FactorAnalysis(
    loadings=jnp.array([[1.0, 0.3], [0.5, 1.0], [-0.4, 0.8]]),
    mean=jnp.zeros(3),
    noise_variance=jnp.array([0.5, 1, 0.7]),
)
PRECISION = np.asarray(FA.posterior_precision())


def test_conditioning_gap_is_what_the_best_restricted_encoder_loses():
    floor = float(FA.conditioning_gap([0, 2]))
    # The mean over many data of the KL's mean part at E[m | x_S], by Monte Carlo from the definition.
    xs = jax.vmap(lambda k: FA.sample(k)[1])(jax.random.split(KEY, 20_000))
    means = np.asarray(jax.vmap(FA.posterior_mean)(xs))
    seen = np.asarray(xs)[:, [0, 2]]
    fitted = seen @ np.linalg.lstsq(seen, means, rcond=None)[0]
    losses = 0.5 * np.einsum("ni,ij,nj->n", means - fitted, PRECISION, means - fitted)
    assert abs(losses.mean() - floor) < 5 * losses.std() / 20_000**0.5
    assert float(FA.conditioning_gap([0, 1, 2])) == pytest.approx(0, abs=1e-5)
    signal = np.asarray(FA.loadings).T @ np.diag(1 / np.asarray(FA.noise_variance)) @ np.asarray(FA.loadings)
    assert float(FA.conditioning_gap([])) == pytest.approx(0.5 * np.trace(signal), rel=1e-5)
    assert 0 < floor < float(FA.conditioning_gap([0])) < float(FA.conditioning_gap([]))


def test_conditioning_gap_of_a_filter_on_a_chain(x64):
    # The encoder of step t that sees only the past: the gap of one step of an autoregression, by the general formula.
    length, phi, q, r = 8, 0.8, 0.5, 0.7
    prior = np.diag(np.full(length, (1 + phi**2) / q)) - (phi / q) * (np.eye(length, k=1) + np.eye(length, k=-1))
    prior[0, 0] = prior[-1, -1] = 1 / q
    precision, covariance = prior + np.eye(length) / r, np.linalg.inv(prior)
    of_x = covariance + r * np.eye(length)
    gain = np.linalg.inv(precision) / r
    t = 4
    spread, cross = gain @ of_x @ gain.T, gain @ of_x
    past = conditioning_gap(
        jnp.asarray(precision[t : t + 1, t : t + 1]), jnp.asarray(spread[t : t + 1, t : t + 1]),
        jnp.asarray(cross[t : t + 1, : t + 1]), jnp.asarray(of_x[: t + 1, : t + 1]),
    )  # fmt: skip
    # Directly: E[m_t | past] is the filter mean, and Var(m_t | past) = filter variance - smoother variance.
    kept = np.s_[: t + 1]
    filter_variance = np.linalg.inv(np.linalg.inv(covariance[kept, kept]) + np.eye(t + 1) / r)[t, t]
    smoother_variance = np.linalg.inv(precision)[t, t]
    np.testing.assert_allclose(past, 0.5 * precision[t, t] * (filter_variance - smoother_variance), rtol=1e-9)
    assert float(past) > 0.01
