"""The ascent of `global_local_vi`: rounds of optimiser steps, each followed by an evaluation that keeps the best."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from amortgap._internal.checks import is_concrete, num_rows
from amortgap._internal.progress import progress_bar
from amortgap.expectations import Expectation
from amortgap.inference.hierarchical.elbo import hierarchical_elbo
from amortgap.inference.hierarchical.factors import LocalFactors
from amortgap.inference.training.rounds import minibatches
from amortgap.inference.training.schedules import warmup_cosine
from amortgap.protocols import Data, Family, HierarchicalModel

# L-BFGS history. Theta couples all data: 60 pairs leave half of the gap that 20 leave.
OPTIMIZERS = {"adam": optax.scale_by_adam(), "lbfgs": optax.lbfgs(memory_size=60)}


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
class HierarchicalObjective:
    """The ELBO of the whole data set as a function of one flat vector of parameters, q0's and the local factors'."""

    xs: Data
    model: HierarchicalModel
    global_family: Family
    family: Family
    start: tuple[Array, LocalFactors]
    training: tuple[Expectation, Expectation] = field(metadata={"static": True})
    evaluation: tuple[Expectation, Expectation] = field(metadata={"static": True})

    def mean(self, params: Array, key: jax.Array, rows: Array | None) -> Array:
        """Return the ELBO divided by N, so that a learning rate means the same for every N, from a minibatch."""
        return self._elbo(params, key, rows, self.training) / num_rows(self.xs)

    def evaluate(self, params: Array, key: jax.Array) -> Array:
        """Return the ELBO of all data."""
        return self._elbo(params, key, None, self.evaluation)

    def _elbo(self, params: Array, key: jax.Array, rows: Array | None, rules: tuple[Expectation, Expectation]) -> Array:
        global_phi, factors = self.split(params)
        return hierarchical_elbo(
            key,
            global_phi,
            factors,
            self.xs,
            model=self.model,
            global_family=self.global_family,
            family=self.family,
            global_expectation=rules[0],
            local_expectation=rules[1],
            rows=rows,
        )

    def split(self, params: Array) -> tuple[Array, LocalFactors]:
        """Return q0's parameters and the local factors."""
        return ravel_pytree(self.start)[1](params)


@dataclass(frozen=True)
class Plan:
    """What is compiled into a round; `batch_size` None for all data."""

    steps: int
    rounds: int
    batch_size: int | None
    optimizer: str
    schedule: str


class State(NamedTuple):
    """Where the ascent stands after a round.

    Attributes:
      params: parameters, flat.
      memory: state of the optimiser.
      best, best_elbo: the parameters with the highest evaluation, and that ELBO in nats.
      visits: local bounds computed with their gradients so far.
      finite: whether every value met so far was finite.
    """

    params: Array
    memory: Any
    best: Array
    best_elbo: Array
    visits: Array
    finite: Array


def maximise(
    key: jax.Array, objective: HierarchicalObjective, learning_rate: Array, plan: Plan, *, progress: bool
) -> tuple[State, GlobalLocalTrace]:
    """Run all rounds, from the host if the values are concrete and inside the trace of the caller otherwise."""
    key_order, key_noise, key_eval = jax.random.split(key, 3)
    params = ravel_pytree(objective.start)[0]
    lowest = jnp.asarray(-jnp.inf, params.dtype)
    memory = OPTIMIZERS[plan.optimizer].init(params)
    state = State(params, memory, params, lowest, jnp.zeros((), params.dtype), jnp.asarray(True))

    def run(state: State, index: int | Array) -> tuple[State, tuple[Array, Array, Array], float]:
        began = time.perf_counter()
        state, mean_elbo = _advance(key_order, key_noise, index, state, objective, learning_rate, plan)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - began
        state, elbo = _evaluate(key_eval, state, mean_elbo, objective, plan)
        return state, (jnp.asarray((index + 1) * plan.steps), state.visits, elbo), seconds

    if is_concrete((key, objective, learning_rate)):
        rows, taken = [], []
        for index in progress_bar(range(plan.rounds), "global and local VI", unit="round", enabled=progress):
            state, row, seconds = run(state, index)
            rows.append(row)
            taken.append(seconds)
        steps, visits, elbos = (jnp.stack(column) for column in zip(*rows, strict=True))
        return state, GlobalLocalTrace(steps, visits, elbos, jnp.asarray(taken))

    def traced(state: State, index: Array) -> tuple[State, tuple[Array, Array, Array]]:
        return run(state, index)[:2]

    state, (steps, visits, elbos) = jax.lax.scan(traced, state, jnp.arange(plan.rounds))
    return state, GlobalLocalTrace(steps, visits, elbos, jnp.zeros(plan.rounds))


