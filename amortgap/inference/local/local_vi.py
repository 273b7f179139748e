"""Local VI: the best variational parameters of every datum on its own, `phi*_i = argmax ELBO(phi_i; x_i)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from amortgap._internal.checks import (
    check_count,
    check_data,
    check_datum,
    check_encoder,
    check_key,
    check_phis,
    check_sizes,
    is_concrete,
    num_rows,
)
from amortgap._internal.devices import HostBuffer, Layout, chosen_devices, map_data, on_host, take
from amortgap._internal.progress import progress_bar
from amortgap.inference.local.ascent import (
    ROUGH_DRAWS,
    TOLERANCE,
    LocalFit,
    Settings,
    Work,
    first_fit,
    fit_again,
    fit_one,
    keep_better,
    pairs_per_datum,
    settings_for,
)

__all__ = ["LocalFit", "fit_local", "local_vi"]

# Rows of the decoder evaluated together: fewer starve the matrix product, more fall out of the caches.
_ROWS = 1000
# Entries of the largest array that a chunk keeps for its certificates, per device.
_ENTRIES = 2**24
# Data in a batch of fits that are taken up again, on each device: few, since the last batch is filled up.
_RERUN_SIZE = 32


def local_vi(
    key: jax.Array,
    x: Any,
    *,
    model: Any,
    family: Any,
    init: Float[Array, "*starts size"] | None = None,
    method: str = "auto",
    num_steps: int | None = None,
    warmup_steps: int | None = None,
    num_samples: int = 256,
    tolerance: float = TOLERANCE,
    max_reruns: int = 3,
    every_start: bool = False,
) -> LocalFit:
    """Maximise the ELBO of one datum over its own variational parameters.

    Formula: `phi* = argmax_phi ELBO(phi; x) = argmin_phi KL(q(z; phi) || p(z | x))`.

    The start is the best, on fresh samples, of the family's standard member and the rows of `init`. Mean field normals
    ascend by natural gradients, full rank normals by Newton steps, both after a few Adam steps from a cold start;
    other families by Adam on antithetic pairs. A fit that misses the tolerance is taken up again: normal families by
    Newton steps with the curvature across all dimensions. If the result is not better than the start on fresh
    samples, the start is returned. The ELBO may have several optima, and the best start need not lead to the best of
    them: with `every_start` each is followed to its end, and the best end is kept.

    Args:
      key: typed key.
      x: one datum.
      model, family: as in `elbo`.
      init: starts to consider besides the standard member, [size] or [starts, size], such as the encoder's output.
      method: "natural_gradient" or "newton" (normal families), "adam", or "auto" for the first that suits the family.
      num_steps: optimiser steps of the first run: natural gradients (default 200) and Adam (default 1500) take two
        gradients of the log joint each, Newton steps two for each latent dimension and at least 16 (default: about 500
        gradients).
      warmup_steps: Adam steps before those; None for 125 without `init` and 0 with it.
      num_samples: fresh samples on which the ELBO and the suboptimality are judged; the latter takes at least two for
        each latent dimension.
      tolerance: nats below which `suboptimality` counts as converged.
      max_reruns: how often a fit that misses the tolerance is taken up again, each time with twice the steps.
      every_start: run from the rows of `init` and from the standard member, each to its end. The first end is kept
        unless a later one's ELBO is larger beyond the tolerance and three standard errors, or is larger and converged
        where the first did not. `start_elbo` is then that of the run that was kept, steps and gradients are of all.

    Returns:
      LocalFit. `suboptimality` is the Newton decrement at phi (normal families) or the ELBO gained over the second
      half of the steps (other families), both from samples that the fit has not seen.

    Raises:
      ValueError: bad key, sizes or settings, or an x that is not finite or not one datum of the model.

    Example:
      The posterior is N(1, 1/3).

      >>> import jax, jax.numpy as jnp, amortgap as ag
      >>> model = ag.models.FactorAnalysis(loadings=jnp.ones((2, 1)), mean=jnp.zeros(2), noise_variance=jnp.ones(2))
      >>> family = ag.families.MeanFieldNormal(1)
      >>> fit = ag.local_vi(jax.random.key(0), jnp.array([1.0, 2.0]), model=model, family=family)
      >>> mean, scale = family.moments(fit.phi)
      >>> print(f"N({mean[0]:.3f}, {scale[0, 0]**2:.3f}), converged: {fit.converged}")
      N(1.000, 0.333), converged: True
    """
    check_key(key)
    check_sizes(model, family)
    settings = partial(
        settings_for,
        family,
        method=method,
        num_steps=num_steps,
        warmup_steps=warmup_steps,
        num_samples=num_samples,
        tolerance=tolerance,
        max_reruns=max_reruns,
    )
    usual = settings(has_init=init is not None)
    x = check_datum(x, model)
    if init is None:
        return fit_one(key, x, init, model, family, usual)
    init = jnp.atleast_2d(init)
    if init.shape[1] != family.size or init.shape[0] == 0:
        raise ValueError(f"init must have shape [size] or [starts, size], size {family.size}, got {init.shape}")
    if not every_start:
        return fit_one(key, x, init, model, family, usual)
    alone, keys = settings(has_init=True, standard=False), jax.random.split(key, init.shape[0] + 1)
    ends = jax.lax.map(lambda run: fit_one(run[0], x, run[1][None], model, family, alone), (keys[:-1], init))
    fits = [jax.tree.map(lambda leaf, row=row: leaf[row], ends) for row in range(init.shape[0])]
    fits.append(fit_one(keys[-1], x, None, model, family, settings(has_init=False)))
    return reduce(partial(keep_better, tolerance=usual.tolerance), fits)


def fit_local(
    key: jax.Array,
    xs: Any,
    *,
    model: Any,
    family: Any,
    encoder: Any = None,
    init: Float[Array, "N size"] | None = None,
    method: str = "auto",
    num_steps: int | None = None,
    warmup_steps: int | None = None,
    num_samples: int = 256,
    tolerance: float = TOLERANCE,
    max_reruns: int = 3,
    every_start: bool = False,
    chunk_size: int = 500,
    devices: Sequence[Any] | None = None,
    progress: bool = False,
) -> LocalFit:
    """Fit local VI to every datum: `local_vi` mapped over data, in chunks of bounded memory, on all devices.

    Formula: `phi*_i = argmax_{phi_i} ELBO(phi_i; x_i)` for i = 1..N. Datum i uses the key `fold_in(key, i)`, so its
    result does not depend on N, on the chunk size or on the number of devices beyond rounding; with `every_start` run r
    has a key of its own in the place of `key`. Data that miss the tolerance are gathered into batches of their own and
    taken up again.

    Args:
      key: typed key.
      xs: data, an array [N, ...] or a pytree of such.
      encoder: optional; its output is offered as a start.
      init: optional starts, one for each datum, [N, size].
      chunk_size: data in one compiled call and on one device, at most; memory grows with it and not with N.
      devices: devices to split every chunk over; None for all local ones.
      progress: show a progress bar on standard error if that is a terminal.
      model, family, method, num_steps, warmup_steps, num_samples, tolerance, max_reruns, every_start: as in `local_vi`;
        the starts are those of `init`, of the encoder, and the standard member.

    Returns:
      LocalFit with a leading axis N on every field. A datum whose optimisation fails keeps its start and has
      `converged` False; it does not disturb the others.

    Raises:
      ValueError: bad key, data, sizes or settings, before anything is compiled.
    """
    check_key(key)
    xs = check_data("xs", xs, model)
    check_sizes(model, family)
    check_count("chunk_size", chunk_size)
    settings = partial(
        settings_for,
        family,
        method=method,
        num_steps=num_steps,
        warmup_steps=warmup_steps,
        num_samples=num_samples,
        tolerance=tolerance,
        max_reruns=max_reruns,
    )
    n = num_rows(xs)
    usual = settings(has_init=encoder is not None or init is not None)
    if encoder is not None:
        encoder = check_encoder(encoder, family, jax.tree.map(lambda leaf: leaf[0], xs))
    if init is not None:
        check_phis("init", init, family, n)
    fit_all = partial(
        _fit_all, xs=xs, model=model, family=family, chunk_size=chunk_size, devices=devices, progress=progress
    )
    offers = [] if init is None else [(init, None)]
    offers += [] if encoder is None else [(None, encoder)]
    if not every_start or not offers:
        return fit_all(key, init=init, encoder=encoder, settings=usual)
    alone = settings(has_init=True, standard=False)
    runs = [(*offer, alone) for offer in offers] + [(None, None, settings(has_init=False))]
    fits = [
        fit_all(run_key, init=start, encoder=starter, settings=how)
        for run_key, (start, starter, how) in zip(jax.random.split(key, len(runs)), runs, strict=True)
    ]
    return reduce(partial(keep_better, tolerance=usual.tolerance), fits)


def _fit_all(
    key: jax.Array,
    *,
    xs: Any,
    init: Any,
    model: Any,
    family: Any,
    encoder: Any,
    settings: Settings,
    chunk_size: int,
    devices: Sequence[Any] | None,
    progress: bool,
) -> LocalFit:
    """Fit every datum from the best of the starts that are offered."""
    n = num_rows(xs)
    devices = chosen_devices(devices)
    judged_again = _most_at_once(family, ROUGH_DRAWS * settings.num_samples)
    rerun_size = min(chunk_size, _RERUN_SIZE, judged_again)
    chunk_size = min(chunk_size, _most_at_once(family, settings.num_samples))
    if not is_concrete((key, xs, init, model, encoder, family)):
        return _traced(key, xs, init, model, family, encoder, settings, min(chunk_size, judged_again))

    layout = Layout(devices)
    key, model, encoder = layout.replicate((key, model, encoder))
    size = layout.size(chunk_size, n)
    together = _pairs_at_once(size, layout)
    table, converged = HostBuffer(n), np.zeros(n, bool)
    for first in progress_bar(range(0, n, size), "local VI", unit="chunk", enabled=progress):
        # The last chunk is filled up with the first data: one shape, one compilation.
        rows = np.arange(first, first + size) % n
        chunk = layout.shard((rows, take(xs, rows), take(init, rows)))
        part = _first_chunk(key, model, encoder, *chunk, family, settings, together)
        _keep(table, converged, rows[: n - first], part)

    size = layout.size(rerun_size, n)
    together = _pairs_at_once(size, layout)
    # Of what the first run alone reads there shall be one value: runs from other starts share the compiled reruns.
    settings = replace(settings, warmup_steps=0, standard=True)
    for number in range(settings.max_reruns):
        late = np.flatnonzero(~converged)
        label = f"local VI, rerun {number + 1}"
        for first in progress_bar(range(0, late.size, size), label, unit="batch", enabled=progress):
            rows = late[np.arange(first, first + size) % late.size]
            batch = layout.shard((rows, take(xs, rows)))
            before = table.read(rows, layout.shard)
            how: dict[str, Any] = {"rough": number > 0, "pairs_at_once": together}
            part = _again_chunk(key, model, *batch, before, number, family, settings, **how)
            _keep(table, converged, rows[: late.size - first], part)
    return table.whole().fit


def _keep(table: HostBuffer, converged: np.ndarray, rows: np.ndarray, part: Work) -> None:
    """Write the first fits of a batch; what fills up a last batch was fitted before, and counts as it did then."""
    table.write(rows, part)
    converged[rows] = on_host(part.fit.converged)[: rows.size]


def _most_at_once(family: Any, num_samples: int) -> int:
    """Return how many data may be judged on this many draws within the bounded memory."""
    return max(1, _ENTRIES // (pairs_per_datum(family, num_samples) * family.latent_dim))


def _pairs_at_once(size: int, layout: Layout) -> int:
    return max(1, _ROWS * len(layout.devices) // (2 * size))


def _offered(x: Any, start: Any, encoder: Any) -> Array | None:
    starts = [phi[None, :] for phi in (start, None if encoder is None else encoder(x)) if phi is not None]
    return jnp.concatenate(starts) if starts else None


@partial(jax.jit, static_argnames=("settings", "pairs_at_once"))
def _first_chunk(
    key: jax.Array,
    model: Any,
    encoder: Any,
    rows: Array,
    xs: Any,
    init: Any,
    family: Any,
    settings: Settings,
    pairs_at_once: int,
) -> Work:
    def fit(row: Array, x: Any, start: Any) -> Work:
        offered = _offered(x, start, encoder)
        return first_fit(jax.random.fold_in(key, row), x, offered, model, family, settings, pairs_at_once=pairs_at_once)

    return jax.vmap(fit)(rows, xs, init)


@partial(jax.jit, static_argnames=("settings", "rough", "pairs_at_once"))
def _again_chunk(
    key: jax.Array,
    model: Any,
    rows: Array,
    xs: Any,
    work: Work,
    number: Array,
    family: Any,
    settings: Settings,
    *,
    rough: bool,
    pairs_at_once: int,
) -> Work:
    options: dict[str, Any] = {"rough": rough, "pairs_at_once": pairs_at_once}

    def fit(row: Array, x: Any, before: Work) -> Work:
        return fit_again(jax.random.fold_in(key, row), number, x, before, model, family, settings, **options)

    return jax.vmap(fit)(rows, xs, work)


def _traced(
    key: jax.Array,
    xs: Any,
    init: Any,
    model: Any,
    family: Any,
    encoder: Any,
    settings: Settings,
    chunk_size: int,
) -> LocalFit:
    """Fit inside another transformation, where data cannot be gathered by what came out of their first fit."""

    def fit(row: Array, datum: tuple[Any, Any]) -> LocalFit:
        x, start = datum
        return fit_one(jax.random.fold_in(key, row), x, _offered(x, start, encoder), model, family, settings)

    return map_data(fit, (xs, init), chunk_size=chunk_size)
