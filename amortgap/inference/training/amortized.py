"""Amortized VI: one encoder for all data, `max_phi sum_i ELBO(encoder_phi(x_i); x_i)`; with a decoder, a VAE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from amortgap._internal.checks import (
    check_choice,
    check_count,
    check_data,
    check_encoder,
    check_key,
    check_positive,
    check_sizes,
    check_trainable,
    is_concrete,
    num_rows,
)
from amortgap._internal.devices import Layout, chosen_devices, map_sharded, mean_over_rows
from amortgap.inference.training import rounds
from amortgap.inference.training.amortized_fit import AmortizedFit, Trace
from amortgap.inference.training.full_batch import FullBatch, train_full_batch
from amortgap.inference.training.minibatches import minibatches
from amortgap.inference.training.schedules import warmup_cosine
from amortgap.inference.training.shared_weights import encoder_elbo
from amortgap.objectives import ESTIMATORS


@dataclass(frozen=True)
class _Settings:
    steps_per_round: int
    rounds_per_cycle: int
    batch_size: int
    num_samples: int
    eval_samples: int
    estimator: str
    antithetic: bool
    train_model: bool
    entropy_warmup: int
    num_data: int
    devices: tuple[Any, ...]


def amortized_vi(
    key: jax.Array,
    xs: Any,
    *,
    model: Any,
    family: Any,
    encoder: Any,
    validation: Any = None,
    num_steps: int = 4000,
    batch_size: int = 100,
    num_samples: int = 1,
    learning_rate: float | Array = 3e-3,
    eval_samples: int = 8,
    num_evaluations: int = 20,
    estimator: str | None = None,
    antithetic: bool = False,
    optimizer: str = "adam",
    devices: Sequence[Any] | None = None,
    progress: bool = False,
) -> AmortizedFit:
    """Train an encoder on the sum of the one-datum ELBOs, the model held fixed.

    Formula: `max_w (1/N) sum_i ELBO(encoder_w(x_i); x_i)`, by Adam on minibatches drawn without replacement, or by
    L-BFGS on all data at once.

    Adam runs in two cycles of equal length, each with a rate that falls to zero by a cosine. Both ends are at
    rest, so the gain from the first to the second measures how far training is from its optimum (`change`); a single
    cosine would confuse that with the noise of its own high rates. L-BFGS needs no rate and a hundred times fewer steps
    on small encoders, but keeps the same draws throughout (a sample average approximation, which fits the noise unless
    draws are many); with the cubature rule and a log joint that is quadratic in z it maximises the exact ELBO.

    Args:
      key: typed key.
      xs: training data, an array [N, ...] or a pytree of such.
      model, family: as in `elbo`.
      encoder: callable pytree from one datum to phi; its weights are the start.
      validation: data that choose the best encoder; None for the training data themselves (with fresh noise), which
        is what the amortization gap on those data is about.
      num_steps: optimiser steps in all, rounded up to whole rounds, as many for each evaluation: `trace.step` has them.
      batch_size: data per step of Adam, cut to N.
      num_samples: draws per datum and step.
      learning_rate: Adam's rate at the start of the first cycle; the second starts at a third of it.
      eval_samples: draws per datum and evaluation.
      num_evaluations: number of evaluations, at least two, rounded up to an even number.
      estimator, antithetic: of the gradient, as in `elbo`; None for "sticking_the_landing" with Adam and "total" with
        L-BFGS, which also takes "cubature" (`cubature_elbo`, no draws at all) and cannot use sticking the landing,
        whose gradient is not that of its value.
      optimizer: "adam" or "lbfgs".
      devices: devices to split data and minibatches over, weights on all of them; None for all local ones, but inside
        `jit` or `vmap` for the one the caller computes on. Results do not depend on them beyond rounding.
      progress: show a progress bar on standard error if that is a terminal.

    Returns:
      AmortizedFit. Under `vmap` over keys and stacked encoders every field gets a leading axis.

    Raises:
      ValueError: bad key, data, sizes or settings, before anything is compiled.

    Source: Kingma and Welling (2014); Gershman and Goodman, "Amortized inference in probabilistic reasoning" (2014).

    Example:
      The posterior mean is linear in the datum, so that a linear encoder of rank one loses nothing.

      >>> import jax, jax.numpy as jnp, amortgap as ag
      >>> model = ag.models.FactorAnalysis(loadings=jnp.ones((2, 1)), mean=jnp.zeros(2), noise_variance=jnp.ones(2))
      >>> _, xs = ag.diagnostics.simulate(jax.random.key(0), model=model, num_data=100)
      >>> given = {"model": model, "family": ag.families.MeanFieldNormal(1)}
      >>> encoder = ag.encoders.linear(jax.random.key(1), 2, given["family"], rank=1)
      >>> fit = ag.amortized_vi(
      ...     jax.random.key(2), xs, encoder=encoder, num_steps=50, optimizer="lbfgs", estimator="cubature", **given
      ... )
      >>> lost = model.log_evidence(xs[0]) - ag.cubature_elbo(fit.encoder(xs[0]), xs[0], **given)
      >>> print(f"{abs(lost):.3f} nats lost")
      0.000 nats lost
    """
    return _train(
        key,
        xs,
        model,
        family,
        encoder,
        validation,
        num_steps=num_steps,
        batch_size=batch_size,
        num_samples=num_samples,
        learning_rate=learning_rate,
        eval_samples=eval_samples,
        num_evaluations=num_evaluations,
        estimator=estimator,
        antithetic=antithetic,
        optimizer=optimizer,
        devices=devices,
        progress=progress,
        train_model=False,
    )


def train_vae(
    key: jax.Array,
    xs: Any,
    *,
    model: Any,
    family: Any,
    encoder: Any,
    validation: Any = None,
    num_steps: int = 4000,
    batch_size: int = 100,
    num_samples: int = 1,
    learning_rate: float | Array = 3e-3,
    eval_samples: int = 8,
    num_evaluations: int = 20,
    estimator: str = "sticking_the_landing",
    antithetic: bool = False,
    entropy_warmup: int = 0,
    devices: Sequence[Any] | None = None,
    progress: bool = False,
) -> AmortizedFit:
    """Train decoder and encoder jointly, as a variational autoencoder.

    Formula: `max_{theta, w} (1/N) sum_i ELBO(encoder_w(x_i); x_i, theta)`.

    Args:
      key, xs, family, encoder, num_steps, batch_size, num_samples, learning_rate, eval_samples, num_evaluations: as in
        `amortized_vi`, with Adam.
      model: as in `elbo`; a pytree whose weights are the start and are trained.
      validation: as in `amortized_vi`; give held-out data to stop at the model that generalises best.
      estimator, antithetic: of the gradient, as in `elbo`.
      entropy_warmup: steps over which the weight of `-log q` rises from zero to one, so that latents are used before
        the prior pulls on them; with weights below one the objective is no bound, and evaluations never use it.
      devices, progress: as in `amortized_vi`.

    Returns:
      AmortizedFit; the trained model is `fit.model`.

    Raises:
      ValueError: as in `amortized_vi`, or an entropy_warmup outside [0, num_steps].

    Source: Kingma and Welling, "Auto-encoding variational Bayes" (2014); Cremer, Li and Duvenaud, "Inference
    suboptimality in variational autoencoders" (2018), section 5.2, for the warm-up.
    """
    return _train(
        key,
        xs,
        model,
        family,
        encoder,
        validation,
        num_steps=num_steps,
        batch_size=batch_size,
        num_samples=num_samples,
        learning_rate=learning_rate,
        eval_samples=eval_samples,
        num_evaluations=num_evaluations,
        estimator=estimator,
        antithetic=antithetic,
        optimizer="adam",
        devices=devices,
        progress=progress,
        train_model=True,
        entropy_warmup=entropy_warmup,
    )


def _train(
    key: jax.Array,
    xs: Any,
    model: Any,
    family: Any,
    encoder: Any,
    validation: Any,
    *,
    num_steps: int,
    batch_size: int,
    num_samples: int,
    learning_rate: float | Array,
    eval_samples: int,
    num_evaluations: int,
    estimator: str | None,
    antithetic: bool,
    optimizer: str,
    devices: Sequence[Any] | None,
    progress: bool,
    train_model: bool,
    entropy_warmup: int = 0,
) -> AmortizedFit:
    check_key(key)
    xs = check_data("xs", xs, model)
    check_sizes(model, family)
    encoder = check_encoder(encoder, family, jax.tree.map(lambda leaf: leaf[0], xs))
    if not train_model:
        check_trainable(encoder)
    check_count("num_evaluations", num_evaluations, minimum=2)
    check_count("num_steps", num_steps, minimum=num_evaluations)
    check_count("batch_size", batch_size)
    check_count("num_samples", num_samples)
    check_count("eval_samples", eval_samples)
    check_count("entropy_warmup", entropy_warmup, minimum=0, maximum=num_steps)
    check_choice("optimizer", optimizer, ("adam", "lbfgs"))
    if estimator is None:
        estimator = "sticking_the_landing" if optimizer == "adam" else "total"
    check_choice("estimator", estimator, ESTIMATORS if optimizer == "adam" else (*ESTIMATORS[1:], "cubature"))
    if is_concrete(learning_rate):
        check_positive("learning_rate", float(learning_rate))
    if validation is None:
        validation = xs
    else:
        validation = check_data("validation", validation, model)
    concrete = is_concrete((key, xs, validation, model, encoder, family))
    rounds_per_cycle = -(-num_evaluations // 2)
    steps_per_round = -(-num_steps // (2 * rounds_per_cycle))
    if optimizer == "lbfgs":
        if devices is not None:
            raise ValueError(f"devices must be None with optimizer 'lbfgs', which computes on one, got {devices}")
        whole = FullBatch(steps_per_round, 2 * rounds_per_cycle, num_samples, eval_samples, estimator, antithetic)
        return train_full_batch(key, xs, validation, model, family, encoder, whole, progress=progress)
    settings = _Settings(
        steps_per_round=steps_per_round,
        rounds_per_cycle=rounds_per_cycle,
        batch_size=min(batch_size, num_rows(xs)),
        num_samples=num_samples,
        eval_samples=eval_samples,
        estimator=estimator,
        antithetic=antithetic,
        train_model=train_model,
        entropy_warmup=entropy_warmup,
        num_data=num_rows(xs),
        # Inside a trace the caller has already chosen where to compute.
        devices=() if devices is None and not concrete else chosen_devices(devices),
    )
    # One flat vector: an optimiser over dozens of small leaves costs more to compile and to dispatch than to compute.
    params, unravel = ravel_pytree((model if settings.train_model else None, encoder))
    state = rounds.start(params, optax.scale_by_adam().init(params), num_rows(validation))
    data, shared = (xs, validation), (model, encoder, family, jnp.asarray(learning_rate))
    spread = Layout(settings.devices) if concrete and (devices is not None or len(settings.devices) > 1) else None
    if spread:
        data, key, state, shared = spread.padded(data), *spread.replicate((key, state, shared))

    def advance(state: rounds.State, index: Any) -> tuple[rounds.State, Trace]:
        return _round(key, index, state, *data, *shared, settings)

    count = 2 * settings.rounds_per_cycle
    state, trace = rounds.run(advance, state, count, concrete=concrete, progress=progress)
    if spread:
        state, trace = spread.gather((state, trace))
    best_model, best_encoder = unravel(state.best)
    return rounds.fitted(state, trace, encoder=best_encoder, model=best_model if settings.train_model else model)


@partial(jax.jit, static_argnames=("settings",))
def _round(
    key: jax.Array,
    index: Any,
    state: rounds.State,
    xs: Any,
    validation: Any,
    model: Any,
    encoder: Any,
    family: Any,
    learning_rate: Array,
    settings: _Settings,
) -> tuple[rounds.State, Trace]:
    """Train for `steps_per_round` steps, then evaluate on shared noise and keep the best."""
    _, unravel = ravel_pytree((model if settings.train_model else None, encoder))
    key_order, key_noise, key_eval = jax.random.split(key, 3)
    n, steps, batch_size = settings.num_data, settings.steps_per_round, settings.batch_size
    first = (index % settings.rounds_per_cycle) * steps
    cycle_steps = settings.rounds_per_cycle * steps
    # The second cycle starts from trained weights; a full rate would only throw them back.
    peak = jnp.where(index < settings.rounds_per_cycle, learning_rate, learning_rate / 3)
    adam = optax.scale_by_adam()
    evaluate = partial(encoder_elbo, family=family, num_samples=settings.eval_samples, estimator="total")

    def pick(params: Array) -> tuple[Any, Any]:
        trained, here = unravel(params)
        return (trained if settings.train_model else model), here

    def loss(params: Array, keys: Array, rows: Array, number: Array) -> Array:
        here, encoder = pick(params)
        batch = jax.tree.map(lambda leaf: leaf[rows], xs)
        entropy_weight: float | Array = 1.0
        if settings.entropy_warmup:
            done = (index * steps + number).astype(params.dtype)
            entropy_weight = jnp.minimum(1.0, done / settings.entropy_warmup)
        bound = partial(
            encoder_elbo,
            model=here,
            family=family,
            num_samples=settings.num_samples,
            estimator=settings.estimator,
            antithetic=settings.antithetic,
            entropy_weight=entropy_weight,
        )
        return -mean_over_rows(lambda k, x: bound(k, encoder, x), (keys, batch), settings.devices)

    def step(carry: tuple[Array, Any], inputs: tuple[Array, Array, Array]) -> tuple[tuple[Array, Any], Array]:
        params, optimiser = carry
        number, keys, rows = inputs
        value, gradient = jax.value_and_grad(loss)(params, keys, rows, number)
        update, optimiser = adam.update(gradient, optimiser, params)
        rate = peak * warmup_cosine(first + number, cycle_steps)
        return (params - rate.astype(params.dtype) * jnp.asarray(update), optimiser), -value

    rows = minibatches(jax.random.fold_in(key_order, index), n, steps, batch_size)
    # All keys at once, outside the loop: every random call inside it costs compile time of its own.
    keys = jax.random.split(jax.random.fold_in(key_noise, index), (steps, batch_size))
    inputs = (jnp.arange(steps), keys, rows)
    (params, optimiser), values = jax.lax.scan(step, (state.params, state.optimiser), inputs)

    here, encoder = pick(params)
    per_datum = map_sharded(
        lambda i, x: evaluate(jax.random.fold_in(key_eval, i), encoder, x, model=here),
        validation,
        chunk_size=500,
        devices=settings.devices,
    )[: state.last_values.size]
    half_done = index == settings.rounds_per_cycle - 1
    return rounds.close(
        state,
        params,
        optimiser,
        values,
        per_datum,
        fresh=adam.init(state.best),
        step=(index + 1) * steps,
        half_done=half_done,
    )
