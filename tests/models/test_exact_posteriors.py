"""Models whose whole posterior is known, against dense linear algebra and against sums over a grid."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import amortgap as ag
from amortgap.models import group_statistics, windows


def saw(key, n=5):
    series = jnp.cumsum(jax.random.normal(key, (n + 1,)))
    return ag.models.SawSeries(alpha=0.75, prior_variance=2.0), jnp.stack([series[:-1], series[1:]], axis=1)


def linear(key, n=5):
    return ag.models.LinearHierarchy(tau=1.1, sigma=0.7, prior_variance=1.5), jax.random.normal(key, (n, 1))


def regression(key, n=4):
    model = ag.models.HierarchicalRegression(dim=2, noise_variance=0.5)
    return model, model.sample(key, n, 3)[2]


def dense(model, xs):
    """Mean, precision and log normaliser of the whole posterior from the derivatives of the log joint."""
    k, d = model.global_dim, model.latent_dim
    n = jax.tree.leaves(xs)[0].shape[0]

    def log_joint(u):
        local = jax.vmap(model.log_local, (None, 0, 0))(u[:k], u[k:].reshape(n, d), xs)
        return model.log_prior(u[:k]) + jnp.sum(local)

    zero = jnp.zeros(k + n * d)
    precision = -np.asarray(jax.hessian(log_joint)(zero))
    mean = np.linalg.solve(precision, np.asarray(jax.grad(log_joint)(zero)))
    evidence = log_joint(jnp.asarray(mean)) + 0.5 * (mean.size * np.log(2 * np.pi) - np.linalg.slogdet(precision)[1])
    return mean, precision, float(evidence)


@pytest.mark.parametrize("case", [saw, linear, regression])
def test_posterior_is_the_one_of_the_log_joint(case, key, x64):
    model, xs = case(key)
    k, d = model.global_dim, model.latent_dim
    mean, precision, _ = dense(model, xs)
    found = model.posterior(xs)
    np.testing.assert_allclose(np.concatenate([found.global_mean, found.local_mean.ravel()]), mean, atol=1e-10)
    assert found.log_det() == pytest.approx(np.linalg.slogdet(precision)[1], abs=1e-9)
    half = 0.5 * np.linalg.slogdet(precision)[1]
    assert found.kl("diagonal") == pytest.approx(0.5 * np.log(np.diag(precision)).sum() - half, abs=1e-9)
    blocks = [precision[:k, :k], *(precision[k + i : k + i + d, k + i : k + i + d] for i in range(0, mean.size - k, d))]
    block = 0.5 * sum(np.linalg.slogdet(part)[1] for part in blocks) - half
    assert found.kl("block") == pytest.approx(block, abs=1e-9)
    assert found.kl("dense") == 0
    # Generalised least squares with the whole design matrix written out.
    features = np.column_stack([np.ones(len(found.local_mean)), np.arange(len(found.local_mean)) ** 2.0])
    design = np.zeros((mean.size, k + 2 * d))
    design[:k, :k] = np.eye(k)
    design[k:, k:] = np.kron(features, np.eye(d))
    beta = np.linalg.solve(design.T @ precision @ design, design.T @ precision @ mean)
    off = design @ beta - mean
    assert found.linear_gap(features) == pytest.approx(0.5 * off @ precision @ off, abs=1e-9)
    with pytest.raises(ValueError, match="one row for each"):
        found.linear_gap(features[:-1])


def test_evidence_of_the_regression_is_that_of_the_log_joint_and_of_the_observations(key, x64):
    model, xs = regression(key)
    assert model.log_evidence_of_data(xs) == pytest.approx(dense(model, xs)[2], abs=1e-9)
    features, responses = jax.random.normal(key, (2, 3, 2)), jax.random.normal(key, (2, 3))
    groups = group_statistics(features, responses)
    flat = np.asarray(features).reshape(6, 2)
    same = np.kron(np.eye(2), np.ones((3, 3)))
    covariance = flat @ flat.T * (1 + same) + 0.5 * np.eye(6)
    y = np.asarray(responses).ravel()
    value = -0.5 * (y @ np.linalg.solve(covariance, y) + np.linalg.slogdet(2 * np.pi * covariance)[1])
    assert model.log_evidence_of_data(groups) == pytest.approx(value, abs=1e-9)
    with pytest.raises(ValueError, match=r"features must be \[N, n, d\]"):
        group_statistics(features, responses[:, :2])


def test_nonlinear_model_is_normalised_only_as_said(x64):
    theta, z = jnp.array([0.3]), jnp.array([0.7])
    x = jnp.linspace(-60.0, 60.0, 200_001)[:, None]
    for normalised in (True, False):
        model = ag.models.NonlinearHierarchy(normalised=normalised)
        log = jax.vmap(lambda row, model=model: model.log_local(theta, z, row))(x)
        mass = float(jnp.sum(jnp.exp(log)) * (x[1, 0] - x[0, 0]))
        prior = float(jnp.exp(-0.5 * z[0] ** 2) / jnp.sqrt(2 * jnp.pi))
        assert mass == pytest.approx(prior * (1.0 if normalised else float(jnp.exp(jnp.cos(z[0])))), rel=1e-9)


def chain():
    return ag.models.LinearGaussianChain(
        length=7, transition=0.8, process_variance=0.5, observation_variance=0.7, initial_variance=1.3
    )


def test_kalman_smoother_is_the_dense_solve(key, x64):
    model = chain()
    z, x = model.sample(key)
    precision = -jax.hessian(lambda z: model.log_joint(z, x))(z)
    np.testing.assert_allclose(precision, model.posterior_precision(), atol=1e-10)
    covariance = np.linalg.inv(model.posterior_precision())
    found = model.smooth(x)
    np.testing.assert_allclose(found.mean, covariance @ np.asarray(x) / 0.7, atol=1e-12)
    np.testing.assert_allclose(found.variance, np.diag(covariance), atol=1e-12)
    value = model.log_joint(found.mean, x) + 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
    assert float(found.log_evidence) == pytest.approx(float(value), abs=1e-10)
    half = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    assert model.mean_field_kl() == pytest.approx(half, abs=1e-10)
    assert ag.models.LinearGaussianChain(
        length=2, transition=0.5, process_variance=0.75, observation_variance=1.0
    ).first_variance == pytest.approx(1.0)


def test_window_gap_is_least_squares_and_vanishes_with_the_whole_series(key, x64):
    model = chain()
    x = np.asarray(model.sample(key)[1])
    inputs = np.column_stack([np.ones(7), np.pad(x, 1)[:-2], x, np.pad(x, 1)[2:]])
    root = np.linalg.cholesky(model.posterior_precision()).T
    target = np.asarray(model.smooth(jnp.asarray(x)).mean)
    beta = np.linalg.lstsq(root @ inputs, root @ target, rcond=None)[0]
    assert model.window_gap(x, 1) == pytest.approx(0.5 * np.sum((root @ (inputs @ beta - target)) ** 2), abs=1e-10)
    gaps = [model.window_gap(x, width) for width in range(4)]
    assert all(narrow > wide for narrow, wide in itertools.pairwise(gaps)) and gaps[-1] < 1e-12
    with pytest.raises(ValueError, match="not shorter than its window of 9"):
        windows(x, 4)


def test_bayesian_decoder_is_a_normal_likelihood(key, x64):
    model = ag.models.bayesian_decoder(key, latent_dim=2, data_dim=3, width=4, depth=1, noise_variance=0.5)
    assert model.global_dim == 2 * 4 + 4 + 4 * 3 + 3
    theta, z, x = jax.random.normal(key, (model.global_dim,)), jnp.array([0.3, -1.0]), jnp.array([0.1, 0.2, 0.3])
    mean = model.decode(theta, z)
    log_normal = jax.scipy.stats.norm.logpdf
    value = jnp.sum(log_normal(z)) + jnp.sum(log_normal(x, mean, jnp.sqrt(0.5)))
    assert float(model.log_local(theta, z, x)) == pytest.approx(float(value), abs=1e-12)
    assert float(model.log_prior(theta)) == pytest.approx(float(jnp.sum(log_normal(theta))), abs=1e-10)


def test_groups_of_another_shape_are_refused(key):
    model, xs = regression(key)
    with pytest.raises(ValueError, match="xs must be a GroupStatistics"):
        model.validate("xs", xs.cross)
    with pytest.raises(ValueError, match="gram"):
        ag.models.HierarchicalRegression(dim=3).validate("xs", xs)
