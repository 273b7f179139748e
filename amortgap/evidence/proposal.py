"""A normal near the posterior of one datum, fitted here where the caller has none.

Local VI lies above this package and may not be imported; a proposal needs no certificate, since weights correct it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from amortgap._internal.checks import check_phi, check_phis, check_sizes
from amortgap.families import FullRankNormal
from amortgap.protocols import Datum, Family, Model, Simulating

# Draws of the prior among which the best is the start.
_PRIOR_DRAWS = 100
_NUM_STEPS = 20
# Shares of a full step that every step tries.
_RATES = (1.0, 0.5, 0.2, 0.05, 0.01)
# Least curvature along any direction, which bounds the variance of the normal by 100.
_LEAST_CURVATURE = 0.01


def fit_proposal(key: jax.Array, x: Datum, *, model: Model) -> tuple[FullRankNormal, Float[Array, " size"]]:
    """Return a full rank normal near the posterior p(z | x), a little wider than the best ELBO makes it.

    Formula: `fit_normal` on nodes in random directions, its covariance times `1 + 1 / (2 sqrt(d))`. On a normal
    posterior the factor costs one draw in eight whatever d is, and it guards against tails that the ELBO leaves out.

    Args:
      key: typed key of the directions, and of prior draws where the model can be sampled.
      x: one datum.
      model: record with `log_joint(z, x)`.

    Returns:
      The family, and phi [size].
    """
    key_nodes, key_prior = jax.random.split(key)
    dim = model.latent_dim
    start = jnp.zeros(dim)
    if isinstance(model, Simulating):
        draws = jax.vmap(lambda draw_key: model.sample(draw_key)[0])(jax.random.split(key_prior, _PRIOR_DRAWS))
        candidates = jnp.concatenate([start[None], draws])
        start = candidates[_best(jax.vmap(lambda z: model.log_joint(z, x))(candidates))]
    bases = jax.random.orthogonal(key_nodes, dim, shape=(num_nodes(dim) // (2 * dim),))
    mean, scale_tril = fit_normal(bases.reshape(-1, dim), start, x, model=model)
    family = FullRankNormal(dim)
    return family, family.from_moments(mean, scale_tril * (1 + 0.5 / dim**0.5) ** 0.5)


def num_nodes(dim: int) -> int:
    """Return the nodes behind a proposal of this dimension: whole bases and their mirror images."""
    return 2 * dim * -(-16 // dim)


def fit_normal(
    directions: Float[Array, "n d"], start: Float[Array, " d"], x: Datum, *, model: Model
) -> tuple[Float[Array, " d"], Float[Array, "d d"]]:
    """Return mean and lower triangular root of the covariance of a normal that maximises the ELBO on fixed nodes.

    Formula: `argmax_{m, L} (1/2n) sum_i sum_{+-} log p(x, m +- sqrt(d) L u_i) + log |L|`, by Newton steps
    `m + a P^-1 E[g]`, `L L' = ((1 - a) (L L')^-1 + a P)^-1` with `P = -E[L^-T e g']`, g the gradient at node e, which
    is the mean curvature by Stein's identity; a step takes the best of several a, or stays. Exact after one step where
    the posterior is normal, since the second moments of the nodes are those of the standard normal.

    Args:
      directions: rows u_i of whole orthonormal bases.
      start: first mean; the first covariance is the identity.
      x: one datum.
      model: record with `log_joint(z, x)`.

    Returns:
      Mean [d] and L [d, d]; the start where no step raises the objective.

    Source: Opper and Archambeau, "The variational Gaussian approximation revisited" (2009), equations 9 and 10.
    """
    dim = start.size
    nodes = dim**0.5 * jnp.concatenate([directions, -directions])

    def objective(mean: Array, root: Array) -> Array:
        values = jax.vmap(lambda node: model.log_joint(mean + root @ node, x))(nodes)
        return jnp.mean(values) + jnp.sum(jnp.log(jnp.diag(root)))

    def step(carry: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], None]:
        mean, root, _value = carry
        slopes = jax.vmap(lambda node: jax.grad(model.log_joint)(mean + root @ node, x))(nodes)
        curvature = -jax.scipy.linalg.solve_triangular(root.T, nodes.T @ slopes / len(nodes), lower=False)
        values, vectors = jnp.linalg.eigh(0.5 * (curvature + curvature.T))
        curvature = (vectors * jnp.maximum(values, _LEAST_CURVATURE)[None, :]) @ vectors.T
        precision = jax.scipy.linalg.cho_solve((root, True), jnp.eye(dim))

        def moved(rate: Array) -> tuple[Array, Array, Array]:
            covariance = jnp.linalg.inv((1 - rate) * precision + rate * curvature)
            new_root = jnp.linalg.cholesky(0.5 * (covariance + covariance.T))
            new_mean = mean + rate * covariance @ jnp.mean(slopes, axis=0)
            return new_mean, new_root, objective(new_mean, new_root)

        trials = jax.vmap(moved)(jnp.asarray(_RATES, mean.dtype))
        trials = jax.tree.map(lambda old, new: jnp.concatenate([old[None], new]), carry, trials)
        return jax.tree.map(lambda leaf: leaf[_best(trials[2])], trials), None

    first = start, jnp.eye(dim, dtype=start.dtype)
    (mean, root, _), _ = jax.lax.scan(step, (*first, objective(*first)), None, length=_NUM_STEPS)
    return mean, root


def _best(values: Float[Array, " n"]) -> Array:
    """Return the index of the largest value that is a number, 0 if none is."""
    return jnp.argmax(jnp.where(jnp.isnan(values), -jnp.inf, values))


def check_proposal(model: Model, family: Family | None, phi: Array | None) -> None:
    """Refuse an approximate posterior that is incomplete, or not one of the latent of this model."""
    if (family is None) != (phi is None):
        raise ValueError("family and phi belong together: give both or neither")
    if family is not None:
        check_sizes(model, family)
        check_phi(phi, family)


def check_proposals(model: Model, family: Family | None, phis: Array | None, num_data: int) -> None:
    """Refuse approximate posteriors of all data without their family, or of another shape."""
    if phis is not None:
        if family is None:
            raise ValueError("phis were given without their family")
        check_sizes(model, family)
        check_phis("phis", phis, family, num_data)
