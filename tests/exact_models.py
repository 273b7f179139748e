"""Small models whose log p(x) is known exactly, and approximate posteriors for them."""

import jax
import jax.numpy as jnp
import pytest

import amortgap as ag


@pytest.fixture(scope="session")
def factor_analysis():
    """Two latents, three features, correlated posterior."""
    loadings = jnp.array([[1.0, 0.5], [0.3, -1.2], [0.8, 0.9]])
    return ag.models.FactorAnalysis(
        loadings=loadings, mean=jnp.array([0.5, -0.2, 0.1]), noise_variance=jnp.array([0.4, 0.7, 0.5])
    )


@pytest.fixture(scope="session")
def mixture():
    """One latent, one feature, two separate posterior modes for data in between."""
    return ag.models.MixturePrior(
        log_weights=jnp.log(jnp.array([0.3, 0.7])),
        centres=jnp.array([[-2.0], [1.5]]),
        scales=jnp.array([[0.4], [0.6]]),
        loadings=jnp.array([[0.5]]),
        mean=jnp.array([0.2]),
        noise_variance=jnp.array([0.8]),
    )


@pytest.fixture(scope="session")
def simulated(factor_analysis):
    """One hundred and twenty data of the factor analysis with their latents."""
    return ag.diagnostics.simulate(jax.random.key(7), model=factor_analysis, num_data=120)


@pytest.fixture(scope="session")
def optima(factor_analysis, simulated):
    """Mean field optima of `simulated` in closed form."""
    family = ag.families.MeanFieldNormal(2)
    scale = jnp.diag(jnp.diag(factor_analysis.posterior_precision()) ** -0.5)
    return jax.vmap(lambda x: family.from_moments(factor_analysis.posterior_mean(x), scale))(simulated.xs)
