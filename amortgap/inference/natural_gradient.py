"""Natural-gradient ascent of the ELBO for normal families, one datum at a time.

The state is a mean and a precision, the natural home of a normal. Every step draws one antithetic pair
`z = mean +- delta`, which makes the gradient of the mean exact on a quadratic, and corrects the precision only by what
the pair reveals beyond the curvature believed so far, so that this correction too has no noise on a quadratic.
The update `P + D + D P^-1 D / 2` of the precision stays positive definite for every step size.

Sources: Khan and Rue, "The Bayesian learning rule" (2023), sections 1.3 and 4; Lin, Schmidt and Khan, "Handling the
positive-definite constraint in the Bayesian learning rule" (2020), equation 10, for the positive update.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from amortgap.inference.schedules import cosine

# Largest change of the mean in one step, in units of the current posterior scale, per coordinate on average.
_MEAN_RADIUS = 1.0
# Largest relative change of the precision in one step.
_PRECISION_RADIUS = 0.5


class _Pair(NamedTuple):
    """What one antithetic pair reveals, in units in which the current precision is the identity.

    Attributes:
      slope: gradient of `-log p(x, z)` averaged over the pair; its mean is zero at the optimal mean.
      surprise: curvature seen minus curvature believed, [d] or [d, d]; its mean is zero at the optimal precision.
    """

    slope: Array
    surprise: Array


class _State(NamedTuple):
    """Mean and a square root of the precision: [d] for a diagonal precision, lower triangular [d, d] for a full one."""

    mean: Array
    root: Array


def _look(noise: Array, gradient: Callable[[Array], Array], state: _State) -> _Pair:
    """Return what the pair `mean +- P^-1/2 noise` reveals; exact, whatever the noise, on a quadratic at its optimum."""
    if state.root.ndim == 1:
        delta = noise / state.root
        up, down = gradient(state.mean + delta), gradient(state.mean - delta)
        return _Pair(0.5 * (up + down) / state.root, (0.5 * (up - down) / state.root - noise) * noise)
    delta = solve_triangular(state.root.T, noise, lower=False)
    up, down = gradient(state.mean + delta), gradient(state.mean - delta)
    surprise = solve_triangular(state.root, 0.5 * (up - down), lower=True) - noise
    outer = jnp.outer(surprise, noise)
    return _Pair(solve_triangular(state.root, 0.5 * (up + down), lower=True), 0.5 * (outer + outer.T))


def _move(state: _State, whitened_step: Array, change: Array) -> _State:
    """Return the state moved by a step of the mean and a relative change of the precision, `I + c + c^2 / 2`."""
    if state.root.ndim == 1:
        return _State(state.mean + whitened_step / state.root, state.root * jnp.sqrt(1 + change + 0.5 * change**2))
    grown = jnp.linalg.cholesky(jnp.eye(state.mean.size, dtype=change.dtype) + change + 0.5 * change @ change)
    return _State(state.mean + solve_triangular(state.root.T, whitened_step, lower=False), state.root @ grown)


def _clip_norm(array: Array, radius: float) -> Array:
    return array * jnp.minimum(1.0, radius / jnp.sqrt(jnp.sum(array**2) + 1e-30))


def precision_root(scale_tril: Float[Array, "d d"], *, diagonal: bool) -> Array:
    """Return the square root of the precision that `ascend` and `newton_decrement` take."""
    if diagonal:
        return jnp.sum(scale_tril**2, axis=1) ** -0.5
    inverse = solve_triangular(scale_tril, jnp.eye(scale_tril.shape[0], dtype=scale_tril.dtype), lower=True)
    return jnp.linalg.cholesky(inverse.T @ inverse)


def scale_from_root(root: Array) -> Float[Array, "d d"]:
    """Return the lower triangular square root of the covariance; inverse of `precision_root`."""
    if root.ndim == 1:
        return jnp.diag(1 / root)
    inverse = solve_triangular(root, jnp.eye(root.shape[0], dtype=root.dtype), lower=True)
    return jnp.linalg.cholesky(inverse.T @ inverse)


def ascend(
    key: jax.Array,
    gradient: Callable[[Array], Array],
    mean: Float[Array, " d"],
    root: Array,
    *,
    num_steps: int,
    mean_rate: float,
    precision_rate: float,
) -> tuple[Float[Array, " d"], Array]:
    """Return mean and precision root after `num_steps` natural-gradient steps, two gradients each.

    Formula: with precision P, `delta = P^-1/2 e`, e standard normal, and g the gradient of `-log p(x, z)`:
    `mean <- mean - r P^-1 (g_+ + g_-) / 2`; `D = r_P sym[((g_+ - g_-) / 2 - P delta) (P delta)']` (its diagonal in
    mean field), `P <- P + D + D P^-1 D / 2`; both rates fall by a cosine to zero.

    Args:
      key: typed key of the noise.
      gradient: gradient of `-log p(x, z)` with respect to z, [d] to [d].
      mean: start, [d].
      root: square root of the start's precision: [d] for mean field, lower triangular [d, d] for full rank.
      num_steps: number of steps.
      mean_rate, precision_rate: r and r_P at the first step.
    """
    # One direction is seen at a time: a full change is bounded by its norm, a diagonal one entry by entry.
    diagonal = root.ndim == 1

    def step(state: _State, index: Array) -> tuple[_State, None]:
        factor = cosine(index, num_steps).astype(mean.dtype)
        noise = jax.random.normal(jax.random.fold_in(key, index), mean.shape, mean.dtype)
        pair = _look(noise, gradient, state)
        whitened_step = _clip_norm(-mean_rate * factor * pair.slope, _MEAN_RADIUS * mean.size**0.5)
        change = precision_rate * factor * pair.surprise
        if diagonal:
            change = jnp.clip(change, -_PRECISION_RADIUS, _PRECISION_RADIUS)
        else:
            change = _clip_norm(change, _PRECISION_RADIUS)
        moved = _move(state, whitened_step, change)
        # A likelihood that overflows at one draw costs that step, not the fit.
        good = jnp.all(jnp.isfinite(moved.mean)) & jnp.all(jnp.isfinite(moved.root))
        return jax.tree.map(lambda new, old: jnp.where(good, new, old), moved, state), None

    state, _ = jax.lax.scan(step, _State(mean, root), jnp.arange(num_steps))
    return state.mean, state.root


def newton_decrement(
    key: jax.Array, gradient: Callable[[Array], Array], mean: Float[Array, " d"], root: Array, *, num_pairs: int
) -> Float[Array, ""]:
    """Estimate how many nats the ELBO at this normal is below its local maximum.

    Formula: `1/2 |P^-1/2 E g|^2 + 1/4 |P^-1/2 (E[H] - P) P^-1/2|_F^2`, H the Hessian of `-log p(x, z)`: the KL
    divergence to second order between the current normal and the one that a full natural-gradient step leads to.
    Squares of noisy means are corrected by their variance, so the estimate may be slightly negative.

    Args:
      key, gradient, mean, root: as in `ascend`.
      num_pairs: antithetic pairs to average over, at least two.
    """
    noise = jax.random.normal(key, (num_pairs, mean.size), mean.dtype)
    pairs = jax.vmap(lambda e: _look(e, gradient, _State(mean, root)))(noise)

    def squared_mean(values: Array) -> Array:
        average = jnp.mean(values, axis=0)
        return jnp.sum(average**2) - jnp.sum(jnp.var(values, axis=0, ddof=1)) / num_pairs

    return 0.5 * squared_mean(pairs.slope) + 0.25 * squared_mean(pairs.surprise)
