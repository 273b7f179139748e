"""Arithmetic of gaps: means, paired differences and their standard errors."""

import inspect

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from amortgap.gaps import estimate, generalization, paired_difference


def test_arithmetic_of_estimates():
    values, errors = jnp.array([1.0, 2.0, 6.0]), jnp.array([0.3, 0.4, 1.2])
    row = estimate(values, errors)
    np.testing.assert_allclose(row, (3.0, 9.0, (7 / 3) ** 0.5, 1.3 / 3, 3), rtol=1e-6)
    assert np.isnan(estimate(values[:1], errors[:1]).data_standard_error)
    paired = paired_difference(values, values - jnp.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(paired[:3], (2.0, 6.0, 3**-0.5), rtol=1e-6)
    paired = paired_difference(values, values - 1, errors)
    np.testing.assert_allclose(paired, (1.0, 3.0, 0.0, 1.3 / 3, 3), atol=1e-6)
    worse = generalization(values, values + jnp.array([1.0, -2.0, 4.0]))
    np.testing.assert_allclose(worse.mean, 1.0, rtol=1e-6)
    variances = np.var([2.0, 0, 10], ddof=1) / 3 + np.var([1.0, 2, 6], ddof=1) / 3
    np.testing.assert_allclose(worse.data_standard_error, variances**0.5, rtol=1e-6)


def test_generalization_gap_divides_each_variance_by_its_own_number_of_data():
    train, test = jnp.array([1.0, 2.0, 4.0, 9.0, 3.0]), jnp.array([2.0, 7.0])
    found = generalization(train, test)
    want = np.sqrt(np.var(train, ddof=1) / 5 + np.var(test, ddof=1) / 2)
    np.testing.assert_allclose([found.mean, found.data_standard_error], [4.5 - 3.8, want], rtol=1e-5)
    # Welch's degrees of freedom lie between those of the smaller side and those of both.
    wide = float(found.interval()[1] - found.mean) / want
    a, b = np.var(train, ddof=1) / 5, np.var(test, ddof=1) / 2
    welch = (a + b) ** 2 / (a**2 / 4 + b**2 / 1)
    assert stats.t.ppf(0.975, 5) < stats.t.ppf(0.975, welch) <= wide
    np.testing.assert_allclose(wide, stats.t.ppf(0.975, 1), rtol=1e-5)


def test_arithmetic_refuses_what_it_would_broadcast_and_keeps_infinity():
    infinite = estimate(jnp.array([jnp.inf, 1.0]), jnp.zeros(2))
    assert all(np.isinf(part) for part in infinite[:4])
    assert np.isnan(estimate(jnp.array([jnp.nan, 1.0]), jnp.zeros(2)).data_standard_error)
    # As a user calls them: without the checks of shapes that tests add to every function.
    for function, *wrong in (
        (estimate, jnp.ones(3), jnp.ones(1)),
        (estimate, jnp.ones((3, 1)), jnp.ones((3, 1))),
        (paired_difference, jnp.ones(3), jnp.ones(1)),
        (generalization, jnp.ones(1), jnp.ones(3)),
        (generalization, jnp.ones(3), jnp.ones((3, 2))),
    ):
        with pytest.raises(ValueError, match=r"shapes? \("):
            inspect.unwrap(function)(*wrong)
