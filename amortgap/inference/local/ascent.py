"""The algorithm of local VI for one datum: a first fit, and fits that take up again what missed the tolerance."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from amortgap._internal.checks import check_choice, check_count, check_positive
from amortgap.families import FullRankNormal
from amortgap.inference.local.adam import adam, ascend_by_adam, objective_of
from amortgap.inference.local.natural_gradient import ascend
from amortgap.inference.local.newton import newton, normal_noise
from amortgap.inference.local.selection import Judged, judge, mean_and_root
from amortgap.protocols import is_diagonal

METHODS = ("auto", "natural_gradient", "newton", "adam")
# Nats below which a certificate counts as converged, unless the caller says otherwise.
TOLERANCE = 0.01
# Gradients in the first round of Newton steps; every further round doubles them.
_NEWTON_GRADIENTS = 250
# Added to the number of a rerun in its key.
_RERUN_KEYS = 1000
# Of the nats gained between two horizons, the share that may still be missing: the error falls about as one over the
# number of steps, and the natural gradient's second part has three times as many as the first.
_HORIZON_SHARE = 0.5
# Multiple of the tolerance that the standard error of a certificate may reach.
_NOISE = 3.0
# Share of the log scales' curvature lost to the mean above which only the many draws of later reruns certify a fit.
_COUPLING = 0.25
# From the second rerun on: how many times more draws judge (of a rough posterior, the few that suffice elsewhere show
# no positive curvature, and so no bound), Adam's steps and rate, how much longer Newton averages, and from what weight.
ROUGH_DRAWS = 8
_ROUGH_ADAM_STEPS = 1000
_ROUGH_ADAM_RATE = 0.03
_ROUGH_NEWTON = 4
_ROUGH_PRIOR_SWEEPS = 4


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LocalFit:
    """Local optimum of one datum, or of many with a leading axis on every field.

    Attributes:
      phi: variational parameters, [size].
      elbo: ELBO at phi on fresh samples, in nats.
      standard_error: Monte Carlo standard error of `elbo`.
      start_elbo: ELBO of the start, on the same fresh samples, in nats.
      suboptimality: estimate of the nats still to be gained by more optimisation; infinite where none is known.
      suboptimality_standard_error: Monte Carlo standard error of `suboptimality`.
      horizon_gain: nats gained between the two horizons of the last run, the check of `suboptimality`.
      num_steps: optimiser steps taken.
      num_gradients: gradients of the log joint they took; the certificate's are not counted.
      converged: whether `suboptimality` is below the tolerance and known to three times that, the horizons agree, and
        everything is finite.
    """

    phi: Float[Array, "*data size"]
    elbo: Float[Array, "*data"]
    standard_error: Float[Array, "*data"]
    start_elbo: Float[Array, "*data"]
    suboptimality: Float[Array, "*data"]
    suboptimality_standard_error: Float[Array, "*data"]
    horizon_gain: Float[Array, "*data"]
    num_steps: Int[Array, "*data"]
    num_gradients: Int[Array, "*data"]
    converged: Bool[Array, "*data"]


@dataclass(frozen=True)
class Settings:
    """Resolved settings of local VI, static under `jit`; see `local_vi`."""

    method: str
    num_steps: int
    warmup_steps: int
    num_samples: int
    tolerance: float
    max_reruns: int
    standard: bool


class Work(NamedTuple):
    """A fit and the start that it is compared with."""

    fit: LocalFit
    start: Float[Array, "*data size"]


def settings_for(
    family: Any,
    *,
    method: str,
    num_steps: Any,
    warmup_steps: Any,
    num_samples: Any,
    tolerance: Any,
    max_reruns: Any,
    has_init: bool,
    standard: bool = True,
) -> Settings:
    """Return checked settings with defaults filled in; raises ValueError as `local_vi` documents.

    `standard`: whether the family's standard member competes with the starts that are offered.
    """
    check_choice("method", method, METHODS)
    mean_field = is_diagonal(family)
    normal = mean_field or isinstance(family, FullRankNormal)
    if method in ("natural_gradient", "newton") and not normal:
        raise ValueError(f"method {method!r} needs a mean field or full rank normal, got {type(family).__name__}")
    if method == "auto" or (method == "natural_gradient" and not mean_field):
        # For a full precision, the natural-gradient step with all curvature at once is the Newton step.
        method = "natural_gradient" if mean_field else "newton" if normal else "adam"
    if num_steps is None:
        num_steps = {"natural_gradient": 200, "adam": 1500}.get(method) or 2 * _newton_steps(family)
    if warmup_steps is None:
        # The encoder's output is near the optimum; from the prior the first curvatures are far off and mislead.
        warmup_steps = 0 if has_init or method == "adam" else 125
    check_count("num_steps", num_steps)
    check_count("warmup_steps", warmup_steps, minimum=0)
    check_count("num_samples", num_samples, minimum=2)
    check_positive("tolerance", tolerance)
    check_count("max_reruns", max_reruns, minimum=0)
    return Settings(
        method,
        int(num_steps),
        int(warmup_steps),
        num_samples + num_samples % 2,
        float(tolerance),
        max_reruns,
        standard or not has_init,
    )


def _sweeps_per_step(latent_dim: int) -> int:
    # A step on fewer than eight pairs is mostly noise.
    return -(-8 // latent_dim)


def _newton_steps(family: Any) -> int:
    gradients = 2 * _sweeps_per_step(family.latent_dim) * family.latent_dim
    return max(3, -(-_NEWTON_GRADIENTS // gradients))


def pairs_per_datum(family: Any, num_samples: int) -> int:
    """Return the antithetic pairs on which a normal family's optimum is judged: whole sweeps, at least two."""
    return max(2, -(-num_samples // (2 * family.latent_dim))) * family.latent_dim


def first_fit(
    key: jax.Array, x: Any, init: Array | None, model: Any, family: Any, settings: Settings, *, pairs_at_once: int
) -> Work:
    """Fit one datum from its best start."""
    starts = [family.standard()[None, :]] if settings.standard else []
    start = jnp.concatenate(starts if init is None else [*starts, init])
    if start.shape[0] > 1:
        key, key_start = jax.random.split(key)
        # Starts differ by many nats or by nothing that matters, so few draws do; one start at a time bounds the memory.
        bound, few = objective_of(x, model, family), max(2, settings.num_samples // 8 + settings.num_samples // 8 % 2)
        values = jax.lax.map(lambda phi: bound(key_start, phi, few), start)
        start = start[jnp.argmax(jnp.where(jnp.isnan(values), -jnp.inf, values))]
    else:
        start = start[0]
    if settings.method == "adam":
        warmup = settings.warmup_steps
        given = {"num_steps": settings.num_steps, "num_samples": settings.num_samples, "warmup_steps": warmup}
        judged = ascend_by_adam(key, x, start, start, model, family, **given)
    else:
        # All noise of the run in one call: random number generators are what takes long to compile.
        steps = settings.warmup_steps + (settings.num_steps if settings.method == "natural_gradient" else 0)
        counts = (steps, _choice_pairs(settings), pairs_per_datum(family, settings.num_samples))
        if settings.method == "newton":
            key, key_newton = jax.random.split(key)
        noise = normal_noise(key, (sum(counts), family.latent_dim), start.dtype)
        climb, choice, sweeps = jnp.split(noise, [counts[0], counts[0] + counts[1]])
        mean, root = mean_and_root(family, start)
        scale = root if root.ndim == 1 else jnp.sqrt(jnp.sum(root**2, axis=1))
        runs = []
        if steps:
            gradient = jax.grad(lambda z: -model.log_joint(z, x))
            # Without a warm-up its end is the start, which is among the stages anyway.
            stages = ascend(climb, gradient, mean, scale, warmup_steps=settings.warmup_steps)
            runs = list(stages if settings.warmup_steps else stages[1:])
        if settings.method == "newton":
            if steps:
                mean, root = (
                    runs[-1][0],
                    (runs[-1][1] if is_diagonal(family) else jnp.diag(runs[-1][1])),
                )
            ends = _newton(key_newton, x, mean, root, model, family, settings.num_steps, pairs_at_once)
            runs = [(mean, root), *ends] if steps else [*ends]
        judged = judge(choice, sweeps, x, start, runs, model, family, pairs_at_once)
    gradients = 2 * settings.warmup_steps + settings.num_steps * _gradients_per_step(family, settings.method)
    return Work(_fit(judged, settings.warmup_steps + settings.num_steps, gradients, settings), start)


def fit_again(
    key: jax.Array,
    number: Any,
    x: Any,
    work: Work,
    model: Any,
    family: Any,
    settings: Settings,
    *,
    rough: bool,
    pairs_at_once: int,
) -> Work:
    """Take up a fit that missed its tolerance: Newton steps for normal families, else Adam; longer every round.

    From the second round on (`rough`), Adam goes before Newton, all sweeps are averaged, and more draws judge: the
    curvature that misled the first round is that of a rough posterior (a decoder of rectifiers, say), whose single
    sweeps show little but noise.
    """
    # `split` of a key, as in the first fit, gives what `fold_in` gives of small numbers: these must be others, or the
    # judge would draw the noise that a step of the first fit has seen.
    key_run, key_judge = jax.random.split(jax.random.fold_in(key, _RERUN_KEYS + number))
    # The count is traced: one compilation serves all rounds but the first.
    method = "adam" if settings.method == "adam" else "newton"
    steps = (settings.num_steps if method == "adam" else _newton_steps(family)) * 2 ** jnp.asarray(number)
    fit, extra = work.fit, 0
    if method == "adam":
        given = {"num_steps": steps, "num_samples": settings.num_samples}
        judged = ascend_by_adam(key_run, x, work.start, fit.phi, model, family, **given)
    else:
        draws = settings.num_samples * (ROUGH_DRAWS if rough else 1)
        counts = (_choice_pairs(settings), pairs_per_datum(family, draws))
        noise = normal_noise(key_judge, (sum(counts), family.latent_dim), fit.phi.dtype)
        choice, sweeps = jnp.split(noise, [counts[0]])
        key_newton, key_adam = jax.random.split(key_run)
        runs, settle = [mean_and_root(family, fit.phi)], jnp.maximum(steps // 3, 2)
        if rough:
            steps, extra, settle = steps * _ROUGH_NEWTON, _ROUGH_ADAM_STEPS * number, -_ROUGH_PRIOR_SWEEPS
            bound = objective_of(x, model, family)
            climbed, _ = adam(key_adam, bound, fit.phi, num_steps=extra, rate=_ROUGH_ADAM_RATE)
            runs.append(mean_and_root(family, climbed))
        runs += _newton(key_newton, x, *runs[-1], model, family, steps, pairs_at_once, settle=settle)
        judged = judge(choice, sweeps, x, work.start, runs, model, family, pairs_at_once)
    gradients = fit.num_gradients + steps * _gradients_per_step(family, method) + 2 * extra
    return Work(_fit(judged, fit.num_steps + steps + extra, gradients, settings, many_draws=rough), work.start)


def fit_one(key: jax.Array, x: Any, init: Array | None, model: Any, family: Any, settings: Settings) -> LocalFit:
    """Fit one datum and take it up again until it meets the tolerance or `max_reruns` is reached."""
    # Whoever maps over data outside has them all in memory at once; few pairs at a time keep that bounded.
    together = 64
    work = first_fit(key, x, init, model, family, settings, pairs_at_once=together)

    def rounds(carry: tuple[Array, Work], end: int, *, rough: bool) -> tuple[Array, Work]:
        def again(carry: tuple[Array, Work]) -> tuple[Array, Work]:
            number, work = carry
            options: dict[str, Any] = {"rough": rough, "pairs_at_once": together}
            return number + 1, fit_again(key, number, x, work, model, family, settings, **options)

        return jax.lax.while_loop(lambda carry: (carry[0] < end) & ~carry[1].fit.converged, again, carry)

    carry = jnp.asarray(0), work
    if settings.max_reruns:
        carry = rounds(carry, 1, rough=False)
    if settings.max_reruns > 1:
        carry = rounds(carry, settings.max_reruns, rough=True)
    return carry[1].fit


def keep_better(first: LocalFit, second: LocalFit, tolerance: float) -> LocalFit:
    """Return the first fit of every datum, or the second where that is better by more than the noise of both.

    Taking the larger of two noisy values would favour noise, and two fits of one optimum differ by less than the
    tolerance. A second fit that converged also replaces a first that did not and whose ELBO is lower. Steps are counted
    of both.
    """
    gain = second.elbo - first.elbo
    margin = jnp.maximum(tolerance, 3 * jnp.hypot(first.standard_error, second.standard_error))
    only = jnp.isfinite(second.elbo) & ~jnp.isfinite(first.elbo)
    take = only | (gain > margin) | (second.converged & ~first.converged & (gain > 0))
    kept = jax.tree.map(lambda a, b: jnp.where(take[..., None] if a.ndim > take.ndim else take, b, a), first, second)
    return replace(
        kept,
        num_steps=first.num_steps + second.num_steps,
        num_gradients=first.num_gradients + second.num_gradients,
    )


def _choice_pairs(settings: Settings) -> int:
    """Return the antithetic pairs on which the stages of a run are compared; common draws need not be many."""
    return settings.num_samples // 8 or 1


def _gradients_per_step(family: Any, method: str) -> int:
    return 2 * _sweeps_per_step(family.latent_dim) * family.latent_dim if method == "newton" else 2


def _fit(
    judged: Judged, num_steps: Any, num_gradients: Any, settings: Settings, *, many_draws: bool = False
) -> LocalFit:
    short = judged.certificate.nats
    # Strong coupling multiplies what few draws see of the gradient, and may hide from them altogether.
    trusted = many_draws | (judged.certificate.coupling < _COUPLING)
    # A decrement is never negative: an estimate that is, beyond its noise, is one of another curvature, and one whose
    # noise is far above the tolerance says nothing.
    error = judged.certificate.standard_error
    known = (error < _NOISE * settings.tolerance) & (short > -settings.tolerance - 3 * error)
    drift = _HORIZON_SHARE * judged.horizon_gain - 2 * judged.horizon_error
    small = (short < settings.tolerance) & (drift < settings.tolerance)
    return LocalFit(
        phi=judged.phi,
        elbo=judged.value,
        standard_error=judged.standard_error,
        start_elbo=judged.start_value,
        suboptimality=short,
        suboptimality_standard_error=error,
        horizon_gain=judged.horizon_gain,
        num_steps=jnp.asarray(num_steps),
        num_gradients=jnp.asarray(num_gradients),
        converged=trusted & known & small & jnp.isfinite(judged.value),
    )


def _newton(
    key: jax.Array,
    x: Any,
    mean: Array,
    root: Array,
    model: Any,
    family: Any,
    num_steps: Any,
    pairs_at_once: int,
    *,
    settle: Any = None,
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    return newton(
        key,
        lambda z: model.log_joint(z, x),
        mean,
        root,
        num_steps=num_steps,
        num_sweeps=_sweeps_per_step(family.latent_dim),
        settle=settle,
        pairs_at_once=pairs_at_once,
    )
