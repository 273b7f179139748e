"""L[q*] of diagonal normals as the two official codes estimated it, from zeros by Adam at 1e-3 to their own end."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

# Windows without progress after which both codes stop, and images that share that decision.
PATIENCE, TOGETHER = 10, 100
# Draws of every step in the code that keeps one phi an image.
DRAWS = 50


def published_ffg(
    key: jax.Array, xs: Any, *, model: Any, way: str, copies: int = 100, window: int = 100
) -> tuple[jax.Array, jax.Array]:
    """Return phi [N, 2 d] and the ELBO [N] at the end of a published local optimisation, nats.

    Formula: Adam at a constant 1e-3 on `log p(x, z) - log q(z)` at reparameterised draws, from mean 0 and log variance
    0. The mean loss of every `window` steps is compared with the best so far; after more than ten
    without a better one the batch of a hundred images ends, all of them together.

    Args:
      key: typed key.
      xs: images, [N, D].
      model: deep latent Gaussian.
      way: "independent-copies": a hundred (`copies`) independent parameters an image, each trained on one draw a step;
        the ELBO is their mean, one draw each, and phi the first copy. "adam-1e-3": one parameter an image, fifty draws.
      copies, window: sizes of the above.

    Source: the codes of Cremer, Li and Duvenaud (2018): `lxuechen/inference-suboptimality` (copies) and
      `chriscremer/Inference-Suboptimality` (one parameter).
    """
    sizes = (copies, 1) if way == "independent-copies" else (1, DRAWS)
    ends = [
        _batch(jax.random.fold_in(key, first), xs[first : first + TOGETHER], model, sizes, window)
        for first in range(0, len(xs), TOGETHER)
    ]
    phis, elbos = zip(*ends, strict=True)
    return jnp.concatenate(phis), jnp.concatenate(elbos)


def _batch(key: jax.Array, xs: Any, model: Any, sizes: tuple[int, int], window: int) -> tuple[jax.Array, jax.Array]:
    phi = jnp.zeros((len(xs), sizes[0], 2 * model.latent_dim))
    state = phi, optax.scale_by_adam().init(phi)
    best, bad, number = -math.inf, 0, 0
    while bad <= PATIENCE:
        state, value = _window(jax.random.fold_in(key, number), state, xs, model, sizes[1], window)
        best, bad = (float(value), 0) if value > best else (best, bad + 1)
        number += 1
    elbo = _bound(jax.random.fold_in(key, number), state[0], xs, model, sizes[1])
    mean, log_variance = jnp.split(state[0][:, 0], 2, axis=1)
    return jnp.concatenate([mean, 0.5 * log_variance], axis=1), jnp.mean(elbo, axis=1)


@functools.partial(jax.jit, static_argnames=("draws", "window"))
def _window(key: Any, state: Any, xs: Any, model: Any, draws: int, window: int) -> Any:
    adam = optax.scale_by_adam()

    def step(state: Any, step_key: jax.Array) -> tuple[Any, jax.Array]:
        phi, optimiser = state
        total = lambda phi: jnp.sum(_bound(step_key, phi, xs, model, draws))  # noqa: E731
        value, gradient = jax.value_and_grad(total)(phi)
        update, optimiser = adam.update(gradient, optimiser)
        return (phi + 1e-3 * jnp.asarray(update), optimiser), value / phi[..., 0].size

    state, values = jax.lax.scan(step, state, jax.random.split(key, window))
    return state, jnp.mean(values)


def _bound(key: jax.Array, phi: jax.Array, xs: Any, model: Any, draws: int) -> jax.Array:
    """Return the estimate of the ELBO of every copy of every image, [N, copies]."""
    mean, log_variance = jnp.split(phi, 2, axis=-1)

    def once(noise: jax.Array) -> jax.Array:
        z = mean + jnp.exp(0.5 * log_variance) * noise
        log_q = -0.5 * jnp.sum(noise**2 + log_variance + math.log(2 * math.pi), axis=-1)
        return jax.vmap(jax.vmap(model.log_joint, (0, None)))(z, xs) - log_q

    return jnp.mean(jax.vmap(once)(jax.random.normal(key, (draws, *mean.shape))), axis=0)
