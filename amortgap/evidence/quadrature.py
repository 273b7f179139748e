"""log p(x) by adaptive Gauss-Hermite quadrature: the reference for models of up to three latent dimensions."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from amortgap._internal.checks import check_count, check_datum, check_key, check_sizes
from amortgap.evidence.records import Evidence
from amortgap.expectations import MAX_NODES, MAX_QUADRATURE_DIM, plain_gauss_hermite
from amortgap.protocols import HasMoments


def check_quadrature(model: Any) -> None:
    """Refuse a model with more latent dimensions than a product rule can serve."""
    if model.latent_dim > MAX_QUADRATURE_DIM:
        raise ValueError(
            f"method 'quadrature' serves latent dimensions up to {MAX_QUADRATURE_DIM}, "
            f"got model.latent_dim = {model.latent_dim}; use 'importance' or 'ais'"
        )


def quadrature(
    key: jax.Array,
    x: Any,
    *,
    model: Any,
    family: Any = None,
    phi: Float[Array, " size"] | None = None,
    num_nodes: int = 32,
    num_refinements: int = 3,
) -> Evidence:
    """Compute log p(x) of one datum by adaptive Gauss-Hermite quadrature.

    Formula: `log sum_j |L| w_j exp(u_j' u_j / 2) p(x, m + L u_j)`, u_j and w_j the product rule for the standard
    normal weight, or for a narrower one where the nodes would reach beyond ten standard deviations. Centre m and scale
    L start at the moments of q(z; phi) and are replaced `num_refinements` times by the posterior moments that the rule
    itself yields.

    Args:
      key: typed key; used only where the moments of q have to be taken from draws.
      x: one datum.
      model: record with `log_joint(z, x)` and at most three latent dimensions.
      family, phi: a first approximation of the posterior, such as the local optimum; None for the standard normal.
      num_nodes: nodes of one axis, 4 to 128; the cost is num_nodes^d.
      num_refinements: times the rule is centred again.

    Returns:
      Evidence in nats; the standard error is the change against three quarters of the nodes, no Monte Carlo error.

    Raises:
      ValueError: a latent dimension above three, phi without a family, bad counts, or an x that is not one datum.

    Source: Naylor and Smith (1982); Liu and Pierce, "A note on Gauss-Hermite quadrature" (1994).
    """
    check_key(key)
    check_quadrature(model)
    x = check_datum(x, model)
    dim = model.latent_dim
    check_count("num_nodes", num_nodes, minimum=4, maximum=MAX_NODES)
    check_count("num_refinements", num_refinements, minimum=0)
    if (family is None) != (phi is None):
        raise ValueError("family and phi belong together: give both or neither")
    mean, scale = jnp.zeros(dim), jnp.eye(dim)
    if family is not None and phi is not None:
        check_sizes(model, family)
        mean, scale = _moments(key, family, phi)

    def apply(rule: tuple[np.ndarray, np.ndarray], mean: Array, scale: Array) -> tuple[Array, Array, Array]:
        nodes, log_weights = (jnp.asarray(part, mean.dtype) for part in rule)
        points = mean[None, :] + nodes @ scale.T
        values = log_weights + jax.vmap(lambda z: model.log_joint(z, x))(points)
        total = logsumexp(values)
        mass = jnp.exp(values - jnp.where(jnp.isfinite(total), total, 0.0))
        new_mean = mass @ points
        centred = (points - new_mean[None, :]) * jnp.sqrt(mass)[:, None]
        covariance = centred.T @ centred
        new_scale = jnp.linalg.cholesky(covariance)
        good = jnp.all(jnp.isfinite(new_scale)) & jnp.all(jnp.diag(new_scale) > 0)
        # log |L| as the sum of the logs of its diagonal: the scale is lower triangular.
        value = total + jnp.sum(jnp.log(jnp.abs(jnp.diag(scale))))
        return value, jnp.where(good, new_mean, mean), jnp.where(good, new_scale, scale)

    fine, coarse = (plain_gauss_hermite(number, dim) for number in (num_nodes, math.ceil(0.75 * num_nodes)))
    for _ in range(num_refinements):
        _, mean, scale = apply(fine, mean, scale)
    value, _, _ = apply(fine, mean, scale)
    rough, _, _ = apply(coarse, mean, scale)
    return Evidence(
        log_evidence=value,
        standard_error=jnp.where(jnp.isneginf(value), jnp.inf, jnp.abs(value - rough)),
        effective_sample_size=jnp.full_like(value, jnp.inf),
        pareto_k=jnp.full_like(value, -jnp.inf),
        method=f"adaptive Gauss-Hermite quadrature, {num_nodes} nodes an axis",
        bias="numerical",
    )


def _moments(key: jax.Array, family: Any, phi: Array) -> tuple[Array, Array]:
    if isinstance(family, HasMoments):
        return family.moments(phi)
    draws = jax.vmap(lambda k: family.sample_and_log_prob(k, phi)[0])(jax.random.split(key, 1000))
    covariance = jnp.atleast_2d(jnp.cov(draws.T))
    return jnp.mean(draws, axis=0), jnp.linalg.cholesky(covariance)
