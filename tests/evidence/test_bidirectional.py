"""Bidirectional Monte Carlo: a bound on log p(x) from either side, and the chains between them."""

import importlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import amortgap as ag
from amortgap.evidence import bidirectional
from amortgap.evidence.ais import Plan, make_settings, plan
from amortgap.evidence.bidirectional import _long_run
from amortgap.evidence.hmc import make_path


@pytest.mark.slow
def test_sandwich_holds_in_expectation_and_its_weights_are_unbiased(factor_analysis, key):
    """`E[w] = p(x)` forward and `E[1 / w] = 1 / p(x)` backward, over data enough to see the bias of either side."""
    simulated = ag.diagnostics.simulate(jax.random.key(7), model=factor_analysis, num_data=480)
    exact = jax.vmap(factor_analysis.log_evidence)(simulated.xs)
    found = ag.evidence_bounds(
        key,
        simulated.xs,
        model=factor_analysis,
        latents=simulated.latents,
        num_temperatures=20,
        num_chains=4,
        num_leapfrog=3,
    )
    assert found.proven
    for side, sign in ((found.lower, 1), (found.upper, -1)):
        difference = np.asarray(sign * (side - exact))
        error = difference.std(ddof=1) / difference.size**0.5
        assert difference.mean() < -3 * error  # a strict bound at so few temperatures
        ratio = np.exp(difference)
        assert abs(ratio.mean() - 1) < 4 * ratio.std(ddof=1) / ratio.size**0.5
    assert 0.5 < float(jnp.mean(found.acceptance)) < 0.8


def test_the_long_run_takes_the_median_step_of_the_last_temperature(key, monkeypatch):
    home, steps = importlib.import_module("amortgap.evidence.bidirectional"), []

    def stand_in(move_key, path, chain, beta, step, num_leapfrog):
        steps.append(float(step))
        return chain, beta

    monkeypatch.setattr(home, "transition", stand_in)
    model = ag.models.FactorAnalysis(loadings=jnp.ones((1, 1)), mean=jnp.zeros(1), noise_variance=jnp.ones(1))
    path = make_path(model, jnp.ones(1), start="prior", family=None, phi=None)
    settings, betas = make_settings(
        temperatures=None,
        schedule="linear",
        num_temperatures=5,
        num_chains=2,
        num_leapfrog=1,
        num_pilots=3,
        step_size=None,
    )
    fixed = Plan(betas, jnp.array([[0.5, 0.6, 0.7], [0.1, 0.2, 0.9], [0.3, 0.4, 0.8]]))
    _long_run(key, path, fixed, jnp.zeros(2), jnp.zeros((2, 1)), settings, 3)
    np.testing.assert_allclose(steps, 0.4)
    steps.clear()
    _long_run(key, path, Plan(betas, jnp.zeros((0, 1))), jnp.zeros(2), jnp.zeros((2, 1)), settings, 3)
    np.testing.assert_allclose(steps, 0.1)


@pytest.mark.slow
def test_reverse_chains_on_real_data_are_labelled_heuristic(factor_analysis, simulated, optima, key):
    """From the mean field optimum the path is short, so both sides must agree with the exact value within error.

    The posterior is wider than q: with fewer temperatures the weights' tails are too heavy for their standard errors.
    """
    found = bidirectional(
        key,
        simulated.xs[0],
        model=factor_analysis,
        family=ag.families.MeanFieldNormal(2),
        phi=optima[0],
        start="q",
        num_temperatures=40,
        num_chains=200,
        num_leapfrog=3,
        num_warmup=20,
    )
    assert not found.proven
    exact = factor_analysis.log_evidence(simulated.xs[0])
    assert abs(float(found.lower - exact)) < 4 * float(found.lower_standard_error) < 0.3
    assert abs(float(found.upper - exact)) < 4 * float(found.upper_standard_error) < 0.3


def test_plan_both_ways_and_the_run_between_have_keys_of_their_own(factor_analysis, simulated, key, monkeypatch):
    home, seen = importlib.import_module("amortgap.evidence.bidirectional"), []
    forward = SimpleNamespace(log_weights=jnp.zeros(3), ends=jnp.zeros((3, 2)), acceptance=jnp.ones(()))
    for name, result in (
        ("plan", None),
        ("anneal", forward),
        ("_long_run", jnp.zeros((3, 2))),
        ("anneal_back", jnp.zeros(3)),
    ):

        def stand_in(first, *rest, result=result):
            seen.append(tuple(jax.random.key_data(first).tolist()))
            return result

        monkeypatch.setattr(home, name, stand_in)
    bidirectional(key, simulated.xs[0], model=factor_analysis, num_temperatures=4, num_chains=3)
    assert len(seen) == len(set(seen)) == 4


def test_reverse_chains_start_where_the_weights_are_and_warm_up_to_the_posterior(key):
    """The posterior is N(1, 1/2); chains of the middle of the path would have a variance of 2/3."""
    model = ag.models.FactorAnalysis(loadings=jnp.ones((1, 1)), mean=jnp.zeros(1), noise_variance=jnp.ones(1))
    x, chains = jnp.array([2.0]), 400
    settings, betas = make_settings(
        temperatures=None,
        schedule="linear",
        num_temperatures=3,
        num_chains=chains,
        num_leapfrog=3,
        num_pilots=4,
        step_size=None,
    )
    path = make_path(model, x, start="prior", family=None, phi=None)
    fixed = plan(key, path, betas, settings)
    ends = jnp.linspace(-4, 4, chains)[:, None]
    only = jnp.where(jnp.arange(chains) == 7, 0.0, -jnp.inf)
    starts = _long_run(key, path, fixed, only, ends, settings, 0)
    np.testing.assert_array_equal(starts, jnp.broadcast_to(ends[7], starts.shape))
    warm = np.asarray(_long_run(key, path, fixed, jnp.zeros(chains), ends, settings, 60))
    assert abs(warm.mean() - 1) < 4 * (0.5 / chains) ** 0.5
    assert abs(warm.var() / 0.5 - 1) < 4 * (2 / chains) ** 0.5
