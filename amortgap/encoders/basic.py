"""Fully connected encoders of chosen capacity: constant, affine with a bottleneck, and multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from amortgap._internal.checks import as_data, check_count, check_key, is_concrete
from amortgap._internal.records import checked_record
from amortgap.networks import Network, architecture, count_weights, dense, pad_weights

# Encoders start near phi = 0, the standard normal: from random scales the first steps meet ELBOs of -10^4 and a narrow
# network may never recover.
OUTPUT_SCALE = 0.1


@checked_record
@dataclass(frozen=True)
class Encoder:
    """An encoder: standardise one datum, then apply a network.

    Formula: `phi = network((x - centre) / spread)`; `centre` and `spread` are constants, not trained.

    Attributes:
      network: maps the standardised datum to phi; its weights are what amortized VI trains.
      centre, spread: [in_dim], zeros and ones unless the encoder was given data to standardise by.
      in_dim: length of one datum.
    """

    network: Network
    centre: Float[Array, " in_dim"]
    spread: Float[Array, " in_dim"]
    in_dim: int = field(metadata={"static": True})

    def __call__(self, x: Float[Array, " in_dim"]) -> Float[Array, " size"]:
        """Return phi for one datum.

        Raises:
          ValueError: x is not a vector of length `in_dim`.
        """
        check_row(x, self.in_dim)
        # Constants of the data must not drift when the optimiser runs over all leaves.
        centre, spread = jax.lax.stop_gradient((self.centre, self.spread))
        return self.network((x - centre) / spread)

    @property
    def num_weights(self) -> int:
        """Number of trained scalars."""
        return count_weights(self.network)


def check_row(x: Any, in_dim: int) -> None:
    """Refuse what is not one datum of this length."""
    if jnp.shape(x) != (in_dim,):
        raise ValueError(f"the encoder reads one datum of shape ({in_dim},), got {jnp.shape(x)}")


def _encoder(network: Network, in_dim: int, standardize: Any) -> Encoder:
    centre, spread = jnp.zeros(in_dim), jnp.ones(in_dim)
    if standardize is not None:
        xs = as_data("standardize", standardize)
        if xs.ndim != 2 or xs.shape[1] != in_dim:
            raise ValueError(f"standardize must be data of shape [N, {in_dim}], got {xs.shape}")
        centre = jnp.mean(xs, axis=0)
        deviation = jnp.std(xs, axis=0)
        # A feature that is (nearly) constant carries nothing; dividing by its spread would blow up its rounding error.
        spread = jnp.where(deviation > 1e-3 * jnp.max(deviation), deviation, 1.0)
    return Encoder(network, centre, spread, in_dim)


@checked_record
@dataclass(frozen=True)
class ConstantEncoder:
    """The encoder without capacity: the same phi for every datum.

    Attributes:
      phi: the shared variational parameters, [family.size], trained.
      in_dim: length of one datum.
    """

    phi: Float[Array, " size"]
    in_dim: int = field(metadata={"static": True})

    def __call__(self, x: Float[Array, " in_dim"]) -> Float[Array, " size"]:
        """Return phi, whatever the datum.

        Raises:
          ValueError: x is not a vector of length `in_dim`.
        """
        check_row(x, self.in_dim)
        return self.phi

    @property
    def num_weights(self) -> int:
        """Number of trained scalars."""
        return self.phi.size


def constant(key: jax.Array, in_dim: int, family: Any) -> ConstantEncoder:
    """Return the encoder without capacity: one phi for all data.

    Formula: `phi(x) = c`, c [family.size] trained; starts at the family's standard member.

    Args:
      key: typed key, for a signature like the other encoders'; nothing is drawn.
      in_dim: length of one datum.
      family: variational family.

    Returns:
      ConstantEncoder, from one datum [in_dim] to phi [family.size].

    Raises:
      ValueError: bad key, or in_dim is not positive.
    """
    check_key(key)
    check_count("in_dim", in_dim)
    return ConstantEncoder(family.standard(), in_dim)


def linear(key: jax.Array, in_dim: int, family: Any, *, rank: int, standardize: Any = None) -> Encoder:
    """Return an affine encoder with a linear bottleneck.

    Formula: `phi = B (A x + a) + c`, A [rank, in_dim], B [family.size, rank].

    Args:
      key: typed key of the initial weights.
      in_dim: length of one datum.
      family: variational family.
      rank: width of the bottleneck, from 1 to the latent dimension; rank 0 is `constant`.
      standardize: data [N, in_dim] whose means and standard deviations the encoder subtracts and divides by first
        (the set of maps it can represent is the same, training is much faster); None for none. Features that vary by
        less than a thousandth of the widest one are not divided: give features of like units.

    Returns:
      Encoder, from one datum [in_dim] to phi [family.size].

    Raises:
      ValueError: bad key, an in_dim that is not positive, a rank outside [1, latent_dim], or bad data to standardise
        by.
    """
    check_key(key)
    check_count("in_dim", in_dim)
    check_count("rank", rank, maximum=family.latent_dim)
    network = dense(key, (in_dim, rank, family.size), activation="identity", output_scale=OUTPUT_SCALE)
    return _encoder(network, in_dim, standardize)


def mlp(
    key: jax.Array,
    in_dim: int,
    family: Any,
    *,
    width: int = 128,
    depth: int = 2,
    activation: str = "elu",
    residual: bool = False,
    standardize: Any = None,
) -> Encoder:
    """Return a multilayer perceptron encoder.

    Formula: `h_0 = x; h_{l+1} = activation(W_l h_l + b_l)`, l < depth; `phi = W h_depth + b`. With `residual` every
    hidden layer whose input has its size adds it, `h_{l+1} = h_l + activation(W_l h_l + b_l)`.

    Args:
      key: typed key of the initial weights.
      in_dim: length of one datum.
      family: variational family.
      width: units of every hidden layer.
      depth: number of hidden layers; depth 0 is an affine encoder without a bottleneck.
      activation: one of `amortgap.networks.ACTIVATIONS`.
      residual: add the input of hidden layers to their output.
      standardize: data [N, in_dim] to take means and standard deviations from, as in `linear`, or None.

    Returns:
      Encoder, from one datum [in_dim] to phi [family.size].

    Raises:
      ValueError: bad key, a bad size, an unknown activation, or bad data to standardise by.
    """
    check_key(key)
    check_count("in_dim", in_dim)
    check_count("width", width)
    check_count("depth", depth, minimum=0)
    sizes = (in_dim, *[width] * depth, family.size)
    network = dense(key, sizes, activation=activation, output_scale=OUTPUT_SCALE, residual=residual)
    return _encoder(network, in_dim, standardize)


def _kind(encoder: Any) -> tuple[Any, ...]:
    network = getattr(encoder, "network", None)
    how = architecture(network) if isinstance(network, Network) else ("", False)
    in_dim = getattr(encoder, "in_dim", None)
    size = jax.eval_shape(encoder, jnp.zeros(in_dim)).size if isinstance(encoder, Encoder) else None
    return type(encoder).__name__, in_dim, size, len(jax.tree.leaves(encoder)), *how


def stack_padded(encoders: Sequence[Any]) -> Any:
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
        are residual or not fully connected.
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
        # What else has widths keeps several blocks in one array, or offsets of what it reads: its padding is not zeros.
        raise ValueError(f"encoders must be of one width to be stacked if they are {type(encoders[0]).__name__}s")
    if len(shapes) == 1 and len({jax.tree.structure(encoder) for encoder in encoders}) > 1:
        raise ValueError(f"encoders must have one structure to be stacked, got {len(encoders)} that differ in settings")
    if any(residual for *_, residual in kinds) and len({encoder.num_weights for encoder in encoders}) > 1:
        # Which layers add their input depends on their sizes, and padding changes those.
        raise ValueError("encoders must be of one width to be stacked if they are residual")
    largest = max(encoders, key=lambda encoder: encoder.num_weights)
    structure = jax.tree.structure(largest)
    padded = [pad_weights(jax.tree.unflatten(structure, jax.tree.leaves(encoder)), largest) for encoder in encoders]
    library = np if is_concrete(padded) else jnp
    return jax.tree.map(lambda *leaves: jnp.asarray(library.stack(leaves)), *padded)
