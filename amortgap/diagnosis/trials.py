"""Trying remedies, each in its share of the time that is left, for what they buy on the held-out data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from amortgap import encoders
from amortgap._internal.checks import num_rows
from amortgap._internal.devices import encode
from amortgap.diagnosis.clock import Clock
from amortgap.diagnosis.measuring import DRAWS, richer_family, take
from amortgap.diagnosis.parts import Measured, Problem, TriedRemedy
from amortgap.gaps import Estimate, paired_difference
from amortgap.gaps.measure import EvaluatedBounds, evaluate_bounds
from amortgap.inference.refinement.refine import refine
from amortgap.inference.training.amortized import amortized_vi
from amortgap.networks import count_weights
from amortgap.protocols import Simulating, is_diagonal

REFINEMENT_STEPS = (5, 20)
# Of the natural gradient, whose rate has no unit, and of Adam for other families; antithetic pairs of draws.
_NATURAL = {"learning_rate": 0.3, "num_samples": 4, "optimizer": "natural"}
_ADAM = {"learning_rate": 0.05, "num_samples": 4, "optimizer": "adam"}
_CHOICE_DRAWS = 50
_PILOT_STEPS = 50
# Of training within a trial: fewer show what was not trained rather than what it could bring.
_FEWEST_STEPS, _MOST_STEPS = 200, 20_000
# Data that evaluations during training look at, and that a fresh encoder is standardised by.
_EVALUATED, _STANDARDIZED = 1000, 10_000
_SIMULATED = 5000
_WIDEST = 1024


class NotTried(Exception):
    """A remedy that does not apply; the message says why."""


class Place(NamedTuple):
    """What trials share: the problem, what was measured on held-out data, these data, and the clock."""

    problem: Problem
    test: Measured
    xs: Any
    clock: Clock


class _Trial(NamedTuple):
    phis: Array
    family: Any
    parameters: int
    gradients: int
    note: str


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Flattened:
    """An encoder of vectors that reads data of any shape, all its numbers in one row."""

    encoder: Any

    def __call__(self, x: Any) -> Array:
        return self.encoder(ravel_pytree(x)[0])


def _bounds(key: jax.Array, phis: Array, place: Place, family: Any, num_samples: int = DRAWS) -> EvaluatedBounds:
    return evaluate_bounds(key, phis, place.xs, model=place.problem.model, family=family, num_samples=num_samples)


def _gain(key: jax.Array, place: Place, phis: Array, family: Any) -> Estimate:
    """Return `mean ELBO(phi_i; x_i) - ELBO(encoder(x_i); x_i)` over the held-out data."""
    own = place.problem.family
    if phis.shape[1] == own.size and type(family) is type(own):
        both = jnp.stack([phis, jnp.asarray(place.test.encoded)], axis=1)
        found = _bounds(key, both, place, family)
        return paired_difference(found.elbo[:, 0], found.elbo[:, 1], found.paired_standard_error[:, 1])
    found, gaps = _bounds(key, phis[:, None], place, family), place.test.gaps
    errors = jnp.hypot(found.standard_error[:, 0], gaps.elbo_amortized_standard_error)
    return paired_difference(found.elbo[:, 0], jnp.asarray(gaps.elbo_amortized), errors)


@partial(jax.jit, static_argnames=("settings",))
def _refined(key: jax.Array, phis: Array, xs: Any, model: Any, family: Any, settings: tuple) -> Array:
    def one(index: Array, phi: Array, x: Any) -> Array:
        return refine(jax.random.fold_in(key, index), phi, x, model=model, family=family, **dict(settings)).phi

    return jax.vmap(one)(jnp.arange(phis.shape[0]), phis, xs)


def _refine(steps: int, key: jax.Array, place: Place, seconds: float) -> _Trial:
    model, family = place.problem.model, place.problem.family
    how = _NATURAL if is_diagonal(family) else _ADAM
    settings = tuple(sorted((how | {"num_steps": steps}).items()))
    key_steps, key_choice = jax.random.split(key)
    encoded = jnp.asarray(place.test.encoded)
    phis = _refined(key_steps, encoded, place.xs, model, family, settings)
    # Steps of one rate for all may throw a datum far off; whoever refines keeps what is better, on draws of their own.
    judged = _bounds(key_choice, jnp.stack([encoded, phis], axis=1), place, family, _CHOICE_DRAWS).elbo
    phis = jnp.where((judged[:, 1] > judged[:, 0])[:, None], phis, encoded)
    gradients = steps * how["num_samples"]
    kind = "natural-gradient" if how is _NATURAL else "Adam"
    return _Trial(phis, family, 0, gradients, f"{steps} {kind} steps from the encoder, kept where better; no training")


def _train(
    key: jax.Array, place: Place, seconds: float, xs: Any, family: Any, encoder: Any, rate: float
) -> tuple[Any, str]:
    """Return the encoder trained for about `seconds`, and what was done.

    A pilot compiles, a second one times the steps; the number of steps that fits then compiles once more.
    """
    settings: dict[str, Any] = {
        "model": place.problem.model, "family": family, "encoder": encoder, "num_evaluations": 2,
        "batch_size": min(100, num_rows(xs)), "learning_rate": rate,
        "validation": take(xs, np.arange(min(_EVALUATED, num_rows(xs)))),
    }  # fmt: skip
    marks = [place.clock.spent]
    for _ in range(2):
        fit = jax.block_until_ready(amortized_vi(key, xs, num_steps=_PILOT_STEPS, **settings))
        marks.append(place.clock.spent)
    compiling, running = marks[1] - marks[0], marks[2] - marks[1]
    left = seconds - 2 * compiling - running
    steps = min(_MOST_STEPS, int(left / running * _PILOT_STEPS))
    if steps < _FEWEST_STEPS:
        raise NotTried(f"the time allows {max(steps, 0)} steps of training, too few to tell")
    fit = jax.block_until_ready(amortized_vi(key, xs, num_steps=steps, **settings))
    if not bool(fit.finite):
        return fit.encoder, f"{steps} steps; training met values that are not finite"
    moved, error = float(fit.change), float(fit.change_standard_error)
    more = f", still gaining {moved:.2f} nats over the second half" if moved > max(0.02, 2 * error) else ""
    return fit.encoder, f"{steps} steps of Adam on batches of {settings['batch_size']}{more}"


def _more_training(key: jax.Array, place: Place, seconds: float) -> _Trial:
    problem = place.problem
    weights = count_weights(problem.encoder)
    if not weights:
        raise NotTried("the encoder holds no weights that training could change; bring it as a flax module")
    encoder, note = _train(key, place, seconds, problem.xs_train, problem.family, problem.encoder, 1e-3)
    return _Trial(encode(encoder, place.xs), problem.family, weights, 0, note)


def _simulated_training(key: jax.Array, place: Place, seconds: float) -> _Trial:
    problem = place.problem
    if not isinstance(problem.model, Simulating):
        raise NotTried("the model cannot simulate data: it has no `sample`")
    weights = count_weights(problem.encoder)
    if not weights:
        raise NotTried("the encoder holds no weights that training could change; bring it as a flax module")
    key_simulate, key_order, key_train = jax.random.split(key, 3)
    xs = take(problem.xs_train, np.arange(min(_SIMULATED, num_rows(problem.xs_train))))
    _, more = jax.vmap(problem.model.sample)(jax.random.split(key_simulate, _SIMULATED))
    if jax.tree.map(lambda leaf: leaf.shape[1:], more) != jax.tree.map(lambda leaf: leaf.shape[1:], xs):
        raise NotTried("what the model simulates has not the shape of the data")
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b.astype(a.dtype)]), xs, more)
    order = np.asarray(jax.random.permutation(key_order, num_rows(both)))
    encoder, note = _train(key_train, place, seconds, take(both, order), problem.family, problem.encoder, 1e-3)
    return _Trial(encode(encoder, place.xs), problem.family, weights, 0, f"{_SIMULATED} data from the model; {note}")


def _width(inputs: int, outputs: int, weights: int) -> int:
    """Return the width at which two hidden layers hold about this many weights."""
    linear = inputs + outputs
    width = 0.5 * (math.sqrt(linear**2 + 4.0 * weights) - linear)
    return int(min(_WIDEST, max(64, round(width))))


def _fresh(key: jax.Array, place: Place, seconds: float, *, richer: bool) -> _Trial:
    problem = place.problem
    family = richer_family(problem.family) if richer else problem.family
    if richer and problem.family.latent_dim == 1:
        raise NotTried("with one latent dimension it is the same family")
    if family is None:
        raise NotTried("the family is no normal that full rank would enrich, or too large for it")
    key_weights, key_train = jax.random.split(key)
    rows = take(problem.xs_train, np.arange(min(_STANDARDIZED, num_rows(problem.xs_train))))
    flat = jax.vmap(lambda x: ravel_pytree(x)[0])(rows)
    weights = count_weights(problem.encoder)
    width = _width(flat.shape[1], family.size, weights if richer else 4 * weights)
    start = _Flattened(encoders.mlp(key_weights, flat.shape[1], family, width=width, depth=2, standardize=flat))
    encoder, note = _train(key_train, place, seconds, problem.xs_train, family, start, 3e-3)
    return _Trial(
        encode(encoder, place.xs), family, start.encoder.num_weights, 0, f"two layers of {width} units, fresh; {note}"
    )


TRIALS: dict[str, Callable[[jax.Array, Place, float], _Trial]] = {
    **{f"refine {steps} steps": partial(_refine, steps) for steps in REFINEMENT_STEPS},
    "more training": _more_training,
    "training with simulated data": _simulated_training,
    "wider encoder": partial(_fresh, richer=False),
    "full-rank encoder": partial(_fresh, richer=True),
}
REMEDIES = tuple(TRIALS)
# Seconds that compiling takes at least, and some training with it.
_LEAST_REFINING, _LEAST_TRAINING = 2.0, 6.0


def limits(test: Measured) -> list[TriedRemedy]:
    """Return what the best encoder, and the best full-rank normals, would gain."""
    gaps = test.gaps
    best = paired_difference(gaps.elbo_local, gaps.elbo_amortized, gaps.amortization_standard_error)
    found = [
        TriedRemedy("best encoder of this family", best, 0, 0.0, 0, "local optima: no encoder gains more", limit=True)
    ]
    if test.richer_elbo is not None and test.richer_standard_error is not None:
        errors = jnp.hypot(test.richer_standard_error, gaps.elbo_amortized_standard_error)
        gain = paired_difference(test.richer_elbo, gaps.elbo_amortized, errors)
        note = "local optima of full-rank normals"
        found.append(TriedRemedy("best full-rank normals", gain, 0, 0.0, 0, note, limit=True))
    return found


def try_remedies(
    key: jax.Array, place: Place, *, names: tuple[str, ...], seconds: float, bar: Callable[[str], None]
) -> tuple[tuple[TriedRemedy, ...], tuple[tuple[str, str], ...]]:
    """Return the remedies that were tried until `seconds` on the clock, the best first, and those that were not."""
    tried, skipped = [], []
    for number, name in enumerate(names):
        began = place.clock.spent
        left, least = seconds - began, _LEAST_REFINING if name.startswith("refine") else _LEAST_TRAINING
        if left < least:
            skipped.append((name, f"no time left: {max(left, 0):.1f} s, and it takes {least:g} at least"))
            continue
        # An even share of what is left, or as much as is needed: what comes first is tried, rather than nothing.
        share = max(left / (len(names) - number), least)
        key_trial, key_gain = jax.random.split(jax.random.fold_in(key, REMEDIES.index(name)))
        try:
            done = TRIALS[name](key_trial, place, share)
            gain = jax.block_until_ready(_gain(key_gain, place, done.phis, done.family))
        except NotTried as error:
            skipped.append((name, str(error)))
            continue
        except Exception as error:
            # What is measured took minutes; a remedy that fails on the user's model must not take it along.
            skipped.append((name, f"it failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}"))
            continue
        taken = place.clock.spent - began
        tried.append(TriedRemedy(name, gain, done.parameters, taken, done.gradients, done.note))
        bar(f"tried: {name}")
    tried.sort(key=lambda remedy: -np.nan_to_num(float(remedy.gain.mean), nan=-np.inf, neginf=-np.inf))
    return (*tried, *limits(place.test)), tuple(skipped)
