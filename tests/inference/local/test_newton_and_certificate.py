"""Frames of orthogonal antithetic pairs and the certificate, against quadratics and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import amortgap as ag
from amortgap.inference.local.certificate import certify, couplings
from amortgap.inference.local.newton import antithetic_curvature, curvature_change, newton, normal_noise

RNG = np.random.default_rng(3)
D = 4
HESSIAN = np.cov(RNG.normal(size=(D, 7))) + 0.1 * np.eye(D)
CENTRE = RNG.normal(size=D)
ROOT = np.linalg.cholesky(np.cov(RNG.normal(size=(D, 9))))
SCALE = np.array([0.3, 1.0, 0.7, 2.0])


def quadratic(z):
    return -0.5 * (z - CENTRE) @ jnp.asarray(HESSIAN, z.dtype) @ (z - CENTRE)


def sample_around(key, mean, root, num_frames=2, pairs_at_once=1, log_joint=quadratic):
    normals = normal_noise(key, (num_frames * D, D), jnp.float32)
    return antithetic_curvature(
        normals, log_joint, jnp.asarray(mean, jnp.float32), jnp.asarray(root, jnp.float32), pairs_at_once=pairs_at_once
    )


def lost(mean, root):
    """KL divergence from N(mean, root root') to the normal with precision HESSIAN."""
    covariance = root @ root.T
    kl = np.trace(HESSIAN @ covariance) - D - np.linalg.slogdet(HESSIAN @ covariance)[1]
    return 0.5 * (kl + (mean - CENTRE) @ HESSIAN @ (mean - CENTRE))


def test_noises_are_orthogonal_within_a_frame_and_standard_normal(key):
    noises = sample_around(key, CENTRE, SCALE, num_frames=2000).noises
    products = jnp.einsum("sij,skj->sik", *[noises.reshape(-1, D, D)] * 2)
    off = products - products * jnp.eye(D)[None]
    np.testing.assert_allclose(off, 0, atol=1e-4)
    squares = np.asarray(jnp.sum(noises**2, axis=1))
    error = (2 * D / squares.size) ** 0.5
    assert abs(squares.mean() - D) < 5 * error  # the mean and ...
    assert abs(squares.var() - 2 * D) < 5 * 2 * D * (2 * 7 / squares.size) ** 0.5  # ... variance of a chi square
    np.testing.assert_allclose(np.cov(noises.T), np.eye(D), atol=5 * (2 / squares.size) ** 0.5)


def test_one_frame_is_exact_on_a_quadratic(key):
    for root in (SCALE, ROOT):
        matrix = np.diag(root) if root.ndim == 1 else root
        sample = sample_around(key, CENTRE + 1, root, num_frames=1, pairs_at_once=3)
        curvature = jnp.eye(D) + curvature_change(sample, jnp.eye(D))
        np.testing.assert_allclose(curvature, matrix.T @ HESSIAN @ matrix, rtol=1e-3, atol=1e-4)
        slopes = np.broadcast_to(matrix.T @ HESSIAN @ np.ones(D), (D, D))
        np.testing.assert_allclose(sample.slopes, slopes, rtol=1e-3, atol=1e-4)


def test_pairs_that_are_not_finite_are_left_out(key):
    def broken(z):
        return jnp.where(z[0] > CENTRE[0] + 0.5, jnp.nan, quadratic(z))

    whole, holed = (sample_around(key, CENTRE, SCALE, num_frames=8, log_joint=f) for f in (quadratic, broken))
    assert 0 < holed.finite.sum() < holed.finite.size
    np.testing.assert_array_equal(holed.slopes[holed.finite], whole.slopes[holed.finite])
    # Where the current estimate is right, a missing pair changes nothing.
    whitened = jnp.asarray(np.diag(SCALE) @ HESSIAN @ np.diag(SCALE), jnp.float32)
    np.testing.assert_allclose(curvature_change(holed, whitened), jnp.zeros((D, D)), atol=1e-4)


def test_certificate_of_full_rank_is_the_exact_divergence_on_a_normal_posterior(key):
    for shift in (0.0, 0.05, 1.0):
        certificate = certify(sample_around(key, CENTRE + shift, ROOT), mean_field=False)
        np.testing.assert_allclose(certificate.nats, lost(CENTRE + shift, ROOT), rtol=1e-3)
        assert certificate.standard_error < 1e-3 * certificate.nats


def test_certificate_of_mean_field_counts_correlations_in_the_mean_only(key):
    optimum = np.diag(HESSIAN) ** -0.5
    floor = lost(CENTRE, np.diag(optimum))
    for shift in (0.0, 0.05, 1.0):
        scale = optimum * np.exp(np.array([shift, -shift, 0, 0]))
        certificate = certify(sample_around(key, CENTRE + shift, scale), mean_field=True)
        np.testing.assert_allclose(certificate.nats, lost(CENTRE + shift, np.diag(scale)) - floor, rtol=1e-3, atol=1e-5)


def test_certificate_needs_most_of_its_pairs(key):
    """Noise of a pair is finite where its first entry is at least `bad` from zero: for 32 % and for 92 % of pairs."""

    def broken(z, bad):
        return jnp.where(jnp.abs(z[0] - CENTRE[0]) < bad, jnp.nan, quadratic(z))

    few, most = (
        certify(
            sample_around(key, CENTRE, np.eye(D), num_frames=20, log_joint=lambda z, bad=bad: broken(z, bad)),
            mean_field=False,
        )
        for bad in (1.0, 0.1)
    )
    assert np.isposinf(few.nats)
    assert np.isposinf(few.standard_error)
    assert jnp.isfinite(most.nats)


def test_a_saddle_has_no_certificate(key):
    certificate = certify(sample_around(key, CENTRE, SCALE, log_joint=lambda z: -quadratic(z)), mean_field=True)
    assert np.isposinf(certificate.nats)


def test_certificate_is_unbiased_where_the_optimum_is_known(key):
    # Log-normal approximation of a Gamma posterior, off its optimum by a known number of nats.
    model = ag.models.PoissonGamma(shape=1.5, rate=0.5)
    x = jnp.array([3.0])
    alpha, _ = model.posterior_parameters(x)
    mean, scale = model.normal_optimum(x)
    for move, grow in ((0.0, 0.0), (0.06, 0.0), (0.0, 0.08)):

        def one(key, move=move, grow=grow):
            normals = normal_noise(key, (128, 1), jnp.float32)
            sample = antithetic_curvature(normals, lambda z: model.log_joint(z, x), mean + move, scale * jnp.exp(grow))
            return certify(sample, mean_field=True)

        certificates = jax.jit(jax.vmap(one))(jax.random.split(key, 2000))
        # Nats lost, exactly: E_q[exp z] in closed form.
        variance = scale[0] ** 2 * jnp.exp(2 * grow)
        excess = move + 0.5 * (variance - scale[0] ** 2)
        true = -grow - alpha * move + alpha * jnp.expm1(excess)
        error = jnp.std(certificates.nats) / 2000**0.5
        # The decrement leaves out third order in the distance, and the logarithm third order in the noise.
        assert abs(certificates.nats.mean() - true) < 4 * error + 0.15 * true + 2e-4
        # The stated standard error is the spread that is seen.
        stated = jnp.sqrt(jnp.mean(certificates.standard_error**2))
        assert 0.7 < stated / jnp.std(certificates.nats) < 1.5


def test_newton_solves_a_quadratic_in_two_steps_however_correlated(key):
    values = np.geomspace(1, 1e4, 6)
    basis = np.linalg.qr(RNG.normal(size=(6, 6)))[0]
    hessian = jnp.asarray(basis * values @ basis.T, jnp.float32)
    centre = jnp.asarray(RNG.normal(size=6), jnp.float32)

    def log_joint(z):
        return -0.5 * (z - centre) @ hessian @ (z - centre)

    for root in (jnp.ones(6), jnp.eye(6)):
        _, (mean, root) = newton(key, log_joint, jnp.zeros(6), root, num_steps=3, num_frames=2)
        assert 0.5 * (mean - centre) @ hessian @ (mean - centre) < 1e-3
        if root.ndim == 1:
            np.testing.assert_allclose(root**-2, jnp.diag(hessian), rtol=1e-3)
        else:
            np.testing.assert_allclose(root.T @ hessian @ root, jnp.eye(6), atol=1e-2)


def test_newton_undoes_a_step_that_overshoots(key):
    # From far out on a log cosh the curvature is nearly zero, and an unguarded Newton step flies off.
    def log_joint(z):
        return -jnp.sum(jnp.logaddexp(z, -z)) - 0.005 * jnp.sum(z**2)

    _, (mean, root) = newton(key, log_joint, jnp.full(2, 6.0), jnp.full(2, 0.1), num_steps=25, num_frames=4)
    assert jnp.all(jnp.abs(mean) < 0.3)
    assert jnp.all((root > 0.5) & (root < 3))


def funnel(z):
    """Neal's funnel: the first latent is the log variance of the others."""
    return -0.5 * z[0] ** 2 - 0.5 * jnp.sum(z[1:] ** 2 * jnp.exp(-z[0]) + z[0])


def funnel_elbo(mean, log_scale):
    """Its ELBO under a mean field normal but for constants, by the moments of the log-normal."""
    energy = 0.5 * (mean[0] ** 2 + jnp.exp(2 * log_scale[0])) + 0.5 * (mean.size - 1) * mean[0]
    squares = jnp.sum(mean[1:] ** 2 + jnp.exp(2 * log_scale[1:]))
    return jnp.sum(log_scale) - energy - 0.5 * squares * jnp.exp(-mean[0] + 0.5 * jnp.exp(2 * log_scale[0]))


FUNNEL_MEAN = jnp.array([0.1, 0.3, -0.2])
FUNNEL_LOG_SCALE = jnp.array([-0.5, -0.1, 0.0])


@pytest.mark.slow
def test_couplings_are_the_mixed_second_derivatives_of_the_elbo():
    mean, scale = FUNNEL_MEAN, jnp.exp(FUNNEL_LOG_SCALE)
    mixed = jax.jacobian(jax.grad(lambda m, s: -funnel_elbo(m, s), argnums=1), argnums=0)(mean, FUNNEL_LOG_SCALE)
    curvature = scale[:, None] * jax.hessian(lambda m: -funnel_elbo(m, FUNNEL_LOG_SCALE))(mean) * scale[None, :]
    of_scales = jax.hessian(lambda s: -funnel_elbo(mean, s))(FUNNEL_LOG_SCALE) - 2 * jnp.diag(jnp.diag(curvature))
    found = []
    for seed in range(8):
        sample = antithetic_curvature(
            jax.random.normal(jax.random.key(seed), (9000, 3)), funnel, mean, scale, pairs_at_once=9000
        )
        found.append(couplings(sample, curvature))
    for number, exact in enumerate((scale[:, None] * mixed.T, of_scales)):
        draws = jnp.stack([pair[number] for pair in found])
        error = jnp.std(draws, axis=0, ddof=1) / len(found) ** 0.5
        assert jnp.max(jnp.abs(exact)) > 0.3
        # Seven degrees of freedom: 6 standard errors are passed once in two thousand entries.
        assert jnp.all(jnp.abs(draws.mean(axis=0) - exact) < 6 * error + 1e-4), (draws.mean(axis=0), exact)
    # A correlated normal posterior has none, whatever the draws.
    precision = jnp.array([[2.0, 1.2], [1.2, 1.5]])
    sample = antithetic_curvature(
        jax.random.normal(jax.random.key(9), (8, 2)), lambda z: -0.5 * z @ precision @ z, jnp.ones(2), jnp.ones(2)
    )
    assert max(float(jnp.max(jnp.abs(part))) for part in couplings(sample, precision)) < 1e-5


@pytest.mark.slow
def test_certificate_of_a_funnel_is_the_decrement_of_the_joint_hessian():
    def negative(phi):
        return -funnel_elbo(phi[:3], phi[3:])

    phi = jnp.concatenate([FUNNEL_MEAN, FUNNEL_LOG_SCALE])
    for _ in range(30):
        phi -= 0.7 * jnp.linalg.solve(jax.hessian(negative)(phi), jax.grad(negative)(phi))
    vectors = jnp.linalg.eigh(jax.hessian(negative)(phi))[1]
    # Along the flattest direction, which no block sees: all scales and the mean of the first latent together.
    phi += 0.3 * vectors[:, 0]
    slope, hessian = jax.grad(negative)(phi), jax.hessian(negative)(phi)
    decrement = 0.5 * slope @ jnp.linalg.solve(hessian, slope)
    blocks = 0.5 * sum(
        slope[rows] @ jnp.linalg.solve(hessian[rows, rows], slope[rows]) for rows in (slice(3), slice(3, 6))
    )
    assert decrement > 1.5 * blocks > 0
    mean, scale = phi[:3], jnp.exp(phi[3:])
    found = []
    for seed in range(8):
        sample = antithetic_curvature(
            jax.random.normal(jax.random.key(seed), (9000, 3)), funnel, mean, scale, pairs_at_once=9000
        )
        found.append(certify(sample, mean_field=True))
    nats = jnp.stack([certificate.nats for certificate in found])
    # The spread over seeds is under 2 % with both couplings and 11 % without that of the scales among themselves.
    assert jnp.max(jnp.abs(nats / decrement - 1)) < 0.08, (nats, decrement, blocks)
    assert all(certificate.coupling > 0.25 for certificate in found)
