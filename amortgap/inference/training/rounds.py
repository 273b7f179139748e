"""One round of training, compiled once: optimiser steps, then an evaluation that keeps the best parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from amortgap.inference.training.per_datum import Devices, Objective
from amortgap.inference.training.records import Trace
from amortgap.protocols import Data

Tree = TypeVar("Tree")


class State(NamedTuple):
    """Where training stands after a round.

    Attributes:
      params: parameters, one flat vector or their tree.
      memory: state of the optimiser.
      best, best_elbo: parameters with the highest evaluation, and its mean in nats per datum.
      half_values, last_values: values of the evaluation after half of the rounds and after the last one.
      finite: whether every value met so far was finite.
    """

    params: Any
    memory: Any
    best: Any
    best_elbo: Float[Array, ""]
    half_values: Float[Array, " values"]
    last_values: Float[Array, " values"]
    finite: Bool[Array, ""]


@dataclass(frozen=True)
class Plan:
    """What is compiled into a round: all that is not a number or a key."""

    optimizer: optax.GradientTransformation
    has_rate: bool
    schedule: Callable[[int], optax.Schedule]
    steps: int
    rounds: int
    batch_size: int
    num_data: int
    full_batch: bool
    flat: bool
    devices: Devices


def start(params: PyTree, plan: Plan, num_values: int) -> State:
    """Return the state before the first round."""
    # Of the parameters' own type: a first round of another would be compiled apart from all later ones.
    dtype = jnp.result_type(*jax.tree.leaves(params))
    nothing = jnp.full(num_values, -jnp.inf, dtype)
    # An optimiser may start from Python numbers, whose weak types would compile the first round apart as well.
    memory = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.asarray(leaf).dtype), plan.optimizer.init(params))
    return State(params, memory, params, jnp.asarray(-jnp.inf, dtype), nothing, nothing, jnp.asarray(True))


@partial(jax.jit, static_argnames=("plan",))
def run_round(
    key: jax.Array,
    index: int | Array,
    state: State,
    data: Data,
    validation: Data,
    template: PyTree,
    objective: Objective,
    learning_rate: Array,
    plan: Plan,
) -> tuple[State, Trace]:
    """Take the steps of a round, then evaluate on shared noise and keep the best."""
    unravel = ravel_pytree(template)[1] if plan.flat else lambda tree: tree
    optimizer = optax.with_extra_args_support(plan.optimizer)
    rate_of = plan.schedule(plan.rounds * plan.steps)
    n, steps = plan.num_data, plan.steps
    numbers = index * steps + jnp.arange(steps)

    def loss(params: PyTree, keys: jax.Array, rows: Array, number: Array) -> tuple[Array, Array]:
        batch = data if plan.full_batch else jax.tree.map(lambda leaf: leaf[rows], data)
        value, bad = objective.mean(keys, unravel(params), rows, batch, number, plan.devices)
        return -value, bad

    def step(carry: tuple[PyTree, Any], inputs: Any) -> tuple[tuple[PyTree, Any], tuple[Array, ...]]:
        params, memory = carry
        number, keys, rows = inputs if not plan.full_batch else (inputs, *everything)

        def on_batch(params: PyTree) -> Array:
            return loss(params, keys, rows, number)[0]

        if plan.full_batch:
            value, gradient = optax.value_and_grad_from_state(on_batch)(params, state=memory)
            bad = jnp.zeros((), jnp.int32)
        else:
            (value, bad), gradient = jax.value_and_grad(loss, has_aux=True)(params, keys, rows, number)
        update, new_memory = optimizer.update(gradient, memory, params, value=value, grad=gradient, value_fn=on_batch)
        if plan.has_rate:
            rate = learning_rate * rate_of(number)
            update = jax.tree.map(lambda leaf: -rate.astype(leaf.dtype) * leaf, update)
        new = optax.apply_updates(params, update)
        taken = jnp.isfinite(value) & _all_finite(new)
        visits = jnp.asarray(plan.batch_size, jnp.int32)
        if plan.full_batch:
            visits = visits * optax.tree.get(new_memory, "info").num_linesearch_steps
        return _select(taken, (new, new_memory), carry), (-jnp.asarray(value), taken, bad, visits)

    if plan.full_batch:
        key_noise, key_eval = jax.random.split(key)
        everything, inputs = (objective.fixed_keys(key_noise, n), jnp.arange(n)), numbers
    else:
        key_order, key_noise, key_eval = jax.random.split(key, 3)
        rows = minibatches(jax.random.fold_in(key_order, index), n, steps, plan.batch_size)
        # All keys at once, outside the loop: every random call inside it costs compile time of its own.
        everything, keys = (), objective.draw_keys(jax.random.fold_in(key_noise, index), steps, plan.batch_size)
        inputs = (numbers, keys, rows)
    (params, memory), (values, taken, bad, visits) = jax.lax.scan(step, (state.params, state.memory), inputs)

    evaluated = objective.evaluate(key_eval, unravel(params), validation, plan.devices)[: state.last_values.size]
    state = end_round(
        state,
        params,
        memory,
        taken=taken,
        values=evaluated,
        fresh=optimizer.init(state.best),
        half_done=index == plan.rounds // 2 - 1,
    )
    trace = Trace(
        step=jnp.asarray((index + 1) * steps),
        batch_elbo=jnp.mean(values, where=taken),
        elbo=jnp.mean(evaluated),
        num_skipped=jnp.sum(~taken),
        num_bad=jnp.sum(bad),
        data_visits=jnp.sum(visits),
    )
    return state, trace


def end_round(
    state: State,
    params: PyTree,
    memory: Any,
    *,
    taken: Bool[Array, " steps"],
    values: Float[Array, " values"],
    fresh: Any,
    half_done: bool | Array,
) -> State:
    """Return the state after a round: keep the parameters if they are the best by the mean of their values.

    After an evaluation that is not finite, or a round without a finite step, training goes on from the best parameters
    and the optimiser starts `fresh`: its memory belongs to other parameters.
    """
    mean = jnp.mean(values)
    usable = jnp.isfinite(mean) & jnp.any(taken)
    improved = jnp.isfinite(mean) & (mean > state.best_elbo)
    kept, memory = _select(usable, (params, memory), (state.best, fresh))
    return State(
        params=kept,
        memory=memory,
        best=_select(improved, params, state.best),
        best_elbo=jnp.where(improved, mean, state.best_elbo),
        half_values=jnp.where(half_done, values, state.half_values),
        last_values=values,
        finite=state.finite & jnp.isfinite(mean) & jnp.all(taken),
    )


def minibatches(key: jax.Array, num_data: int, num_steps: int, batch_size: int) -> Int[Array, "steps batch"]:
    """Return the rows of the minibatches of `num_steps` steps, drawn without replacement within every epoch.

    Whole permutations are laid end to end: batches cross their borders, so no datum is dropped at the end of an epoch.
    All are drawn at once, because a permutation of all data for every single step costs more than the step.

    Args:
      key: typed key.
      num_data, num_steps, batch_size: positive counts.
    """
    epochs = -(-num_steps * batch_size // num_data)
    order = jnp.argsort(jax.random.bits(key, (epochs, num_data)), axis=1).reshape(-1)
    return order[: num_steps * batch_size].reshape(num_steps, batch_size)


def _select(condition: Array, new: Tree, old: Tree) -> Tree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _all_finite(tree: PyTree) -> Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
