"""Step-size schedules shared by every optimiser of the package."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def cosine(step: Float[Array, ""] | Array, num_steps: int | Array) -> Float[Array, ""]:
    """Return the factor `1/2 (1 + cos(pi (step + 1) / (num_steps + 1)))`, which falls from one towards zero.

    A rate that stays constant leaves a stationary error of a tenth of a nat and more, larger than many gaps.
    """
    fraction = (step + 1) / (num_steps + 1)
    return 0.5 * (1 + jnp.cos(jnp.pi * fraction))


def warmup_cosine(step: Float[Array, ""] | Array, num_steps: int) -> Float[Array, ""]:
    """Return the cosine factor times a linear ramp over the first tenth of the steps, a hundred at most."""
    return cosine(step, num_steps) * jnp.minimum(1.0, (step + 1) / max(min(100, num_steps // 10), 1))
