"""Semi-amortized VI: an encoder starts, refinement steps finish, and training may look through them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from amortgap._internal.checks import (
    check_count,
    check_data,
    check_encoder,
    check_key,
)
from amortgap.inference.refinement.refine import check_steps, refine
from amortgap.inference.training.encoder import EncoderFit, maximise
from amortgap.objectives import elbo


def semi_amortized_vi(
    key: jax.Array,
    xs: Any,
    *,
    model: Any,
    family: Any,
    encoder: Any,
    refine_steps: int,
    through: bool = True,
    refine_rate: float = 0.1,
    refine_samples: int = 2,
    refine_optimizer: str = "sgd",
    train_model: bool = False,
    num_steps: int = 2000,
    batch_size: int = 100,
    num_samples: int = 1,
    learning_rate: float = 3e-3,
) -> EncoderFit:
    """Train an encoder whose output is refined by K gradient steps before it is used.

    Formula: `max_w (1/N) sum_i ELBO(refine_K(encoder_w(x_i)); x_i)` with the gradient through all K steps. Without it
    the encoder is trained on its own ELBO and only the model, if trained, on the ELBO of the refined parameters.

    Args:
      key: typed key.
      xs: data.
      model, family, encoder: as in `amortized_vi`.
      refine_steps: K.
      through: differentiate through the refinement (Kim et al. 2018) or not (Krishnan et al. 2018).
      refine_rate, refine_samples, refine_optimizer: as in `refine`.
      train_model: train the model too.
      num_steps, batch_size, num_samples, learning_rate: of Adam, as in `train_encoder`.

    Returns:
      EncoderFit; apply `refine` to `fit.encoder(x)` with the same settings. With `through` a datum whose inner steps
      are not finite falls back to the ELBO of the encoder's output; `fit.trace.num_bad` counts those steps. Without it,
      and with the model trained, the trace's value is the sum of both ELBOs, the encoder's and the refined one.

    Raises:
      ValueError: bad key, data, sizes or settings, such as K < 0.

    Source: Kim et al., "Semi-amortized variational autoencoders" (2018), algorithm 1; Krishnan, Liang and Hoffman, "On
    the challenges of learning with inference networks" (2018), algorithm 1.
    """
    check_key(key)
    check_steps(
        model, family, steps=refine_steps, rate=refine_rate, draws=refine_samples, optimizer=refine_optimizer,
        names=("refine_steps", "refine_rate", "refine_samples", "refine_optimizer"),
    )  # fmt: skip
    check_count("num_samples", num_samples)
    xs = check_data("xs", xs, model)
    encoder = check_encoder(encoder, family, jax.tree.map(lambda leaf: leaf[0], xs))

    def bound(key: jax.Array, phi: Array, x: Any, model: Any) -> Array:
        return elbo(key, phi, x, model=model, family=family, num_samples=num_samples)

    def refined(key: jax.Array, phi: Array, x: Any, model: Any) -> Any:
        return refine(
            key, phi, x, model=model, family=family, num_steps=refine_steps, learning_rate=refine_rate,
            num_samples=refine_samples, optimizer=refine_optimizer,
        )  # fmt: skip

    def objective(key: jax.Array, params: Any, x: Any) -> tuple[Array, Array]:
        here = params[1] if train_model else model
        key_refine, key_bound = jax.random.split(key)
        phi = params[0](x)
        fixed = jax.lax.stop_gradient((phi, here))
        if not through:
            reached = refined(key_refine, fixed[0], x, fixed[1])
            own = bound(key_bound, phi, x, fixed[1])
            if not train_model:
                return own, reached.num_bad
            return own + bound(key_bound, jax.lax.stop_gradient(reached.phi), x, here), reached.num_bad
        # Once without gradients: where a step was not finite, the gradient through it would be NaN for all weights.
        trial = refined(key_refine, fixed[0], x, fixed[1])
        bad = trial.num_bad + ~jnp.isfinite(bound(key_bound, trial.phi, x, fixed[1]))
        inside = jax.tree.map(lambda frozen, free: jnp.where(bad > 0, frozen, free), fixed, (phi, here))
        reached = refined(key_refine, inside[0], x, inside[1])
        direct = bound(key_bound, phi, x, here)
        return jnp.where(bad > 0, direct, bound(key_bound, reached.phi, x, inside[1])), bad

    return maximise(
        key, xs, (encoder, model) if train_model else (encoder,), objective,
        num_steps=num_steps, batch_size=batch_size, learning_rate=learning_rate, model=model,
    )  # fmt: skip
