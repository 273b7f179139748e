"""Which data every step of an optimiser sees."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


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
