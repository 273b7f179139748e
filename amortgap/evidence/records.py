"""What every estimate of log p(x) reports."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Evidence:
    """An estimate of log p(x) for one datum, or for many with a leading axis.

    Attributes:
      log_evidence: the estimate, in nats; -inf where every weight was zero.
      standard_error: its error: Monte Carlo, zero if exact, infinite where every weight was zero or there is but one;
        for quadrature the change against the next coarser rule.
      effective_sample_size: of the weights (infinite where there are none).
      pareto_k: shape of the upper tail of the weights; above 0.7 the estimate and its error are unreliable. -inf
        where the weights have no tail (exact, constant weights), NaN with fewer than 25 draws.
      method: how it was obtained.
      bias: direction of the bias in expectation: "none", "lower bound", or "numerical" for quadrature.
    """

    log_evidence: Float[Array, "*data"]
    standard_error: Float[Array, "*data"]
    effective_sample_size: Float[Array, "*data"]
    pareto_k: Float[Array, "*data"]
    method: str = field(metadata={"static": True})
    bias: str = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Sandwich:
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


def log_mean_error(effective: Float[Array, ""], count: float) -> Float[Array, ""]:
    """Return the standard error of the log of a mean weight by the delta method, infinite if it cannot be known.

    That is so for a single weight and where every weight is zero.

    Formula: `sd(w) / (sqrt(K) mean(w)) = sqrt(1/ESS - 1/K)` with `ESS = (sum w)^2 / sum w^2`, the variance taken
    with K - 1 in its denominator.
    """
    if count < 2:
        return jnp.full_like(effective, jnp.inf)
    relative = jnp.maximum(count / jnp.maximum(effective, 1e-30) - 1, 0.0) / (count - 1)
    return jnp.where(effective > 0, jnp.sqrt(relative), jnp.inf)


def log_mean(log_weights: Float[Array, " K"]) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Return the log of the mean weight, its standard error and the effective sample size."""
    total = logsumexp(log_weights)
    effective = effective_sample_size(total, logsumexp(2 * log_weights))
    return total - jnp.log(float(log_weights.size)), log_mean_error(effective, float(log_weights.size)), effective


def effective_sample_size(total: Array, total_of_squares: Array) -> Array:
    """Return `(sum w)^2 / sum w^2` from the logs of both sums, zero if every weight is zero."""
    # With every weight zero the difference would be -inf - -inf.
    none: Bool[Array, ""] = jnp.isneginf(total)
    return jnp.where(none, 0.0, jnp.exp(2 * jnp.where(none, 0.0, total) - jnp.where(none, 0.0, total_of_squares)))
