"""The algorithm of local VI for one datum: a first fit, and reruns of a fit that misses the tolerance."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from amortgap.inference.local.acceptance import accept
from amortgap.inference.local.adam import adam, ascend_by_adam, objective_of
from amortgap.inference.local.natural_gradient import Stages, ascend
from amortgap.inference.local.newton import newton, normal_noise
from amortgap.inference.local.records import (
    FitState,
    LocalFit,
    Problem,
    frames_per_step,
    gradients_per_step,
    newton_steps,
    pairs_per_datum,
)
from amortgap.inference.local.selection import SelectedFit, mean_and_root, select_normal
from amortgap.protocols import is_diagonal

# Added to the number of a rerun in its key.
_RERUN_KEYS = 1000


def fit(key: jax.Array, problem: Problem, init: Array | None) -> FitState:
    """Fit one datum from its best start."""
    settings = problem.settings
    key, start = _best_start(key, problem, init)
    warmup = settings.warmup_from(cold=init is None)
    if problem.method == "adam":
        selected = ascend_by_adam(key, problem, start, start, num_steps=settings.num_steps, warmup_steps=warmup)
    elif problem.method == "newton":
        selected = _fit_by_newton(key, problem, start, warmup)
    else:
        selected = _fit_by_natural_gradient(key, problem, start, warmup)
    gradients = 2 * warmup + settings.num_steps * gradients_per_step(problem.family, problem.method)
    return FitState(_local_fit(selected, warmup + settings.num_steps, gradients, problem), start)


def _best_start(key: jax.Array, problem: Problem, init: Array | None) -> tuple[jax.Array, Array]:
    """Return a key for the rest of the fit, and the start with the largest ELBO."""
    standard, settings = problem.family.standard(), problem.settings
    if init is None:
        return key, standard
    starts = jnp.concatenate([standard[None, :], init]) if settings.standard else init
    if starts.shape[0] == 1:
        return key, starts[0]
    key, key_start = jax.random.split(key)
    objective = objective_of(problem)
    # Starts differ by many nats or by nothing that matters, so few draws do; one start at a time bounds the memory.
    few = max(2, settings.num_samples // 8 + settings.num_samples // 8 % 2)
    values = jax.lax.map(lambda phi: objective(key_start, phi, few), starts)
    return key, starts[jnp.argmax(jnp.where(jnp.isnan(values), -jnp.inf, values))]


def _fit_by_natural_gradient(key: jax.Array, problem: Problem, start: Array, warmup: int) -> SelectedFit:
    steps = warmup + problem.settings.num_steps
    climb, choice, sample = _noise(key, problem, steps, problem.settings.num_samples, start.dtype)
    stages = _ascend(climb, problem, start, warmup)
    # Without a warm-up its end is the start, which is among the stages anyway.
    return select_normal(choice, sample, problem, start, list(stages if warmup else stages[1:]))


def _fit_by_newton(key: jax.Array, problem: Problem, start: Array, warmup: int) -> SelectedFit:
    key, key_newton = jax.random.split(key)
    climb, choice, sample = _noise(key, problem, warmup, problem.settings.num_samples, start.dtype)
    (mean, root), runs = mean_and_root(problem.normal, start), []
    if warmup:
        mean, scale = _ascend(climb, problem, start, warmup).end
        root = scale if is_diagonal(problem.family) else jnp.diag(scale)
        runs = [(mean, root)]
    runs += _newton(key_newton, problem, mean, root, problem.settings.num_steps)
    return select_normal(choice, sample, problem, start, runs)


def _ascend(noise: Array, problem: Problem, start: Array, warmup: int) -> Stages:
    mean, root = mean_and_root(problem.normal, start)
    scale = root if root.ndim == 1 else jnp.sqrt(jnp.sum(root**2, axis=1))
    return ascend(noise, jax.grad(lambda z: -problem.log_joint(z)), mean, scale, warmup_steps=warmup)


def _newton(
    key: jax.Array, problem: Problem, mean: Array, root: Array, num_steps: int | Array, burn_in: int | None = None
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    return newton(
        key,
        problem.log_joint,
        mean,
        root,
        num_steps=num_steps,
        num_frames=frames_per_step(mean.size),
        burn_in=burn_in,
        pairs_at_once=problem.pairs_at_once,
    )


def _noise(key: jax.Array, problem: Problem, steps: int, num_samples: int, dtype: DTypeLike) -> list[Array]:
    """Return the noise of the steps, of the choice among stages and of the certificate.

    One call draws all of it, because random number generators take long to compile.
    """
    # Stages are compared on common draws, which need not be many.
    choice_end = steps + (problem.settings.num_samples // 8 or 1)
    shape = (choice_end + pairs_per_datum(problem.family, num_samples), problem.family.latent_dim)
    return jnp.split(normal_noise(key, shape, dtype), [steps, choice_end])


def rerun(key: jax.Array, number: int | Array, problem: Problem, state: FitState, *, many_draws: bool) -> FitState:
    """Continue a fit that missed its tolerance: by Newton steps for normal families, else by Adam; longer every time.

    From the second rerun on (`many_draws`) the posterior is taken to be rough; `LaterReruns` says what changes.
    """
    # `split` of a key, as in the first fit, equals `fold_in` of small numbers. Without other numbers the certificate of
    # a rerun would reuse the noise of a step of the first fit.
    key_run, key_judge = jax.random.split(jax.random.fold_in(key, _RERUN_KEYS + number))
    family, settings, before = problem.family, problem.settings, state.fit
    # The number is traced: one compilation serves all reruns but the first.
    doubled = 2 ** jnp.asarray(number)
    if problem.method == "adam":
        steps = settings.num_steps * doubled
        gradients = steps * gradients_per_step(family, "adam")
        selected = ascend_by_adam(key_run, problem, state.start, before.phi, num_steps=steps)
    else:
        steps, adam_steps = newton_steps(family) * doubled, 0
        if many_draws:
            steps, adam_steps = steps * settings.later_reruns.newton_steps, settings.later_reruns.adam_steps * number
        selected = _rerun_by_newton(key_run, key_judge, problem, state, steps, adam_steps, many_draws=many_draws)
        gradients = steps * gradients_per_step(family, "newton") + 2 * adam_steps
        steps = steps + adam_steps
    steps, gradients = before.num_steps + steps, before.num_gradients + gradients
    return FitState(_local_fit(selected, steps, gradients, problem, many_draws=many_draws), state.start)


def _rerun_by_newton(
    key: jax.Array,
    key_judge: jax.Array,
    problem: Problem,
    state: FitState,
    num_steps: Array,
    adam_steps: int | Array,
    *,
    many_draws: bool,
) -> SelectedFit:
    later, family, phi = problem.settings.later_reruns, problem.normal, state.fit.phi
    num_samples = problem.settings.num_samples * (later.draws if many_draws else 1)
    _, choice, sample = _noise(key_judge, problem, 0, num_samples, phi.dtype)
    key_newton, key_adam = jax.random.split(key)
    runs, burn_in = [mean_and_root(family, phi)], None
    if many_draws:
        climbed, _ = adam(key_adam, objective_of(problem), phi, num_steps=adam_steps, rate=later.adam_rate)
        runs, burn_in = [*runs, mean_and_root(family, climbed)], -later.prior_frames
    runs += _newton(key_newton, problem, *runs[-1], num_steps, burn_in)
    return select_normal(choice, sample, problem, state.start, runs)


def fit_to_tolerance(key: jax.Array, problem: Problem, init: Array | None) -> LocalFit:
    """Fit one datum and rerun it until it meets the tolerance or `max_reruns` is reached."""

    def reruns(carry: tuple[Array, FitState], end: int, *, many_draws: bool) -> tuple[Array, FitState]:
        def again(carry: tuple[Array, FitState]) -> tuple[Array, FitState]:
            return carry[0] + 1, rerun(key, carry[0], problem, carry[1], many_draws=many_draws)

        return jax.lax.while_loop(lambda carry: (carry[0] < end) & ~carry[1].fit.converged, again, carry)

    carry, most = (jnp.asarray(0), fit(key, problem, init)), problem.settings.max_reruns
    if most:
        carry = reruns(carry, 1, many_draws=False)
    if most > 1:
        carry = reruns(carry, most, many_draws=True)
    return carry[1].fit


def _local_fit(
    selected: SelectedFit,
    num_steps: int | Array,
    num_gradients: int | Array,
    problem: Problem,
    *,
    many_draws: bool = False,
) -> LocalFit:
    converged = accept(
        selected.certificate,
        selected.elbo,
        selected.horizon_gain,
        selected.horizon_error,
        problem.settings.acceptance,
        many_draws=many_draws,
    )
    return LocalFit(
        phi=selected.phi,
        elbo=selected.elbo,
        standard_error=selected.standard_error,
        start_elbo=selected.start_elbo,
        suboptimality=selected.certificate.nats,
        suboptimality_standard_error=selected.certificate.standard_error,
        horizon_gain=selected.horizon_gain,
        num_steps=jnp.asarray(num_steps),
        num_gradients=jnp.asarray(num_gradients),
        converged=converged,
    )
