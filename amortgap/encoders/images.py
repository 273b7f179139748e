"""Convolutional encoders of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jaxtyping import Array, Float

from amortgap._internal.checks import in_shape
from amortgap._internal.records import checked_record
from amortgap.encoders.basic import OUTPUT_SCALE
from amortgap.networks import Network, convolutions, count_weights


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
        """Return phi for one image.

        Raises:
          ValueError: x is not one image of `shape`, nor its entries in a row.
        """
        return self.network(in_shape(x, self.shape))

    @property
    def num_weights(self) -> int:
        """Number of trained scalars."""
        return count_weights(self.network)


def conv(
    key: jax.Array, shape: tuple[int, int, int], family: Any, *, channels: Sequence[int] = (16, 32, 64)
) -> ImageEncoder:
    """Return a convolutional encoder, such as for 28 x 28 x 1 or 32 x 32 x 3 images.

    Formula: for every entry of `channels` a 3 x 3 convolution of stride two and elu, then an affine layer to phi.

    Args:
      key: typed key of the initial weights.
      shape: (height, width, channels) of an image.
      family: variational family.
      channels: output channels of every convolution.

    Returns:
      ImageEncoder, from one image [height, width, channels] or its entries in a row to phi [family.size].

    Raises:
      ValueError: bad key, a shape that is not three positive sizes, or no or bad channels.
    """
    sizes: Any = tuple(shape)
    return ImageEncoder(convolutions(key, sizes, channels, family.size, output_scale=OUTPUT_SCALE), sizes)
