"""Calibration of exact, narrow and shifted posteriors, and k-hat of a data set."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import amortgap as ag
from amortgap.diagnostics import Calibration, Simulations, calibration, pareto_k, simulate


@pytest.fixture(scope="module")
def family():
    return ag.families.FullRankNormal(2)


@pytest.fixture(scope="module")
def many(factor_analysis):
    """Two thousand simulated data."""
    return simulate(jax.random.key(11), model=factor_analysis, num_data=2000)


@pytest.fixture(scope="module")
def posteriors(factor_analysis, many, family):
    root = jnp.linalg.cholesky(jnp.linalg.inv(factor_analysis.posterior_precision()))
    return jax.vmap(lambda x: family.from_moments(factor_analysis.posterior_mean(x), root))(many.xs)


def test_exact_posteriors_are_calibrated(factor_analysis, many, posteriors, family, key):
    found = calibration(key, posteriors, many, model=factor_analysis, family=family)
    assert found.histogram(20).shape == (2, 20) and found.histogram(20).sum() == 2 * 2000
    assert np.all(found.uniformity(20) > 1e-3)
    levels = np.array([0.1, 0.5, 0.9])
    share, error = found.coverage(levels)
    assert np.all(np.abs(share - levels) < 4 * error)


@pytest.mark.parametrize("num_draws", [9, 99])
def test_coverage_has_no_bias_at_levels_between_two_ranks(num_draws):
    """Every rank equally often: what a calibrated posterior gives in expectation."""
    ranks = np.arange(num_draws + 1)
    found = Calibration(ranks=jnp.asarray(ranks[:, None]), density_ranks=jnp.asarray(ranks), num_draws=num_draws)
    levels = np.array([0.0, 0.07, 0.28, 0.55, 0.95, 1.0])
    np.testing.assert_allclose(found.coverage(levels)[0], levels, atol=1e-12)


def test_coverage_of_a_narrow_posterior_is_the_closed_form(factor_analysis, many, posteriors, family, key):
    """Scales halved: the region of level c is an ellipse of squared radius -2 log(1 - c) / 4 of the truth."""
    found = calibration(
        key,
        posteriors.at[:, 2:4].add(-np.log(2)).at[:, 4:].multiply(0.5),
        many,
        model=factor_analysis,
        family=family,
        num_draws=199,
    )
    share, error = found.coverage([0.5, 0.9])
    truth = 1 - (1 - np.array([0.5, 0.9])) ** 0.25
    np.testing.assert_allclose(error, np.sqrt(share * (1 - share) / 2000))
    assert np.all(np.abs(share - truth) < 4 * error)
    counts = found.histogram(20)
    assert np.all(counts[:, [0, -1]] > 2 * 100) and np.all(found.uniformity() < 1e-6)


def test_a_shift_tilts_the_ranks_of_its_coordinate_alone(factor_analysis, many, posteriors, family, key):
    root = jnp.linalg.cholesky(jnp.linalg.inv(factor_analysis.posterior_precision()))
    shifted = posteriors.at[:, 0].add(float(root[0, 0]))
    found = calibration(key, shifted, many, model=factor_analysis, family=family)
    ranks = np.asarray(found.ranks)
    # One standard deviation too high: the latent lies below all but Phi(-1/sqrt 2) of the draws on average.
    assert abs(ranks[:, 0].mean() / 99 - 0.2398) < 0.03
    first, second = found.uniformity()
    assert first < 1e-6 < 1e-3 < second


def test_k_hat_of_a_mean_field_optimum_is_the_correlation_for_every_datum(factor_analysis, simulated, optima, key):
    """For a two-dimensional normal posterior, whatever the datum."""
    precision = factor_analysis.posterior_precision()
    rho = abs(float(precision[0, 1] / jnp.sqrt(precision[0, 0] * precision[1, 1])))
    with warnings.catch_warnings():
        # Single data may exceed 0.7 by chance.
        warnings.simplefilter("ignore", ag.evidence.UnreliableEvidence)
        found = pareto_k(
            key, optima, simulated.xs, model=factor_analysis, family=ag.families.MeanFieldNormal(2), num_samples=4000
        )
    mean = float(jnp.mean(found.pareto_k))
    # The tail of 4000 draws is not yet the limit: the estimator is biased by less than a tenth there.
    assert abs(mean - rho) < 0.1


def test_bad_input_is_refused_by_name(factor_analysis, simulated, optima, key, as_users_call):
    family = ag.families.MeanFieldNormal(2)
    with pytest.raises(ValueError, match="num_samples must be a whole number, at least 25"):
        pareto_k(key, optima, simulated.xs, model=factor_analysis, family=family, num_samples=10)
    with pytest.raises(ValueError, match="phis must have shape"):
        calibration(key, optima[:3], simulated, model=factor_analysis, family=family)
    with pytest.raises(ValueError, match=r"simulation needs model.sample, which LogJoint lacks"):
        simulate(key, model=ag.models.from_log_joint(lambda z, x: z[0], latent_dim=1), num_data=3)
    found = calibration(key, optima, Simulations(*simulated), model=factor_analysis, family=family, num_draws=9)
    with pytest.raises(ValueError, match="num_bins must divide the 10 possible ranks, got 4"):
        found.histogram(4)
    with pytest.raises(ValueError, match="levels must lie in"):
        found.coverage([1.5])
