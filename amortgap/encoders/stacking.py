"""Encoders of different widths as one encoder with a leading axis, which one compilation serves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from amortgap._internal.checks import is_concrete
from amortgap.encoders.basic import Encoder
from amortgap.networks import Activation, Network, activate, architecture, pad_weights
from amortgap.protocols import Encoder as AnyEncoder

E = TypeVar("E", bound=AnyEncoder)


class _Kind(NamedTuple):
    """The properties that encoders must share to be stacked."""

    name: str
    in_dim: int | None
    size: int | None
    num_arrays: int
    activation: Activation
    residual: bool


def _kind(encoder: AnyEncoder) -> _Kind:
    network = getattr(encoder, "network", None)
    activation, residual = architecture(network) if isinstance(network, Network) else ("", False)
    in_dim = getattr(encoder, "in_dim", None)
    size = jax.eval_shape(encoder, jnp.zeros(encoder.in_dim)).size if isinstance(encoder, Encoder) else None
    return _Kind(type(encoder).__name__, in_dim, size, len(jax.tree.leaves(encoder)), activation, residual)


def stack_padded(encoders: Sequence[E]) -> E:
    """Return encoders of one kind and depth as a single stacked encoder, narrow ones padded with zero weights.

    The result has a leading axis on every leaf and is meant for `jax.vmap`: one compilation serves all widths, and
    padded units stay exactly zero under gradient training.

    Args:
      encoders: at least one, all of one kind, input and output size and number of layers; only fully connected ones may
        differ in width.

    Returns:
      An encoder of that kind whose leaves have a leading axis, one entry an encoder.

    Raises:
      ValueError: no encoders, encoders whose networks differ in more than widths, or different widths of encoders that
        are residual, not fully connected or have an activation that does not map 0 to 0.
    """
    if not encoders:
        raise ValueError("encoders must hold at least one encoder, got none")
    kinds = {_kind(encoder) for encoder in encoders}
    if len(kinds) > 1:
        raise ValueError(
            "encoders must be of one kind, input and output size, number of arrays and activation to be stacked, "
            f"got {sorted(map(str, kinds))}"
        )
    shapes = {tuple(jnp.shape(leaf) for leaf in jax.tree.leaves(encoder)) for encoder in encoders}
    if len(shapes) > 1 and not isinstance(encoders[0], Encoder):
        # Other encoders pack several blocks into one array, so zero padding would change what they compute.
        raise ValueError(f"encoders must be of one width to be stacked if they are {type(encoders[0]).__name__}s")
    if len(shapes) == 1 and len({jax.tree.structure(encoder) for encoder in encoders}) > 1:
        raise ValueError(f"encoders must have one structure to be stacked, got {len(encoders)} that differ in settings")
    (kind,) = kinds
    if len(shapes) > 1 and kind.residual:
        # Which layers add their input depends on their sizes, and padding changes those.
        raise ValueError("encoders must be of one width to be stacked if they are residual")
    if len(shapes) > 1 and kind.activation:
        with jax.ensure_compile_time_eval():
            padded_output = float(activate(kind.activation, jnp.zeros(())))
        if padded_output != 0:
            # Training would change the weights of padded units.
            raise ValueError("encoders must be of one width to be stacked if their activation does not map 0 to 0")
    largest = max(encoders, key=lambda encoder: sum(map(jnp.size, jax.tree.leaves(encoder))))
    structure = jax.tree.structure(largest)
    padded = [pad_weights(jax.tree.unflatten(structure, jax.tree.leaves(encoder)), largest) for encoder in encoders]
    library = np if is_concrete(padded) else jnp
    return jax.tree.map(lambda *leaves: jnp.asarray(library.stack(leaves)), *padded)
