"""What all flows share: the part of phi that stays with the datum, its layout, and the checks of sizes."""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from amortgap._internal.checks import check_count
from amortgap.protocols import HasHead


class FlowHead(NamedTuple):
    """The part of phi that stays with the datum where the weights of a flow are shared; what an encoder computes.

    Attributes:
      latent_dim: dimension d of z.
      size: length of `[mean, log scale, context]`.
    """

    latent_dim: int
    size: int

    def standard(self) -> Float[Array, " size"]:
        """Return the head of the standard normal."""
        return jnp.zeros(self.size)


class FlowParts(NamedTuple):
    """A flow's phi in parts, which its functions take as well: weights that data share are then not copied for each.

    Attributes:
      mean, log_scale: of the affine map around the flow, [d].
      context: further inputs of the conditioners.
      weights: of the layers.
    """

    mean: Float[Array, " d"]
    log_scale: Float[Array, " d"]
    context: Float[Array, " c"]
    weights: Float[Array, " w"]


# The variational parameters of a flow, in one vector or in parts.
Phi: TypeAlias = Float[Array, " size"] | FlowParts


@runtime_checkable
class Flow(HasHead, Protocol):
    """A family with a head whose functions take phi in parts as well."""

    def sample_and_log_prob(self, key: jax.Array, phi: Phi) -> tuple[Array, Array]:
        """Return one draw z [d] and its log density in nats."""
        ...


@runtime_checkable
class FlowWithDensity(Flow, Protocol):
    """A flow that states its density at any z."""

    def log_prob(self, z: Array, phi: Phi) -> Array:
        """Return `log q(z; phi)` in nats."""
        ...


def split_phi(family: HasHead, phi: Phi) -> FlowParts:
    """Return mean, log scale, context and the weights of the layers."""
    if isinstance(phi, FlowParts):
        return phi
    d, head = family.latent_dim, family.head.size
    return FlowParts(phi[:d], phi[d : 2 * d], phi[2 * d : head], phi[head:])


def check_layers(num_layers: object, width: object, context_dim: object, *, fewest: int = 1) -> None:
    """Refuse a number of layers, a width or a context that is out of range."""
    check_count("num_layers", num_layers, minimum=fewest)
    check_count("width", width)
    check_count("context_dim", context_dim, minimum=0)
