"""Buffered stochastic VI: every proposal met on the way to the refined one takes part in the bound."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from amortgap._internal.checks import check_datum, check_key, check_phi
from amortgap.inference.refinement.refine import check_steps, in_metric, transformation
from amortgap.protocols import HasDensity


def buffered_bound(
    key: jax.Array,
    phi: Float[Array, " size"],
    x: Any,
    *,
    model: Any,
    family: Any,
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
      A scalar in nats. Single draws make rough gradients: rates that suit `refine` are too long here, and proposals
      that run off carry no weight.

    Raises:
      ValueError: bad key, sizes or settings.

    Source: Shu, Bui, Whang and Ermon, "Training variational autoencoders with buffered stochastic variational
    inference" (2019), equation 6, with uniform weights.
    """
    check_key(key)
    check_steps(model, family, steps=num_steps, rate=learning_rate, draws=1, optimizer=optimizer)
    check_phi(phi, family)
    x = check_datum(x, model)
    change = transformation(optimizer)

    def log_weight(phi: Array, density: Array, draw_key: jax.Array) -> tuple[Array, Array]:
        # The slope sticks the landing, and is right when it is differentiated itself: nothing in it is stopped.
        z, log_q = family.sample_and_log_prob(draw_key, phi)
        log_joint = model.log_joint(z, x)
        if isinstance(family, HasDensity):
            return log_joint - family.log_prob(z, density), log_joint - log_q
        return log_joint - log_q, log_joint - log_q

    def step(carry: tuple[Array, Any], draw_key: jax.Array) -> tuple[tuple[Array, Any], Array]:
        phi, state = carry
        gradient, log_w = jax.grad(log_weight, has_aux=True)(phi, phi, draw_key)
        update, new_state = change.update(in_metric(optimizer, family, phi, gradient), state, phi)
        new = phi + learning_rate * jnp.asarray(update)
        good = jnp.isfinite(new).all() & jnp.isfinite(log_w)
        # A weight that is not a number counts as zero, which only lowers the bound.
        log_w = jnp.where(jnp.isfinite(log_w), log_w, -jnp.inf)
        return jax.tree.map(lambda a, b: jnp.where(good, a, b), (new, new_state), carry), log_w

    _, log_weights = jax.lax.scan(step, (phi, change.init(phi)), jax.random.split(key, num_steps + 1))
    return jax.scipy.special.logsumexp(log_weights) - jnp.log(float(num_steps + 1))
