"""Images from IDX and npz files, checked by the sha256 of their content. Nothing read is ever executed."""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from amortgap.data.sources import PARTS, Source

_STEMS = {"train": "train-images", "test": "t10k-images"}
# IDX: two zero bytes, 8 for unsigned bytes, the number of axes, then the length of each as a big-endian number.
_UNSIGNED_BYTES = 0x08


def candidates(source: Source, part: str, folder: Path) -> Iterable[Path]:
    """Return the files in which a part may lie, the folder of the set's own name first."""
    axes = 1 + len(source.shape)
    idx = [f"{_STEMS[part]}{mark}idx{axes}-ubyte{end}" for mark in "-." for end in ("", ".gz")]
    for place in (folder / source.name, folder):
        yield from (place / name for name in [*idx, f"{source.name}.npz", f"{source.name}-{part}-imgs.npz"])


def find(source: Source, folder: Path) -> dict[str, Path] | None:
    """Return the file of every part, None unless all are there."""
    paths = {part: next((path for path in candidates(source, part, folder) if path.is_file()), None) for part in PARTS}
    return {part: path for part, path in paths.items() if path} if all(paths.values()) else None


def read_idx(path: Path) -> np.ndarray:
    """Return the unsigned bytes of an IDX file, compressed by gzip or not.

    Raises:
      ValueError: a file that cannot be read, is truncated or longer than its header says, or holds no unsigned bytes.

    Source: the format is described on the MNIST page of LeCun, Cortes and Burges.
    """
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read, it may be truncated: {error}") from error
    if len(data) < 4 or data[:3] != bytes([0, 0, _UNSIGNED_BYTES]):
        raise ValueError(f"{path} is no IDX file of unsigned bytes: it starts with {data[:4].hex() or 'nothing'}")
    header = 4 + 4 * data[3]
    if len(data) < header:
        raise ValueError(f"{path} is truncated: {len(data)} bytes, its header alone takes {header}")
    shape = struct.unpack(f">{data[3]}I", data[4:header])
    if len(data) - header != math.prod(shape):
        raise ValueError(
            f"{path} is truncated or damaged: it holds {len(data) - header} bytes of images, its header says "
            f"{' x '.join(map(str, shape))} = {math.prod(shape)}"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def read_npz(path: Path, part: str) -> np.ndarray:
    """Return the images of a part from an npz file: its array `x_train` or `x_test`, or its only array.

    Raises:
      ValueError: a damaged file, one without such an array, or one whose array is not of unsigned bytes; an array of
        Python objects, which only a pickle could hold, is refused unread.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            name = f"x_{part}" if f"x_{part}" in arrays else "arr_0"
            if name not in arrays:
                raise ValueError(f"it holds the arrays {', '.join(arrays)}, not x_{part}")
            images = arrays[name]
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if images.dtype != np.uint8:
        raise ValueError(f"{path} must hold unsigned bytes, got {images.dtype} in {name}")
    return images


def content_sha256(images: np.ndarray) -> str:
    """Return the sha256 of images as IDX bytes, the same for an IDX file, its compressed copy and an npz file."""
    header = bytes([0, 0, _UNSIGNED_BYTES, images.ndim]) + struct.pack(f">{images.ndim}I", *images.shape)
    digest = hashlib.sha256(header)
    digest.update(images.tobytes())
    return digest.hexdigest()


def read(source: Source, part: str, path: Path) -> np.ndarray:
    """Return the images of a part as unsigned bytes, [count, *shape], after comparing shape and content.

    Raises:
      ValueError: as in `read_idx` and `read_npz`, or images of another shape or content.
    """
    images = read_npz(path, part) if path.suffix == ".npz" else read_idx(path)
    wanted = (source.counts[PARTS.index(part)], *source.shape)
    if images.shape != wanted:
        raise ValueError(f"{path} holds images of shape {images.shape}, {source.name} {part} has {wanted}")
    if source.sha256 is not None:
        have, expected = content_sha256(images), source.sha256[PARTS.index(part)]
        if have != expected:
            raise ValueError(
                f"{path} is not the {part} part of {source.name}: sha256 of the content {have}, expected {expected}. "
                f"Where sets share file names, keep each in a folder of its own name"
            )
    return images
