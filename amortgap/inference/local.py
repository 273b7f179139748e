"""Local VI: the best variational parameters of every datum on its own, `phi*_i = argmax ELBO(phi_i; x_i)`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from amortgap._checks import (
    check_choice,
    check_count,
    check_data,
    check_datum,
    check_encoder,
    check_key,
    check_positive,
    check_sizes,
    num_rows,
)
from amortgap._progress import progress_bar
from amortgap.families import FullRankNormal, MeanFieldNormal
from amortgap.inference.natural_gradient import ascend, newton_decrement, precision_root, scale_from_root
from amortgap.inference.schedules import cosine
from amortgap.objectives import elbo, elbo_draws

METHODS = ("auto", "natural_gradient", "adam")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LocalFit:
    """Local optimum of one datum, or of many with a leading axis on every field.

    Attributes:
      phi: variational parameters, [size].
      elbo: ELBO at phi on fresh samples, in nats.
      standard_error: Monte Carlo standard error of `elbo`.
      start_elbo: ELBO of the start on the same fresh samples.
      suboptimality: estimate of the nats still to be gained by more optimisation (see `local_vi`).
      num_steps: optimiser steps taken.
      converged: whether `suboptimality` is below the tolerance and everything is finite.
    """

    phi: Float[Array, "*data size"]
    elbo: Float[Array, "*data"]
    standard_error: Float[Array, "*data"]
    start_elbo: Float[Array, "*data"]
    suboptimality: Float[Array, "*data"]
    num_steps: Int[Array, "*data"]
    converged: Bool[Array, "*data"]


@dataclass(frozen=True)
class _Settings:
    method: str
    num_steps: int
    warmup_steps: int
    num_samples: int
    tolerance: float


def _settings(family: Any, method: str, num_steps: Any, warmup_steps: Any, num_samples: Any, tolerance: Any, has_init):
    check_choice("method", method, METHODS)
    natural = isinstance(family, (MeanFieldNormal, FullRankNormal))
    if method == "natural_gradient" and not natural:
        raise ValueError(
            f"method 'natural_gradient' needs a mean field or full rank normal, got {type(family).__name__}"
        )
    if method == "auto":
        method = "natural_gradient" if natural else "adam"
    if num_steps is None:
        num_steps = 250 if method == "natural_gradient" else 1500
    if warmup_steps is None:
        # The encoder's output is near the optimum; from the prior the first curvatures are far off and mislead.
        warmup_steps = 0 if has_init or method == "adam" else 125
    check_count("num_steps", num_steps)
    check_count("warmup_steps", warmup_steps, minimum=0)
    check_count("num_samples", num_samples, minimum=2)
    check_positive("tolerance", tolerance)
    return _Settings(method, num_steps, warmup_steps, num_samples + num_samples % 2, float(tolerance))


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
    tolerance: float = 0.01,
) -> LocalFit:
    """Maximise the ELBO of one datum over its own variational parameters.

    Formula: `phi* = argmax_phi ELBO(phi; x) = argmin_phi KL(q(z; phi) || p(z | x))`.

    The start is the best, on fresh samples, of the family's standard member and the rows of `init`. Mean field and
    full rank normals ascend by natural gradients after a few Adam steps from a cold start; other families by Adam on
    antithetic pairs. If the result is not better than the start on fresh samples, the start is returned.

    Args:
      key: typed key.
      x: one datum.
      model, family: as in `elbo`.
      init: starts to consider besides the standard member, [size] or [starts, size], such as the encoder's output.
      method: "natural_gradient" (normal families), "adam", or "auto" for the first that applies.
      num_steps: optimiser steps, two gradients of the log joint each; None for 250 (natural gradient), 1500 (Adam).
      warmup_steps: Adam steps before natural gradients; None for 125 without `init` and 0 with it.
      num_samples: fresh samples on which the ELBO, the start and the suboptimality are judged.
      tolerance: nats below which `suboptimality` counts as converged.

    Returns:
      LocalFit. `suboptimality` is the Newton decrement at phi (natural gradient) or the ELBO gained over the second
      half of the steps (Adam).

    Raises:
      ValueError: bad key, sizes or settings.
    """
    check_key(key)
    x = check_datum(x, model)
    check_sizes(model, family)
    settings = _settings(family, method, num_steps, warmup_steps, num_samples, tolerance, init is not None)
    if init is not None:
        init = jnp.atleast_2d(init)
        if init.shape[1] != family.size or init.shape[0] == 0:
            raise ValueError(f"init must have shape [size] or [starts, size], size {family.size}, got {init.shape}")
    return _local_vi(key, x, init, model, family, settings)


def _local_vi(key: jax.Array, x: Any, init: Array | None, model: Any, family: Any, settings: _Settings) -> LocalFit:
    key_start, key_warmup, key_ascent, key_judge = jax.random.split(key, 4)

    def objective(draw_key: jax.Array, phi: Array, num_samples: int) -> Array:
        antithetic = hasattr(family, "transform")
        return elbo(draw_key, phi, x, model=model, family=family, num_samples=num_samples, antithetic=antithetic)

    start = family.standard()[None, :] if init is None else jnp.concatenate([family.standard()[None, :], init])
    if start.shape[0] > 1:
        values = jax.vmap(lambda phi: objective(key_start, phi, settings.num_samples))(start)
        start = start[jnp.argmax(jnp.where(jnp.isnan(values), -jnp.inf, values))]
    else:
        start = start[0]

    late = start
    if settings.warmup_steps:
        late = _adam(key_warmup, objective, start, num_steps=settings.warmup_steps, rate=1e-1)
    if settings.method == "adam":
        # Two horizons: what the second one gains is the estimate of what is left.
        half = max(settings.num_steps // 2, 1)
        late = _adam(key_warmup, objective, late, num_steps=half, rate=3e-2)
        phi = _adam(key_ascent, objective, late, num_steps=settings.num_steps - half or 1, rate=1e-2)
    else:
        phi = _natural(key_ascent, model, family, late, x, settings.num_steps)
    return _judge(key_judge, start, late, phi, x, model, family, settings)


def _adam(key: jax.Array, objective: Any, phi: Array, *, num_steps: int, rate: float) -> Array:
    optimiser = optax.scale_by_adam()

    def step(carry: tuple[Array, Any], index: Array) -> tuple[tuple[Array, Any], None]:
        phi, state = carry
        gradient = jax.grad(objective, argnums=1)(jax.random.fold_in(key, index), phi, 2)
        update, state = optimiser.update(gradient, state)
        new = phi + rate * cosine(index, num_steps).astype(phi.dtype) * update
        good = jnp.all(jnp.isfinite(new))
        return jax.tree.map(lambda a, b: jnp.where(good, a, b), (new, state), carry), None

    (phi, _), _ = jax.lax.scan(step, (phi, optimiser.init(phi)), jnp.arange(num_steps))
    return phi


def _natural(key: jax.Array, model: Any, family: Any, phi: Array, x: Any, num_steps: int) -> Array:
    mean, scale_tril = family.moments(phi)
    root = precision_root(scale_tril, diagonal=isinstance(family, MeanFieldNormal))
    # One pair shows one of d directions; beyond 1 / (d + 2) a full-precision correction diverges in mean square.
    limit = 0.1 if root.ndim == 1 else min(0.1, 1.0 / (family.latent_dim + 2))
    gradient = jax.grad(lambda z: -model.log_joint(z, x))
    mean, root = ascend(key, gradient, mean, root, num_steps=num_steps, mean_rate=0.3, precision_rate=limit)
    return family.from_moments(mean, scale_from_root(root))


def _judge(
    key: jax.Array, start: Array, late: Array, phi: Array, x: Any, model: Any, family: Any, settings: _Settings
) -> LocalFit:
    key_value, key_decrement = jax.random.split(key)

    def draws(candidate: Array) -> Array:
        return elbo_draws(
            key_value,
            candidate,
            x,
            model=model,
            family=family,
            num_samples=settings.num_samples,
            antithetic=hasattr(family, "transform"),
        )

    at_start, at_end = draws(start), draws(phi)
    # False for NaN as well, so a fit that diverged hands back its start.
    better = jnp.mean(at_end) >= jnp.mean(at_start)
    values = jnp.where(better, at_end, at_start)
    phi = jnp.where(better, phi, start)
    if settings.method == "adam":
        suboptimality = jnp.mean(values) - jnp.mean(draws(late))
    else:
        mean, scale_tril = family.moments(phi)
        root = precision_root(scale_tril, diagonal=isinstance(family, MeanFieldNormal))
        gradient = jax.grad(lambda z: -model.log_joint(z, x))
        suboptimality = newton_decrement(key_decrement, gradient, mean, root, num_pairs=settings.num_samples // 2)
    value = jnp.mean(values)
    return LocalFit(
        phi=phi,
        elbo=value,
        standard_error=jnp.std(values, ddof=1) / jnp.sqrt(float(values.size)),
        start_elbo=jnp.mean(at_start),
        suboptimality=suboptimality,
        num_steps=jnp.asarray(settings.warmup_steps + settings.num_steps),
        converged=jnp.isfinite(value) & (jnp.abs(suboptimality) < settings.tolerance),
    )


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
    tolerance: float = 0.01,
    chunk_size: int = 500,
    progress: bool = False,
) -> LocalFit:
    """Fit local VI to every datum: `local_vi` mapped over data, in chunks of bounded memory.

    Formula: `phi*_i = argmax_{phi_i} ELBO(phi_i; x_i)` for i = 1..N. Datum i uses the key `fold_in(key, i)`, so its
    result does not depend on N or on the chunk size.

    Args:
      key: typed key.
      xs: data, an array [N, ...] or a pytree of such.
      encoder: optional; its output is offered as a start.
      init: optional starts, one for each datum, [N, size].
      chunk_size: data in one compiled call; memory grows with it and not with N.
      progress: show a progress bar on standard error if that is a terminal.
      model, family, method, num_steps, warmup_steps, num_samples, tolerance: as in `local_vi`.

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
    settings = _settings(
        family, method, num_steps, warmup_steps, num_samples, tolerance, encoder is not None or init is not None
    )
    n = num_rows(xs)
    if encoder is not None:
        check_encoder(encoder, family, jax.tree.map(lambda leaf: leaf[0], xs))
    if init is not None and jnp.shape(init) != (n, family.size):
        raise ValueError(f"init must have shape [N, size] = {(n, family.size)}, got {jnp.shape(init)}")

    size = min(chunk_size, n)
    parts = []
    for first in progress_bar(range(0, n, size), "local VI", unit="chunk", enabled=progress):
        # The last chunk is moved back to full size rather than padded: one shape, one compilation, no fake data.
        begin = min(first, n - size)
        chunk = jax.tree.map(lambda leaf: leaf[begin : begin + size], xs)
        starts = None if init is None else init[begin : begin + size]
        part = _fit_chunk(key, begin, chunk, starts, model, family, encoder, settings)
        parts.append(jax.tree.map(lambda leaf: leaf[first - begin :], part))
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


@partial(jax.jit, static_argnames=("settings",))
def _fit_chunk(
    key: jax.Array, begin: Any, xs: Any, init: Any, model: Any, family: Any, encoder: Any, settings: _Settings
) -> LocalFit:
    def fit(index: Array, x: Any, start: Any) -> LocalFit:
        starts = [
            candidate[None, :]
            for candidate in (start, None if encoder is None else encoder(x))
            if candidate is not None
        ]
        offered = jnp.concatenate(starts) if starts else None
        return _local_vi(jax.random.fold_in(key, index), x, offered, model, family, settings)

    return jax.vmap(fit)(begin + jnp.arange(num_rows(xs)), xs, init)
