"""Importance sampling against exact values, its bias and its errors, and what it says of bad proposals."""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import amortgap as ag
from amortgap.evidence import UnreliableEvidence, importance, pareto_k


def test_every_weight_equals_the_evidence_at_the_exact_posterior(factor_analysis, simulated, key):
    """Zero-variance identity: with q the posterior one draw is enough."""
    family = ag.families.FullRankNormal(2)
    x = simulated.xs[0]
    posterior = factor_analysis.posterior(x)
    phi = family.from_moments(posterior.mean, jnp.linalg.cholesky(posterior.covariance))
    found = importance(key, x, model=factor_analysis, family=family, phi=phi, num_samples=30)
    np.testing.assert_allclose(found.log_evidence, factor_analysis.log_evidence(x), rtol=2e-6)
    assert found.standard_error < 1e-5
    np.testing.assert_allclose(found.effective_sample_size, 30, rtol=1e-4)
    assert np.isneginf(found.pareto_k)


def test_estimates_scatter_around_the_exact_value_as_their_standard_errors_say(factor_analysis, simulated, optima, key):
    family = ag.families.MeanFieldNormal(2)
    found = ag.evidence_of_data(
        key, simulated.xs, model=factor_analysis, method="importance", family=family, phis=optima, num_samples=2000
    )
    z = (found.log_evidence - jax.vmap(factor_analysis.log_evidence)(simulated.xs)) / found.standard_error
    n = z.size
    assert abs(float(jnp.mean(z))) < 3.5 / n**0.5
    # Of the square of a standard normal: mean one, variance two.
    assert abs(float(jnp.mean(z**2)) - 1) < 4 * (2 / n) ** 0.5


def test_bound_rises_with_the_number_of_draws(factor_analysis, simulated, optima, key):
    """In expectation, over data, from the ELBO, which falls short by the KL divergence, to log p(x)."""
    family = ag.families.MeanFieldNormal(2)
    xs, phis = jnp.tile(simulated.xs, (10, 1)), jnp.tile(optima, (10, 1))
    exact = jax.vmap(factor_analysis.log_evidence)(xs)
    n, kl = len(xs), float(factor_analysis.approximation_gap())
    short = []
    for draws in (2, 4, 16, 256):
        keys = jax.random.split(key, n)
        run = jax.vmap(
            lambda k, x, phi, draws=draws: (
                importance(
                    k, x, model=factor_analysis, family=family, phi=phi, num_samples=draws, block_size=8
                ).log_evidence
            )
        )
        short.append(np.asarray(exact - run(keys, xs, phis)))
    means, errors = np.mean(short, axis=1), np.std(short, axis=1, ddof=1) / n**0.5
    assert 4 * errors[0] < means[0] < kl + 4 * errors[0]
    assert means[0] > means[1] > means[2] > means[3] and abs(means[3]) < 4 * errors[3] + kl / 256


def test_draws_beyond_the_last_block_do_not_count(factor_analysis, simulated, optima, key):
    """Seven draws in blocks of four: the eighth is drawn and must not weigh."""
    family = ag.families.MeanFieldNormal(2)
    x, phi = simulated.xs[0], optima[0]
    found = importance(key, x, model=factor_analysis, family=family, phi=phi, num_samples=7, block_size=4)
    weights = []
    for block in range(2):
        for draw_key in jax.random.split(jax.random.fold_in(key, block), 4):
            z, log_q = family.sample_and_log_prob(draw_key, phi)
            weights.append(float(factor_analysis.log_joint(z, x) - log_q))
    weights = np.exp(np.array(weights[:7]))
    np.testing.assert_allclose(found.log_evidence, np.log(weights.mean()), rtol=1e-5)
    np.testing.assert_allclose(found.standard_error, weights.std(ddof=1) / 7**0.5 / weights.mean(), rtol=1e-3)
    np.testing.assert_allclose(found.effective_sample_size, weights.sum() ** 2 / (weights**2).sum(), rtol=1e-4)


