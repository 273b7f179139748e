"""Local VI of one datum by Adam, for families without curvature of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from amortgap.inference.local.certificate import Certificate
from amortgap.inference.local.records import Problem
from amortgap.inference.local.selection import Choice, SelectedFit, select
from amortgap.inference.training.schedules import cosine
from amortgap.objectives import elbo, elbo_draws
from amortgap.protocols import Reparameterised

# The ELBO of one datum as a function of key, phi and number of draws.
Objective: TypeAlias = Callable[[jax.Array, Array, int], Array]


def objective_of(problem: Problem) -> Objective:
    """Return the ELBO of one datum as a function of key, phi and number of draws, antithetic where that is possible."""
    x, model, family = problem.x, problem.model, problem.family
    antithetic = isinstance(family, Reparameterised)

    def objective(draw_key: jax.Array, phi: Array, num_samples: int) -> Array:
        return elbo(draw_key, phi, x, model=model, family=family, num_samples=num_samples, antithetic=antithetic)

    return objective


def adam(
    key: jax.Array, objective: Objective, phi: Array, *, num_steps: int | Array, rate: float
) -> tuple[Array, Int[Array, ""]]:
    """Return phi after Adam on antithetic pairs with a rate that falls by a cosine, and the number of finite steps.

    A step that is not finite is left out.
    """
    optimiser = optax.scale_by_adam()

    def step(index: Array, carry: tuple[Array, optax.OptState, Array]) -> tuple[Array, optax.OptState, Array]:
        phi, state, count = carry
        gradient = jax.grad(objective, argnums=1)(jax.random.fold_in(key, index), phi, 2)
        update, state = optimiser.update(gradient, state)
        new = phi + rate * cosine(index, num_steps).astype(phi.dtype) * jnp.asarray(update)
        good = jnp.all(jnp.isfinite(new))
        return jax.tree.map(lambda a, b: jnp.where(good, a, b), (new, state, count + 1), carry)

    last, _, count = jax.lax.fori_loop(0, num_steps, step, (phi, optimiser.init(phi), jnp.asarray(0)))
    return last, count


def ascend_by_adam(
    key: jax.Array, problem: Problem, start: Array, phi: Array, *, num_steps: int | Array, warmup_steps: int = 0
) -> SelectedFit:
    """Run Adam to two horizons, then select the best stage; the gain of the second horizon is the certificate.

    The certificate is infinite where half of the steps to either horizon were not finite: a run that could not move
    gains nothing either.
    """
    key_first, key_second, key_choice, key_value, key_warmup = jax.random.split(key, 5)
    objective, half = objective_of(problem), jnp.maximum(num_steps // 2, 1)
    middle = phi
    if warmup_steps:
        middle, _ = adam(key_warmup, objective, phi, num_steps=warmup_steps, rate=1e-1)
    rest = jnp.maximum(num_steps - half, 1)
    middle, first_count = adam(key_first, objective, middle, num_steps=half, rate=3e-2)
    end, second_count = adam(key_second, objective, middle, num_steps=rest, rate=1e-2)
    moved = (2 * first_count > half) & (2 * second_count > rest)
    phis = jnp.stack([start, phi, middle, end])

    def draws(draw_key: jax.Array, phi: Array) -> Array:
        return elbo_draws(
            draw_key,
            phi,
            problem.x,
            model=problem.model,
            family=problem.family,
            num_samples=problem.settings.num_samples,
            antithetic=isinstance(problem.family, Reparameterised),
        )

    def evaluate(phi: Array, choice: Choice) -> tuple[Array, Certificate]:
        nats = jnp.where(moved & jnp.isfinite(choice.gain), choice.gain, jnp.inf)
        return draws(key_value, phi), Certificate(nats, choice.gain_error, jnp.zeros(()))

    return select(phis, jax.lax.map(lambda phi: draws(key_choice, phi), phis), evaluate)
