"""An encoder of bounded Lipschitz constant."""

from __future__ import annotations

from dataclasses import Field, dataclass, field, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from amortgap._internal.checks import check_positive
from amortgap._internal.records import checked_record
from amortgap.networks import Network, weight_count


@runtime_checkable
class HasNetwork(Protocol):
    """An encoder that is a dataclass around one network."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def network(self) -> Network:
        """The network."""
        ...

    def __call__(self, x: Array) -> Array:
        """Return phi for one datum."""
        ...


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

    encoder: HasNetwork
    norm: float = field(metadata={"static": True})

    def __post_init__(self) -> None:
        check_positive("norm", self.norm)
        if not isinstance(self.encoder, HasNetwork):
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

    num_weights = weight_count("encoder")
