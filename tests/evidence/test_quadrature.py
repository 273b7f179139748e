"""Quadrature and the mixture prior against closed forms and scipy's adaptive integration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

import amortgap as ag


@pytest.mark.slow
def test_factor_analysis(factor_analysis, simulated, optima, key):
    found = ag.evidence_of_data(
        key,
        simulated.xs[:10],
        model=factor_analysis,
        method="quadrature",
        family=ag.families.MeanFieldNormal(2),
        phis=optima[:10],
        num_nodes=12,
    )
    np.testing.assert_allclose(found.log_evidence, jax.vmap(factor_analysis.log_evidence)(simulated.xs[:10]), atol=2e-5)
    assert float(jnp.max(found.standard_error)) < 2e-5


def test_poisson_gamma_from_the_standard_normal(key):
    """A skewed posterior, the rule left to find its centre by itself."""
    model = ag.models.PoissonGamma(shape=jnp.array(1.5), rate=jnp.array(0.7))
    xs = jnp.array([[0.0], [1.0], [6.0], [40.0]])
    found = ag.evidence_of_data(key, xs, model=model, method="quadrature", num_nodes=48, num_refinements=6)
    np.testing.assert_allclose(found.log_evidence, jax.vmap(model.log_evidence)(xs), atol=2e-5)


def test_error_of_too_few_nodes_is_stated(key):
    """The difference to the coarser rule is of the size of the error itself, which is not small here."""
    model = ag.models.PoissonGamma(shape=jnp.array(1.5), rate=jnp.array(0.7))
    xs = jnp.array([[0.0], [1.0], [2.0]])
    found = ag.evidence_of_data(key, xs, model=model, method="quadrature", num_nodes=4, num_refinements=6)
    error = jnp.abs(found.log_evidence - jax.vmap(model.log_evidence)(xs))
    assert jnp.all(error > 1e-4)
    assert jnp.all(error < 3 * found.standard_error)


def test_two_modes_from_a_fit_of_one_of_them(mixture, key):
    family = ag.families.MeanFieldNormal(1)
    x = jnp.array([-0.3])
    found = ag.log_evidence(
        key, x, model=mixture, method="quadrature", family=family, phi=jnp.array([1.3, -0.7]), num_nodes=128
    )
    np.testing.assert_allclose(found.log_evidence, mixture.log_evidence(x), atol=1e-4)


def test_mixture_evidence_and_posterior_match_adaptive_integration(mixture):
    x = jnp.array([-0.3])
    joint = jax.jit(lambda z: jnp.exp(mixture.log_joint(z[None], x)))
    mass = integrate.quad(lambda z: float(joint(jnp.asarray(z))), -8, 8, points=[-2, 1.5])[0]
    np.testing.assert_allclose(mixture.log_evidence(x), np.log(mass), atol=1e-5)
    first = integrate.quad(lambda z: z * float(joint(jnp.asarray(z))), -8, 8, points=[-2, 1.5])[0] / mass
    posterior = mixture.posterior(x)
    np.testing.assert_allclose(jnp.exp(posterior.log_weights) @ posterior.means[:, 0], first, atol=1e-5)
    second = integrate.quad(lambda z: z * z * float(joint(jnp.asarray(z))), -8, 8, points=[-2, 1.5])[0] / mass
    squares = posterior.covariances[:, 0, 0] + posterior.means[:, 0] ** 2
    np.testing.assert_allclose(jnp.exp(posterior.log_weights) @ squares, second, atol=1e-5)


def test_mixture_draws_have_the_moments_of_the_mixture(mixture, key):
    draws = ag.diagnostics.simulate(key, model=mixture, num_data=20_000).latents[:, 0]
    mean = 0.3 * -2 + 0.7 * 1.5
    variance = 0.3 * (0.16 + 4) + 0.7 * (0.36 + 2.25) - mean**2
    assert abs(float(jnp.mean(draws)) - mean) < 4 * (variance / 20_000) ** 0.5


def test_mixture_with_wrong_shapes_is_refused():
    row = jnp.zeros((1, 1))
    with pytest.raises(ValueError, match="must have the shapes"):
        ag.models.MixturePrior(
            log_weights=jnp.zeros(2),
            centres=row,
            scales=row + 1,
            loadings=row,
            mean=jnp.zeros(1),
            noise_variance=jnp.ones(1),
        )


def test_more_than_three_dimensions_are_refused_with_the_limit(key):
    model = ag.models.from_log_joint(lambda z, x: -jnp.sum(z**2), latent_dim=4)
    with pytest.raises(ValueError, match=r"latent dimensions up to 3, got model.latent_dim = 4"):
        ag.log_evidence(key, jnp.zeros(1), model=model, method="quadrature")
