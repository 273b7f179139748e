"""Refinement: a few gradient steps on one datum's ELBO from where an encoder (or anything else) puts it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from amortgap._internal.checks import (
    check_choice,
    check_count,
    check_datum,
    check_key,
    check_phi,
    check_positive,
    check_sizes,
)
from amortgap._internal.compiled import compiled_once
from amortgap.objectives import cubature_elbo, elbo_draws
from amortgap.protocols import Datum, Enumerable, Family, HasDensity, Model, Reparameterised, is_diagonal

OPTIMIZERS = ("sgd", "adam", "natural")


class Refinement(NamedTuple):
    """Variational parameters along K refinement steps.

    Attributes:
      phi: after the last step, [size].
      path: before and after every step, [K + 1, size].
      num_bad: steps that were skipped because the ELBO or the step was not finite.
    """

    phi: Float[Array, " size"]
    path: Float[Array, "steps size"]
    num_bad: Int[Array, ""]


def check_steps(
    model: Model,
    family: Family,
    *,
    steps: int,
    rate: float,
    draws: int,
    optimizer: str,
    names: tuple[str, str, str, str] = ("num_steps", "learning_rate", "num_samples", "optimizer"),
) -> None:
    """Refuse settings of refinement that cannot be run; `names` are the caller's names of the arguments."""
    check_sizes(model, family)
    check_count(names[0], steps, minimum=0)
    check_positive(names[1], rate)
    check_count(names[2], draws, minimum=0)
    check_choice(names[3], optimizer, OPTIMIZERS)
    if optimizer == "natural" and not is_diagonal(family):
        raise ValueError(f"{names[3]} 'natural' needs a mean field normal, got {type(family).__name__}")


def climbed_elbo(
    key: jax.Array, phi: Array, x: Datum, model: Model, family: Family, num_samples: int
) -> tuple[Array, Array]:
    """Return the ELBO that refinement climbs and its gradient: by draws, or by cubature where `num_samples` is zero.

    The gradient by draws sticks the landing. It may be differentiated again, as training through the steps does, and
    so it is the slope along the draws with the density held at its own argument: an estimator that stops gradients
    would lose the derivative of that argument.
    """
    if num_samples == 0:
        return jax.value_and_grad(lambda phi: cubature_elbo(phi, x, model=model, family=family))(phi)

    antithetic = isinstance(family, Reparameterised) and num_samples % 2 == 0
    # A family without a density, or whose ELBO is a sum over all values, has only the total gradient.
    apart = isinstance(family, HasDensity) and not isinstance(family, Enumerable)

    def along_draws(phi: Array, density_phi: Array) -> Array:
        draws = elbo_draws(
            key,
            phi,
            x,
            model=model,
            family=family,
            num_samples=num_samples,
            estimator="total",
            antithetic=antithetic,
            density_phi=density_phi if apart else None,
        )
        return jnp.mean(draws)

    return jax.value_and_grad(along_draws)(phi, phi)


def transformation(optimizer: str) -> optax.GradientTransformation:
    """Return the optax transformation from a gradient of the ELBO to a step of rate one."""
    if optimizer == "adam":
        # Differentiable where a gradient is zero, unlike a plain square root.
        return optax.scale_by_adam(eps_root=1e-12)
    return optax.trace(decay=0.5) if optimizer == "sgd" else optax.identity()


def in_metric(optimizer: str, family: Family, phi: Array, gradient: Array) -> Array:
    """Return the gradient, for mean field normals in the metric of the family if asked to."""
    if optimizer != "natural":
        return gradient
    d = family.latent_dim
    # The Fisher information of [mean, log scale] is [1 / scale^2, 2].
    return gradient * jnp.concatenate([jnp.exp(2 * phi[d:]), jnp.full(d, 0.5, phi.dtype)])


def refine(
    key: jax.Array,
    phi: Float[Array, " size"],
    x: Datum,
    *,
    model: Model,
    family: Family,
    num_steps: int,
    learning_rate: float = 0.1,
    num_samples: int = 2,
    optimizer: str = "adam",
) -> Refinement:
    """Ascend the ELBO of one datum from `phi` for a fixed number of steps; differentiable through all of them.

    Formula: `phi_{k+1} = phi_k + rate * step(grad ELBO(phi_k; x))`, k = 0..K-1. The function is compiled once: other
    keys, starts, data, weights and rates of the same shapes reuse the program.

    Args:
      key: typed key.
      phi: where to start, such as an encoder's output, [size].
      x: one datum.
      model, family: as in `elbo`.
      num_steps: K; 0 returns the start.
      learning_rate: constant rate.
      num_samples: draws per step; 0 for the cubature rule (normal families; exact for log joints quadratic in z).
      optimizer: "adam", "sgd" with momentum one half, or "natural" (mean field normals: the gradient in the metric of
        the family, whose rate has no unit).

    Returns:
      Refinement. A step that is not finite is left out and counted.

    Raises:
      ValueError: bad key, sizes or settings, such as K < 0.

    Source: Kim et al., "Semi-amortized variational autoencoders" (2018), algorithm 1, for the use.
    """
    check_key(key)
    check_steps(model, family, steps=num_steps, rate=learning_rate, draws=num_samples, optimizer=optimizer)
    check_phi(phi, family)
    x = check_datum(x, model)
    return _refine(
        key, phi, x, model, family, learning_rate, num_steps=num_steps, num_samples=num_samples, optimizer=optimizer
    )


@compiled_once("num_steps", "num_samples", "optimizer")
def _refine(
    key: jax.Array,
    phi: Array,
    x: Datum,
    model: Model,
    family: Family,
    learning_rate: float | Array,
    *,
    num_steps: int,
    num_samples: int,
    optimizer: str,
) -> Refinement:
    change = transformation(optimizer)

    def step(carry: tuple[Array, optax.OptState], step_key: jax.Array) -> tuple[tuple, tuple[Array, Array]]:
        phi, state = carry
        elbo_here, gradient = climbed_elbo(step_key, phi, x, model, family, num_samples)
        gradient = in_metric(optimizer, family, phi, gradient)
        update, new_state = change.update(gradient, state, phi)
        new = phi + learning_rate * jnp.asarray(update)
        # A value may be NaN where its gradient is not: the branch of a `where` that was not taken has gradient zero.
        good = jnp.isfinite(elbo_here) & jnp.isfinite(new).all()
        kept = jax.tree.map(lambda a, b: jnp.where(good, a, b), (new, new_state), carry)
        return kept, (kept[0], ~good)

    (last, _), (path, bad) = jax.lax.scan(step, (phi, change.init(phi)), jax.random.split(key, num_steps))
    return Refinement(last, jnp.concatenate([phi[None], path]), jnp.sum(bad))
