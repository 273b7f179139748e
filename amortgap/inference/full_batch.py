"""Training an encoder by L-BFGS on all data at once, with noise that stays fixed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from amortgap._checks import is_concrete, num_rows
from amortgap._chunks import map_data
from amortgap._progress import progress_bar
from amortgap.inference.amortized_fit import AmortizedFit, Trace
from amortgap.objectives import cubature_elbo, elbo

# Pairs of steps and gradients that stand for the curvature; more did not help on encoders of up to 10^3 weights.
_MEMORY = 20


@dataclass(frozen=True)
class FullBatch:
    """Settings of full-batch training, static under `jit`; see `amortized_vi`."""

    steps_per_round: int
    rounds: int
    num_samples: int
    eval_samples: int
    estimator: str
    antithetic: bool


class _State(NamedTuple):
    params: Array
    optimiser: Any
    best: Array
    best_elbo: Float[Array, ""]
    half_values: Float[Array, " N"]
    last_values: Float[Array, " N"]
    finite: Bool[Array, ""]


def train_full_batch(
    key: jax.Array, xs: Any, validation: Any, model: Any, family: Any, encoder: Any, settings: FullBatch, progress: bool
) -> AmortizedFit:
    """Train an encoder, the model held fixed; arguments are checked by `amortized_vi`."""
    params, unravel = ravel_pytree(encoder)
    values = jnp.full(num_rows(validation), -jnp.inf)
    state = _State(
        params=params,
        optimiser=optax.lbfgs(memory_size=_MEMORY).init(params),
        best=params,
        best_elbo=jnp.asarray(-jnp.inf),
        half_values=values,
        last_values=values,
        finite=jnp.asarray(True),
    )

    def advance(state: _State, index: Any) -> tuple[_State, Trace]:
        return _round(key, index, state, xs, validation, model, encoder, family, settings)

    if is_concrete((key, xs, validation, model, encoder)):
        rows = []
        for index in progress_bar(range(settings.rounds), "training", unit="round", enabled=progress):
            state, row = advance(state, index)
            rows.append(row)
        trace = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    else:
        state, trace = jax.lax.scan(advance, state, jnp.arange(settings.rounds))
    change = state.last_values - state.half_values
    return AmortizedFit(
        encoder=unravel(state.best),
        model=model,
        trace=trace,
        change=jnp.mean(change),
        change_standard_error=jnp.std(change, ddof=min(1, change.size - 1)) / jnp.sqrt(float(change.size)),
        finite=state.finite,
    )


@partial(jax.jit, static_argnames=("settings",))
def _round(
    key: jax.Array,
    index: Any,
    state: _State,
    xs: Any,
    validation: Any,
    model: Any,
    encoder: Any,
    family: Any,
    settings: FullBatch,
) -> tuple[_State, Trace]:
    """Take `steps_per_round` steps, then evaluate on shared fresh noise and keep the best."""
    _, unravel = ravel_pytree(encoder)
    key_train, key_eval = jax.random.split(key)

    def bound(index: Array, x: Any, encoder: Any) -> Array:
        if settings.estimator == "cubature":
            return cubature_elbo(encoder(x), x, model=model, family=family)
        return elbo(
            jax.random.fold_in(key_train, index),
            encoder(x),
            x,
            model=model,
            family=family,
            num_samples=settings.num_samples,
            estimator=settings.estimator,
            antithetic=settings.antithetic,
        )

    def loss(params: Array) -> Array:
        encoder = unravel(params)
        return -jnp.mean(jax.vmap(lambda i, x: bound(i, x, encoder))(jnp.arange(num_rows(xs)), xs))

    optimiser = optax.lbfgs(memory_size=_MEMORY)
    value_and_gradient = optax.value_and_grad_from_state(loss)

    def step(carry: tuple[Array, Any], _: None) -> tuple[tuple[Array, Any], Array]:
        params, state = carry
        value, gradient = value_and_gradient(params, state=state)
        update, state = optimiser.update(gradient, state, params, value=value, grad=gradient, value_fn=loss)
        return (params + jnp.asarray(update), state), -jnp.asarray(value)

    (params, optimiser_state), values = jax.lax.scan(
        step, (state.params, state.optimiser), None, length=settings.steps_per_round
    )
    trained = unravel(params)

    def evaluate(index: Array, x: Any) -> Array:
        return elbo(
            jax.random.fold_in(key_eval, index),
            trained(x),
            x,
            model=model,
            family=family,
            num_samples=settings.eval_samples,
            estimator="total",
        )

    per_datum = map_data(evaluate, validation, chunk_size=500)
    mean = jnp.mean(per_datum)
    finite = jnp.isfinite(mean) & jnp.isfinite(values).all()
    improved = finite & (mean > state.best_elbo)
    updated = _State(
        params=jnp.where(finite, params, state.best),
        optimiser=jax.tree.map(lambda new, old: jnp.where(finite, new, old), optimiser_state, state.optimiser),
        best=jnp.where(improved, params, state.best),
        best_elbo=jnp.where(improved, mean, state.best_elbo),
        half_values=jnp.where(index == settings.rounds // 2 - 1, per_datum, state.half_values),
        last_values=per_datum,
        finite=state.finite & finite,
    )
    return updated, Trace(step=(index + 1) * settings.steps_per_round, batch_elbo=jnp.mean(values), elbo=mean)
