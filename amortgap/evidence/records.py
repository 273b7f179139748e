"""The records that estimates of log p(x) return, and the arithmetic of mean weights."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from amortgap.objectives import log_mean_exp


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Evidence:
    """An estimate of log p(x) for one datum, or for many with a leading axis.

    Attributes:
      log_evidence: the estimate, in nats; -inf where every weight was zero.
      standard_error: its Monte Carlo error, zero if exact, infinite where every weight was zero or there is only one;
        for quadrature the change against the next coarser rule.
      effective_sample_size: of the weights (infinite where there are none).
      pareto_k: shape of the upper tail of the weights. The estimate and its error are unreliable above
        `reliable_below(num_draws)`, which is 0.7 for 2200 draws and more. -inf where the weights have no tail (exact,
        constant weights), NaN with fewer than 25 draws.
      method: how it was obtained.
      bias: direction of the bias in expectation: "none", "lower bound", or "numerical" for quadrature.
      num_draws: number of weights behind the estimate, 0 where there are none.
    """

    log_evidence: Float[Array, "*data"]
    standard_error: Float[Array, "*data"]
    effective_sample_size: Float[Array, "*data"]
    pareto_k: Float[Array, "*data"]
    method: str = field(metadata={"static": True})
    bias: str = field(metadata={"static": True})
    num_draws: int = field(metadata={"static": True}, default=0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class EvidenceBounds:
    """Bounds on log p(x) from both sides, each in expectation, for one datum or for many with a leading axis.

    Attributes:
      lower, upper: in nats; E[lower] <= log p(x), and E[upper] >= log p(x) where `proven`.
      lower_standard_error: Monte Carlo standard error of `lower` over its independent chains.
      upper_standard_error: the same for `upper`, given the state its chains share as their start where they do.
      acceptance: mean acceptance rate of the forward chains.
      proven: whether the reverse chains started from an exact draw of the posterior; otherwise the upper bound is
        heuristic.
      method: how it was obtained.
    """

    lower: Float[Array, "*data"]
    upper: Float[Array, "*data"]
    lower_standard_error: Float[Array, "*data"]
    upper_standard_error: Float[Array, "*data"]
    acceptance: Float[Array, "*data"]
    proven: bool = field(metadata={"static": True})
    method: str = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bound:
    """A bound that holds in expectation, for one datum or for many with a leading axis.

    Attributes:
      value: in nats.
      standard_error: Monte Carlo standard error of the value.
      proven: whether mathematics guarantees the direction; otherwise the bound is heuristic.
    """

    value: Float[Array, "*data"]
    standard_error: Float[Array, "*data"]
    proven: bool = field(metadata={"static": True})


def log_mean_error(effective: Float[Array, ""], count: float) -> Float[Array, ""]:
    """Return the standard error of the log of a mean weight by the delta method.

    It is infinite where it cannot be known: for a single weight, and where every weight is zero.

    Formula: `sd(w) / (sqrt(K) mean(w)) = sqrt(1/ESS - 1/K)` with `ESS = (sum w)^2 / sum w^2`, the variance taken
    with K - 1 in its denominator.
    """
    if count < 2:
        return jnp.full_like(effective, jnp.inf)
    relative = jnp.maximum(count / jnp.maximum(effective, 1e-30) - 1, 0.0) / (count - 1)
    return jnp.where(effective > 0, jnp.sqrt(relative), jnp.inf)


def log_mean(log_weights: Float[Array, " K"]) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Return the log of the mean weight, its standard error and the effective sample size."""
    effective = effective_sample_size(logsumexp(log_weights), logsumexp(2 * log_weights))
    return log_mean_exp(log_weights), log_mean_error(effective, float(log_weights.size)), effective


def effective_sample_size(total: Float[Array, ""], total_of_squares: Float[Array, ""]) -> Float[Array, ""]:
    """Return `(sum w)^2 / sum w^2` from the logs of both sums, zero if every weight is zero."""
    # If every weight is zero, both logs are -inf and their difference is NaN.
    all_zero = jnp.isneginf(total)
    log_ratio = 2 * jnp.where(all_zero, 0.0, total) - jnp.where(all_zero, 0.0, total_of_squares)
    return jnp.where(all_zero, 0.0, jnp.exp(log_ratio))
