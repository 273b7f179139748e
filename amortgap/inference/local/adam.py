"""Local VI of one datum by Adam, for families without curvature of their own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from amortgap.inference.local.certificate import Certificate
from amortgap.inference.local.selection import Judged, choose, verdict
from amortgap.inference.training.schedules import cosine
from amortgap.objectives import elbo, elbo_draws
from amortgap.protocols import Reparameterised


def objective_of(x: Any, model: Any, family: Any) -> Any:
    """Return the ELBO of one datum as a function of key, phi and number of draws, antithetic where that is possible."""
    antithetic = isinstance(family, Reparameterised)

    def objective(draw_key: jax.Array, phi: Array, num_samples: int) -> Array:
        return elbo(draw_key, phi, x, model=model, family=family, num_samples=num_samples, antithetic=antithetic)

    return objective


def adam(key: jax.Array, objective: Any, phi: Array, *, num_steps: Any, rate: float) -> tuple[Array, Int[Array, ""]]:
    """Return phi after Adam on antithetic pairs, its rate falling by a cosine, and how many steps were finite.

    A step that is not finite is left out.
    """
    optimiser = optax.scale_by_adam()

    def step(index: Array, carry: tuple[Array, Any, Array]) -> tuple[Array, Any, Array]:
        phi, state, count = carry
        gradient = jax.grad(objective, argnums=1)(jax.random.fold_in(key, index), phi, 2)
        update, state = optimiser.update(gradient, state)
        new = phi + rate * cosine(index, num_steps).astype(phi.dtype) * jnp.asarray(update)
        good = jnp.all(jnp.isfinite(new))
        return jax.tree.map(lambda a, b: jnp.where(good, a, b), (new, state, count + 1), carry)

    last, _, count = jax.lax.fori_loop(0, num_steps, step, (phi, optimiser.init(phi), jnp.asarray(0)))
    return last, count


def ascend_by_adam(
    key: jax.Array,
    x: Any,
    start: Array,
    phi: Array,
    model: Any,
    family: Any,
    *,
    num_steps: Any,
    num_samples: int,
    warmup_steps: int = 0,
) -> Judged:
    """Run Adam to two horizons, then judge the stages as `judge` does; what the second gained stands for the rest.

    Where half of the steps of either were not finite it stands for nothing: what could not move gains nothing either.
    """
    key_first, key_second, key_choice, key_value, key_warmup = jax.random.split(key, 5)
    objective, half = objective_of(x, model, family), jnp.maximum(num_steps // 2, 1)
    middle = phi
    if warmup_steps:
        middle, _ = adam(key_warmup, objective, phi, num_steps=warmup_steps, rate=1e-1)
    rest = jnp.maximum(num_steps - half, 1)
    middle, first_count = adam(key_first, objective, middle, num_steps=half, rate=3e-2)
    end, second_count = adam(key_second, objective, middle, num_steps=rest, rate=1e-2)
    moved = (2 * first_count > half) & (2 * second_count > rest)
    phis = jnp.stack([start, phi, middle, end])

    def draws(draw_key: jax.Array, phi: Array) -> Array:
        antithetic = isinstance(family, Reparameterised)
        return elbo_draws(draw_key, phi, x, model=model, family=family, num_samples=num_samples, antithetic=antithetic)

    choice = choose(jax.lax.map(lambda phi: draws(key_choice, phi), phis))
    certificate = Certificate(
        jnp.where(moved & jnp.isfinite(choice.gain), choice.gain, jnp.inf), choice.gain_error, jnp.zeros(())
    )
    return verdict(phis[choice.index], draws(key_value, phis[choice.index]), choice, certificate)
