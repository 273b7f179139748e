"""Natural-gradient ascent of the ELBO for the mean field normal family, one datum at a time, after a warm-up by Adam.

The state is a mean and a diagonal precision. Every step draws one antithetic pair `z = mean +- delta`, so the gradient
of the mean is exact on a quadratic. The pair corrects the precision by the residual of the current curvature alone, so
a normal posterior without correlations leaves no noise at all. The update `s (1 + c + c^2 / 2)` of the precision stays
positive for every step size.

The step `mean <- mean - r g / s` is a Jacobi iteration: strongly correlated posteriors need `newton.newton`.

Sources: Khan and Rue, "The Bayesian learning rule" (2023), sections 1.3 and 4; Lin, Schmidt and Khan, "Handling the
positive-definite constraint in the Bayesian learning rule" (2020), equation 10, for the positive update.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias, TypeVar, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from amortgap.inference.training.schedules import cosine

Tree = TypeVar("Tree")

# Largest change of the mean in one step, in units of the current posterior scale, per coordinate on average.
_MEAN_RADIUS = 1.0
# Largest relative change of the precision in one step.
_PRECISION_RADIUS = 0.5
_MEAN_RATE = 0.3
_PRECISION_RATE = 0.1
_WARMUP_RATE = 0.1


class Stages(NamedTuple):
    """Mean and scale, each [d], after the warm-up, at the first horizon and at the end."""

    warm: tuple[Array, Array]
    middle: tuple[Array, Array]
    end: tuple[Array, Array]


# Adam's moments, the mean and the logarithm of the scale, and the stages so far.
_Carry: TypeAlias = tuple[optax.OptState, tuple[Array, Array], Stages]


def ascend(
    noises: Float[Array, "steps d"],
    gradient: Callable[[Array], Array],
    mean: Float[Array, " d"],
    scale: Float[Array, " d"],
    *,
    warmup_steps: int,
) -> Stages:
    """Return mean and scale after Adam steps and after natural-gradient steps to two horizons; two gradients a step.

    Formula: with precision s, `delta = s^-1/2 e`, e standard normal, and g the gradient of `-log p(x, z)`:
    `mean <- mean - r (g_+ + g_-) / (2 s)`; `c = r_s ((g_+ - g_-) / 2 - s delta) delta`, `s <- s (1 + c + c^2 / 2)`.
    The rates start at 0.3 and 0.1 and fall by a cosine to zero at each of the two horizons, a quarter of the steps and
    the end. Adam follows the same two directions, at a rate that falls from 0.1.

    Args:
      noises: e of every step, the warm-up's first.
      gradient: gradient of `-log p(x, z)` with respect to z, [d] to [d].
      mean, scale: mean and standard deviations of the start.
      warmup_steps: how many of the steps are Adam's.
    """
    num_steps = noises.shape[0]
    first = warmup_steps + (num_steps - warmup_steps) // 4
    adam = optax.scale_by_adam()

    def step(index: Array, carry: _Carry) -> _Carry:
        moments, (mean, log_scale), stages = carry
        factor = jnp.where(
            index < warmup_steps,
            cosine(index, warmup_steps),
            jnp.where(
                index < first,
                cosine(index - warmup_steps, first - warmup_steps),
                cosine(index - first, num_steps - first),
            ),
        ).astype(mean.dtype)
        noise, scale = noises[index], jnp.exp(log_scale)
        up, down = jax.vmap(gradient)(jnp.stack([mean + scale * noise, mean - scale * noise]))
        # Gradients of minus the ELBO, in units of the scale and of its logarithm, the score term left out.
        slope, residual = 0.5 * scale * (up + down), (0.5 * scale * (up - down) - noise) * noise

        move = -_MEAN_RATE * factor * slope
        move = move * jnp.minimum(1.0, _MEAN_RADIUS * mean.size**0.5 / jnp.sqrt(jnp.sum(move**2) + 1e-30))
        change = jnp.clip(_PRECISION_RATE * factor * residual, -_PRECISION_RADIUS, _PRECISION_RADIUS)
        moved = (mean + scale * move, log_scale - 0.5 * jnp.log1p(change + 0.5 * change**2))
        if warmup_steps:
            (towards_mean, towards_scale), new_moments = cast(
                "tuple[tuple[Array, Array], optax.OptState]", adam.update((slope / scale, residual), moments)
            )
            rate = _WARMUP_RATE * factor
            warming = (mean - rate * towards_mean, log_scale - rate * towards_scale)
            moved, moments_now = _select(index < warmup_steps, (warming, new_moments), (moved, moments))
        else:
            moments_now = moments

        # A likelihood that overflows at one draw costs that step, not the fit.
        good = jnp.all(jnp.isfinite(moved[0])) & jnp.all(jnp.isfinite(moved[1]))
        state, moments = _select(good, (moved, moments_now), ((mean, log_scale), moments))
        warm = _select(index < warmup_steps, state, stages.warm)
        return moments, state, Stages(warm, _select(index < first, state, stages.middle), state)

    start = (mean, jnp.log(scale))
    carry = (adam.init(start), start, Stages(start, start, start))
    stages = jax.lax.fori_loop(0, num_steps, step, carry)[2]
    return Stages(*((mean, jnp.exp(log_scale)) for mean, log_scale in stages))


def _select(condition: Array, new: Tree, old: Tree) -> Tree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
