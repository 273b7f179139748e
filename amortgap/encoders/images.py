"""Convolutional encoders of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
from jaxtyping import Array, Float

from amortgap._internal.checks import in_shape
from amortgap._internal.records import checked_record
from amortgap.encoders.basic import OUTPUT_SCALE
from amortgap.networks import Activation, Network, convolutions, weight_count
from amortgap.protocols import Family, Head


@checked_record
@dataclass(frozen=True)
class ImageEncoder:
    """An encoder that reads one datum as an image; made by `conv`.

    Attributes:
      network: from an image to phi, trained.
      shape: (height, width, channels); a datum may be the image or its entries in a row.
    """

    network: Network
    shape: tuple[int, int, int] = field(metadata={"static": True})

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, " size"]:
        """Return phi for one image, refusing an x that is neither an image of `shape` nor its entries in a row."""
        return self.network(in_shape(x, self.shape))

    num_weights = weight_count("network")


def conv(
    key: jax.Array,
    shape: tuple[int, int, int],
    family: Family | Head,
    *,
    channels: Sequence[int] = (16, 32, 64),
    activation: Activation = jax.nn.elu,
) -> ImageEncoder:
    """Return a convolutional encoder, such as for 28 x 28 x 1 or 32 x 32 x 3 images.

    Formula: for every entry of `channels` a 3 x 3 convolution of stride two and the activation, then an affine layer.

    Args:
      key: typed key of the initial weights.
      shape: (height, width, channels) of an image.
      family: variational family.
      channels: output channels of every convolution.
      activation: an elementwise function, or one of `amortgap.networks.ACTIVATIONS`.

    Returns:
      ImageEncoder, from one image [height, width, channels] or its entries in a row to phi [family.size].

    Raises:
      ValueError: a bad key, a shape that is not three positive sizes, no or bad channels, or an unknown activation.
    """
    network = convolutions(key, tuple(shape), channels, family.size, activation=activation, output_scale=OUTPUT_SCALE)
    height, width, depth = shape
    return ImageEncoder(network, (height, width, depth))
