"""Placing data on devices: mapping with bounded memory, equal shares of several devices, buffers on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from amortgap._internal.checks import num_rows
from amortgap.protocols import Data, Datum, Encoder

Tree = TypeVar("Tree")


def chosen_devices(devices: Sequence[Any] | None) -> tuple[Any, ...]:
    """Return the devices asked for, by default all local ones."""
    chosen = tuple(jax.local_devices() if devices is None else devices)
    if not chosen:
        raise ValueError("devices must hold at least one device, got none")
    return chosen


def rows_at_once(evaluations: int) -> int:
    """Return how many data are mapped over together where each takes this many evaluations of the model at a time.

    About a thousand evaluations in flight stay in cache and fill the matrix products.
    """
    return max(1, 1000 // evaluations)


def map_data(function: Callable[[Array, Datum], Tree], xs: Data, *, chunk_size: int) -> Tree:
    """Return `function(i, x_i)` stacked over data, at most `chunk_size` of them in memory at a time.

    The chunks are equal, since a remainder of its own shape would double the compile time: the last one is filled up
    with the first data again, and duplicate results are discarded.
    """
    n = num_rows(xs)
    chunks = -(-n // chunk_size)
    size = -(-n // chunks)
    rows = (jnp.arange(chunks * size) % n).reshape(chunks, size)

    def chunk(index: Array) -> Tree:
        return jax.vmap(function)(index, jax.tree.map(lambda leaf: leaf[index], xs))

    if chunks == 1:
        return chunk(rows[0])
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:n], jax.lax.map(chunk, rows))


@partial(jax.jit, static_argnames="chunk_size")
def encode(encoder: Encoder, xs: Data, *, chunk_size: int = 1000) -> Array:
    """Return the encoder's output for every datum, [N, size]."""
    return map_data(lambda _, x: encoder(x), xs, chunk_size=chunk_size)


def map_sharded(
    function: Callable[[Array, Datum], Tree], xs: Data, *, chunk_size: int, devices: tuple[Any, ...]
) -> Tree:
    """Return the result of `map_data`, every device mapping over an equal share of the data.

    The function gets the index of a datum in the whole data set, so results do not depend on the number of devices. The
    last share is filled up with the first data again.
    """
    n = num_rows(xs)
    if len(devices) < 2:
        return map_data(function, xs, chunk_size=chunk_size)
    size = -(-n // len(devices))
    rows = jnp.arange(size * len(devices)) % n
    mesh = Mesh(np.asarray(devices), ("data",))

    def share(index: Array, part: Data) -> Tree:
        return map_data(lambda _, row: function(*row), (index, part), chunk_size=chunk_size)

    spec = PartitionSpec("data")
    split = jax.shard_map(share, mesh=mesh, in_specs=(spec, spec), out_specs=spec, check_vma=False)
    return jax.tree.map(lambda leaf: leaf[:n], split(rows, jax.tree.map(lambda leaf: leaf[rows], xs)))


class Layout:
    """Equal shares of a chunk on every device, weights on all of them; nothing is moved if there is one device."""

    def __init__(self, devices: Sequence[Any]) -> None:
        self.devices = list(devices)
        self._mesh = jax.make_mesh((len(self.devices),), ("data",), axis_types=(AxisType.Auto,), devices=self.devices)

    def size(self, per_device: int, n: int) -> int:
        """Return the data in one call: at most `per_device` a device, no more than needed, divisible by the devices."""
        return len(self.devices) * min(per_device, -(-n // len(self.devices)))

    def shard(self, tree: Tree) -> Tree:
        """Place arrays with a leading data axis in equal shares."""
        return self._place(tree, PartitionSpec("data"))

    def padded(self, tree: Tree) -> Tree:
        """Place arrays in equal shares of their rows, filled up with the first rows again where they do not divide."""
        count = len(self.devices)
        return self.shard(jax.tree.map(lambda leaf: leaf[np.arange(-(-len(leaf) // count) * count) % len(leaf)], tree))

    def replicate(self, tree: Tree) -> Tree:
        """Place a copy on every device."""
        return self._place(tree, PartitionSpec())

    def _place(self, tree: Tree, spec: PartitionSpec) -> Tree:
        sharding = NamedSharding(self._mesh, spec)
        if sharding.is_fully_addressable:
            return jax.device_put(tree, sharding)
        return jax.tree.map(lambda leaf: _place_own_part(leaf, sharding), tree)

    def gather(self, tree: Tree) -> Tree:
        """Return arrays of the devices, of other hosts too, as arrays of jax on no particular device."""
        whole = jax.jit(lambda tree: tree, out_shardings=NamedSharding(self._mesh, PartitionSpec()))(tree)
        return jax.tree.map(jnp.asarray, jax.device_get(whole))


def _place_own_part(leaf: jax.Array | np.ndarray, sharding: NamedSharding) -> Array:
    """Place on this host's devices their part of what every process holds as a whole; the others place theirs."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _place_own_part(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def on_host(leaf: Array) -> np.ndarray:
    """Return the whole array, of which other hosts may hold parts; all processes must then call this."""
    return np.asarray(leaf if leaf.is_fully_addressable else process_allgather(leaf, tiled=True))


def mean_over_rows(function: Callable[..., Tree], rows: tuple[Data, ...], devices: tuple[Any, ...]) -> Tree:
    """Return the mean of `function`, a tree of scalars, over the rows of all arguments; devices compute equal shares.

    Rows that fill up the last share are computed and masked: they are in no mean.
    """
    if len(devices) < 2:
        return jax.tree.map(jnp.mean, jax.vmap(function)(*rows))
    n = num_rows(rows)
    index = jnp.arange(-(-n // len(devices)) * len(devices))
    split = NamedSharding(Mesh(np.asarray(devices), ("data",)), PartitionSpec("data"))
    shares = jax.lax.with_sharding_constraint(jax.tree.map(lambda leaf: leaf[index % n], rows), split)
    return jax.tree.map(lambda leaf: jnp.sum(jnp.where(index < n, leaf, 0)) / n, jax.vmap(function)(*shares))


class HostBuffer:
    """A tree of arrays over n data, kept on the host and written a chunk at a time; no device holds them."""

    def __init__(self, n: int) -> None:
        self.n = n
        self._leaves: list[np.ndarray] = []
        self._structure: Any = None

    def write(self, rows: np.ndarray, part: PyTree) -> None:
        """Write the first leaves of `part` to these rows; the first call fixes the tree."""
        leaves, structure = jax.tree.flatten(part)
        host = [on_host(leaf) for leaf in leaves]
        if self._structure is None:
            self._structure = structure
            self._leaves = [np.empty((self.n, *leaf.shape[1:]), leaf.dtype) for leaf in host]
        for target, source in zip(self._leaves, host, strict=True):
            target[rows] = source[: rows.size]

    def read(self, rows: np.ndarray, place: Callable[[list[np.ndarray]], Sequence[Array | np.ndarray]]) -> PyTree:
        """Return these rows as the tree that was written, its leaves placed on devices by `place`."""
        return jax.tree.unflatten(self._structure, place([leaf[rows] for leaf in self._leaves]))

    def whole(self) -> PyTree:
        """Return the tree of all rows as arrays of jax."""
        return jax.tree.unflatten(self._structure, [jnp.asarray(leaf) for leaf in self._leaves])


def take(tree: Tree, rows: np.ndarray) -> Tree:
    """Return these rows of every leaf."""
    return jax.tree.map(lambda leaf: leaf[rows], tree)
