"""Training an encoder by L-BFGS on all data at once, with noise that stays fixed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from amortgap._internal.checks import is_concrete, num_rows
from amortgap._internal.devices import map_data
from amortgap.inference.training import rounds
from amortgap.inference.training.amortized_fit import AmortizedFit, Trace
from amortgap.inference.training.shared_weights import encoder_elbo
from amortgap.objectives import cubature_elbo

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


def train_full_batch(
    key: jax.Array,
    xs: Any,
    validation: Any,
    model: Any,
    family: Any,
    encoder: Any,
    settings: FullBatch,
    *,
    progress: bool,
) -> AmortizedFit:
    """Train an encoder, the model held fixed; arguments are checked by `amortized_vi`."""
    params, unravel = ravel_pytree(encoder)
    state = rounds.start(params, optax.lbfgs(memory_size=_MEMORY).init(params), num_rows(validation))

    def advance(state: rounds.State, index: Any) -> tuple[rounds.State, Trace]:
        return _round(key, index, state, xs, validation, model, encoder, family, settings)

    concrete = is_concrete((key, xs, validation, model, encoder, family))
    state, trace = rounds.run(advance, state, settings.rounds, concrete=concrete, progress=progress)
    return rounds.fitted(state, trace, encoder=unravel(state.best), model=model)


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
    settings: FullBatch,
) -> tuple[rounds.State, Trace]:
    """Take `steps_per_round` steps, then evaluate on shared fresh noise and keep the best."""
    _, unravel = ravel_pytree(encoder)
    key_train, key_eval = jax.random.split(key)

    def bound(index: Array, x: Any, encoder: Any) -> Array:
        if settings.estimator == "cubature":
            return cubature_elbo(encoder(x), x, model=model, family=family)
        return encoder_elbo(
            jax.random.fold_in(key_train, index),
            encoder,
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
        return encoder_elbo(
            jax.random.fold_in(key_eval, index),
            trained,
            x,
            model=model,
            family=family,
            num_samples=settings.eval_samples,
            estimator="total",
        )

    per_datum = map_data(evaluate, validation, chunk_size=500)
    half_done = index == settings.rounds // 2 - 1
    step_number = (index + 1) * settings.steps_per_round
    return rounds.close(
        state,
        params,
        optimiser_state,
        values,
        per_datum,
        fresh=optimiser.init(state.best),
        step=step_number,
        half_done=half_done,
    )
