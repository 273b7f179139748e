"""Training in rounds: steps, then an evaluation on shared noise that keeps the best weights, whatever the optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from amortgap._internal.progress import progress_bar
from amortgap.inference.training.amortized_fit import AmortizedFit, Trace


class State(NamedTuple):
    """Where training stands after a round.

    Attributes:
      params: weights, flat.
      optimiser: state of the optimiser.
      best, best_elbo: weights with the highest evaluation, and its mean in nats per datum.
      half_values, last_values: the evaluation of every datum after half of the rounds and after the last.
      finite: whether every value met so far was finite.
    """

    params: Array
    optimiser: Any
    best: Array
    best_elbo: Float[Array, ""]
    half_values: Float[Array, " N"]
    last_values: Float[Array, " N"]
    finite: Bool[Array, ""]


def start(params: Array, optimiser: Any, num_data: int) -> State:
    """Return the state before the first round."""
    # Of the weights' own type: a first round of another would be compiled apart from all later ones.
    nothing = jnp.full(num_data, -jnp.inf, params.dtype)
    return State(params, optimiser, params, jnp.asarray(-jnp.inf, params.dtype), nothing, nothing, jnp.asarray(True))


def run(
    advance: Callable[[State, Any], tuple[State, Trace]], state: State, rounds: int, *, concrete: bool, progress: bool
) -> tuple[State, Trace]:
    """Run all rounds, from the host if the values are concrete and inside the trace of the caller otherwise."""
    if not concrete:
        return jax.lax.scan(advance, state, jnp.arange(rounds))
    rows = []
    # A host loop over compiled rounds gives the progress bar and Ctrl-C a place to land.
    for index in progress_bar(range(rounds), "training", unit="round", enabled=progress):
        state, row = advance(state, index)
        rows.append(row)
    return state, jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)


def close(
    state: State,
    params: Array,
    optimiser: Any,
    batch_elbos: Array,
    per_datum: Array,
    *,
    fresh: Any,
    step: Any,
    half_done: Any,
) -> tuple[State, Trace]:
    """End a round: keep the weights if they are the best, and go back to the best after a value that is not finite.

    The optimiser then starts `fresh`: what it remembers belongs to other weights.
    """
    mean = jnp.mean(per_datum)
    finite = jnp.isfinite(mean) & jnp.isfinite(batch_elbos).all()
    improved = finite & (mean > state.best_elbo)
    good = jax.tree.map(lambda new, old: jnp.where(finite, new, old), (params, optimiser), (state.best, fresh))
    updated = State(
        params=good[0],
        optimiser=good[1],
        best=jnp.where(improved, params, state.best),
        best_elbo=jnp.where(improved, mean, state.best_elbo),
        half_values=jnp.where(half_done, per_datum, state.half_values),
        last_values=per_datum,
        finite=state.finite & finite,
    )
    return updated, Trace(step=step, batch_elbo=jnp.mean(batch_elbos), elbo=mean)


def fitted(state: State, trace: Trace, *, encoder: Any, model: Any) -> AmortizedFit:
    """Return the record of a training that is over."""
    change = state.last_values - state.half_values
    return AmortizedFit(
        encoder=encoder,
        model=model,
        trace=trace,
        change=jnp.mean(change),
        change_standard_error=jnp.std(change, ddof=min(1, change.size - 1)) / jnp.sqrt(float(change.size)),
        finite=state.finite,
    )
