"""log p(x) in closed form, where the model offers it."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from amortgap._internal.checks import check_datum
from amortgap.evidence.records import Evidence
from amortgap.protocols import HasExactEvidence


def check_exact(model: Any) -> None:
    """Refuse a model without a closed form of log p(x)."""
    if not isinstance(model, HasExactEvidence):
        raise ValueError(f"method 'exact' needs model.log_evidence, which {type(model).__name__} lacks")


def exact(x: Any, *, model: Any) -> Evidence:
    """Return log p(x) of one datum from the model's closed form.

    Formula: `log p(x) = log integral p(x, z) dz`, as `model.log_evidence(x)` has it.

    Args:
      x: one datum.
      model: record with `log_evidence(x)`.

    Returns:
      Evidence in nats with a standard error of zero.

    Raises:
      ValueError: a model without a closed form, or an x that is not one datum of it.
    """
    check_exact(model)
    value = model.log_evidence(check_datum(x, model))
    zero = jnp.zeros_like(value)
    return Evidence(
        log_evidence=value,
        standard_error=zero,
        effective_sample_size=zero + jnp.inf,
        pareto_k=zero - jnp.inf,
        method="exact",
        bias="none",
    )