@pytest.mark.slow
def test_defensive_mixture_mends_a_proposal_that_misses_the_posterior(factor_analysis, simulated, key):
    family = ag.families.MeanFieldNormal(2)
    narrow = jnp.tile(jnp.array([2.5, 2.5, -3.0, -3.0]), (20, 1))
    xs = simulated.xs[:20]
    exact = jax.vmap(factor_analysis.log_evidence)(xs)
    settings = {"model": factor_analysis, "method": "importance", "family": family, "phis": narrow}
    with pytest.warns(UnreliableEvidence, match="k-hat above 0.7"):
        alone = ag.evidence_of_data(key, xs, num_samples=2000, **settings)
    assert float(jnp.median(alone.pareto_k)) > 0.7
    mixed = ag.evidence_of_data(key, xs, num_samples=2000, defensive=0.5, **settings)
    assert float(jnp.max(mixed.pareto_k)) < 0.7
    z = (mixed.log_evidence - exact) / mixed.standard_error
    assert float(jnp.max(jnp.abs(z))) < 4.5
    assert float(jnp.mean(alone.log_evidence - exact)) < -1


def test_k_hat_is_the_shape_of_pareto_draws_and_the_correlation_of_a_mean_field_optimum(key):
    draws = jax.random.exponential(key, (40_000,))
    for shape in (0.3, 0.9):
        # exp(shape * exponential) is Pareto with that shape; the tail holds 600 draws.
        assert abs(float(pareto_k(shape * draws)) - shape) < 4 * (1 + shape) / 600**0.5
    rho = 0.6
    precision = jnp.array([[1.0, rho], [rho, 1.0]])
    z = jax.random.normal(key, (100_000, 2))
    log_weights = -0.5 * jnp.sum((z @ precision) * z, axis=1) + 0.5 * jnp.sum(z**2, axis=1)
    assert abs(float(pareto_k(log_weights)) - rho) < 0.12


def test_k_hat_takes_a_few_weights_above_a_flat_bulk_for_an_alarm():
    # A proposal that fits one of two modes exactly: constant weights, but for the rare draws that see the other mode.
    assert np.isposinf(pareto_k(jnp.log(jnp.where(jnp.arange(1000) < 5, 50.0, 1.0))))
    assert np.isneginf(pareto_k(jnp.zeros(1000)))
    # Beyond the floating range the largest weight is all there is.
    assert np.isposinf(pareto_k(jnp.where(jnp.arange(1000) < 1, 0.0, -1000.0 - jnp.arange(1000.0))))


def test_k_hat_matches_maximum_likelihood(key):
    weights = np.asarray(stats.genpareto.rvs(0.5, size=20_000, random_state=3))
    tail = np.sort(weights)[-426:]
    shape, _, _ = stats.genpareto.fit(tail[1:] - tail[0], floc=0)
    assert abs(float(pareto_k(jnp.log(jnp.asarray(weights)))) - shape) < 0.05


def test_a_datum_without_weight_is_minus_infinity_and_named(key):
    """The support of x = 1 lies where q never draws; the other data are unharmed."""

    def log_joint(z, x):
        inside = (x[0] < 0.5) | (z[0] > 100.0)
        return jnp.where(inside, -0.5 * jnp.sum(z**2) - 0.5 * jnp.log(2 * jnp.pi), -jnp.inf)

    model = ag.models.from_log_joint(log_joint, latent_dim=1)
    family = ag.families.MeanFieldNormal(1)
    xs = jnp.array([[0.0], [1.0], [0.0]])
    with pytest.warns(UnreliableEvidence, match=r"-inf, every weight is zero: 1 of 3 data, \[1\]"):
        found = ag.evidence_of_data(
            key, xs, model=model, method="importance", family=family, phis=jnp.zeros((3, 2)), num_samples=50
        )
    np.testing.assert_allclose(found.log_evidence, [0.0, -np.inf, 0.0], atol=1e-6)
    np.testing.assert_array_equal(np.isinf(found.standard_error), [False, True, False])
    assert found.effective_sample_size[1] == 0
    assert not np.any(np.isnan(found.pareto_k[jnp.array([0, 2])]))
    mean = ag.gaps.estimate(found.log_evidence, found.standard_error)
    assert np.isneginf(mean.mean) and np.isposinf(mean.data_standard_error)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Box:
    """Uniform within `width / 2` of phi: zero everywhere else."""

    width: float = dataclasses.field(metadata={"static": True})
    latent_dim = 1
    size = 1

    def standard(self):
        return jnp.zeros(1)

    def log_prob(self, z, phi):
        return jnp.where(jnp.abs(z[0] - phi[0]) < self.width / 2, -jnp.log(self.width), -jnp.inf)

    def sample_and_log_prob(self, key, phi):
        z = phi + self.width * (jax.random.uniform(key, (1,)) - 0.5)
        return z, self.log_prob(z, phi)


