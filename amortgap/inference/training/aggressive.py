"""Training a VAE whose encoder takes several steps for each of the decoder."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from amortgap._internal.checks import check_count, check_data, check_encoder, check_key, check_sizes
from amortgap.inference.training.encoder import EncoderFit, maximise
from amortgap.inference.training.objectives import elbo_objective


def train_vae_aggressively(
    key: jax.Array,
    xs: Any,
    *,
    model: Any,
    family: Any,
    encoder: Any,
    inner_steps: int = 10,
    num_steps: int = 4000,
    batch_size: int = 100,
    num_samples: int = 1,
    learning_rate: float = 3e-3,
) -> EncoderFit:
    """Train decoder and encoder, the decoder moving only at every J-th step: an encoder that does not lag behind.

    Formula: J Adam steps on the weights of the encoder for every one on those of the decoder, same ELBO.

    Args:
      key: typed key.
      xs: data.
      model, family, encoder: as in `train_vae`; the weights are the start.
      inner_steps: J; 1 trains both at every step.
      num_steps: steps of the encoder in all.
      batch_size, num_samples, learning_rate: of Adam, as in `train_encoder`.

    Returns:
      EncoderFit; `fit.model` is the trained model.

    Raises:
      ValueError: bad key, data, sizes or settings.

    Source: He et al., "Lagging inference networks and posterior collapse" (2019), algorithm 1, with a fixed number of
    inner steps.
    """
    check_key(key)
    xs = check_data("xs", xs, model)
    check_sizes(model, family)
    encoder = check_encoder(encoder, family, jax.tree.map(lambda leaf: leaf[0], xs))
    check_count("num_samples", num_samples)

    def objective(k: jax.Array, params: Any, x: Any) -> tuple[Array, Array]:
        plain = elbo_objective(model=params[1], family=family, num_samples=num_samples)
        return plain(k, params[0], x), jnp.asarray(0)

    return maximise(
        key, xs, (encoder, model), objective, num_steps=num_steps, batch_size=batch_size,
        learning_rate=learning_rate, model=model, inner_steps=inner_steps,
    )  # fmt: skip
