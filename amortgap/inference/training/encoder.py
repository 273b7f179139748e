"""Training encoders on any one-datum objective, with or without a decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from amortgap._internal.checks import check_count, check_data, check_key, check_positive, check_trainable, num_rows
from amortgap.inference.training.minibatches import minibatches
from amortgap.inference.training.objectives import Objective
from amortgap.inference.training.schedules import warmup_cosine


class EncoderTrace(NamedTuple):
    """What training looked like.

    Attributes:
      value: mean of the objective over every minibatch, nats, [num_steps]; NaN where a step was skipped.
      num_bad: number of refinement steps, and bounds after them, that were not finite, in each minibatch, [num_steps];
        zero for all but `semi_amortized_vi`.
    """

    value: Float[Array, " steps"]
    num_bad: Int[Array, " steps"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EncoderFit:
    """An encoder trained on some objective.

    Attributes:
      encoder: after the last step; call it on one datum.
      model: the model, trained too where the method trains it.
      trace: EncoderTrace.
      finite: False if any step was skipped because the objective or its gradient was not finite.
    """

    encoder: Any
    model: Any
    trace: EncoderTrace
    finite: Bool[Array, ""]


def train_encoder(
    key: jax.Array,
    xs: Any,
    *,
    encoder: Any,
    objective: Objective,
    model: Any = None,
    num_steps: int = 2000,
    batch_size: int = 100,
    learning_rate: float = 3e-3,
) -> EncoderFit:
    """Train an encoder on any objective of one datum.

    Formula: `max_w (1/N) sum_i E[objective(key, encoder_w, x_i)]`, by Adam on minibatches with a rate that falls to
    zero by a cosine.

    For the ELBO of a fixed model use `amortized_vi`: it keeps the best weights by an evaluation and says whether they
    have converged. Here the objective may be anything (simulated data, other divergences), whose values need not be
    comparable between weights, and the last weights are returned.

    Args:
      key: typed key.
      xs: data, an array [N, ...] or a pytree of such.
      encoder: callable pytree; its weights are the start.
      objective: function `(key, encoder, x) -> scalar`, raised.
      model: what the fit reports as its model, and what checks the data; None for neither.
      num_steps, batch_size: of Adam.
      learning_rate: peak rate.

    Returns:
      EncoderFit.

    Raises:
      ValueError: bad key, data or settings.
    """
    check_key(key)
    xs = check_data("xs", xs, model)
    return maximise(
        key, xs, (encoder,), lambda k, params, x: (objective(k, params[0], x), jnp.asarray(0)),
        num_steps=num_steps, batch_size=batch_size, learning_rate=learning_rate, model=model,
    )  # fmt: skip


def maximise(
    key: jax.Array,
    xs: Any,
    params: tuple[Any, ...],
    objective: Callable[[jax.Array, Any, Any], tuple[Array, Array]],
    *,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
    model: Any,
    inner_steps: int = 1,
) -> EncoderFit:
    """Maximise the mean of `objective(key, params, x) -> (value, count of bad inner steps)` over `(encoder[, model])`.

    With `inner_steps` J > 1 a model in `params` moves at every J-th step only, the encoder at all of them.
    """
    check_trainable(params[0])
    check_count("num_steps", num_steps)
    check_count("batch_size", batch_size)
    check_count("inner_steps", inner_steps)
    check_positive("learning_rate", learning_rate)
    batch_size = min(batch_size, num_rows(xs))
    flat, unravel = ravel_pytree(params)
    of_model = flat.size - ravel_pytree(params[0])[0].size
    adam = optax.scale_by_adam()

    def loss(flat: Array, keys: Array, batch: Any) -> tuple[Array, Array]:
        values, bad = jax.vmap(lambda k, x: objective(k, unravel(flat), x))(keys, batch)
        return -jnp.mean(values), jnp.sum(bad)

    @jax.jit
    def run(key: jax.Array, flat: Array, xs: Any) -> tuple[Array, EncoderTrace]:
        key_rows, key_noise = jax.random.split(key)

        def step(carry: tuple[Array, Any], inputs: tuple[Array, Array]) -> tuple[tuple[Array, Any], EncoderTrace]:
            flat, state = carry
            number, rows = inputs
            batch = jax.tree.map(lambda leaf: leaf[rows], xs)
            (value, bad), gradient = jax.value_and_grad(loss, has_aux=True)(
                flat, jax.random.split(jax.random.fold_in(key_noise, number), batch_size), batch
            )
            update, new_state = adam.update(gradient, state, flat)
            rate = learning_rate * warmup_cosine(number, num_steps)
            moves = jnp.ones(flat.size).at[flat.size - of_model :].set((number + 1) % inner_steps == 0)
            new = flat - rate.astype(flat.dtype) * moves.astype(flat.dtype) * jnp.asarray(update)
            good = jnp.isfinite(value) & jnp.isfinite(new).all()
            kept = jax.tree.map(lambda a, b: jnp.where(good, a, b), (new, new_state), carry)
            return kept, EncoderTrace(jnp.where(good, -value, jnp.nan), bad)

        rows = minibatches(key_rows, num_rows(xs), num_steps, batch_size)
        (last, _), trace = jax.lax.scan(step, (flat, adam.init(flat)), (jnp.arange(num_steps), rows))
        return last, trace

    last, trace = run(key, flat, xs)
    trained = unravel(last)
    return EncoderFit(
        encoder=trained[0],
        model=trained[1] if len(trained) > 1 else model,
        trace=trace,
        finite=jnp.isfinite(trace.value).all(),
    )
