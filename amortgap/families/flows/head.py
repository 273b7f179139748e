"""What all flows share: the part of phi that stays with the datum, its layout, and the checks of sizes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from amortgap._internal.checks import check_count


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
      context: what its conditioners read besides.
      weights: of the layers.
    """

    mean: Float[Array, " d"]
    log_scale: Float[Array, " d"]
    context: Float[Array, " c"]
    weights: Float[Array, " w"]


def split_phi(family: Any, phi: Float[Array, " size"] | FlowParts) -> FlowParts:
    """Return mean, log scale, context and the weights of the layers."""
    if isinstance(phi, FlowParts):
        return phi
    d, head = family.latent_dim, family.head.size
    return FlowParts(phi[:d], phi[d : 2 * d], phi[2 * d : head], phi[head:])


def check_layers(family: Any) -> None:
    """Raise ValueError for a number of layers, a width or a context that is out of range."""
    check_count("num_layers", family.num_layers)
    check_count("width", family.width)
    check_count("context_dim", family.context_dim, minimum=0)
