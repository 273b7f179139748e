"""A flow whose weights are given: the family in which an encoder with shared flow weights puts every datum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from amortgap._internal.records import checked_record
from amortgap.families.flows.head import FlowParts
from amortgap.protocols import HasHead


@checked_record
@dataclass(frozen=True)
class FixedWeights:
    """A flow with given weights; phi is its head, `[mean, log scale, context]`.

    Formula: `q(z; phi) = q_flow(z; [phi, weights])`. Local VI in this family, from `encoder.head` of a `shared_flow`,
    frees what that encoder computes for a datum and keeps what data share: a hundred numbers instead of ten thousands.

    Args:
      flow: CouplingFlow, AutoregressiveFlow or AuxiliaryFlow.
      weights: [flow.size - flow.head.size], such as `encoder.weights` of a `shared_flow`.

    Attributes:
      latent_dim: dimension d of z.
      size: length of phi.
      name: of the family, "fixed_weights".

    Raises:
      ValueError: weights of another length, or a family without a head.
    """

    flow: Any
    weights: Float[Array, " weights"]
    name: ClassVar[str] = "fixed_weights"

    def __post_init__(self) -> None:
        if not isinstance(self.flow, HasHead):
            raise ValueError(f"flow must have a head, got {type(self.flow).__name__}")
        want, have = (self.flow.size - self.flow.head.size,), jnp.shape(self.weights)
        if have != want:
            raise ValueError(f"weights must have shape {want}, got {have}")

    @property
    def latent_dim(self) -> int:
        """Dimension d of z."""
        return self.flow.latent_dim

    @property
    def size(self) -> int:
        """Length of phi."""
        return self.flow.head.size

    def standard(self) -> Float[Array, " size"]:
        """Return the head of the standard normal, which the weights may bend into something else."""
        return self.flow.head.standard()

    def whole(self, phi: Float[Array, " size"]) -> Float[Array, " whole"]:
        """Return the flow's phi, `[phi, weights]`, [flow.size]."""
        return jnp.concatenate([phi, self.weights])

    def _parts(self, phi: Array) -> FlowParts:
        d = self.latent_dim
        return FlowParts(phi[:d], phi[d : 2 * d], phi[2 * d :], self.weights)

    @property
    def log_prob(self) -> Callable[[Float[Array, " d"], Float[Array, " size"]], Float[Array, ""]]:
        """`log q(z; phi)` in nats, where the flow knows it."""
        log_prob = self.flow.log_prob
        return lambda z, phi: log_prob(z, self._parts(phi))

    def sample_and_log_prob(
        self, key: jax.Array, phi: Float[Array, " size"]
    ) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """Return one draw and its log density in nats, as the flow does."""
        return self.flow.sample_and_log_prob(key, self._parts(phi))
