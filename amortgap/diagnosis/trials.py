"""The trials of remedies: each gives the held-out data new variational parameters, by refinement or by training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from amortgap import encoders
from amortgap._internal.checks import num_rows
from amortgap._internal.devices import encode, take
from amortgap.diagnosis.measure import DRAWS, richer_family
from amortgap.diagnosis.records import Budget, Measured, Problem
from amortgap.gaps import Estimate, EvaluatedBounds, evaluate_bounds, paired_difference
from amortgap.inference.refinement.refine import refine
from amortgap.inference.training.amortized import amortized_vi
from amortgap.networks import count_weights
from amortgap.protocols import Data, Datum, Encoder, Family, Model, Simulating, is_diagonal


@dataclass(frozen=True)
class TrialSettings:
    """Sizes of the trials, each with its reason.

    Attributes:
      refinement_steps: in the study of remedies, five natural-gradient steps removed three quarters of the nats that
        local VI removed on Fashion-MNIST, and twenty nine tenths.
      natural_rate: rate of natural gradients, which has no unit; the study of remedies uses the same.
      adam_rate: rate of Adam's steps in phi, for families without natural gradients.
      refinement_draws: draws per step, two antithetic pairs; the study of remedies uses as many.
      choice_draws: draws per datum that decide whether a refined phi is kept.
      pilot_steps: steps that time training; few against the steps of a trial.
      fewest_steps: below, a trial shows what was not trained rather than what training can bring.
      most_steps: more would leave nothing of a long budget to later remedies.
      validation_data: data whose ELBO is evaluated during training, for its certificate.
      standardization_data: data that standardise a fresh encoder: moments of 10,000 are known within one percent.
      simulated_data: data drawn from the model; training sees as many of the user's data at most.
      narrowest, widest: range of the widths of fresh encoders.
      continued_rate, fresh_rate: Adam's rates for weights already trained, which a higher one would disturb, and for
        fresh ones, the default of `amortized_vi`.
      least_refining, least_training: seconds that compiling takes at least, and a little computing with it.
    """

    refinement_steps: tuple[int, ...] = (5, 20)
    natural_rate: float = 0.3
    adam_rate: float = 0.05
    refinement_draws: int = 4
    choice_draws: int = 50
    pilot_steps: int = 50
    fewest_steps: int = 200
    most_steps: int = 20_000
    validation_data: int = 1000
    standardization_data: int = 10_000
    simulated_data: int = 5000
    narrowest: int = 64
    widest: int = 1024
    continued_rate: float = 1e-3
    fresh_rate: float = 3e-3
    least_refining: float = 2.0
    least_training: float = 6.0


SETTINGS = TrialSettings()


class NotTried(Exception):
    """A remedy does not apply; the message says why."""


class TrialContext(NamedTuple):
    """What all trials share: the problem, the measurements on held-out data, these data and the budget."""

    problem: Problem
    test: Measured
    xs: Data
    budget: Budget


class Trial(NamedTuple):
    """The variational parameters that a remedy gives the held-out data, and its cost as in `TriedRemedy`."""

    phis: Array
    family: Family
    parameters: int
    gradients: int
    note: str


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Flattened:
    """An encoder of vectors that reads data of any shape, all numbers of a datum in one row."""

    encoder: encoders.Encoder

    def __call__(self, x: Datum) -> Array:
        return self.encoder(ravel_pytree(x)[0])


def _first(xs: Data, count: int) -> Data:
    return take(xs, np.arange(min(count, num_rows(xs))))


def _bounds(
    key: jax.Array, phis: Array, context: TrialContext, family: Family, num_samples: int = DRAWS
) -> EvaluatedBounds:
    return evaluate_bounds(key, phis, context.xs, model=context.problem.model, family=family, num_samples=num_samples)


def measured_gain(key: jax.Array, context: TrialContext, phis: Array, family: Family) -> Estimate:
    """Return `mean ELBO(phi_i; x_i) - ELBO(encoder(x_i); x_i)` over the held-out data."""
    own = context.problem.family
    if phis.shape[1] == own.size and type(family) is type(own):
        both = jnp.stack([phis, jnp.asarray(context.test.encoded)], axis=1)
        bounds = _bounds(key, both, context, family)
        return paired_difference(bounds.elbo[:, 0], bounds.elbo[:, 1], bounds.paired_standard_error[:, 1])
    bounds, gaps = _bounds(key, phis[:, None], context, family), context.test.gaps
    errors = jnp.hypot(bounds.standard_error[:, 0], gaps.elbo_amortized_standard_error)
    return paired_difference(bounds.elbo[:, 0], jnp.asarray(gaps.elbo_amortized), errors)


@partial(jax.jit, static_argnames=("num_steps", "rate", "optimizer"))
def _refined(
    key: jax.Array, phis: Array, xs: Data, model: Model, family: Family, num_steps: int, rate: float, optimizer: str
) -> Array:
    refine_one = partial(
        refine,
        model=model,
        family=family,
        num_steps=num_steps,
        learning_rate=rate,
        optimizer=optimizer,
        num_samples=SETTINGS.refinement_draws,
    )
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(phis.shape[0]))
    return jax.vmap(refine_one)(keys, phis, xs).phi


def refinement(num_steps: int, key: jax.Array, context: TrialContext, seconds: float) -> Trial:
    """Refine every phi from the encoder's output; nothing is trained."""
    model, family = context.problem.model, context.problem.family
    natural = is_diagonal(family)
    rate, optimizer = (SETTINGS.natural_rate, "natural") if natural else (SETTINGS.adam_rate, "adam")
    key_steps, key_choice = jax.random.split(key)
    encoded = jnp.asarray(context.test.encoded)
    phis = _refined(key_steps, encoded, context.xs, model, family, num_steps, rate, optimizer)
    # A fixed rate diverges on some data; keep the refined phi where its ELBO is higher on fresh draws.
    both = jnp.stack([encoded, phis], axis=1)
    elbo = _bounds(key_choice, both, context, family, SETTINGS.choice_draws).elbo
    phis = jnp.where((elbo[:, 1] > elbo[:, 0])[:, None], phis, encoded)
    kind = "natural-gradient" if natural else "Adam"
    note = f"{num_steps} {kind} steps from the encoder, kept where better; no training"
    return Trial(phis, family, 0, num_steps * SETTINGS.refinement_draws, note)


