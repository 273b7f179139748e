"""Loaders of MNIST, Fashion-MNIST, KMNIST and CIFAR-10 from files that lie on this machine."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from amortgap._internal.checks import check_choice
from amortgap.data import files
from amortgap.data.binarise import BINARISATIONS, binarised
from amortgap.data.download import cache_folder, fetch
from amortgap.data.sources import PARTS, SOURCES, DataSet, Folder, Source


def load_mnist(
    *, binarisation: str = "threshold", seed: int = 0, data_dir: Folder | None = None, download: bool = False
) -> DataSet:
    """Return MNIST: 60 000 and 10 000 handwritten digits of 28 x 28 pixels, as rows of 784.

    Files are looked for in `data_dir`, then in `$AMORTGAP_DATA`, then in the user's cache folder, in each of them in
    the folder `mnist` first: IDX files (`train-images-idx3-ubyte` and `t10k-images-idx3-ubyte`, with .gz or without) or
    `mnist.npz` with arrays `x_train` and `x_test`. Their decoded content is compared with known hashes.

    Args:
      binarisation: "threshold" sets a pixel of intensity at least 128 of 255; "fixed" draws every pixel once as
        Bernoulli(intensity / 255) with `seed`; "dynamic" returns intensities in [0, 1], from which
        `draw_binary` makes new binary images whenever they are needed.
      seed: of the fixed binarisation.
      data_dir: a folder to look into first.
      download: fetch missing files by the package manager that ships them.

    Returns:
      DataSet; its sha256 depends on the binarisation.

    Raises:
      ValueError: an unknown binarisation; files that are missing (with what to do), truncated, of another image size
        or content; a download that failed.

    Source: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition" (1998).
    """
    return load(SOURCES["mnist"], binarisation=binarisation, seed=seed, data_dir=data_dir, download=download)


def load_fashion_mnist(
    *, binarisation: str = "threshold", seed: int = 0, data_dir: Folder | None = None, download: bool = False
) -> DataSet:
    """Return Fashion-MNIST: 60 000 and 10 000 articles of clothing of 28 x 28 pixels, as rows of 784.

    Args and Raises as in `load_mnist`.

    Source: Xiao, Rasul and Vollgraf, "Fashion-MNIST: a novel image dataset" (2017).
    """
    return load(SOURCES["fashion_mnist"], binarisation=binarisation, seed=seed, data_dir=data_dir, download=download)


def load_kmnist(
    *, binarisation: str = "threshold", seed: int = 0, data_dir: Folder | None = None, download: bool = False
) -> DataSet:
    """Return KMNIST: 60 000 and 10 000 cursive Japanese characters of 28 x 28 pixels, as rows of 784.

    `kmnist-train-imgs.npz` and `kmnist-test-imgs.npz` are read too. No hash and no package of the files is known, so
    that neither the content is compared nor `download` possible.

    Args and Raises as in `load_mnist`.

    Source: Clanuwat et al., "Deep learning for classical Japanese literature" (2018).
    """
    return load(SOURCES["kmnist"], binarisation=binarisation, seed=seed, data_dir=data_dir, download=download)


def load_cifar10(
    *, binarisation: str = "threshold", seed: int = 0, data_dir: Folder | None = None, download: bool = False
) -> DataSet:
    """Return CIFAR-10: 50 000 and 10 000 photographs of 32 x 32 pixels, as rows of 32 * 32 * 3, channels last.

    Every channel is binarised on its own. The IDX files have four axes (`train-images-idx4-ubyte`). No hash and no
    package of the files is known, so that neither the content is compared nor `download` possible.

    Args and Raises as in `load_mnist`.

    Source: Krizhevsky, "Learning multiple layers of features from tiny images" (2009).
    """
    return load(SOURCES["cifar10"], binarisation=binarisation, seed=seed, data_dir=data_dir, download=download)


def load(source: Source, *, binarisation: str, seed: int, data_dir: Folder | None, download: bool) -> DataSet:
    """Return the data set of a source; arguments and errors as in `load_mnist`."""
    check_choice("binarisation", binarisation, BINARISATIONS)
    folders = _folders(data_dir)
    paths = _find(source, folders)
    if paths is None and download:
        paths = fetch(source, folders[0])
    if paths is None:
        raise ValueError(_missing(source, folders))
    rng = np.random.default_rng(seed)
    parts = {}
    name = f"{source.name}, {'x'.join(map(str, source.shape))}, binarisation {binarisation}, seed {seed}"
    digest = hashlib.sha256(name.encode())
    for part in PARTS:
        images = files.read(source, part, paths[part])
        parts[part] = binarised(images.reshape(len(images), -1), binarisation, rng)
        digest.update(parts[part])
    return DataSet(name, parts["train"], parts["test"], digest.hexdigest())


def is_available(name: str, *, data_dir: Folder | None = None) -> bool:
    """Return whether the files of a data set lie where its loader looks, whatever their content.

    Args:
      name: "mnist", "fashion_mnist", "kmnist", "cifar10", or "digits", which is always there.
      data_dir: as in the loader.

    Returns:
      True if both parts lie there.

    Raises:
      ValueError: an unknown name.
    """
    check_choice("name", name, ("digits", *SOURCES))
    return name == "digits" or _find(SOURCES[name], _folders(data_dir)) is not None


def _folders(data_dir: Folder | None) -> list[Path]:
    return [Path(place) for place in (data_dir, os.environ.get("AMORTGAP_DATA"), cache_folder()) if place]


def _find(source: Source, folders: list[Path]) -> dict[str, Path] | None:
    return next((paths for folder in folders if (paths := files.find(source, folder))), None)


def _missing(source: Source, folders: list[Path]) -> str:
    names = " and ".join(next(iter(files.candidates(source, part, Path()))).name for part in PARTS)
    hashes = f" (sha256 uncompressed: {' and '.join(source.sha256)})" if source.sha256 else ""
    remedy = f"{source.name} is not on this machine. Put {names}, with .gz or without,{hashes} or {source.name}.npz"
    remedy += f" into {folders[0] / source.name}"
    if source.package:
        remedy += ", or run `make data`, or ask for it with download=True"
    return f"{remedy}. Looked into {', '.join(map(str, folders))}; $AMORTGAP_DATA names another folder"
