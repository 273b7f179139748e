"""The aggregated posterior against enumeration, its limits, and the rate at which it nears the prior."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import amortgap as ag


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Categorical:
    """A discrete latent in {0, 1, 2} with logits phi."""

    latent_dim = 1
    size = 3

    def standard(self):
        return jnp.zeros(3)

    def log_prob(self, z, phi):
        return jax.nn.log_softmax(phi)[z[0].astype(int)]

    def sample_and_log_prob(self, key, phi):
        z = jax.random.categorical(key, phi).astype(phi.dtype)[None]
        return z, self.log_prob(z, phi)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weights:
    """The prior of a finite mixture."""

    latent_dim = 1

    def log_prior(self, z):
        return jnp.log(jnp.array([0.2, 0.3, 0.5]))[z[0].astype(int)]


@pytest.fixture
def exact(factor_analysis, simulated):
    """Family and exact posteriors of the simulated data."""
    family = ag.families.FullRankNormal(2)
    root = jnp.linalg.cholesky(jnp.linalg.inv(factor_analysis.posterior_precision()))
    return family, jax.vmap(lambda x: family.from_moments(factor_analysis.posterior_mean(x), root))(simulated.xs)


def test_finite_mixture_by_enumeration(key):
    phis = 2 * jax.random.normal(key, (7, 3))
    aggregate = ag.aggregate_posterior(jnp.zeros((7, 1)), family=Categorical(), phi=phis, block_size=3)
    parts = np.asarray(jax.nn.softmax(phis))
    mixture, prior = parts.mean(axis=0), np.array([0.2, 0.3, 0.5])
    densities = [float(aggregate.log_prob(jnp.array([float(k)]))) for k in range(3)]
    np.testing.assert_allclose(np.exp(densities), mixture, rtol=1e-5)
    draws = jax.vmap(aggregate.sample)(jax.random.split(key, 10_000))[:, 0]
    shares = np.bincount(np.asarray(draws, int), minlength=3) / 10_000
    assert np.all(np.abs(shares - mixture) < 4 * np.sqrt(mixture * (1 - mixture) / 10_000))
    truth = (
        np.mean(np.sum(parts * np.log(parts / prior), axis=1)),
        np.mean(np.sum(parts * np.log(parts / mixture), axis=1)),
        np.sum(mixture * np.log(mixture / prior)),
    )
    found = aggregate.rate_split(key, model=Weights(), num_samples=2000)
    for value, estimate in zip(truth, found, strict=True):
        assert abs(float(estimate.mean) - value) < 4 * float(estimate.monte_carlo_standard_error)
    np.testing.assert_allclose(found.rate.mean, found.mutual_information.mean + found.marginal_kl.mean, rtol=1e-5)


def test_one_datum_carries_no_information(factor_analysis, simulated, exact, key):
    family, phis = exact
    found = ag.aggregate_posterior(simulated.xs[:1], family=family, phi=phis[:1]).rate_split(
        key, model=factor_analysis, num_samples=20
    )
    assert abs(float(found.mutual_information.mean)) < 1e-5
    assert float(found.mutual_information.monte_carlo_standard_error) < 1e-5


def test_information_is_at_most_the_log_of_the_number_of_data(factor_analysis, simulated, exact, key):
    """Far narrower posteriors than the true ones: the data are told apart and the bound is nearly reached."""
    family, phis = exact
    narrow = phis.at[:, 2:4].add(-8.0)
    for n in (5, 120):
        found = ag.aggregate_posterior(simulated.xs[:n], family=family, phi=narrow[:n], block_size=50).rate_split(
            key, model=factor_analysis, num_samples=10
        )
        value = float(found.mutual_information.mean)
        assert 0.99 * np.log(n) < value < np.log(n) + 1e-5


def test_with_exact_posteriors_the_mixture_nears_the_prior_as_one_over_n(key):
    """Expected `KL(q(z) || p(z))` is `(|Lambda| - 1) / (2 N)` to first order: half the chi-squared divergence of the
    joint density from the product of its marginals, over N."""
    model = ag.models.FactorAnalysis(loadings=jnp.array([[0.8], [0.5]]), mean=jnp.zeros(2), noise_variance=jnp.ones(2))
    family = ag.families.FullRankNormal(1)
    root = jnp.linalg.cholesky(jnp.linalg.inv(model.posterior_precision()))
    limit = 0.5 * (float(jnp.linalg.det(model.posterior_precision())) - 1)

    def split(k, n):
        xs = jax.vmap(lambda i: model.sample(jax.random.fold_in(k, i))[1])(jnp.arange(n))
        phis = jax.vmap(lambda x: family.from_moments(model.posterior_mean(x), root))(xs)
        aggregate = ag.aggregate_posterior(xs, family=family, phi=phis)
        return aggregate.rate_split(k, model=model, num_samples=2000 // n * 10).marginal_kl.mean

    scaled = []
    for n in (20, 80):
        values = np.asarray(jax.lax.map(lambda k, n=n: split(k, n), jax.random.split(key, 60))) * n
        scaled.append((values.mean(), values.std(ddof=1) / 60**0.5))
    for mean, error in scaled:
        # The next order in 1/N is a tenth of the limit at N = 20.
        assert abs(mean - limit) < 4 * error + 0.15 * limit, (scaled, limit)
        assert error < 0.3 * limit


def test_error_over_draws_is_the_spread_over_keys(factor_analysis, simulated, exact, key):
    family, phis = exact
    mixture = ag.aggregate_posterior(simulated.xs[:10], family=family, phi=phis[:10])
    found = jax.vmap(lambda k: mixture.rate_split(k, model=factor_analysis, num_samples=20))(jax.random.split(key, 300))
    for part in found:
        # The spread of 300 values is known to 4 %.
        ratio = jnp.std(part.mean, ddof=1) / jnp.mean(part.monte_carlo_standard_error)
        assert 0.8 < ratio < 1.25


def test_encoder_and_phi_give_the_same_mixture(factor_analysis, simulated, exact):
    family, phis = exact
    root = jnp.linalg.cholesky(jnp.linalg.inv(factor_analysis.posterior_precision()))
    amortized = ag.aggregate_posterior(
        simulated.xs, family=family, encoder=lambda x: family.from_moments(factor_analysis.posterior_mean(x), root)
    )
    local = ag.aggregate_posterior(simulated.xs, family=family, phi=phis)
    np.testing.assert_allclose(amortized.log_prob(jnp.ones(2)), local.log_prob(jnp.ones(2)), rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "give the encoder or the phi of every datum, one of the two"),
        ({"phi": jnp.zeros((2, 4)), "encoder": lambda x: jnp.zeros(4)}, "one of the two"),
        ({"phi": jnp.zeros((3, 4))}, r"phi must have shape \[N, size\] = \(2, 4\), got \(3, 4\)"),
        ({"phi": jnp.zeros((2, 4)), "block_size": 0}, "block_size must be a whole number"),
    ],
)
def test_bad_input_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        ag.aggregate_posterior(jnp.zeros((2, 3)), family=ag.families.MeanFieldNormal(2), **change)
