"""An encoder of bounded Lipschitz constant."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from amortgap._internal.checks import check_positive
from amortgap._internal.records import checked_record


@checked_record
@dataclass(frozen=True)
class WeightNormEncoder:
    """An encoder whose units all have incoming weights of one norm: a bounded Lipschitz constant.

    Formula: every matrix W of `encoder.network` is used as `norm * W_j / |W_j|`, j its units.

    Attributes:
      encoder: with an attribute `network`, trained.
      norm: of the incoming weights of every unit.

    Raises:
      ValueError: a norm that is not positive, or an encoder without a `network`.
    """

    encoder: Any
    norm: float = field(metadata={"static": True})

    def __post_init__(self) -> None:
        check_positive("norm", self.norm)
        if not hasattr(self.encoder, "network"):
            raise ValueError(f"encoder must have a network, got {type(self.encoder).__name__}")

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, " size"]:
        """Return phi for one datum."""

        def normalised(leaf: Array) -> Array:
            if leaf.ndim < 2:
                return leaf
            square = jnp.sum(leaf**2, axis=tuple(range(leaf.ndim - 1)), keepdims=True)
            return self.norm * leaf / jnp.sqrt(square + 1e-12)

        smooth = jax.tree.map(normalised, self.encoder.network)
        return replace(self.encoder, network=smooth)(x)

    @property
    def num_weights(self) -> int:
        """Number of trained scalars."""
        return self.encoder.num_weights
