"""The ELBO of every datum at several variational parameters on shared draws, which every gap is a difference of."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from amortgap._internal.checks import check_count, check_data, check_key, check_sizes, num_rows
from amortgap._internal.devices import map_data
from amortgap.objectives import elbo_draws
from amortgap.protocols import Data, Datum, Family, Model

# Draws and data that an evaluation of bounds holds in memory at a time.
_BLOCK_SIZE, _CHUNK_SIZE = 100, 250


class EvaluatedBounds(NamedTuple):
    """Mean and standard error of the ELBO of every datum at several candidates, on shared draws.

    Attributes:
      elbo: [N, candidates], nats.
      standard_error: Monte Carlo standard error of each entry.
      paired_standard_error: standard error of `elbo[:, 0] - elbo[:, c]`, smaller because the draws are shared.
    """

    elbo: Float[Array, "N candidates"]
    standard_error: Float[Array, "N candidates"]
    paired_standard_error: Float[Array, "N candidates"]


def evaluate_bounds(
    key: jax.Array,
    phis: Float[Array, "N candidates size"],
    xs: Data,
    *,
    model: Model,
    family: Family,
    num_samples: int = 1000,
    block_size: int = _BLOCK_SIZE,
    chunk_size: int = _CHUNK_SIZE,
) -> EvaluatedBounds:
    """Evaluate the ELBO of every datum at several variational parameters with the same draws.

    Formula: `ELBO(phi_ic; x_i)` for data i and candidates c; datum i uses `fold_in(key, i)` for all its candidates.

    Args:
      key: typed key, not one that any candidate was optimised with.
      phis: candidates, [N, candidates, size].
      xs: data.
      model, family: as in `elbo`; pytrees, since the evaluation is compiled as a whole.
      num_samples: draws per datum, rounded up to whole blocks.
      block_size, chunk_size: draws and data in memory at a time.

    Returns:
      EvaluatedBounds in nats, every field [N, candidates].

    Raises:
      ValueError: bad key, data, sizes or counts, phis of another shape, or fewer than two draws.
    """
    check_key(key)
    xs = check_data("xs", xs, model)
    check_sizes(model, family)
    if jnp.ndim(phis) != 3 or jnp.shape(phis)[::2] != (num_rows(xs), family.size):
        raise ValueError(
            f"phis must have shape [N, candidates, size] = [{num_rows(xs)}, candidates, {family.size}], "
            f"got {jnp.shape(phis)}"
        )
    check_count("num_samples", num_samples, minimum=2)
    check_count("block_size", block_size)
    check_count("chunk_size", chunk_size)
    return evaluate(key, jnp.asarray(phis), xs, model, family, num_samples, block_size, chunk_size)


@partial(jax.jit, static_argnames=("num_samples", "block_size", "chunk_size"))
def evaluate(
    key: jax.Array,
    phis: Array,
    xs: Data,
    model: Model,
    family: Family,
    num_samples: int,
    block_size: int = _BLOCK_SIZE,
    chunk_size: int = _CHUNK_SIZE,
) -> EvaluatedBounds:
    """Return `evaluate_bounds` of checked arguments, compiled."""
    blocks, draws = -(-num_samples // block_size), min(block_size, num_samples)

    def moments(index: Array, candidates: Array, x: Datum) -> tuple[Array, Array, Array]:
        datum_key = jax.random.fold_in(key, index)

        def add(carry: tuple[Array, Array, Array], block: Array) -> tuple[tuple[Array, Array, Array], None]:
            block_key = jax.random.fold_in(datum_key, block)
            values = jax.vmap(
                lambda phi: elbo_draws(
                    block_key, phi, x, model=model, family=family, num_samples=draws, estimator="total"
                )
            )(candidates)
            # Deviations from the means of the block itself: in float32 raw second moments lose the variance.
            mean, second, paired = carry
            block_mean = jnp.mean(values, axis=1)
            centred = values - block_mean[:, None]
            change, before = block_mean - mean, (block * draws).astype(values.dtype)
            weight = before * draws / (before + draws)
            merged = (
                mean + change * draws / (before + draws),
                second + jnp.sum(centred**2, axis=1) + weight * change**2,
                paired + jnp.sum((centred[:1] - centred) ** 2, axis=1) + weight * (change[0] - change) ** 2,
            )
            return merged, None

        zeros = jnp.zeros(candidates.shape[0], candidates.dtype)
        (mean, second, paired), _ = jax.lax.scan(add, (zeros, zeros, zeros), jnp.arange(blocks))
        count = float(blocks * draws)
        scale = count * (count - 1)
        return mean, jnp.sqrt(second / scale), jnp.sqrt(paired / scale)

    return EvaluatedBounds(*map_data(lambda i, row: moments(i, *row), (phis, xs), chunk_size=chunk_size))
