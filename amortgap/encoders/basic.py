"""Fully connected encoders of chosen capacity: constant, affine with a bottleneck, and multilayer perceptron."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from amortgap._internal.checks import as_data, check_count, check_key
from amortgap._internal.records import checked_record
from amortgap.networks import Activation, Network, dense, weight_count
from amortgap.protocols import Family, Head

# Encoders start near phi = 0, the standard normal: at random scales the first ELBOs are near -10^4, from which a narrow
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
        """Return phi for one datum, refusing an x that is not a vector of length `in_dim`."""
        check_row(x, self.in_dim)
        # The optimiser runs over all leaves and must not change these constants.
        centre, spread = jax.lax.stop_gradient((self.centre, self.spread))
        return self.network((x - centre) / spread)

    num_weights = weight_count("network")


def check_row(x: ArrayLike, in_dim: int) -> None:
    """Refuse a datum that is not a vector of this length."""
    if jnp.shape(x) != (in_dim,):
        raise ValueError(f"the encoder reads one datum of shape ({in_dim},), got {jnp.shape(x)}")


def _encoder(network: Network, in_dim: int, standardize: ArrayLike | None) -> Encoder:
    centre, spread = jnp.zeros(in_dim), jnp.ones(in_dim)
    if standardize is not None:
        xs = as_data("standardize", standardize)
        if xs.ndim != 2 or xs.shape[1] != in_dim:
            raise ValueError(f"standardize must be data of shape [N, {in_dim}], got {xs.shape}")
        centre = jnp.mean(xs, axis=0)
        deviation = jnp.std(xs, axis=0)
        # A (nearly) constant feature carries no information; dividing by its spread would inflate its rounding error.
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
        """Return phi, the same for every datum, refusing an x that is not a vector of length `in_dim`."""
        check_row(x, self.in_dim)
        return self.phi

    num_weights = weight_count("phi")


def constant(key: jax.Array | None, in_dim: int, family: Family | Head) -> ConstantEncoder:
    """Return the encoder without capacity: one phi for all data.

    Formula: `phi(x) = c`, c [family.size] trained; starts at the family's standard member.

    Args:
      key: not used, since nothing is drawn: None, or a typed key as the other encoders need.
      in_dim: length of one datum.
      family: variational family.

    Returns:
      ConstantEncoder, from one datum [in_dim] to phi [family.size].

    Raises:
      ValueError: in_dim is not positive, or a key that is neither None nor a typed key.
    """
    if key is not None:
        check_key(key)
    check_count("in_dim", in_dim)
    return ConstantEncoder(family.standard(), in_dim)


def linear(
    key: jax.Array, in_dim: int, family: Family | Head, *, rank: int, standardize: ArrayLike | None = None
) -> Encoder | ConstantEncoder:
    """Return an affine encoder with a linear bottleneck.

    Formula: `phi = B (A x + a) + c`, A [rank, in_dim], B [family.size, rank].

    Args:
      key: typed key of the initial weights.
      in_dim: length of one datum.
      family: variational family.
      rank: width of the bottleneck, from 0, which is the `constant` encoder, to the latent dimension.
      standardize: data [N, in_dim] whose means and standard deviations the encoder subtracts and divides by first
        (the set of maps it can represent is the same, training is much faster); None for none. Features that vary by
        less than a thousandth of the widest one are not divided: give features of like units.

    Returns:
      Encoder, from one datum [in_dim] to phi [family.size]; a ConstantEncoder for rank 0.

    Raises:
      ValueError: a bad key, an in_dim that is not positive, a rank outside [0, latent_dim], or bad data to standardise
        by.
    """
    check_key(key)
    check_count("in_dim", in_dim)
    check_count("rank", rank, minimum=0, maximum=family.latent_dim)
    if rank == 0:
        return constant(key, in_dim, family)
    network = dense(key, (in_dim, rank, family.size), activation="identity", output_scale=OUTPUT_SCALE)
    return _encoder(network, in_dim, standardize)


def mlp(
    key: jax.Array,
    in_dim: int,
    family: Family | Head,
    *,
    width: int = 128,
    depth: int = 2,
    activation: Activation = "elu",
    residual: bool = False,
    standardize: ArrayLike | None = None,
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
      activation: one of `amortgap.networks.ACTIVATIONS`, or an elementwise function such as `jax.nn.gelu`.
      residual: add the input of hidden layers to their output.
      standardize: data [N, in_dim] to take means and standard deviations from, as in `linear`, or None.

    Returns:
      Encoder, from one datum [in_dim] to phi [family.size].

    Raises:
      ValueError: a bad key, a bad size, an unknown activation, or bad data to standardise by.
    """
    check_key(key)
    check_count("in_dim", in_dim)
    check_count("width", width)
    check_count("depth", depth, minimum=0)
    sizes = (in_dim, *[width] * depth, family.size)
    network = dense(key, sizes, activation=activation, output_scale=OUTPUT_SCALE, residual=residual)
    return _encoder(network, in_dim, standardize)
