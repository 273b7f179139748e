"""Step-size schedules shared by the optimisers of the package."""

from __future__ import annotations

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float


def cosine(step: int | Array, num_steps: int | Array) -> Float[Array, ""]:
    """Return the factor `1/2 (1 + cos(pi (step + 1) / (num_steps + 1)))`, which falls from one towards zero.

    A rate that stays constant leaves a stationary error of a tenth of a nat and more, larger than many gaps. Unlike the
    schedule of optax it takes a number of steps that is still being traced.
    """
    fraction = (step + 1) / (num_steps + 1)
    return 0.5 * (1 + jnp.cos(jnp.pi * fraction))


def warmup_cosine(num_steps: int) -> optax.Schedule:
    """Return the cosine factor times a linear ramp over the first tenth of the steps, a hundred at most."""
    falling = optax.cosine_decay_schedule(1.0, num_steps + 1)
    rising = optax.linear_schedule(0.0, 1.0, max(min(100, num_steps // 10), 1))
    return lambda step: falling(step + 1) * rising(step + 1)


def two_cycles(num_steps: int) -> optax.Schedule:
    """Return two warm-up cosines of half of the steps each, the second at a third of the height.

    The second cycle starts from trained weights, which a full rate would throw back.
    """
    half = max(num_steps // 2, 1)
    cycle = warmup_cosine(half)
    return optax.join_schedules([cycle, lambda step: cycle(step) / 3], [half])
