"""Normal families against dense normal densities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

import amortgap as ag

D = 3
FAMILIES = [
    ag.families.MeanFieldNormal(D),
    ag.families.FullRankNormal(D),
    ag.families.LowRankNormal(D, 1),
    ag.families.LowRankNormal(D, D),
]


@pytest.fixture(params=FAMILIES, ids=["mean_field", "full_rank", "low_rank_1", "low_rank_3"])
def family(request):
    return request.param


def some_phi(family, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=family.size) * 0.7)


def dense(family, phi):
    """Mean and covariance, read off the definition of phi without the code of the family."""
    phi = np.asarray(phi, np.float64)
    mean, log_scale, rest = phi[:D], phi[D : 2 * D], phi[2 * D :]
    if isinstance(family, ag.families.FullRankNormal):
        tril = np.diag(np.exp(log_scale))
        tril[1, 0], tril[2, 0], tril[2, 1] = rest
        return mean, tril @ tril.T
    factor = rest.reshape(D, -1)
    return mean, np.diag(np.exp(2 * log_scale)) + factor @ factor.T


def test_log_prob_is_the_dense_normal_density(family, x64):
    phi = some_phi(family)
    keys = jax.random.split(jax.random.key(1), 20)
    zs, log_qs = jax.vmap(family.sample_and_log_prob, (0, None))(keys, phi)
    np.testing.assert_allclose(log_qs, multivariate_normal(*dense(family, phi)).logpdf(zs), rtol=1e-11)
    np.testing.assert_allclose(log_qs, jax.vmap(family.log_prob, (0, None))(zs, phi), rtol=1e-11)


def test_draws_have_the_mean_and_covariance_of_the_density(family):
    phi, n = some_phi(family).astype(jnp.float32), 20_000
    zs = np.asarray(jax.vmap(family.sample_and_log_prob, (0, None))(jax.random.split(jax.random.key(2), n), phi)[0])
    mean, covariance = dense(family, phi)
    deviation = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(zs.mean(0) - mean) < 5 * deviation / n**0.5)
    # Var of a sample covariance of normals: (C_ii C_jj + C_ij^2) / n.
    error = np.sqrt((np.outer(deviation**2, deviation**2) + covariance**2) / n)
    assert np.all(np.abs(np.cov(zs.T) - covariance) < 5 * error)


def test_transform_of_noise_is_the_draw(family, key, x64):
    phi = some_phi(family)
    z, log_q = family.sample_and_log_prob(key, phi)
    noise = jax.random.normal(key, (family.noise_dim,), phi.dtype)
    np.testing.assert_allclose(z, family.transform(noise, phi), rtol=1e-12)
    # Change of variables where the map is one to one.
    if family.noise_dim == D:
        jacobian = jax.jacobian(family.transform)(noise, phi)
        log_noise = multivariate_normal(np.zeros(D)).logpdf(noise)
        np.testing.assert_allclose(log_q, log_noise - np.linalg.slogdet(jacobian)[1], rtol=1e-11)


def test_entropy_is_minus_the_mean_log_density(family, x64):
    phi, n = some_phi(family), 20_000
    mean, covariance = dense(family, phi)
    np.testing.assert_allclose(family.entropy(phi), multivariate_normal(mean, covariance).entropy(), rtol=1e-12)
    keys = jax.random.split(jax.random.key(3), n)
    surprise = -jax.vmap(family.sample_and_log_prob, (0, None))(keys, phi)[1]
    assert abs(surprise.mean() - family.entropy(phi)) < 5 * surprise.std() / n**0.5


def test_moments_are_the_dense_ones_and_invert(family, x64):
    phi = some_phi(family)
    mean, scale_tril = family.moments(phi)
    expected_mean, covariance = dense(family, phi)
    np.testing.assert_allclose(mean, expected_mean)
    np.testing.assert_allclose(scale_tril @ scale_tril.T, covariance, rtol=1e-12)
    np.testing.assert_array_equal(scale_tril, np.tril(scale_tril))
    if not isinstance(family, ag.families.LowRankNormal):
        np.testing.assert_allclose(family.from_moments(mean, scale_tril), phi, atol=1e-12)


def test_mean_field_from_moments_keeps_the_marginals(x64):
    family, covariance = ag.families.MeanFieldNormal(D), np.array([[2.0, 0.5, 0], [0.5, 1, 0.3], [0, 0.3, 0.7]])
    phi = family.from_moments(jnp.arange(3.0), jnp.asarray(np.linalg.cholesky(covariance)))
    np.testing.assert_allclose(dense(family, phi)[1], np.diag(np.diag(covariance)))


def test_low_rank_from_moments_recovers_a_spiked_covariance(x64):
    # Isotropic noise plus one direction: the low-rank family holds it, so nothing may be lost.
    direction = np.array([1.0, -2.0, 0.5])
    covariance = 0.3 * np.eye(D) + np.outer(direction, direction)
    family = ag.families.LowRankNormal(D, 1)
    phi = family.from_moments(jnp.arange(3.0), jnp.asarray(np.linalg.cholesky(covariance)))
    np.testing.assert_allclose(dense(family, phi)[1], covariance, rtol=1e-9, atol=1e-12)


def test_standard_member_is_the_standard_normal(family, x64):
    mean, covariance = dense(family, family.standard())
    np.testing.assert_array_equal(mean, np.zeros(D))
    np.testing.assert_allclose(np.diag(covariance), np.ones(D), rtol=1e-6)
    np.testing.assert_allclose(covariance, np.eye(D), atol=0.02)


def test_vmap_equals_the_loop(family):
    phis = jnp.stack([some_phi(family, seed).astype(jnp.float32) for seed in range(4)])
    keys = jax.random.split(jax.random.key(4), 4)
    mapped = jax.vmap(family.sample_and_log_prob)(keys, phis)
    looped = [family.sample_and_log_prob(key, phi) for key, phi in zip(keys, phis, strict=True)]
    for have, want in zip(mapped, zip(*looped, strict=True), strict=True):
        np.testing.assert_allclose(have, jnp.stack(want), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_sizes(d):
    assert ag.families.MeanFieldNormal(d).size == 2 * d
    assert ag.families.FullRankNormal(d).size == d + d * (d + 1) // 2
    assert ag.families.LowRankNormal(d, 1).size == 3 * d
    for family in (ag.families.MeanFieldNormal(d), ag.families.FullRankNormal(d), ag.families.LowRankNormal(d, 1)):
        assert family.standard().shape == (family.size,)
        assert family.latent_dim == d
