"""What a loader returns, and what it knows of a data set before reading it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

PARTS = ("train", "test")


class DataSet(NamedTuple):
    """Data split once into a training and a test part.

    Attributes:
      name: what the data are, binarisation included.
      train, test: float32 arrays, [N, D] and [M, D].
      sha256: of both parts, as used, in hexadecimal digits.
    """

    name: str
    train: np.ndarray
    test: np.ndarray
    sha256: str


@dataclass(frozen=True)
class Source:
    """An image set on disk.

    Attributes:
      name: of the set, of its folder and of its npz file.
      shape: of one image, (height, width) or (height, width, channels).
      counts: number of training and test images.
      sha256: of both parts as IDX bytes, uncompressed; None where no hash is published.
      package: (package manager, package) that ships the files, None for none.
    """

    name: str
    shape: tuple[int, ...]
    counts: tuple[int, int]
    sha256: tuple[str, str] | None = None
    package: tuple[str, str] | None = None
