"""log p(x) of one datum: exact where the model knows it, by importance sampling elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from amortgap._checks import check_choice, check_count, check_key, check_sizes
from amortgap.objectives import elbo_draws

METHODS = ("exact", "importance")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Evidence:
    """An estimate of log p(x) for one datum, or for many with a leading axis.

    Attributes:
      log_evidence: the estimate, in nats.
      standard_error: Monte Carlo standard error, zero if exact.
      effective_sample_size: of the importance weights (infinite if exact).
      method: how it was obtained.
      bias: direction of the bias in expectation, "none" or "lower bound".
    """

    log_evidence: Float[Array, "*data"]
    standard_error: Float[Array, "*data"]
    effective_sample_size: Float[Array, "*data"]
    method: str = field(metadata={"static": True})
    bias: str = field(metadata={"static": True})


def log_evidence(
    key: jax.Array,
    x: Any,
    *,
    model: Any,
    method: str = "exact",
    family: Any = None,
    phi: Float[Array, " size"] | None = None,
    num_samples: int = 1000,
    block_size: int = 100,
) -> Evidence:
    """Return log p(x) of one datum.

    Formula: "exact" is the model's closed form; "importance" is `log (1/K) sum_k p(x, z_k) / q(z_k; phi)`, in
    expectation a lower bound that rises to log p(x) with K.

    Args:
      key: typed key of the draws.
      x: one datum.
      model: record with `log_joint(z, x)`, and `log_evidence(x)` for "exact".
      method: "exact" or "importance".
      family, phi: the proposal q of importance sampling, best the local optimum of the datum.
      num_samples: K, rounded up to whole blocks.
      block_size: draws in memory at a time.

    Returns:
      Evidence, in nats. The standard error is that of the log of the mean weight (delta method).

    Raises:
      ValueError: a model without a closed form asked for it, a missing proposal, or a bad number of draws.

    Source: Burda, Grosse and Salakhutdinov (2016), equation 8.
    """
    check_key(key)
    check_choice("method", method, METHODS)
    if method == "exact":
        if not hasattr(model, "log_evidence"):
            raise ValueError(f"method 'exact' needs model.log_evidence, which {type(model).__name__} lacks")
        value = model.log_evidence(x)
        zero = jnp.zeros_like(value)
        return Evidence(
            log_evidence=value, standard_error=zero, effective_sample_size=zero + jnp.inf, method="exact", bias="none"
        )
    if family is None or phi is None:
        raise ValueError("method 'importance' needs a proposal: give family and phi")
    check_sizes(model, family)
    check_count("num_samples", num_samples)
    check_count("block_size", block_size)
    blocks = -(-num_samples // block_size)

    def add(carry: tuple[Array, Array], index: Array) -> tuple[tuple[Array, Array], None]:
        log_weights = elbo_draws(
            jax.random.fold_in(key, index),
            phi,
            x,
            model=model,
            family=family,
            num_samples=block_size,
            estimator="total",
        )
        first, second = carry
        first = jnp.logaddexp(first, jax.scipy.special.logsumexp(log_weights))
        return (first, jnp.logaddexp(second, jax.scipy.special.logsumexp(2 * log_weights))), None

    nothing = jnp.full((), -jnp.inf, phi.dtype)
    (first, second), _ = jax.lax.scan(add, (nothing, nothing), jnp.arange(blocks))
    count = float(blocks * block_size)
    effective = jnp.exp(2 * first - second)
    return Evidence(
        log_evidence=first - jnp.log(count),
        standard_error=jnp.sqrt(jnp.maximum(1 / effective - 1 / count, 0.0)),
        effective_sample_size=effective,
        method=f"importance sampling, {blocks * block_size} draws",
        bias="lower bound",
    )