def _train(
    key: jax.Array,
    context: TrialContext,
    seconds: float,
    xs: Data,
    family: Family,
    encoder: Encoder,
    rate: float,
    prefix: str = "",
) -> Trial:
    """Return the trial of an encoder that is trained for about `seconds`.

    A first pilot compiles, a second one times the steps; the number of steps that fits then compiles once more.
    """
    weights = count_weights(encoder)
    if not weights:
        raise NotTried("the encoder holds no weights that training could change; bring it as a flax module")
    batch_size = min(100, num_rows(xs))
    train = partial(
        amortized_vi,
        key,
        xs,
        model=context.problem.model,
        family=family,
        encoder=encoder,
        validation=_first(xs, SETTINGS.validation_data),
        num_evaluations=2,
        batch_size=batch_size,
        learning_rate=rate,
    )
    marks = [context.budget.spent]
    for _ in range(2):
        jax.block_until_ready(train(num_steps=SETTINGS.pilot_steps))
        marks.append(context.budget.spent)
    compiling, running = marks[1] - marks[0], marks[2] - marks[1]
    left = seconds - 2 * compiling - running
    steps = min(SETTINGS.most_steps, int(left / running * SETTINGS.pilot_steps))
    if steps < SETTINGS.fewest_steps:
        raise NotTried(f"the time allows {max(steps, 0)} steps of training, too few to tell")
    fit = jax.block_until_ready(train(num_steps=steps))
    note = f"{prefix}{steps} steps of Adam on batches of {batch_size}"
    change, error = float(fit.change), float(fit.change_standard_error)
    if not bool(fit.finite):
        note = f"{prefix}{steps} steps; training met values that are not finite"
    elif change > max(0.02, 2 * error):
        note += f", still gaining {change:.2f} nats over the second half"
    return Trial(encode(fit.encoder, context.xs), family, weights, 0, note)


def more_training(key: jax.Array, context: TrialContext, seconds: float) -> Trial:
    """Train the encoder further on its own training data."""
    problem = context.problem
    return _train(key, context, seconds, problem.xs_train, problem.family, problem.encoder, SETTINGS.continued_rate)


def simulated_training(key: jax.Array, context: TrialContext, seconds: float) -> Trial:
    """Train the encoder further on its training data and on data drawn from the model."""
    problem = context.problem
    if not isinstance(problem.model, Simulating):
        raise NotTried("the model cannot simulate data: it has no `sample`")
    key_simulate, key_order, key_train = jax.random.split(key, 3)
    xs = _first(problem.xs_train, SETTINGS.simulated_data)
    _, simulated = jax.vmap(problem.model.sample)(jax.random.split(key_simulate, SETTINGS.simulated_data))
    shapes = [jax.tree.map(lambda leaf: leaf.shape[1:], data) for data in (simulated, xs)]
    if shapes[0] != shapes[1]:
        raise NotTried(f"simulated data have shape {shapes[0]}, and not {shapes[1]}, the shape of the data")
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b.astype(a.dtype)]), xs, simulated)
    shuffled = take(both, np.asarray(jax.random.permutation(key_order, num_rows(both))))
    prefix = f"{SETTINGS.simulated_data} data from the model; "
    rate = SETTINGS.continued_rate
    return _train(key_train, context, seconds, shuffled, problem.family, problem.encoder, rate, prefix)


def _width(inputs: int, outputs: int, weights: int) -> int:
    """Return the width at which two hidden layers hold about this many weights."""
    # Width w has w^2 + (inputs + outputs) w weights.
    linear = inputs + outputs
    width = 0.5 * (math.sqrt(linear**2 + 4.0 * weights) - linear)
    return int(min(SETTINGS.widest, max(SETTINGS.narrowest, round(width))))


def fresh_encoder(key: jax.Array, context: TrialContext, seconds: float, *, richer: bool) -> Trial:
    """Train a fresh perceptron with four times the weights, or with as many for the full-rank family."""
    problem = context.problem
    family = richer_family(problem.family) if richer else problem.family
    if richer and problem.family.latent_dim == 1:
        raise NotTried("with one latent dimension it is the same family")
    if family is None:
        raise NotTried("the family is no normal that full rank would enrich, or too large for it")
    key_weights, key_train = jax.random.split(key)
    rows = _first(problem.xs_train, SETTINGS.standardization_data)
    flat = jax.vmap(lambda x: ravel_pytree(x)[0])(rows)
    weights = count_weights(problem.encoder)
    width = _width(flat.shape[1], family.size, weights if richer else 4 * weights)
    encoder = encoders.mlp(key_weights, flat.shape[1], family, width=width, depth=2, standardize=flat)
    prefix, rate = f"two layers of {width} units, fresh; ", SETTINGS.fresh_rate
    return _train(key_train, context, seconds, problem.xs_train, family, _Flattened(encoder), rate, prefix)