@partial(jax.jit, static_argnames=("plan",))
def _advance(
    key_order: jax.Array,
    key_noise: jax.Array,
    index: int | Array,
    state: State,
    objective: HierarchicalObjective,
    learning_rate: Array,
    plan: Plan,
) -> tuple[State, Array]:
    """Take the steps of one round; return the mean ELBO of the steps."""
    optimizer = optax.with_extra_args_support(OPTIMIZERS[plan.optimizer])
    n, steps, batch_size = num_rows(objective.xs), plan.steps, plan.batch_size

    def adam_step(carry: tuple[Array, Any], inputs: tuple[Array, jax.Array, Array | None]) -> tuple[Any, Any]:
        params, memory = carry
        number, key, rows = inputs
        value, gradient = jax.value_and_grad(lambda params: -objective.mean(params, key, rows))(params)
        update, memory = optimizer.update(gradient, memory, params)
        factor = warmup_cosine(plan.rounds * steps)(number) if plan.schedule == "cosine" else 1.0
        params = params - (learning_rate * factor).astype(params.dtype) * jnp.asarray(update)
        return (params, memory), (value, jnp.asarray(n if batch_size is None else batch_size))

    def lbfgs_step(carry: tuple[Array, Any], _: None) -> tuple[Any, Any]:
        params, memory = carry

        def loss(params: Array) -> Array:
            return -objective.mean(params, key_noise, None)

        value, gradient = optax.value_and_grad_from_state(loss)(params, state=memory)
        update, memory = optimizer.update(gradient, memory, params, value=value, grad=gradient, value_fn=loss)
        searches = optax.tree.get(memory, "info").num_linesearch_steps
        return (params + jnp.asarray(update), memory), (value, n * searches)

    start = (state.params, state.memory)
    if plan.optimizer == "lbfgs":
        (params, memory), (losses, visits) = jax.lax.scan(lbfgs_step, start, None, length=steps)
    else:
        rows = None
        if batch_size is not None:
            rows = minibatches(jax.random.fold_in(key_order, index), n, steps, batch_size)
        keys = jax.random.split(jax.random.fold_in(key_noise, index), steps)
        inputs = (index * steps + jnp.arange(steps), keys, rows)
        (params, memory), (losses, visits) = jax.lax.scan(adam_step, start, inputs)
    visits = state.visits + jnp.sum(visits).astype(state.visits.dtype)
    return state._replace(params=params, memory=memory, visits=visits), -n * jnp.mean(losses)


@partial(jax.jit, static_argnames=("plan",))
def _evaluate(
    key: jax.Array, state: State, mean_elbo: Array, objective: HierarchicalObjective, plan: Plan
) -> tuple[State, Array]:
    """Evaluate on all data, keep the best, and go back to it after a value that is not finite."""
    # Every evaluation has the same draws, so that their noise does not choose the best.
    elbo = objective.evaluate(state.params, key)
    finite = jnp.isfinite(elbo) & jnp.isfinite(mean_elbo) & jnp.isfinite(state.params).all()
    improved = finite & (elbo > state.best_elbo)
    fresh = OPTIMIZERS[plan.optimizer].init(state.params)
    state = state._replace(
        params=jnp.where(finite, state.params, state.best),
        memory=jax.tree.map(lambda new, old: jnp.where(finite, new, old), state.memory, fresh),
        best=jnp.where(improved, state.params, state.best),
        best_elbo=jnp.where(improved, elbo, state.best_elbo),
        finite=state.finite & finite,
    )
    return state, jnp.where(finite, elbo, -jnp.inf)
