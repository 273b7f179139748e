"""Training encoders on any one-datum objective, and decoders with an encoder that takes more steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from amortgap._internal.checks import check_count, check_data, check_encoder, check_key, check_sizes, first_row
from amortgap.inference.training.certificate import TOLERANCE
from amortgap.inference.training.loop import ADAM
from amortgap.inference.training.objectives import EncoderObjective
from amortgap.inference.training.per_datum import ElboOfParams, OnEncoder, Params
from amortgap.inference.training.records import AmortizedFit
from amortgap.inference.training.run import Settings, train
from amortgap.protocols import Data, Encoder, Family, Model


def train_encoder(
    key: jax.Array,
    xs: Data,
    *,
    encoder: Encoder,
    objective: EncoderObjective,
    model: Model | None = None,
    validation: Data = None,
    num_steps: int = 2000,
    batch_size: int = 100,
    learning_rate: float | Array | None = None,
    optimizer: str | optax.GradientTransformation = "adam",
    num_evaluations: int = 20,
    eval_samples: int = 8,
    tolerance: float = TOLERANCE,
    devices: Sequence[Any] | None = None,
    progress: bool = False,
) -> AmortizedFit:
    """Train an encoder on any objective of one datum.

    Formula: `max_w (1/N) sum_i E[objective(key, encoder_w, x_i)]`, as `amortized_vi` does for the ELBO: the best
    weights by evaluations on shared noise are kept.

    Args:
      key: typed key.
      xs: data, an array [N, ...] or a pytree of such.
      encoder: callable pytree; its weights are the start.
      objective: function `(key, encoder, x) -> scalar`, raised. A pytree of arrays, such as `elbo_objective` returns,
        is compiled once for all its weights; a plain function is compiled by its identity, so that a new one compiles
        anew.
      model: what the fit reports as its model, and what checks the data; None for neither.
      validation: data that choose the best encoder; None for the training data with fresh noise.
      num_steps, batch_size, learning_rate, optimizer, tolerance, devices, progress: as in `amortized_vi`.
      num_evaluations: as in `amortized_vi`, one for each step at most.
      eval_samples: keys of the objective per datum and evaluation.

    Returns:
      AmortizedFit, whose `elbo` are values of the objective.

    Raises:
      ValueError: bad key, data or settings.
    """
    check_key(key)
    xs = check_data("xs", xs, model)
    if jax.tree_util.all_leaves([objective]):
        objective = jax.tree_util.Partial(objective)
    return train(
        key,
        xs,
        OnEncoder(objective),
        encoder=encoder,
        model=model,
        validation=None if validation is None else check_data("validation", validation, model),
        settings=Settings(
            num_steps=num_steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            optimizer=optimizer,
            num_evaluations=num_evaluations,
            eval_samples=eval_samples,
            tolerance=tolerance,
            devices=devices,
            progress=progress,
        ),
    )


@cache
def _rare_model_steps(inner_steps: int) -> optax.GradientTransformation:
    """Return Adam on the encoder at every step and on the model at every `inner_steps`-th one."""
    adam = optax.flatten(ADAM)
    rare = optax.conditionally_mask(adam, lambda step, **_: jnp.asarray(step + 1) % inner_steps == 0)
    return optax.partition({"encoder": adam, "model": rare}, Params("encoder", "model"))


def train_vae_aggressively(
    key: jax.Array,
    xs: Data,
    *,
    model: Model,
    family: Family,
    encoder: Encoder,
    inner_steps: int = 10,
    num_steps: int = 4000,
    batch_size: int = 100,
    num_samples: int = 1,
    learning_rate: float | Array = 3e-3,
    tolerance: float = TOLERANCE,
) -> AmortizedFit:
    """Train decoder and encoder, the decoder moving only at every J-th step: an encoder that does not lag behind.

    Formula: J Adam steps on the weights of the encoder for every one on those of the decoder, same ELBO.

    Args:
      key: typed key.
      xs: data.
      model, family, encoder: as in `train_vae`; the weights are the start.
      inner_steps: J; 1 trains both at every step.
      num_steps: steps of the encoder in all.
      batch_size, num_samples, learning_rate, tolerance: as in `amortized_vi`, with Adam.

    Returns:
      AmortizedFit; `fit.model` is the trained model.

    Raises:
      ValueError: bad key, data, sizes or settings.

    Source: He et al., "Lagging inference networks and posterior collapse" (2019), algorithm 1, with a fixed number of
    inner steps.
    """
    check_key(key)
    xs = check_data("xs", xs, model)
    check_sizes(model, family)
    encoder = check_encoder(encoder, family, first_row(xs))
    check_count("num_samples", num_samples)
    check_count("inner_steps", inner_steps)
    return train(
        key,
        xs,
        ElboOfParams(None, family, num_samples),
        encoder=encoder,
        model=model,
        train_model=True,
        direction=_rare_model_steps(inner_steps),
        settings=Settings(num_steps=num_steps, batch_size=batch_size, learning_rate=learning_rate, tolerance=tolerance),
    )
