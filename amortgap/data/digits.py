"""The 8 x 8 digits inside scikit-learn: the data set that needs no file."""

from __future__ import annotations

import hashlib

import numpy as np

from amortgap._internal.checks import check_choice
from amortgap.data.sources import DataSet

# sha256 of the 1797 x 64 images as uint8, row by row.
DIGITS_SHA256 = "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3"
BINARISATIONS = ("threshold", "fixed", "none")


def load_digits(*, binarisation: str = "threshold", seed: int = 0, test_fraction: float = 0.2) -> DataSet:
    """Return scikit-learn's handwritten digits: 1797 images of 8 x 8 pixels with intensities 0 to 16. Not MNIST.

    Args:
      binarisation: "threshold" sets a pixel where the intensity is at least 8; "fixed" draws every pixel once as
        Bernoulli(intensity / 16) with `seed`; "none" keeps the intensities 0 to 16.
      seed: of the split and of the fixed binarisation.
      test_fraction: share of images in the test part.

    Returns:
      DataSet. Three pixels are constant and kept.

    Raises:
      ValueError: an unknown binarisation, a fraction outside (0, 1), or images that are not the known ones.

    Source: Alpaydin and Kaynak, "Cascading classifiers" (1998); the copy inside scikit-learn.
    """
    from sklearn.datasets import load_digits as load  # a slow import that most users of the package never need

    check_choice("binarisation", binarisation, BINARISATIONS)
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must lie between 0 and 1, got {test_fraction!r}")
    images = load(return_X_y=True)[0]
    sha256 = hashlib.sha256(images.astype(np.uint8).tobytes()).hexdigest()
    if sha256 != DIGITS_SHA256:
        raise ValueError(f"scikit-learn's digits have changed: sha256 {sha256}, expected {DIGITS_SHA256}")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images))
    if binarisation == "threshold":
        images = images >= 8
    elif binarisation == "fixed":
        images = rng.random(images.shape) < images / 16
    num_test = round(test_fraction * len(images))
    test = images[order[:num_test]].astype(np.float32)
    train = images[order[num_test:]].astype(np.float32)
    digest = hashlib.sha256(train.tobytes() + b"|" + test.tobytes()).hexdigest()
    return DataSet(f"digits, 8x8, binarisation {binarisation}, seed {seed}", train, test, digest)
