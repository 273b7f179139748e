"""Scheduling the fits of all data on the host: chunks for the first run, then batches of the data that need reruns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from amortgap._internal.checks import is_concrete, num_rows
from amortgap._internal.devices import HostBuffer, Layout, chosen_devices, map_data, on_host, take
from amortgap._internal.progress import progress_bar
from amortgap.inference.local.ascent import fit, fit_to_tolerance, rerun
from amortgap.inference.local.records import FitState, LocalFit, Problem, Settings, pairs_per_datum
from amortgap.protocols import Data, Datum, Encoder, Family, Model

# Rows of the decoder evaluated together: fewer starve the matrix product, more fall out of the caches.
_ROWS = 1000
# Entries of the largest array that a chunk keeps for its certificates, per device.
_ENTRIES = 2**24
# Data in a batch of reruns, on each device: few, because the last batch is filled up.
_RERUN_SIZE = 32


def fit_all(
    key: jax.Array,
    xs: Data,
    model: Model,
    family: Family,
    init: Array | None,
    encoder: Encoder | None,
    settings: Settings,
    *,
    chunk_size: int,
    devices: Sequence[Any] | None,
    progress: bool,
) -> LocalFit:
    """Fit every datum from the best of the starts that are offered, and rerun the data that miss the tolerance."""
    n, devices = num_rows(xs), chosen_devices(devices)
    most_reruns = _most_at_once(family, settings.later_reruns.draws * settings.num_samples)
    rerun_size = min(chunk_size, _RERUN_SIZE, most_reruns)
    chunk_size = min(chunk_size, _most_at_once(family, settings.num_samples))
    if not is_concrete((key, xs, init, model, encoder, family)):
        return _fit_traced(key, xs, init, model, family, encoder, settings, min(chunk_size, most_reruns))

    layout = Layout(devices)
    key, model, encoder = layout.replicate((key, model, encoder))
    size = layout.size(chunk_size, n)
    pairs_at_once = _pairs_at_once(size, layout)
    buffer, converged = HostBuffer(n), np.zeros(n, bool)
    for first in progress_bar(range(0, n, size), "local VI", unit="chunk", enabled=progress):
        # The last chunk is filled up with the first data: one shape, one compilation.
        rows = np.arange(first, first + size) % n
        chunk = layout.shard((rows, take(xs, rows), take(init, rows)))
        part = _fit_chunk(key, model, encoder, *chunk, family, settings, pairs_at_once)
        _keep(buffer, converged, rows[: n - first], part)

    size = layout.size(rerun_size, n)
    pairs_at_once = _pairs_at_once(size, layout)
    # Reset the settings that only the first run uses, so that reruns from all starts share one compilation.
    settings = replace(settings, warmup_steps=0, standard=True)
    for number in range(settings.max_reruns):
        late = np.flatnonzero(~converged)
        label = f"local VI, rerun {number + 1}"
        for first in progress_bar(range(0, late.size, size), label, unit="batch", enabled=progress):
            rows = late[np.arange(first, first + size) % late.size]
            batch = layout.shard((rows, take(xs, rows)))
            state = buffer.read(rows, layout.shard)
            part = _rerun_batch(key, model, *batch, state, number, family, settings, number > 0, pairs_at_once)
            _keep(buffer, converged, rows[: late.size - first], part)
    return buffer.whole().fit


def _keep(buffer: HostBuffer, converged: np.ndarray, rows: np.ndarray, part: FitState) -> None:
    """Write the first fits of a batch; the data that fill up a last batch are discarded."""
    buffer.write(rows, part)
    converged[rows] = on_host(part.fit.converged)[: rows.size]


def _most_at_once(family: Family, num_samples: int) -> int:
    """Return how many data may be certified together on this many draws within the bounded memory."""
    return max(1, _ENTRIES // (pairs_per_datum(family, num_samples) * family.latent_dim))


def _pairs_at_once(size: int, layout: Layout) -> int:
    return max(1, _ROWS * len(layout.devices) // (2 * size))


def _offered(x: Datum, start: Array | None, encoder: Encoder | None) -> Array | None:
    """Return the starts of one datum besides the standard member, [starts, size]."""
    starts = [phi[None, :] for phi in (start, None if encoder is None else encoder(x)) if phi is not None]
    return jnp.concatenate(starts) if starts else None


@partial(jax.jit, static_argnames=("settings", "pairs_at_once"))
def _fit_chunk(
    key: jax.Array,
    model: Model,
    encoder: Encoder | None,
    rows: Int[Array, " chunk"],
    xs: Data,
    init: Array | None,
    family: Family,
    settings: Settings,
    pairs_at_once: int,
) -> FitState:
    def fit_row(row: Array, x: Datum, start: Array | None) -> FitState:
        problem = Problem(x, model, family, settings, pairs_at_once)
        return fit(jax.random.fold_in(key, row), problem, _offered(x, start, encoder))

    return jax.vmap(fit_row)(rows, xs, init)


@partial(jax.jit, static_argnames=("settings", "many_draws", "pairs_at_once"))
def _rerun_batch(
    key: jax.Array,
    model: Model,
    rows: Int[Array, " batch"],
    xs: Data,
    states: FitState,
    number: int | Array,
    family: Family,
    settings: Settings,
    many_draws: bool,
    pairs_at_once: int,
) -> FitState:
    def rerun_row(row: Array, x: Datum, state: FitState) -> FitState:
        problem = Problem(x, model, family, settings, pairs_at_once)
        return rerun(jax.random.fold_in(key, row), number, problem, state, many_draws=many_draws)

    return jax.vmap(rerun_row)(rows, xs, states)


def _fit_traced(
    key: jax.Array,
    xs: Data,
    init: Array | None,
    model: Model,
    family: Family,
    encoder: Encoder | None,
    settings: Settings,
    chunk_size: int,
) -> LocalFit:
    """Fit inside another transformation, where the host cannot gather the data that missed the tolerance."""

    def fit_row(row: Array, datum: tuple[Datum, Array | None]) -> LocalFit:
        x, start = datum
        problem = Problem(x, model, family, settings)
        return fit_to_tolerance(jax.random.fold_in(key, row), problem, _offered(x, start, encoder))

    return map_data(fit_row, (xs, init), chunk_size=chunk_size)
