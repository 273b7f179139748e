"""Where data live while they are fitted: on the host as a whole, on the devices a chunk at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")


class Layout:
    """Equal shares of a chunk on every device, weights on all of them; nothing is moved if there is one device."""

    def __init__(self, devices: Sequence[Any]) -> None:
        self.devices = list(devices)
        self._mesh = jax.make_mesh((len(self.devices),), ("data",), axis_types=(AxisType.Auto,), devices=self.devices)

    def size(self, per_device: int, n: int) -> int:
        """Return the data in one call: at most `per_device` a device, no more than needed, divisible by the devices."""
        return len(self.devices) * min(per_device, -(-n // len(self.devices)))

    def split(self, tree: Tree) -> Tree:
        """Place arrays with a leading data axis in equal shares."""
        return jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec("data")))

    def everywhere(self, tree: Tree) -> Tree:
        """Place a copy on every device."""
        return jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec()))


def take(tree: Tree, rows: np.ndarray) -> Tree:
    """Return these rows of every leaf."""
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def put(whole: Tree | None, part: Tree, rows: np.ndarray, n: int) -> Tree:
    """Write the first leaves of `part` to `rows` of a tree of host arrays of length n, made when `whole` is None."""
    host = jax.tree.map(np.asarray, part)
    target = jax.tree.map(lambda leaf: np.empty((n, *leaf.shape[1:]), leaf.dtype), host) if whole is None else whole
    for place, source in zip(jax.tree.leaves(target), jax.tree.leaves(host), strict=True):
        place[rows] = source[: rows.size]
    return target
