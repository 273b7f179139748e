"""Models whose whole posterior is known, against dense linear algebra and against sums over a grid."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_models import check_arrowhead_posterior, dense_posterior

import amortgap as ag
from amortgap.models import group_statistics, windows


def regression(key, n=4):
    model = ag.models.HierarchicalRegression(dim=2, noise_variance=0.5)
    return model, model.sample(key, n, 3)[2]


def test_posterior_of_the_regression_is_the_one_of_its_log_joint(key, x64):
    check_arrowhead_posterior(*regression(key))


def test_evidence_of_the_regression_is_that_of_the_log_joint_and_of_the_observations(key, x64):
    model, xs = regression(key)
    assert model.log_evidence_of_data(xs) == pytest.approx(dense_posterior(model, xs)[2], abs=1e-9)
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
    assert model.approximation_gap() == pytest.approx(half, abs=1e-10)
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


def test_groups_of_another_shape_are_refused(key):
    model, xs = regression(key)
    with pytest.raises(ValueError, match="xs must be a GroupStatistics"):
        model.validate("xs", xs.cross)
    with pytest.raises(ValueError, match="gram"):
        ag.models.HierarchicalRegression(dim=3).validate("xs", xs)
