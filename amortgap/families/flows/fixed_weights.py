"""A flow whose weights are given: the family in which an encoder with shared flow weights puts every datum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from amortgap._internal.records import checked_record
from amortgap.families.flows.head import Flow, FlowParts, FlowWithDensity
from amortgap.protocols import has_full_support


@checked_record
@dataclass(frozen=True)
class FixedWeights:
    """A flow with given weights; phi is its head, `[mean, log scale, context]`.

    Formula: `q(z; phi) = q_flow(z; [phi, weights])`. Local VI in this family, from `encoder.head` of a `shared_flow`,
    optimises the head of every datum and keeps the shared weights: a hundred parameters instead of ten thousand.

    The result is a `FixedWeightsWithDensity`, which adds `log_prob`, where the flow has a density.

    Args:
      flow: CouplingFlow, AutoregressiveFlow or AuxiliaryFlow.
      weights: [flow.size - flow.head.size], such as `encoder.weights` of a `shared_flow`.

    Attributes:
      name: of the family, "fixed_weights".
      full_support: whether its density is positive everywhere, as the flow says.

    Raises:
      ValueError: weights of another length, or a family without a head.
    """

    flow: Flow
    weights: Float[Array, " weights"]
    name: ClassVar[str] = "fixed_weights"

    def __new__(cls, flow: object, weights: object) -> FixedWeights:
        """Return a new record, of the class with a density where the flow has one."""
        return object.__new__(FixedWeightsWithDensity if isinstance(flow, FlowWithDensity) else cls)

    def __post_init__(self) -> None:
        if not isinstance(self.flow, Flow):
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

    @property
    def full_support(self) -> bool:
        """Whether the density is positive everywhere."""
        return has_full_support(self.flow)

    def standard(self) -> Float[Array, " size"]:
        """Return the head of the standard normal, which the weights may bend into something else."""
        return self.flow.head.standard()

    def whole(self, phi: Float[Array, " size"]) -> Float[Array, " whole"]:
        """Return the flow's phi, `[phi, weights]`, [flow.size]."""
        return jnp.concatenate([phi, self.weights])

    def _parts(self, phi: Array) -> FlowParts:
        d = self.latent_dim
        return FlowParts(phi[:d], phi[d : 2 * d], phi[2 * d :], self.weights)

    def sample_and_log_prob(
        self, key: jax.Array, phi: Float[Array, " size"]
    ) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """Return one draw and its log density in nats, as the flow does."""
        return self.flow.sample_and_log_prob(key, self._parts(phi))


@checked_record
@dataclass(frozen=True)
class FixedWeightsWithDensity(FixedWeights):
    """The `FixedWeights` of a flow that has a density; made by `FixedWeights(flow, weights)`.

    Attributes as in `FixedWeights`.
    """

    flow: FlowWithDensity

    def log_prob(self, z: Float[Array, " d"], phi: Float[Array, " size"]) -> Float[Array, ""]:
        """Return `log q(z; phi)` in nats."""
        return self.flow.log_prob(z, self._parts(phi))
