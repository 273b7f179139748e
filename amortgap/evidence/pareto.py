"""Pareto k-hat: how heavy the upper tail of importance weights is, from the largest weights alone."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

MIN_DRAWS = 25


def reliable_below(num_draws: int) -> float:
    """Return the k-hat above which neither a mean of this many weights nor its standard error can be relied on.

    Formula: `min(1 - 1 / log10(S), 0.7)`: 0.5 for 100 draws, 0.67 for 1000, 0.7 for 2200 and more.

    Args:
      num_draws: S; fewer than 25, of which no k-hat is computed, count as 25.

    Returns:
      The threshold for `pareto_k`.

    Source: Vehtari, Simpson, Gelman, Yao and Gabry, "Pareto smoothed importance sampling" (2024), section 3.2.
    """
    return min(1 - 1 / math.log10(max(num_draws, MIN_DRAWS)), 0.7)


def tail_size(num_draws: int) -> int:
    """Return the number of largest weights that count as the tail, `ceil(min(0.2 S, 3 sqrt(S)))`."""
    return math.ceil(min(0.2 * num_draws, 3 * math.sqrt(num_draws)))


def empty_tail(num_draws: int, dtype: jnp.dtype) -> Float[Array, " M"]:
    """Return the empty start of `keep_tail`, with room for the tail and its threshold."""
    return jnp.full(tail_size(num_draws) + 1, -jnp.inf, dtype)


def keep_tail(tail: Float[Array, " M"], log_weights: Float[Array, " S"]) -> Float[Array, " M"]:
    """Return the largest M of the log weights kept so far and of new ones, in decreasing order."""
    return jax.lax.top_k(jnp.concatenate([tail, log_weights]), tail.shape[0])[0]


def tail_shape(tail: Float[Array, " M"]) -> Float[Array, ""]:
    """Return k-hat from the largest log weights in decreasing order, the last of them being the threshold.

    Formula: the generalised Pareto shape of the excesses `exp(l_j) - exp(l_{M+1})` by the empirical Bayes estimator of
    Zhang and Stephens (2009), shrunk towards one half as by ten further observations. -inf if the largest weight is
    not above the threshold (constant weights have no tail), inf if the tail spans more than the floating range, or if
    three quarters of it equal the threshold: a missed mode shows itself by a few weights above a flat bulk. Weights of
    a discrete latent, which take finitely many values, may show the same pattern without harm.
    """
    size = tail.shape[0] - 1
    top, threshold = tail[0], tail[-1]
    scaled = jnp.exp(tail - jnp.where(jnp.isfinite(top), top, 0.0))
    excess = scaled[:-1][::-1] - scaled[-1]
    quarter = excess[max(int(size / 4 + 0.5), 1) - 1]
    usable = (quarter > 0) & jnp.isfinite(top)
    excess = jnp.where(usable, excess, jnp.arange(1, size + 1) / size)
    quarter = jnp.where(usable, quarter, 0.25)
    grid = 30 + int(math.sqrt(size))
    rates = 1 / excess[-1] + (1 - jnp.sqrt(grid / (jnp.arange(1, grid + 1) - 0.5))) / (3 * quarter)
    shapes = jnp.mean(jnp.log1p(-rates[:, None] * excess[None, :]), axis=1)
    profile = size * (jnp.log(-rates / shapes) - shapes - 1)
    rate = jnp.sum(rates * jax.nn.softmax(profile))
    shape = (size * jnp.mean(jnp.log1p(-rate * excess)) + 10 * 0.5) / (size + 10)
    # Weights that are constant in exact arithmetic still differ by rounding.
    flat = top - threshold < 1e3 * jnp.finfo(tail.dtype).eps
    return jnp.where(jnp.isnan(top), jnp.nan, jnp.where(flat, -jnp.inf, jnp.where(usable, shape, jnp.inf)))


def pareto_k(log_weights: Float[Array, " S"]) -> Float[Array, ""]:
    """Return the Pareto k-hat of importance weights.

    Formula: the M largest weights, `M = ceil(min(0.2 S, 3 sqrt(S)))`, less the next one, are fitted by a generalised
    Pareto distribution of shape k: moments of order above 1/k do not exist.

    Args:
      log_weights: `log p(x, z_s) - log q(z_s)`, in nats up to a constant, [S].

    Returns:
      k-hat; below 0.5 the weights have a finite variance, above `reliable_below(S)` their mean is unreliable. -inf for
      constant weights, NaN with fewer than 25 draws.

    Source: Vehtari, Simpson, Gelman, Yao and Gabry, "Pareto smoothed importance sampling" (2024), section 2 and
      appendix C; Zhang and Stephens (2009).
    """
    if log_weights.shape[0] < MIN_DRAWS:
        return jnp.full((), jnp.nan, log_weights.dtype)
    return tail_shape(keep_tail(empty_tail(log_weights.shape[0], log_weights.dtype), log_weights))
