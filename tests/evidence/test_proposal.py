"""Normals that are fitted where the caller gives no approximate posterior, and the choice of a method for a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import amortgap as ag
from amortgap.evidence import reliable_below
from amortgap.evidence.proposal import fit_normal, fit_proposal

DEEP = ag.models.deep_latent_gaussian(jax.random.key(1), latent_dim=8, data_dim=40, width=12, depth=1)


def test_the_fitted_normal_is_a_normal_posterior(factor_analysis, simulated):
    posterior = factor_analysis.posterior(simulated.xs[0])
    mean, root = fit_normal(jnp.eye(2), jnp.array([3.0, -4.0]), simulated.xs[0], model=factor_analysis)
    np.testing.assert_allclose(mean, posterior.mean, atol=1e-4)
    np.testing.assert_allclose(root @ root.T, posterior.covariance, rtol=1e-4, atol=1e-5)


def test_the_fitted_normal_maximises_the_elbo_on_its_nodes():
    """One latent, nodes at one standard deviation on either side: mean and scale against a grid."""
    model, x = ag.models.PoissonGamma(shape=jnp.array(1.5), rate=jnp.array(0.7)), jnp.array([3.0])
    mean, root = fit_normal(jnp.eye(1), jnp.zeros(1), x, model=model)

    def objective(mean, scale):
        ends = jnp.stack([mean - scale, mean + scale])[:, None]
        return jnp.mean(jax.vmap(lambda z: model.log_joint(z, x))(ends)) + jnp.log(scale)

    means, scales = jnp.meshgrid(jnp.linspace(0, 1.6, 321), jnp.linspace(0.1, 1.5, 281))
    best = jnp.max(jax.vmap(objective)(means.ravel(), scales.ravel()))
    np.testing.assert_allclose(objective(mean[0], root[0, 0]), best, atol=1e-4)
    assert objective(mean[0], root[0, 0]) > best - 1e-6


def test_a_posterior_without_curvature_or_values_leaves_the_start_and_bounds_the_scale():
    flat = ag.models.from_log_joint(lambda z, x: 0.0 * jnp.sum(z), latent_dim=2)
    _, root = fit_normal(jnp.eye(2), jnp.zeros(2), jnp.zeros(1), model=flat)
    np.testing.assert_allclose(root, 10 * jnp.eye(2), rtol=1e-4)
    nowhere = ag.models.from_log_joint(lambda z, x: jnp.nan * jnp.sum(z), latent_dim=2)
    mean, root = fit_normal(jnp.eye(2), jnp.ones(2), jnp.zeros(1), model=nowhere)
    np.testing.assert_array_equal(mean, jnp.ones(2))
    np.testing.assert_array_equal(root, jnp.eye(2))


def test_the_proposal_is_wider_than_the_posterior_by_the_stated_factor(factor_analysis, simulated, key):
    family, phi = fit_proposal(key, simulated.xs[0], model=factor_analysis)
    mean, root = family.moments(phi)
    posterior = factor_analysis.posterior(simulated.xs[0])
    np.testing.assert_allclose(mean, posterior.mean, atol=1e-4)
    np.testing.assert_allclose(root @ root.T, (1 + 0.5 / 2**0.5) * posterior.covariance, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_importance_sampling_without_a_proposal_scatters_as_its_errors_say(factor_analysis, simulated, key):
    """On a normal posterior the wider proposal leaves seven draws of eight, and the prior's share nine of ten."""
    found = ag.evidence_of_data(key, simulated.xs, model=factor_analysis, method="importance", num_samples=1000)
    z = (found.log_evidence - jax.vmap(factor_analysis.log_evidence)(simulated.xs)) / found.standard_error
    assert abs(float(jnp.mean(z))) < 3.5 / z.size**0.5
    assert abs(float(jnp.mean(z**2)) - 1) < 4 * (2 / z.size) ** 0.5
    assert 0.75 < float(jnp.mean(found.effective_sample_size)) / 1000 < 0.95
    assert "of a fitted normal, 0.1 of them from the prior" in found.method


@pytest.mark.slow
def test_a_deep_decoder_needs_neither_family_nor_phi(key):
    """Two proposals that share nothing agree within their errors: a normal fitted here, and the local optimum."""
    xs = ag.diagnostics.simulate(key, model=DEEP, num_data=10).xs
    plain = ag.evidence_of_data(key, xs, model=DEEP)
    family = ag.families.FullRankNormal(8)
    local = ag.fit_local(jax.random.key(1), xs, model=DEEP, family=family)
    given = ag.evidence_of_data(jax.random.key(2), xs, model=DEEP, family=family, phis=local.phi)
    z = (plain.log_evidence - given.log_evidence) / jnp.hypot(plain.standard_error, given.standard_error)
    assert plain.bias == given.bias == "lower bound"
    assert float(jnp.max(jnp.abs(z))) < 4.5
    assert float(jnp.max(plain.pareto_k)) < reliable_below(plain.num_draws)


def test_auto_takes_the_closed_form_then_the_grid_then_draws(factor_analysis, simulated, key):
    x = simulated.xs[0]
    joint = ag.models.from_log_joint(factor_analysis.log_joint, latent_dim=2)
    assert ag.log_evidence(None, x, model=factor_analysis).method == "exact"
    grid = ag.log_evidence(None, x, model=joint)
    assert "quadrature, 32 nodes" in grid.method
    np.testing.assert_allclose(grid.log_evidence, factor_analysis.log_evidence(x), atol=2e-5)
    many = ag.evidence_of_data(None, simulated.xs[:3], model=joint)
    np.testing.assert_allclose(many.log_evidence[0], grid.log_evidence, rtol=1e-6)
    with pytest.raises(ValueError, match="key must be a typed key"):
        ag.evidence_of_data(None, jnp.zeros((2, 40)), model=DEEP)


def test_the_limit_of_k_hat_grows_with_the_number_of_draws():
    np.testing.assert_allclose([reliable_below(n) for n in (100, 1000)], [0.5, 2 / 3])
    assert reliable_below(2154) < 0.7 == reliable_below(2155) == reliable_below(10**6)
    assert reliable_below(0) == reliable_below(25)
