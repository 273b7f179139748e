"""Buffered stochastic VI: all proposals along a refinement take part in the bound."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from amortgap._internal.checks import check_datum, check_key, check_phi
from amortgap._internal.compiled import compiled_once
from amortgap.inference.refinement.refine import check_steps, in_metric, transformation
from amortgap.objectives import log_mean_exp, log_weight
from amortgap.protocols import Datum, Family, HasDensity, Model


def buffered_bound(
    key: jax.Array,
    phi: Float[Array, " size"],
    x: Datum,
    *,
    model: Model,
    family: Family,
    num_steps: int,
    learning_rate: float = 0.1,
    optimizer: str = "sgd",
) -> Float[Array, ""]:
    """Lower bound on log p(x) from one draw of each of the K + 1 proposals of stochastic VI.

    Formula: `log 1/(K+1) sum_{k=0..K} p(x, z_k) / q(z_k; phi_k)`, `z_k ~ q(z; phi_k)`, where phi_{k+1} is one gradient
    step from phi_k on that same draw. Each weight has mean p(x) given the draws before it, so that their average is
    unbiased for p(x) and its logarithm a lower bound in expectation, at no more evaluations than refinement takes.

    Args:
      key: typed key.
      phi: where to start, such as an encoder's output, [size].
      x: one datum.
      model, family: as in `elbo`.
      num_steps: K; 0 for the one-draw ELBO.
      learning_rate, optimizer: of the steps, as in `refine`.

    Returns:
      A scalar in nats. Gradients of single draws are noisy: rates that suit `refine` are too large here, and proposals
      far from the posterior carry no weight.

    Raises:
      ValueError: bad key, sizes or settings.

    Source: Shu, Bui, Whang and Ermon, "Training variational autoencoders with buffered stochastic variational
    inference" (2019), equation 6, with uniform weights.
    """
    check_key(key)
    check_steps(model, family, steps=num_steps, rate=learning_rate, draws=1, optimizer=optimizer)
    check_phi(phi, family)
    x = check_datum(x, model)
    return _buffered_bound(key, phi, x, model, family, learning_rate, num_steps=num_steps, optimizer=optimizer)


@compiled_once("num_steps", "optimizer")
def _buffered_bound(
    key: jax.Array,
    phi: Array,
    x: Datum,
    model: Model,
    family: Family,
    learning_rate: float | Array,
    *,
    num_steps: int,
    optimizer: str,
) -> Float[Array, ""]:
    change = transformation(optimizer)

    def weights(phi: Array, density_phi: Array, draw_key: jax.Array) -> tuple[Array, Array]:
        # The slope sticks the landing by a density at its own argument: with nothing stopped, its derivative is right.
        z, log_q = family.sample_and_log_prob(draw_key, phi)
        climbed = log_weight(
            z, x, density_phi, model=model, family=family, log_q=None if isinstance(family, HasDensity) else log_q
        )
        return climbed, log_weight(z, x, phi, model=model, family=family, log_q=log_q)

    def step(carry: tuple[Array, optax.OptState], draw_key: jax.Array) -> tuple[tuple, Array]:
        phi, state = carry
        gradient, log_w = jax.grad(weights, has_aux=True)(phi, phi, draw_key)
        update, new_state = change.update(in_metric(optimizer, family, phi, gradient), state, phi)
        new = phi + learning_rate * jnp.asarray(update)
        good = jnp.isfinite(new).all() & jnp.isfinite(log_w)
        # A weight that is not a number counts as zero, which only lowers the bound.
        log_w = jnp.where(jnp.isfinite(log_w), log_w, -jnp.inf)
        return jax.tree.map(lambda a, b: jnp.where(good, a, b), (new, new_state), carry), log_w

    _, log_weights = jax.lax.scan(step, (phi, change.init(phi)), jax.random.split(key, num_steps + 1))
    return log_mean_exp(log_weights)
