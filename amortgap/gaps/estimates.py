"""Arithmetic of gaps on arrays over data: means, their standard errors and their intervals.

Imports nothing of the package.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float
from scipy import stats


class Estimate(NamedTuple):
    """A mean over data with its two kinds of uncertainty.

    Attributes:
      mean: mean over data, nats.
      total: sum over data, nats.
      data_standard_error: of the mean, from the spread over data (the noise of the draws is part of that spread).
      monte_carlo_standard_error: of the mean, from the draws alone, the data held fixed.
      num_data: number of data behind the mean.
    """

    mean: Float[Array, ""]
    total: Float[Array, ""]
    data_standard_error: Float[Array, ""]
    monte_carlo_standard_error: Float[Array, ""]
    num_data: int

    def interval(self, level: float = 0.95, *, over: str = "data") -> tuple[float, float]:
        """Return the confidence interval of the mean, `mean -+ quantile * standard error`.

        Args:
          level: nominal coverage, in (0, 1).
          over: "data" for the mean over the population that the data were drawn from (Student's t), "draws" for the
            mean over exactly these data (normal).

        Returns:
          Lower and upper end in nats.

        Raises:
          ValueError: another level or kind.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level!r}")
        if over not in ("data", "draws"):
            raise ValueError(f"over must be 'data' or 'draws', got {over!r}")
        tail = 0.5 * (1 + level)
        if over == "data":
            half = float(stats.t.ppf(tail, max(self.num_data - 1, 1))) * float(self.data_standard_error)
        else:
            half = float(stats.norm.ppf(tail)) * float(self.monte_carlo_standard_error)
        if half == float("inf"):
            return -half, half
        return float(self.mean) - half, float(self.mean) + half


def estimate(values: Float[Array, " N"], standard_errors: Float[Array, " N"]) -> Estimate:
    """Return the mean of per-datum values with standard errors over data and over Monte Carlo draws.

    Formula: `mean = (1/N) sum v_i`; `SE_data = sd(v) / sqrt(N)`; `SE_MC = sqrt(sum se_i^2) / N`. With an infinite value
    the mean is infinite and so are both errors; a NaN among the values stays NaN.

    Args:
      values: v_i in nats, [N].
      standard_errors: Monte Carlo standard error of each value, [N], independent between data.

    Returns:
      Estimate in nats; with a single datum its error over data is NaN.

    Raises:
      ValueError: arrays that are not one number for every datum.

    Example:
      >>> import jax.numpy as jnp
      >>> found = estimate(jnp.array([1.0, 2.0, 3.0]), jnp.array([0.3, 0.3, 0.3]))
      >>> print(f"{found.mean:.2f}, {found.data_standard_error:.2f}, {found.monte_carlo_standard_error:.2f}")
      2.00, 0.58, 0.17
    """
    if values.ndim != 1 or values.shape != standard_errors.shape:
        raise ValueError(
            f"values and standard_errors must be one number of every datum each, [N], got shapes {values.shape} "
            f"and {standard_errors.shape}"
        )
    n = values.shape[0]
    spread = jnp.std(values, ddof=1) if n > 1 else jnp.asarray(jnp.nan)
    infinite = jnp.any(jnp.isinf(values))
    return Estimate(
        mean=jnp.mean(values),
        total=jnp.sum(values),
        data_standard_error=jnp.where(infinite, jnp.inf, spread / n**0.5),
        monte_carlo_standard_error=jnp.where(infinite, jnp.inf, jnp.sqrt(jnp.sum(standard_errors**2)) / n),
        num_data=n,
    )


def paired_difference(
    first: Float[Array, " N"], second: Float[Array, " N"], standard_errors: Float[Array, " N"] | None = None
) -> Estimate:
    """Return `mean(first - second)` over the same data with the standard error of the paired difference.

    Formula: `estimate(first - second, standard_errors)`.

    Args:
      first, second: one value of every datum each, in nats, [N].
      standard_errors: Monte Carlo standard error of each difference, [N]. None where they are not known: the Monte
        Carlo part is then NaN, and the error over data still contains it.

    Returns:
      Estimate in nats, positive where `first` is larger.

    Raises:
      ValueError: arrays that are not one number for every datum.
    """
    if first.shape != second.shape:
        raise ValueError(f"first and second must hold the same data, got shapes {first.shape} and {second.shape}")
    errors = jnp.full_like(first, jnp.nan) if standard_errors is None else standard_errors
    return estimate(first - second, errors)


def generalization(train: Float[Array, " N"], test: Float[Array, " M"]) -> Estimate:
    """Return how much larger the mean gap is on held-out data, with its standard error over data.

    Formula: `mean(test) - mean(train)`, `SE^2 = var(test) / M + var(train) / N`; the Monte Carlo part is not known
    apart from it and NaN. Intervals have the degrees of freedom of the smaller side, which Welch's are never below.

    Args:
      train: gap of every training datum in nats, [N], at least two.
      test: gap of every held-out datum in nats, [M], at least two.

    Returns:
      Estimate in nats; `num_data` is min(N, M), and `total` as many times the mean.

    Raises:
      ValueError: fewer than two numbers on either side, or arrays that are not one number for every datum.

    Source: Zhang, Hayes and Barber, "Generalization gap in amortized inference" (2022), for the gap.
    """
    for name, values in (("train", train), ("test", test)):
        if values.ndim != 1 or values.shape[0] < 2:
            raise ValueError(f"{name} must be gaps of at least two data, [N], got shape {values.shape}")
    difference = jnp.mean(test) - jnp.mean(train)
    error = jnp.sqrt(jnp.var(test, ddof=1) / test.shape[0] + jnp.var(train, ddof=1) / train.shape[0])
    n = min(train.shape[0], test.shape[0])
    return Estimate(difference, difference * n, error, jnp.full_like(error, jnp.nan), n)
