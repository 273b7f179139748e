"""Hamiltonian Monte Carlo between a base density and a target, one chain, exactly L gradients a transition."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from amortgap._internal.checks import check_choice, check_phi, check_sizes
from amortgap.objectives import log_weight
from amortgap.protocols import Datum, Family, HasDensity, HasLikelihood, HasMoments, Model, Simulating

STARTS = ("prior", "q")


class Path(NamedTuple):
    """The geometric path of densities `f_b(z) = base(z) * (target(z) / base(z))^b`.

    Attributes:
      sample: key to an exact draw of the base, [d].
      log_base: log density of the base, normalised.
      log_ratio: log target minus log base; the log-likelihood where the base is the prior.
      scale: length of one unit step in every coordinate, [d].
    """

    sample: Callable[[jax.Array], Array]
    log_base: Callable[[Array], Array]
    log_ratio: Callable[[Array], Array]
    scale: Array


class Chain(NamedTuple):
    """Position of a chain with the values and gradients there, which serve every temperature.

    Attributes:
      z: position, [d].
      base, ratio: log base and log ratio there.
      base_slope, ratio_slope: their gradients, [d].
    """

    z: Array
    base: Array
    base_slope: Array
    ratio: Array
    ratio_slope: Array


def check_prior(model: object) -> None:
    """Refuse a model whose prior cannot be where a path starts."""
    if not (isinstance(model, HasLikelihood) and isinstance(model, Simulating)):
        raise ValueError(
            f"start 'prior' needs model.log_prior, model.log_likelihood and model.sample, not all of which "
            f"{type(model).__name__} has; use start 'q'"
        )


def make_path(model: Model, x: Datum, *, start: str, family: Family | None, phi: Float[Array, " size"] | None) -> Path:
    """Return the path from the prior, or from q(z; phi), to the joint density p(x, z).

    Raises:
      ValueError: an unknown start, a model without a prior to start from, or a start from q without family and phi.
    """
    check_choice("start", start, STARTS)
    if start == "prior":
        check_prior(model)
        assert isinstance(model, HasLikelihood) and isinstance(model, Simulating)
        return Path(
            # Only z of the joint draw is used; XLA removes the computation of x.
            sample=lambda key: model.sample(key)[0],
            log_base=model.log_prior,
            log_ratio=lambda z: model.log_likelihood(z, x),
            scale=jnp.ones(model.latent_dim),
        )
    if family is None or phi is None:
        raise ValueError("start 'q' needs a distribution to start from: give family and phi")
    check_sizes(model, family)
    check_phi(phi, family)
    if not isinstance(family, HasDensity):
        raise ValueError(f"start 'q' needs family.log_prob, which {type(family).__name__} lacks")
    scale = jnp.ones(model.latent_dim)
    if isinstance(family, HasMoments):
        scale = jnp.sqrt(jnp.sum(family.moments(phi)[1] ** 2, axis=1))
    return Path(
        sample=lambda key: family.sample_and_log_prob(key, phi)[0],
        log_base=lambda z: family.log_prob(z, phi),
        log_ratio=lambda z: log_weight(z, x, phi, model=model, family=family),
        scale=scale,
    )


def place(path: Path, z: Float[Array, " d"]) -> Chain:
    """Return a chain at z: one evaluation of the model and its gradient."""
    base, base_slope = jax.value_and_grad(path.log_base)(z)
    ratio, ratio_slope = jax.value_and_grad(path.log_ratio)(z)
    return Chain(z, base, base_slope, ratio, ratio_slope)


def transition(
    key: jax.Array, path: Path, chain: Chain, beta: Array, step_size: Array, num_leapfrog: int
) -> tuple[Chain, Array]:
    """Return the chain after one HMC transition that leaves `f_beta` invariant, and its acceptance probability.

    The gradient at the start is the one the chain carries, so the L leapfrog steps cost L gradients and the
    Metropolis test none. The step is multiplied by a random factor in [0.8, 1.2], drawn before the trajectory, which
    breaks the periodic orbits of a normal target and keeps the transition reversible.

    Args:
      key: typed key.
      path: the densities.
      chain: current state of the chain.
      beta: temperature in [0, 1].
      step_size: leapfrog step in units of `path.scale`.
      num_leapfrog: L.

    Source: Neal, "MCMC using Hamiltonian dynamics" (2011), sections 3.2 and 4.2.
    """
    key_momentum, key_factor, key_accept = jax.random.split(key, 3)
    dtype = chain.z.dtype
    momentum = jax.random.normal(key_momentum, chain.z.shape, dtype)
    step = step_size * jax.random.uniform(key_factor, (), dtype, 0.8, 1.2)

    def slope(base_slope: Array, ratio_slope: Array) -> Array:
        return (base_slope + beta * ratio_slope) * path.scale

    def leap(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        z, half_kicked = carry
        z = z + step * path.scale * half_kicked
        # Inner steps need slopes only, and a density's value can cost a quarter of its gradient.
        return (z, half_kicked + step * slope(jax.grad(path.log_base)(z), jax.grad(path.log_ratio)(z))), None

    half_kicked = momentum + 0.5 * step * slope(chain.base_slope, chain.ratio_slope)
    (z, half_kicked), _ = jax.lax.scan(leap, (chain.z, half_kicked), None, length=num_leapfrog - 1)
    end = place(path, z + step * path.scale * half_kicked)
    end_momentum = half_kicked + 0.5 * step * slope(end.base_slope, end.ratio_slope)
    before = chain.base + beta * chain.ratio - 0.5 * jnp.sum(momentum**2)
    after = end.base + beta * end.ratio - 0.5 * jnp.sum(end_momentum**2)
    # A trajectory that leaves the support or overflows is a rejection.
    change = jnp.where(jnp.isfinite(after), after - before, -jnp.inf)
    probability = jnp.exp(jnp.minimum(change, 0.0))
    accept = jax.random.uniform(key_accept, (), dtype) < probability
    return jax.tree.map(lambda new, old: jnp.where(accept, new, old), end, chain), probability
