"""Mapping a one-datum function over data with bounded memory and a single compiled shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from amortgap._checks import num_rows


def chosen_devices(devices: Sequence[Any] | None) -> tuple[Any, ...]:
    """Return the devices asked for, by default all local ones."""
    chosen = tuple(jax.local_devices() if devices is None else devices)
    if not chosen:
        raise ValueError("devices must hold at least one device, got none")
    return chosen


def map_data(function: Callable[[Array, Any], Any], xs: Any, *, chunk_size: int) -> Any:
    """Return `function(i, x_i)` stacked over data, at most `chunk_size` of them in memory at a time.

    The chunks are equal; the last one is filled up with the first data again, and what it computes twice is dropped
    (a remainder of its own shape would double the compile time).
    """
    n = num_rows(xs)
    chunks = -(-n // chunk_size)
    size = -(-n // chunks)
    rows = (jnp.arange(chunks * size) % n).reshape(chunks, size)

    def chunk(index: Array) -> Any:
        return jax.vmap(function)(index, jax.tree.map(lambda leaf: leaf[index], xs))

    if chunks == 1:
        return chunk(rows[0])
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:n], jax.lax.map(chunk, rows))


@partial(jax.jit, static_argnames="chunk_size")
def encode(encoder: Callable[[Any], Array], xs: Any, *, chunk_size: int = 1000) -> Array:
    """Return the encoder's output for every datum, [N, size]."""
    return map_data(lambda _, x: encoder(x), xs, chunk_size=chunk_size)


def map_sharded(function: Callable[[Array, Any], Any], xs: Any, *, chunk_size: int, devices: tuple[Any, ...]) -> Any:
    """Return what `map_data` returns, every device mapping over an equal share of the data.

    Datum i is given its index in the whole, so results do not depend on the number of devices. The last share is
    filled up with the first data again.
    """
    n = num_rows(xs)
    if len(devices) < 2:
        return map_data(function, xs, chunk_size=chunk_size)
    size = -(-n // len(devices))
    rows = jnp.arange(size * len(devices)) % n
    mesh = Mesh(np.asarray(devices), ("data",))

    def share(index: Array, part: Any) -> Any:
        return map_data(lambda _, row: function(*row), (index, part), chunk_size=chunk_size)

    spec = PartitionSpec("data")
    split = jax.shard_map(share, mesh=mesh, in_specs=(spec, spec), out_specs=spec, check_vma=False)
    found = split(rows, jax.tree.map(lambda leaf: leaf[rows], xs))
    return jax.tree.map(lambda leaf: leaf[:n], found)
