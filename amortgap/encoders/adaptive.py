"""Encoders made of two: a shared network modulated by a hypernetwork, and a head with the weights of a flow."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from amortgap._internal.checks import check_count, check_key
from amortgap._internal.records import checked_record
from amortgap.encoders.basic import OUTPUT_SCALE, check_row
from amortgap.networks import Network, dense, weight_count
from amortgap.protocols import Datum, Encoder, Family, HasHead, Head


@checked_record
@dataclass(frozen=True)
class AdaptiveEncoder:
    """A shared encoder whose hidden units a hypernetwork modulates for every datum; made by `instance_adaptive`.

    Formula: `h_{l+1} = elu((1 + a_l(x)) * (W_l h_l + b_l) + c_l(x))`, `[a, c] = hyper(x)`, `phi = W h + b`.

    Attributes:
      layers: the shared layers, each an affine network, trained.
      hyper: from the datum to scales and shifts of all hidden layers, trained.
      in_dim: length of one datum.
    """

    layers: tuple[Network, ...]
    hyper: Network
    in_dim: int = field(metadata={"static": True})

    def __call__(self, x: Float[Array, " in_dim"]) -> Float[Array, " size"]:
        """Return phi for one datum, refusing an x that is not a vector of length `in_dim`."""
        check_row(x, self.in_dim)
        *hidden, last = self.layers
        changes = self.hyper(x).reshape(len(hidden), 2, -1)
        h = x
        for layer, (scale, shift) in zip(hidden, changes, strict=True):
            h = jax.nn.elu((1 + scale) * layer(h) + shift)
        return last(h)

    num_weights = weight_count("layers", "hyper")


def instance_adaptive(
    key: jax.Array, in_dim: int, family: Family | Head, *, width: int = 64, depth: int = 2, hyper_width: int = 16
) -> AdaptiveEncoder:
    """Return an encoder whose units are modulated by a hypernetwork that reads the same datum.

    Formula: as in `AdaptiveEncoder`; the output layer of the hypernetwork starts at zero, which is no modulation.

    Args:
      key: typed key of the initial weights.
      in_dim: length of one datum.
      family: variational family.
      width, depth: hidden layers of the shared encoder.
      hyper_width: units of the hypernetwork's one hidden layer.

    Returns:
      AdaptiveEncoder, from one datum [in_dim] to phi [family.size].

    Raises:
      ValueError: a bad key, or a size that is not positive.

    Source: the idea of instance-adaptive VAEs, arXiv 2604.06796; modulation as in Perez et al., "FiLM" (2018).
    """
    check_key(key)
    for name, size in (("in_dim", in_dim), ("width", width), ("depth", depth), ("hyper_width", hyper_width)):
        check_count(name, size)
    key_hyper, *keys = jax.random.split(key, depth + 2)
    sizes = [in_dim, *[width] * depth, family.size]
    layers = tuple(
        dense(keys[i], (sizes[i], sizes[i + 1]), output_scale=OUTPUT_SCALE if i == depth else 1.0)
        for i in range(depth + 1)
    )
    hyper = dense(key_hyper, (in_dim, hyper_width, 2 * depth * width), output_scale=0.0)
    return AdaptiveEncoder(layers, hyper, in_dim)


@checked_record
@dataclass(frozen=True)
class SharedFlowEncoder:
    """An encoder of a flow's head, with flow weights that all data share; made by `shared_flow`.

    Formula: `phi = [head(x), weights]`.

    Attributes:
      head: encoder of `family.head`, trained.
      weights: of the flow, [family.size - family.head.size], trained.
    """

    head: Encoder
    weights: Float[Array, " weights"]

    def __call__(self, x: Datum) -> Float[Array, " size"]:
        """Return phi for one datum."""
        return jnp.concatenate([self.head(x), self.weights])

    num_weights = weight_count("head", "weights")


def shared_flow(head: Encoder, family: Family) -> SharedFlowEncoder:
    """Return an encoder whose flow weights are shared over data and whose head, context included, reads the datum.

    Formula: `phi = [head(x), weights]`; the weights start at those of the family's standard member.

    Args:
      head: encoder made for `family.head`, such as `mlp(key, in_dim, family.head)`.
      family: a flow.

    Returns:
      SharedFlowEncoder, from one datum to phi [family.size].

    Raises:
      ValueError: a family without a head.
    """
    if not isinstance(family, HasHead):
        raise ValueError(f"family must be a flow with a head, got {type(family).__name__}")
    return SharedFlowEncoder(head, family.standard()[family.head.size :])
