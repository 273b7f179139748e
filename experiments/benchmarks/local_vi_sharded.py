"""Rates of the natural-gradient steps and of matrix products with data sharded over all devices of this process.

Started by `local_vi.py` with one CPU device a core; prints a JSON line. The weights are fresh: rates do not depend on
them.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
from collections.abc import Callable
from typing import Any, TypeVar

if __name__ == "__main__" and hasattr(os, "sched_setaffinity"):
    # The benchmark keeps its other parts to one core, and a child inherits that.
    os.sched_setaffinity(0, [int(core) for core in sys.argv[5:]])

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from timing import turns

import amortgap as ag
from amortgap.inference.local.natural_gradient import ascend

Tree = TypeVar("Tree")
PIXELS = 784
# Decoder rows in flight on one core, and on each of several devices, where a call has more to do besides.
ROWS = 1000
ROWS_SHARDED = 2000


def gradient_flops(sizes: tuple[int, ...]) -> float:
    """Return the floating point operations of the products in one gradient with respect to the latent."""
    return 4.0 * sum(a * b for a, b in itertools.pairwise(sizes))


def place(tree: Tree, *, split: bool) -> Tree:
    """Place arrays in equal shares of their rows on all devices, or a copy of them on each."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec("data") if split else PartitionSpec()))


def matmuls(sizes: tuple[int, ...], steps: int, *, rows: int = ROWS) -> tuple[Callable[[], jax.Array], float]:
    """Return a call that does the products in `steps` gradients of `rows` rows on every device, and their count."""
    key = jax.random.key(1)
    weights = place([jax.random.normal(key, shape) / 10 for shape in itertools.pairwise(sizes)], split=False)
    batch = place(jax.random.normal(key, (rows * jax.device_count(), sizes[0])), split=True)

    @jax.jit
    def run(batch: jax.Array, weights: list[jax.Array]) -> jax.Array:
        def step(_: Any, carry: jax.Array) -> jax.Array:
            hidden = batch + carry
            for matrix in weights:
                hidden = hidden @ matrix
            for matrix in reversed(weights):
                hidden = hidden @ matrix.T
            return carry + 1e-9 * hidden

        return jax.lax.fori_loop(0, steps, step, jnp.zeros_like(batch))

    return lambda: run(batch, weights), float(steps * len(batch))


def kernel(model: ag.models.DeepLatentGaussian, points: int, steps: int) -> tuple[Callable[[], jax.Array], float]:
    """Return a call that takes `steps` natural-gradient steps for every point, and the number of gradients."""
    points = jax.device_count() * -(-points // jax.device_count())
    xs = place(jnp.ones((points, model.data_dim)).at[:, ::2].set(0), split=True)
    noises = place(jax.random.normal(jax.random.key(2), (points, steps, model.latent_dim)), split=True)
    model = place(model, split=False)

    @jax.jit
    def run(noises: jax.Array, xs: jax.Array, model: ag.models.DeepLatentGaussian) -> jax.Array:
        def one(noise: jax.Array, x: jax.Array) -> jax.Array:
            gradient = jax.grad(lambda z: -model.log_joint(z, x))
            start = jnp.zeros(model.latent_dim), jnp.full(model.latent_dim, 0.3)
            return ascend(noise, gradient, *start, warmup_steps=0).end[0]

        return jax.vmap(one)(noises, xs)

    return lambda: run(noises, xs, model), float(2 * steps * points)


def main() -> None:
    """Measure in turns and print the rates."""
    steps, number, latent_dim, width = map(int, sys.argv[1:5])
    sizes = (latent_dim, width, width, PIXELS)
    model = ag.models.deep_latent_gaussian(
        jax.random.key(0), latent_dim=latent_dim, data_dim=PIXELS, width=width, depth=2
    )
    count = jax.device_count()
    together = ROWS_SHARDED // 2 * count
    square = place(jnp.ones((count, 2048, 2048)), split=True)
    product = jax.jit(lambda a: a @ a)
    calls, amount = {}, {}
    calls["kernel"], amount["kernel"] = kernel(model, together, steps)
    calls["products"], amount["products"] = matmuls(sizes, steps, rows=ROWS_SHARDED)
    calls["square"], amount["square"] = lambda: product(square), count * 2 * 2048**3 / gradient_flops(sizes)
    taken = turns(calls, number)
    rate = {name: [amount[name] / seconds for seconds in found] for name, found in taken.items()}

    def share(name: str) -> float:
        return statistics.median(a / b for a, b in zip(rate["kernel"], rate[name], strict=True))

    found = {"rate": statistics.median(rate["kernel"]), "share": share("products"), "square_share": share("square")}
    print(json.dumps({"devices": count, **found}))


if __name__ == "__main__":
    main()
