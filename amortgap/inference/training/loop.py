"""The one training loop: rounds of optimiser steps, each followed by an evaluation that keeps the best parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from amortgap._internal.checks import is_concrete, num_rows
from amortgap._internal.devices import Layout, chosen_devices
from amortgap._internal.progress import progress_bar
from amortgap.inference.training.per_datum import Objective
from amortgap.inference.training.records import Trace
from amortgap.inference.training.rounds import Plan, State, run_round, start
from amortgap.inference.training.schedules import two_cycles
from amortgap.protocols import Data

# Made once: a transformation is compiled by its identity.
ADAM = optax.scale_by_adam()
# History of 20 steps; more did not help on encoders of up to 10^3 weights.
LBFGS = optax.lbfgs(memory_size=20)


class Result(NamedTuple):
    """The end of a training.

    Attributes:
      params: the parameters with the highest evaluation.
      trace: Trace.
      change, change_standard_error: mean and standard error, over the values of the evaluation, of the paired gain from
        the half of the rounds to the last.
      finite: whether every value was finite.
      num_steps: optimiser steps done.
    """

    params: Any
    trace: Trace
    change: Float[Array, ""]
    change_standard_error: Float[Array, ""]
    finite: Bool[Array, ""]
    num_steps: Int[Array, ""]


def fit(
    key: jax.Array,
    params: PyTree,
    objective: Objective,
    data: Data,
    *,
    optimizer: optax.GradientTransformation,
    learning_rate: float | Array | None = None,
    schedule: Callable[[int], optax.Schedule] = two_cycles,
    validation: Data = None,
    num_values: int | None = None,
    num_steps: int,
    num_evaluations: int = 20,
    batch_size: int | None = None,
    flat: bool = True,
    devices: Sequence[Any] | None = None,
    progress: bool = False,
    stop: Callable[[Trace], bool] | None = None,
) -> Result:
    """Raise an objective over a pytree of parameters; arguments are checked by the callers.

    A step whose value or whose new parameters are not finite is left out and counted. Every round ends with an
    evaluation on the same draws, which keeps the best parameters. The rounds are compiled once for a structure and
    shape of params, objective and data.

    Args:
      key: typed key.
      params: pytree of parameters, the start.
      objective: Objective.
      data: data, an array [N, ...] or a pytree of such.
      optimizer: transformation of the gradient of minus the objective; it is compiled by its identity.
      learning_rate: factor on its updates at the start, times `schedule`; None for an optimiser with rates of its own,
        whose updates are added as they are.
      schedule: function from the number of steps to an optax schedule of factors.
      validation: data of the evaluation; None for `data`.
      num_values: length of what `objective.evaluate` returns; None for the number of its data.
      num_steps: optimiser steps, rounded up to whole rounds.
      num_evaluations: number of rounds, rounded up to an even number.
      batch_size: data of a minibatch, drawn without replacement; None for all data at once, with draws that stay fixed
        and a line search whose values are used again.
      flat: give the optimiser one flat vector, which over dozens of small leaves costs less to compile and to dispatch,
        and not the tree, which masks and labels of an optimiser need.
      devices: devices to split data and minibatches over, parameters on all of them; None for all local ones, inside a
        transformation for the one the caller computes on. Full batches are computed on one.
      progress: show a progress bar on standard error if that is a terminal.
      stop: called on the host with the trace of every round that has ended; True ends the training. It is not called
        inside a transformation.

    Returns:
      Result.
    """
    validation = data if validation is None else validation
    concrete = is_concrete((key, data, validation, params, objective))
    rounds = 2 * -(-num_evaluations // 2)
    full_batch = batch_size is None
    # Inside a trace the caller has already chosen where to compute.
    chosen = () if full_batch or (devices is None and not concrete) else chosen_devices(devices)
    plan = Plan(
        optimizer=optimizer,
        has_rate=learning_rate is not None,
        schedule=schedule,
        steps=-(-num_steps // rounds),
        rounds=rounds,
        batch_size=num_rows(data) if batch_size is None else min(batch_size, num_rows(data)),
        num_data=num_rows(data),
        full_batch=full_batch,
        flat=flat,
        devices=chosen,
    )
    state = start(ravel_pytree(params)[0] if flat else params, plan, num_values or num_rows(validation))
    placed, shared = (
        (data, validation),
        (params, objective, jnp.asarray(0.0 if learning_rate is None else learning_rate)),
    )
    spread = Layout(chosen) if chosen and concrete and (devices is not None or len(chosen) > 1) else None
    if spread:
        placed, key, state, shared = spread.padded(placed), *spread.replicate((key, state, shared))

    def advance(state: State, index: int | Array) -> tuple[State, Trace]:
        return run_round(key, index, state, *placed, *shared, plan)

    if concrete:
        rows = []
        # A host loop over compiled rounds gives the progress bar, `stop` and Ctrl-C a place to land.
        for index in progress_bar(range(rounds), "training", unit="round", enabled=progress):
            state, row = advance(state, index)
            rows.append(row)
            if stop is not None and stop(row):
                break
        trace = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    else:
        state, trace = jax.lax.scan(advance, state, jnp.arange(rounds))
    if spread:
        state, trace = spread.gather((state, trace))
    change = state.last_values - state.half_values
    return Result(
        params=ravel_pytree(params)[1](state.best) if flat else state.best,
        trace=trace,
        change=jnp.mean(change),
        change_standard_error=jnp.std(change, ddof=min(1, change.size - 1)) / jnp.sqrt(float(change.size)),
        finite=state.finite,
        num_steps=trace.step[-1],
    )
