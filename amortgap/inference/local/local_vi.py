"""Local VI: the best variational parameters of every datum on its own, `phi*_i = argmax ELBO(phi_i; x_i)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from amortgap._internal.checks import (
    check_count,
    check_data,
    check_datum,
    check_encoder,
    check_key,
    check_phis,
    check_sizes,
    first_row,
    num_rows,
)
from amortgap._internal.compiled import compiled_once
from amortgap.inference.local.acceptance import TOLERANCE
from amortgap.inference.local.ascent import fit_to_tolerance
from amortgap.inference.local.batches import fit_all
from amortgap.inference.local.records import LocalFit, Problem, Settings, keep_better, settings_for
from amortgap.protocols import Data, Datum, Encoder, Family, Model

__all__ = ["LocalFit", "fit_local", "local_vi"]


def local_vi(
    key: jax.Array,
    x: Datum,
    *,
    model: Model,
    family: Family,
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
    other families by Adam on antithetic pairs. A fit that misses the tolerance is rerun: normal families by Newton
    steps with the curvature across all dimensions. If the result is not better than the start on fresh samples, the
    start is returned. The ELBO may have several optima, and the best start need not lead to the best of them: with
    `every_start` each is followed to its end, and the best end is kept. The function is compiled once: other keys,
    data and weights of the same shapes reuse the program.

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
      num_samples: fresh samples on which the ELBO and the suboptimality are estimated; the latter takes at least two
        for each latent dimension.
      tolerance: nats below which `suboptimality` counts as converged.
      max_reruns: largest number of reruns of a fit that misses the tolerance, each with twice the steps of the last.
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
    settings = settings_for(
        family,
        method=method,
        num_steps=num_steps,
        warmup_steps=warmup_steps,
        num_samples=num_samples,
        tolerance=tolerance,
        max_reruns=max_reruns,
    )
    x = check_datum(x, model)
    if init is not None:
        init = jnp.atleast_2d(init)
        if init.shape[1] != family.size or init.shape[0] == 0:
            raise ValueError(f"init must have shape [size] or [starts, size], size {family.size}, got {init.shape}")
    return _fit_datum(key, x, init, model, family, settings=settings, every_start=every_start)


@compiled_once("settings", "every_start")
def _fit_datum(
    key: jax.Array, x: Datum, init: Array | None, model: Model, family: Family, *, settings: Settings, every_start: bool
) -> LocalFit:
    problem = Problem(x, model, family, settings)
    if init is None or not every_start:
        return fit_to_tolerance(key, problem, init)
    alone, keys = problem._replace(settings=replace(settings, standard=False)), jax.random.split(key, len(init) + 1)
    ends = jax.lax.map(lambda run: fit_to_tolerance(run[0], alone, run[1][None]), (keys[:-1], init))
    fits = [jax.tree.map(lambda leaf, row=row: leaf[row], ends) for row in range(len(init))]
    fits.append(fit_to_tolerance(keys[-1], problem, None))
    return reduce(partial(keep_better, tolerance=settings.acceptance.tolerance), fits)


def fit_local(
    key: jax.Array,
    xs: Data,
    *,
    model: Model,
    family: Family,
    encoder: Encoder | None = None,
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
    rerun.

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
    settings = settings_for(
        family,
        method=method,
        num_steps=num_steps,
        warmup_steps=warmup_steps,
        num_samples=num_samples,
        tolerance=tolerance,
        max_reruns=max_reruns,
    )
    if encoder is not None:
        encoder = check_encoder(encoder, family, first_row(xs))
    if init is not None:
        check_phis("init", init, family, num_rows(xs))
    runs = [(init, encoder, settings)]
    if every_start and (init is not None or encoder is not None):
        alone = replace(settings, standard=False)
        runs = [] if init is None else [(init, None, alone)]
        runs += [] if encoder is None else [(None, encoder, alone)]
        runs += [(None, None, settings)]
    keys = jax.random.split(key, len(runs)) if len(runs) > 1 else [key]
    fits = [
        fit_all(run_key, xs, model, family, *run, chunk_size=chunk_size, devices=devices, progress=progress)
        for run_key, run in zip(keys, runs, strict=True)
    ]
    return reduce(partial(keep_better, tolerance=settings.acceptance.tolerance), fits)
