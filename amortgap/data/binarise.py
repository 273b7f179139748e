"""Three ways from intensities to binary images."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from amortgap._internal.checks import as_data, check_choice, check_key, check_range

BINARISATIONS = ("threshold", "fixed", "dynamic")


def binarised(images: np.ndarray, binarisation: str, rng: np.random.Generator) -> np.ndarray:
    """Return images of bytes [N, D] as float32: binary, or intensities in [0, 1] for "dynamic"."""
    check_choice("binarisation", binarisation, BINARISATIONS)
    if binarisation == "threshold":
        return (images >= 128).astype(np.float32)
    intensities = images.astype(np.float32) / 255
    if binarisation == "dynamic":
        return intensities
    return (rng.random(images.shape, dtype=np.float32) < intensities).astype(np.float32)


def draw_binary(key: jax.Array, intensities: ArrayLike) -> Float[Array, "*shape"]:
    """Return binary images drawn afresh, every pixel as Bernoulli(intensity): dynamic binarisation.

    Formula: `x_j ~ Bernoulli(p_j)`, p_j the intensity of pixel j.

    Args:
      key: typed key, another one for every epoch.
      intensities: in [0, 1], of any shape with data along the first axis.

    Returns:
      Zeros and ones in the shape of the intensities.

    Raises:
      ValueError: bad key, or intensities outside [0, 1] or not finite.
    """
    check_key(key)
    intensities = as_data("intensities", intensities)
    check_range("intensities", intensities, low=0.0, high=1.0)
    return jax.random.bernoulli(key, intensities).astype(jnp.zeros(()).dtype)
