"""A scalar linear-Gaussian state space model: the whole series is one datum, its states are the latent."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from amortgap._internal.checks import check_count, check_positive, check_row_shape
from amortgap._internal.least_squares import generalised_least_squares
from amortgap._internal.records import checked_record
from amortgap.families.normal import LOG_2PI
from amortgap.models.likelihoods import diagonal_normal_log_prob
from amortgap.protocols import Data

# Mean and variance.
Normal = tuple[Array, Array]


class Smoothed(NamedTuple):
    """Result of the Kalman filter and the Rauch-Tung-Striebel smoother.

    Attributes:
      mean, variance: of every state given the whole series, [T].
      log_evidence: log p(x) in nats.
    """

    mean: Float[Array, " T"]
    variance: Float[Array, " T"]
    log_evidence: Float[Array, ""]


@checked_record
@dataclass(frozen=True, kw_only=True)
class LinearGaussianChain:
    """Hidden Markov model with normal states.

    Formula: `z_1 ~ N(0, p)`, `z_t | z_{t-1} ~ N(a z_{t-1}, q)`, `x_t | z_t ~ N(z_t, r)`.

    Args:
      length: T, at least two.
      transition: a.
      process_variance: q, positive.
      observation_variance: r, positive.
      initial_variance: p, positive; None for the stationary `q / (1 - a^2)`.

    Raises:
      ValueError: a length below two, a variance that is not positive, or no stationary variance where it is asked for.
    """

    length: int = field(metadata={"static": True})
    transition: float = field(metadata={"static": True})
    process_variance: float = field(metadata={"static": True})
    observation_variance: float = field(metadata={"static": True})
    initial_variance: float | None = field(default=None, metadata={"static": True})

    def __post_init__(self) -> None:
        check_count("length", self.length, minimum=2)
        check_positive("process_variance", self.process_variance)
        check_positive("observation_variance", self.observation_variance)
        if self.initial_variance is None and abs(self.transition) >= 1:
            raise ValueError(f"initial_variance is needed where |transition| >= 1, got transition {self.transition:g}")
        check_positive("initial_variance", self.first_variance)

    @property
    def first_variance(self) -> float:
        """Variance of the first state."""
        stationary = self.initial_variance is None
        return self.process_variance / (1 - self.transition**2) if stationary else float(self.initial_variance or 0)

    @property
    def latent_dim(self) -> int:
        """Dimension T of z."""
        return self.length

    def validate(self, name: str, xs: Data) -> None:
        """Raise a ValueError that names `name` unless `xs` are series of this length."""
        check_row_shape(name, xs, (self.length,))

    def log_joint(self, z: Float[Array, " T"], x: Float[Array, " T"]) -> Float[Array, ""]:
        """Return `log p(x, z)` in nats."""
        first = diagonal_normal_log_prob(z[:1], self.first_variance)
        steps = diagonal_normal_log_prob(z[1:] - self.transition * z[:-1], self.process_variance)
        return first + steps + diagonal_normal_log_prob(x - z, self.observation_variance)

    def sample(self, key: jax.Array) -> tuple[Float[Array, " T"], Float[Array, " T"]]:
        """Return one draw (z, x) from the joint, [T] each."""
        key_state, key_noise = jax.random.split(key)
        scale = jnp.full(self.length, math.sqrt(self.process_variance)).at[0].set(math.sqrt(self.first_variance))
        shocks = scale * jax.random.normal(key_state, (self.length,))

        def step(z: Array, shock: Array) -> tuple[Array, Array]:
            z = self.transition * z + shock
            return z, z

        z = jax.lax.scan(step, jnp.zeros(()), shocks)[1]
        return z, z + math.sqrt(self.observation_variance) * jax.random.normal(key_noise, (self.length,))

    def posterior_precision(self) -> Float[np.ndarray, "T T"]:
        """Return the tridiagonal precision of z given x, the same for every series, in double precision."""
        a, q = self.transition, self.process_variance
        diagonal = np.full(self.length, (1 + a**2) / q + 1 / self.observation_variance)
        diagonal[0] += 1 / self.first_variance - 1 / q
        diagonal[-1] -= a**2 / q
        beside = np.full(self.length - 1, -a / q)
        return np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)

    def approximation_gap(self) -> float:
        """Return the approximation gap of mean field in nats, `1/2 [sum_t log Lambda_tt - log |Lambda|]`."""
        precision = self.posterior_precision()
        return float(0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1]))

    def smooth(self, x: Float[Array, " T"]) -> Smoothed:
        """Return the states' exact posterior given x [T] by the Kalman filter and the Rauch-Tung-Striebel smoother."""
        a, q, r = self.transition, self.process_variance, self.observation_variance

        def forward(carry: tuple[Array, Array, Array], now: Array) -> tuple[tuple[Array, Array, Array], Normal]:
            mean, variance, total = carry
            spread = variance + r
            gain = variance / spread
            total = total - 0.5 * ((now - mean) ** 2 / spread + jnp.log(spread) + LOG_2PI)
            filtered = (mean + gain * (now - mean), (1 - gain) * variance)
            return (a * filtered[0], a**2 * filtered[1] + q, total), filtered

        first = jnp.zeros((), x.dtype)
        start = (first, jnp.full_like(first, self.first_variance), first)
        (_, _, log_evidence), (means, variances) = jax.lax.scan(forward, start, x)

        def backward(later: Normal, here: Normal) -> tuple[Normal, Normal]:
            mean, variance = here
            predicted = a**2 * variance + q
            gain = a * variance / predicted
            mean = mean + gain * (later[0] - a * mean)
            variance = variance + gain**2 * (later[1] - predicted)
            return (mean, variance), (mean, variance)

        last = (means[-1], variances[-1])
        _, (smooth, spread) = jax.lax.scan(backward, last, (means[:-1], variances[:-1]), reverse=True)
        return Smoothed(jnp.append(smooth, last[0]), jnp.append(spread, last[1]), log_evidence)

    def mean_gap(self, means: Float[np.ndarray, " T"], x: Float[np.ndarray, " T"]) -> float:
        """Return `1/2 (f - m)' Lambda (f - m)` in nats, the part of the gap that means f [T] of the factors cause."""
        return float(0.5 * np.sum(self._whiten((means - self._posterior_mean(x))[:, None]) ** 2))

    def window_gap(self, x: Float[ArrayLike, " T"], half_width: int) -> float:
        """Return the amortization gap in nats of the best affine encoder of the 2 w + 1 observations around each state.

        Formula: `min_beta 1/2 (M beta - m)' Lambda (M beta - m)` over the windows M with an intercept; the scales of
        the factors are free, and windows are filled up with zeros beyond the ends.

        Raises:
          ValueError: a series of another or too short length.
        """
        inputs = windows(np.asarray(x, np.float64), half_width)
        design = np.column_stack([np.ones(len(inputs)), inputs])
        mean = self._posterior_mean(x)[:, None]
        return float(0.5 * np.sum(generalised_least_squares(design, mean, whiten=self._whiten).residual ** 2))

    def _posterior_mean(self, x: Float[ArrayLike, " T"]) -> Float[np.ndarray, " T"]:
        return np.linalg.solve(self.posterior_precision(), np.asarray(x, np.float64) / self.observation_variance)

    def _whiten(self, columns: Float[np.ndarray, "T c"]) -> Float[np.ndarray, "T c"]:
        """Return columns times R', with Lambda = R R'."""
        return np.linalg.cholesky(self.posterior_precision()).T @ columns


def windows(series: ArrayLike, half_width: int) -> Float[np.ndarray, "T inputs"]:
    """Return the observations from t - w to t + w for every t, zeros beyond the ends.

    Formula: row t is `(x_{t-w}, .., x_{t+w})`.

    Args:
      series: x, [T].
      half_width: w, not negative.

    Returns:
      An array [T, 2 w + 1].

    Raises:
      ValueError: a series shorter than its window, not one-dimensional, or a negative width.

    Source: Margossian and Blei, "Amortized variational inference: when and why?" (2024), section 3.3.
    """
    series = np.asarray(series)
    check_count("half_width", half_width, minimum=0)
    if series.ndim != 1 or series.size < 2 * half_width + 1:
        raise ValueError(
            f"series must be one-dimensional and not shorter than its window of {2 * half_width + 1}, got shape "
            f"{series.shape}"
        )
    filled = np.pad(series, half_width)
    return np.lib.stride_tricks.sliding_window_view(filled, 2 * half_width + 1).copy()