@pytest.mark.slow
def test_a_proposal_without_density_where_the_posterior_lives_is_told(key):
    """Its weights are bounded and look harmless; posterior standard normal to 1/3 of the variance, boxes around 0."""
    model = ag.models.FactorAnalysis(loadings=jnp.ones((2, 1)), mean=jnp.zeros(2), noise_variance=jnp.ones(2))
    xs = jnp.zeros((3, 2))
    exact = np.asarray(jax.vmap(model.log_evidence)(xs))
    settings = {"model": model, "method": "importance", "num_samples": 2000}
    # Beside the posterior, on half of it, and within 0.6 standard deviations of its mean.
    phis = jnp.array([[3.0], [0.5], [0.0]])
    with pytest.warns(UnreliableEvidence, match=r"k-hat above 0.7.*3 of 3 data, \[0, 1, 2\]"):
        found = ag.evidence_of_data(key, xs, family=Box(0.7), phis=phis, **settings)
    assert np.all(np.isposinf(found.pareto_k))
    inside = stats.norm.cdf(np.asarray(phis)[:, 0] + 0.35, scale=3**-0.5)
    inside -= stats.norm.cdf(np.asarray(phis)[:, 0] - 0.35, scale=3**-0.5)
    # What it converges to is log p(x) plus the log of the posterior mass that it reaches.
    np.testing.assert_allclose(found.log_evidence, exact + np.log(inside), atol=0.15)
    # A box of seven standard deviations leaves out 5e-4 of the mass, no warning (warnings are errors here).
    wide = ag.evidence_of_data(key, xs, family=Box(4.04), phis=0 * phis, **settings)
    assert float(jnp.max(wide.pareto_k)) < 0.7
    # The share of the prior reaches all of it.
    mixed = ag.evidence_of_data(key, xs, family=Box(0.7), phis=phis, defensive=0.5, **settings)
    assert np.all(np.abs(mixed.log_evidence - exact) < 4.5 * mixed.standard_error)


def test_some_weights_may_be_zero(key):
    """Half of the proposal lies outside the support: its mass is one half."""
    model = ag.models.from_log_joint(
        lambda z, x: jnp.where(z[0] > 0, -0.5 * z[0] ** 2 - 0.5 * jnp.log(2 * jnp.pi), -jnp.inf), latent_dim=1
    )
    family = ag.families.MeanFieldNormal(1)
    found = importance(key, jnp.zeros(1), model=model, family=family, phi=jnp.zeros(2), num_samples=4000)
    assert abs(float(found.log_evidence) - np.log(0.5)) < 4 * float(found.standard_error)
    np.testing.assert_allclose(found.standard_error, 1 / 4000**0.5, rtol=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_samples": 0}, "num_samples must be a whole number, at least 1, got 0"),
        ({"defensive": 1.0}, r"defensive must be a number in \[0, 1\), got 1.0"),
        ({"phi": jnp.zeros(3)}, r"phi must have shape \(4,\)"),
        ({"temperatures": [0, 1]}, "'importance' does not take temperatures"),
        ({"method": "guess"}, "method must be one of 'auto', 'exact', 'quadrature', 'importance', 'ais'"),
        ({"phi": None}, "family and phi belong together"),
        ({"block_size": jnp.array(10)}, "block_size decides what is compiled and must be a plain value"),
    ],
)
@pytest.mark.usefixtures("as_users_call")
def test_bad_input_is_refused_by_name(factor_analysis, key, change, message):
    family = ag.families.MeanFieldNormal(2)
    good = {"method": "importance", "family": family, "phi": jnp.zeros(4)}
    with pytest.raises(ValueError, match=message):
        ag.log_evidence(key, jnp.zeros(3), model=factor_analysis, **(good | change))


