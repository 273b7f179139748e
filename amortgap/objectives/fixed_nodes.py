"""The ELBO without draws, its expectation taken on fixed nodes, and the ELBO by an `Expectation`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from amortgap._internal.checks import check_datum, check_phi, check_sizes
from amortgap.expectations import MONTE_CARLO, Expectation, gauss_hermite, spherical_cubature
from amortgap.objectives.monte_carlo import elbo
from amortgap.protocols import Datum, Family, HasEntropy, Model, Reparameterised


def cubature_elbo(phi: Float[Array, " size"], x: Datum, *, model: Model, family: Family) -> Float[Array, ""]:
    """ELBO of one datum by the third-degree spherical cubature rule: no draws, exact for log joints quadratic in z.

    Formula: `1/(2n) sum_j sum_{+-} log p(x, T(+-sqrt(n) e_j; phi)) + H[q]`, T the map from n standard normals to z and
    e_j the j-th unit vector. For other log joints it is an approximation of the ELBO and not a bound on log p(x).

    Args:
      phi, x, model: as in `elbo`.
      family: record with `noise_dim`, `transform(noise, phi)` affine in the noise, and `entropy(phi)`.

    Returns:
      A scalar in nats.

    Raises:
      ValueError: phi of another size, a family without `transform` and `entropy`, and as in `elbo`.

    Source: Arasaratnam and Haykin, "Cubature Kalman filters" (2009), section III.
    """
    return _weighted_elbo(phi, x, model, family, spherical_cubature)


def quadrature_elbo(
    phi: Float[Array, " size"], x: Datum, *, model: Model, family: Family, num_nodes: int = 64
) -> Float[Array, ""]:
    """ELBO of one datum by Gauss-Hermite quadrature: no draws, for latents of at most three dimensions.

    Formula: `sum_j w_j log p(x, T(u_j; phi)) + H[q]`, u_j and w_j the product rule of the standard normal. Exact for
    log joints that are polynomials in z of degree below twice the nodes; for smooth ones the error falls exponentially.

    Args:
      phi, x, model, family: as in `cubature_elbo`.
      num_nodes: nodes of one axis, 2 to 128; the cost is num_nodes^d.

    Returns:
      A scalar in nats.

    Raises:
      ValueError: more than three dimensions, bad num_nodes, and as in `cubature_elbo`.

    Source: Liu and Pierce, "A note on Gauss-Hermite quadrature" (1994).
    """
    return _weighted_elbo(phi, x, model, family, partial(gauss_hermite, num_nodes))


def _weighted_elbo(
    phi: Array, x: Datum, model: Model, family: Family, rule: Callable[[int], tuple[np.ndarray, np.ndarray]]
) -> Array:
    """Return the ELBO with the expected log joint taken on the nodes of `rule(noise_dim)`."""
    check_sizes(model, family)
    if not (isinstance(family, Reparameterised) and isinstance(family, HasEntropy)):
        raise ValueError(f"fixed nodes need family.transform and family.entropy, {type(family).__name__} lacks one")
    check_phi(phi, family)
    x = check_datum(x, model)
    points, weights = (jnp.asarray(part, phi.dtype) for part in rule(family.noise_dim))
    values = jax.vmap(lambda noise: model.log_joint(family.transform(noise, phi), x))(points)
    return jnp.sum(weights * values) + family.entropy(phi)


def bound(
    key: jax.Array | None,
    phi: Float[Array, " size"],
    x: Datum,
    *,
    model: Model,
    family: Family,
    expectation: Expectation = MONTE_CARLO,
) -> Float[Array, ""]:
    """ELBO of one datum with the expectation taken as asked.

    Formula: `E_{q(z; phi)}[log p(x, z)] + H[q(z; phi)]`.

    Args:
      key: typed key of the draws; unused, and may be None, without Monte Carlo.
      phi, x, model, family: as in `elbo`.
      expectation: how the expectation is taken.

    Returns:
      A scalar in nats.

    Raises:
      ValueError: as in `elbo`, `cubature_elbo` and `quadrature_elbo`.

    Source: as in `elbo`, `cubature_elbo` and `quadrature_elbo`.
    """
    if expectation.method == "cubature":
        return cubature_elbo(phi, x, model=model, family=family)
    if expectation.method == "quadrature":
        return quadrature_elbo(phi, x, model=model, family=family, num_nodes=expectation.size)
    if key is None:
        raise ValueError("key must be a typed key where the expectation is taken by Monte Carlo, got None")
    return elbo(
        key,
        phi,
        x,
        model=model,
        family=family,
        num_samples=expectation.size,
        estimator=expectation.estimator,
    )
