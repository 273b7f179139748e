"""Natural-gradient ascent of the ELBO for the mean field normal family, one datum at a time.

The state is a mean and a diagonal precision, the natural home of this family. Every step draws one antithetic pair
`z = mean +- delta`, which makes the gradient of the mean exact on a quadratic, and corrects the precision only by what
the pair reveals beyond the curvature believed so far, so that a posterior without correlations leaves no noise at all.
The update `s + c + c^2 / (2 s)` of the precision stays positive for every step size.

The step `mean <- mean - r g / s` is a Jacobi iteration: strongly correlated posteriors need `curvature.newton`.

Sources: Khan and Rue, "The Bayesian learning rule" (2023), sections 1.3 and 4; Lin, Schmidt and Khan, "Handling the
positive-definite constraint in the Bayesian learning rule" (2020), equation 10, for the positive update.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from amortgap.inference.schedules import cosine

# Largest change of the mean in one step, in units of the current posterior scale, per coordinate on average.
_MEAN_RADIUS = 1.0
# Largest relative change of the precision in one step.
_PRECISION_RADIUS = 0.5
_MEAN_RATE = 0.3
_PRECISION_RATE = 0.1


class _State(NamedTuple):
    """Mean and square root of the precision, both [d]."""

    mean: Array
    root: Array


def ascend(
    key: jax.Array,
    gradient: Callable[[Array], Array],
    mean: Float[Array, " d"],
    scale: Float[Array, " d"],
    *,
    num_steps: int,
) -> tuple[tuple[Float[Array, " d"], Float[Array, " d"]], tuple[Float[Array, " d"], Float[Array, " d"]]]:
    """Return mean and scale at a first horizon of a third of the steps and at the end; two gradients a step.

    Formula: with precision s, `delta = s^-1/2 e`, e standard normal, and g the gradient of `-log p(x, z)`:
    `mean <- mean - r (g_+ + g_-) / (2 s)`; `c = r_s ((g_+ - g_-) / 2 - s delta) delta s`, `s <- s + c + c^2 / (2 s)`.
    The rates start at 0.3 and 0.1 and fall by a cosine to zero at each of the two horizons.

    Args:
      key: typed key of the noise.
      gradient: gradient of `-log p(x, z)` with respect to z, [d] to [d].
      mean, scale: mean and standard deviations of the start.
      num_steps: number of steps.
    """

    def step(index: Array, carry: tuple[_State, _State]) -> tuple[_State, _State]:
        state, middle = carry
        late = index >= first
        factor = jnp.where(late, cosine(index - first, num_steps - first), cosine(index, first)).astype(mean.dtype)
        noise = jax.random.normal(jax.random.fold_in(key, index), mean.shape, mean.dtype)
        delta = noise / state.root
        up, down = jax.vmap(gradient)(jnp.stack([state.mean + delta, state.mean - delta]))
        move = -_MEAN_RATE * factor * 0.5 * (up + down) / state.root
        move = move * jnp.minimum(1.0, _MEAN_RADIUS * mean.size**0.5 / jnp.sqrt(jnp.sum(move**2) + 1e-30))
        change = _PRECISION_RATE * factor * (0.5 * (up - down) / state.root - noise) * noise
        change = jnp.clip(change, -_PRECISION_RADIUS, _PRECISION_RADIUS)
        moved = _State(state.mean + move / state.root, state.root * jnp.sqrt(1 + change + 0.5 * change**2))
        # A likelihood that overflows at one draw costs that step, not the fit.
        good = jnp.all(jnp.isfinite(moved.mean)) & jnp.all(jnp.isfinite(moved.root))
        state = jax.tree.map(lambda new, old: jnp.where(good, new, old), moved, state)
        return state, jax.tree.map(lambda new, old: jnp.where(index < first, new, old), state, middle)

    first = num_steps // 3
    start = _State(mean, 1 / scale)
    end, middle = jax.lax.fori_loop(0, num_steps, step, (start, start))
    return (middle.mean, 1 / middle.root), (end.mean, 1 / end.root)