def test_one_draw_is_the_elbo_and_knows_no_error(factor_analysis, optima, simulated, key):
    found = importance(
        key, simulated.xs[0], model=factor_analysis, family=ag.families.MeanFieldNormal(2), phi=optima[0], num_samples=1
    )
    assert jnp.isfinite(found.log_evidence) and jnp.isposinf(found.standard_error)


def test_defensive_mixture_needs_a_prior(key):
    model = ag.models.from_log_joint(lambda z, x: -jnp.sum(z**2), latent_dim=1)
    with pytest.raises(ValueError, match="needs log_prior, which LogJoint lacks"):
        importance(
            key, jnp.zeros(1), model=model, family=ag.families.MeanFieldNormal(1), phi=jnp.zeros(2), defensive=0.1
        )


def test_a_model_without_closed_form_says_so(key):
    model = ag.models.from_log_joint(lambda z, x: -jnp.sum(z**2), latent_dim=1)
    with pytest.raises(ValueError, match=r"needs model.log_evidence, which LogJoint lacks"):
        ag.log_evidence(key, jnp.zeros(1), model=model, method="exact")


def test_records_are_dataclasses_of_arrays(factor_analysis, key):
    exact = ag.log_evidence(key, jnp.zeros(3), model=factor_analysis)
    assert {field.name for field in dataclasses.fields(exact)} >= {"log_evidence", "standard_error", "pareto_k"}
    assert exact.standard_error == 0 and exact.bias == "none"


def test_data_that_cannot_be_the_models_are_refused_before_computing(factor_analysis, key):
    for function in (ag.evidence_of_data, ag.evidence_bounds):
        with pytest.raises(ValueError, match=r"xs holds 1 NaN or infinite entries, in rows 2"):
            function(key, jnp.zeros((4, 3)).at[2, 1].set(jnp.nan), model=factor_analysis)
        with pytest.raises(ValueError, match=r"xs must have shape \[N, 3\], got \(4, 5\)"):
            function(key, jnp.zeros((4, 5)), model=factor_analysis)


DEVICES = """
import jax, jax.numpy as jnp, numpy as np
import amortgap as ag
model = ag.models.PoissonGamma(shape=jnp.array(1.5), rate=jnp.array(0.7))
xs, phis = jnp.arange(5.0)[:, None], jnp.zeros((5, 2))
def run(devices):
    return ag.evidence_of_data(
        jax.random.key(0), xs, model=model, method="importance", family=ag.families.MeanFieldNormal(1), phis=phis,
        num_samples=20, devices=devices,
    ).log_evidence
assert len(jax.devices()) == 2
np.testing.assert_allclose(run(jax.devices()[:1]), run(None), rtol=1e-6)
def anneal(devices):
    return ag.evidence_bounds(
        jax.random.key(0), xs, model=model, latents=jnp.ones((5, 1)), num_temperatures=3, num_chains=2,
        num_leapfrog=1, num_pilots=2, devices=devices,
    )
for one, two in zip(jax.tree.leaves(anneal(jax.devices()[:1])), jax.tree.leaves(anneal(None)), strict=True):
    np.testing.assert_allclose(one, two, rtol=1e-5)
"""


@pytest.mark.slow
def test_two_devices_give_what_one_gives():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    done = subprocess.run([sys.executable, "-c", DEVICES], check=False, env=os.environ | {"XLA_FLAGS": flags})
    assert done.returncode == 0


def test_k_hat_does_not_depend_on_a_constant_in_the_log_weights():
    log_weights = 0.6 * jax.random.exponential(jax.random.key(5), (2000,))
    for shift in (-500.0, 500.0):
        np.testing.assert_allclose(pareto_k(log_weights + shift), pareto_k(log_weights), atol=0.01)


def test_exact_evidence_has_no_error_and_no_tail(factor_analysis, simulated, key):
    found = ag.log_evidence(key, simulated.xs[0], model=factor_analysis, method="exact")
    assert found.standard_error == 0
    assert found.effective_sample_size == np.inf
    assert found.pareto_k == -np.inf
