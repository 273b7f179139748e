"""VI over global and local latents together: `max over q0 and the local factors of the ELBO of the whole data set`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from amortgap._internal.checks import check_choice, check_count, check_key, check_positive, is_concrete, num_rows
from amortgap._internal.progress import progress_bar
from amortgap.expectations import MONTE_CARLO, Expectation
from amortgap.inference.hierarchical.elbo import check_whole, whole_elbo
from amortgap.inference.hierarchical.factors import LocalFactors
from amortgap.inference.training.minibatches import minibatches
from amortgap.inference.training.schedules import warmup_cosine

# Pairs of steps and gradients that stand for the curvature. Theta couples all data, unlike where the model is fixed
# (`full_batch.py`, where 20 do): 60 halve what 20 leave.
_MEMORY = 60


class GlobalLocalTrace(NamedTuple):
    """What optimisation looked like, one entry per evaluation.

    Attributes:
      step: optimiser steps done.
      data_visits: local bounds computed with their gradients so far, line searches included.
      elbo: ELBO of the whole data set, nats.
      seconds: wall time of the steps since the last entry, evaluation left out and compilation not (zero inside a
        transformation); [evaluations].
    """

    step: Int[Array, " evaluations"]
    data_visits: Float[Array, " evaluations"]
    elbo: Float[Array, " evaluations"]
    seconds: Float[Array, " evaluations"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GlobalLocalFit:
    """Result of `global_local_vi`.

    Attributes:
      global_phi: parameters of q0(theta), [global_family.size].
      factors: LocalFactors.
      elbo: ELBO of the whole data set there, nats.
      trace: GlobalLocalTrace.
      finite: False if optimisation met a value that is not finite; the fit is then the best one before it.
    """

    global_phi: Float[Array, "*seeds size"]
    factors: LocalFactors
    elbo: Float[Array, "*seeds"]
    trace: GlobalLocalTrace
    finite: Bool[Array, "*seeds"]


@dataclass(frozen=True)
class _Settings:
    steps: int
    rounds: int
    batch_size: int
    num_data: int
    optimizer: str
    schedule: str
    global_expectation: Expectation
    local_expectation: Expectation
    evaluation: tuple[Expectation, Expectation]


class _State(NamedTuple):
    params: Array
    optimiser: Any
    best: Array
    best_elbo: Array
    visits: Array
    finite: Array


def global_local_vi(
    key: jax.Array,
    xs: Any,
    *,
    model: Any,
    global_family: Any,
    family: Any,
    factors: Any,
    global_start: Float[Array, " size"] | None = None,
    num_steps: int = 2000,
    batch_size: int | None = None,
    learning_rate: float | Array = 1e-2,
    schedule: str = "cosine",
    optimizer: str = "adam",
    global_expectation: Expectation = MONTE_CARLO,
    local_expectation: Expectation = MONTE_CARLO,
    evaluation: tuple[Expectation, Expectation] | None = None,
    num_evaluations: int = 20,
    progress: bool = False,
) -> GlobalLocalFit:
    """Maximise the ELBO of the whole data set over q0(theta) and the local factors together.

    Formula: `max E_{q0}[log p(theta) - log q0(theta) + (N / |B|) sum_{i in B} ELBO(phi_i(theta); x_i, theta)]`, by Adam
    on minibatches drawn without replacement, or by L-BFGS on all data and with draws that stay fixed.

    With theta fixed the data separate: `local_vi` and `amortized_vi` on `models.fix_global(model, theta)` are then the
    same problem. Adam divides the loss by N. Its momentum also moves free factors whose datum is not in the minibatch.

    Args:
      key: typed key.
      xs, model, global_family, family: as in `whole_elbo`; at least two data.
      factors: LocalFactors; their parameters are the start.
      global_start: start of q0's parameters; None for the family's standard member.
      num_steps: optimiser steps in all.
      batch_size: data per step of Adam; None for all.
      learning_rate: of Adam, at its highest.
      schedule: "cosine" (short ramp, then a cosine to zero) or "constant".
      optimizer: "adam" or "lbfgs".
      global_expectation, local_expectation: of the objective, as in `whole_elbo`.
      evaluation: of the trace (over theta, over z); None for those of the objective, with eight draws if Monte Carlo.
      num_evaluations: number of evaluations on all data, at most num_steps.
      progress: show a progress bar on standard error if that is a terminal.

    Returns:
      GlobalLocalFit: the best evaluated parameters. Under `vmap` over keys and stacked factors every field gets a
      leading axis.

    Raises:
      ValueError: bad key, data, sizes or settings, before anything is compiled.

    Source: Agrawal and Domke (2021), section 5; Margossian and Blei (2024), section 2.
    """
    check_key(key)
    xs = check_whole(xs, factors, model, global_family, family, global_expectation, local_expectation)
    n = num_rows(xs)
    if n < 2:
        raise ValueError(f"xs must hold at least two data to amortize over, got N = {n}; use local_vi for one datum")
    check_choice("optimizer", optimizer, ("adam", "lbfgs"))
    check_choice("schedule", schedule, ("cosine", "constant"))
    check_count("num_evaluations", num_evaluations)
    check_count("num_steps", num_steps, minimum=num_evaluations)
    if batch_size is not None:
        check_count("batch_size", batch_size, maximum=n)
    if is_concrete(learning_rate):
        check_positive("learning_rate", float(learning_rate))
    if optimizer == "lbfgs":
        _check_full_batch(batch_size, n, global_expectation, local_expectation)
    if evaluation is not None:
        if len(evaluation) != 2:
            raise ValueError(f"evaluation must be two expectations, over theta and over z, got {len(evaluation)}")
        evaluation[0].check("evaluation[0]", global_family)
        evaluation[1].check("evaluation[1]", family)
    start = global_family.standard() if global_start is None else jnp.asarray(global_start)
    if start.shape != (global_family.size,):
        raise ValueError(f"global_start must have shape ({global_family.size},), got {start.shape}")
    settings = _Settings(
        steps=-(-num_steps // num_evaluations),
        rounds=num_evaluations,
        batch_size=n if batch_size is None else batch_size,
        num_data=n,
        optimizer=optimizer,
        schedule=schedule,
        global_expectation=global_expectation,
        local_expectation=local_expectation,
        evaluation=evaluation or (_for_evaluation(global_expectation), _for_evaluation(local_expectation)),
    )
    params, unravel = ravel_pytree((start, factors))
    state = _State(
        params=params,
        optimiser=_optimiser(settings).init(params),
        best=params,
        best_elbo=jnp.asarray(-jnp.inf, params.dtype),
        visits=jnp.zeros((), params.dtype),
        finite=jnp.asarray(True),
    )
    parts = {"model": model, "global_family": global_family, "family": family}

    key_order, key_noise, key_eval = jax.random.split(key, 3)

    def advance(state: _State, index: Any) -> tuple[_State, Array]:
        return _steps(
            (key_order, key_noise), index, state, xs, start, factors, parts, jnp.asarray(learning_rate), settings
        )

    def judge(state: _State, values: Array) -> tuple[_State, Array]:
        return _evaluate(key_eval, state, xs, start, factors, parts, values, settings)

    if is_concrete((key, xs, model, factors, start, family, global_family)):
        rows = []
        for index in progress_bar(range(settings.rounds), "global and local VI", unit="round", enabled=progress):
            began = time.perf_counter()
            state, values = jax.block_until_ready(advance(state, index))
            seconds = time.perf_counter() - began
            state, elbo = judge(state, values)
            rows.append(((index + 1) * settings.steps, state.visits, elbo, seconds))
        trace = GlobalLocalTrace(*(jnp.asarray(column) for column in zip(*rows, strict=True)))
    else:

        def both(state: _State, index: Array) -> tuple[_State, Any]:
            state, values = advance(state, index)
            state, elbo = judge(state, values)
            return state, ((index + 1) * settings.steps, state.visits, elbo, jnp.zeros(()))

        state, rows = jax.lax.scan(both, state, jnp.arange(settings.rounds))
        trace = GlobalLocalTrace(*rows)
    global_phi, factors = unravel(state.best)
    return GlobalLocalFit(global_phi, factors, state.best_elbo, trace, state.finite)


def _check_full_batch(batch_size: int | None, n: int, *expectations: Expectation) -> None:
    if batch_size not in (None, n):
        raise ValueError(f"batch_size must be None with optimizer 'lbfgs', which uses all data, got {batch_size}")
    for expectation in expectations:
        if (expectation.method, expectation.estimator) == ("monte_carlo", "sticking_the_landing"):
            raise ValueError(
                "optimizer 'lbfgs' needs the gradient of its value: take estimator 'total' or 'analytic_entropy', or "
                "cubature or quadrature, got 'sticking_the_landing'"
            )


def _for_evaluation(expectation: Expectation) -> Expectation:
    return Expectation("monte_carlo", 8, "total") if expectation.method == "monte_carlo" else expectation


def _optimiser(settings: _Settings) -> Any:
    return optax.scale_by_adam() if settings.optimizer == "adam" else optax.lbfgs(memory_size=_MEMORY)


@partial(jax.jit, static_argnames=("settings",))
def _steps(
    keys: tuple[jax.Array, jax.Array],
    index: Any,
    state: _State,
    xs: Any,
    start: Array,
    factors: LocalFactors,
    parts: dict[str, Any],
    learning_rate: Array,
    settings: _Settings,
) -> tuple[_State, Array]:
    """Take the steps of one round; return the mean ELBO of the steps."""
    _, unravel = ravel_pytree((start, factors))
    key_order, key_noise = keys
    n, steps, batch = settings.num_data, settings.steps, settings.batch_size

    def loss(params: Array, key: Any, rows: Any) -> Array:
        global_phi, here = unravel(params)
        rules = {"global_expectation": settings.global_expectation, "local_expectation": settings.local_expectation}
        # Per datum, so that a learning rate means the same for every N.
        return -whole_elbo(key, global_phi, here, xs, rows=rows, **parts, **rules) / n

    optimiser = _optimiser(settings)
    if settings.optimizer == "lbfgs":
        return _lbfgs_steps(state, partial(loss, key=key_noise, rows=None), optimiser, steps, n)

    def step(carry: tuple[Array, Any], inputs: Any) -> tuple[tuple[Array, Any], Array]:
        params, adam = carry
        number, key, rows = inputs
        value, gradient = jax.value_and_grad(loss)(params, key, rows)
        update, adam = optimiser.update(gradient, adam, params)
        total = settings.rounds * steps
        factor = warmup_cosine(number, total) if settings.schedule == "cosine" else 1.0
        return (params - (learning_rate * factor).astype(params.dtype) * update, adam), -n * value

    rows = None
    if batch < n:
        rows = minibatches(jax.random.fold_in(key_order, index), n, steps, batch)
    noise = jax.random.split(jax.random.fold_in(key_noise, index), steps)
    inputs = (index * steps + jnp.arange(steps), noise, rows)
    (params, adam), values = jax.lax.scan(step, (state.params, state.optimiser), inputs)
    done = state._replace(params=params, optimiser=adam, visits=state.visits + steps * batch)
    return done, jnp.mean(values)


def _lbfgs_steps(
    state: _State, loss: Callable[[Array], Array], optimiser: Any, steps: int, n: int
) -> tuple[_State, Array]:
    value_and_gradient = optax.value_and_grad_from_state(loss)

    def step(carry: tuple[Array, Any, Array], _: None) -> tuple[tuple[Array, Any, Array], Array]:
        params, memory, visits = carry
        value, gradient = value_and_gradient(params, state=memory)
        update, memory = optimiser.update(gradient, memory, params, value=value, grad=gradient, value_fn=loss)
        searches = optax.tree_utils.tree_get(memory, "info").num_linesearch_steps
        return (params + update, memory, visits + n * searches), -n * jnp.asarray(value)

    (params, memory, visits), values = jax.lax.scan(
        step, (state.params, state.optimiser, state.visits), None, length=steps
    )
    return state._replace(params=params, optimiser=memory, visits=visits), jnp.mean(values)


@partial(jax.jit, static_argnames=("settings",))
def _evaluate(
    key: jax.Array,
    state: _State,
    xs: Any,
    start: Array,
    factors: LocalFactors,
    parts: dict[str, Any],
    values: Array,
    settings: _Settings,
) -> tuple[_State, Array]:
    """Evaluate on all data, keep the best, and go back to it after a value that is not finite."""
    _, unravel = ravel_pytree((start, factors))
    global_phi, here = unravel(state.params)
    over_theta, over_z = settings.evaluation
    # The same draws at every evaluation: the best is then chosen by differences without their noise.
    elbo = whole_elbo(
        key,
        global_phi,
        here,
        xs,
        global_expectation=over_theta,
        local_expectation=over_z,
        **parts,
    )
    finite = jnp.isfinite(elbo) & jnp.isfinite(values) & jnp.isfinite(state.params).all()
    improved = finite & (elbo > state.best_elbo)
    initial = _optimiser(settings).init(state.params)
    judged = state._replace(
        params=jnp.where(finite, state.params, state.best),
        optimiser=jax.tree.map(lambda new, fresh: jnp.where(finite, new, fresh), state.optimiser, initial),
        best=jnp.where(improved, state.params, state.best),
        best_elbo=jnp.where(improved, elbo, state.best_elbo),
        finite=state.finite & finite,
    )
    return judged, jnp.where(finite, elbo, -jnp.inf)
