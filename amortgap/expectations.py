"""How an expectation under q is taken: by draws, by cubature or by quadrature, with the nodes of the fixed rules."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from amortgap._internal.checks import check_choice, check_count
from amortgap.protocols import Family, Reparameterised

MAX_QUADRATURE_DIM = 3
# Nodes of one axis; beyond it the outermost weights of the rule leave the range of double precision.
MAX_NODES = 128
# Standard deviations that the nodes of a plain integral reach at most.
_REACH = 10.0
ESTIMATORS = ("sticking_the_landing", "analytic_entropy", "total")
METHODS = ("monte_carlo", "cubature", "quadrature")


@dataclass(frozen=True)
class Expectation:
    """How to take an expectation under q.

    Args:
      method: "monte_carlo" (`elbo`), "cubature" (`cubature_elbo`, exact for log joints quadratic in the latent) or
        "quadrature" (`quadrature_elbo`, at most three dimensions).
      size: draws of Monte Carlo, nodes an axis of quadrature; cubature has no choice.
      estimator: of the Monte Carlo gradient, as in `elbo`.

    Raises:
      ValueError: an unknown method or estimator, a size that is not positive, or nodes of quadrature outside 2 to 128.
    """

    method: str = "monte_carlo"
    size: int = 1
    estimator: str = "sticking_the_landing"

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        check_choice("estimator", self.estimator, ESTIMATORS)
        check_count("size", self.size)
        if self.method == "quadrature":
            check_count("size", self.size, minimum=2, maximum=MAX_NODES)

    def check(self, name: str, family: Family) -> None:
        """Refuse a rule that cannot serve the family, naming the argument `name`.

        Args:
          name: the argument that holds the rule.
          family: the variational family.

        Raises:
          ValueError: quadrature on more than three dimensions, with bad nodes or for a family without `transform`.
        """
        if self.method == "quadrature":
            if not isinstance(family, Reparameterised):
                raise ValueError(f"{name}: fixed nodes need family.transform, which {type(family).__name__} lacks")
            try:
                gauss_hermite(self.size, family.noise_dim)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error


MONTE_CARLO = Expectation()
CUBATURE = Expectation("cubature")


def nodes(
    phi: Float[Array, " size"], *, family: Reparameterised, expectation: Expectation
) -> tuple[Float[Array, "S d"], Float[Array, " S"]]:
    """Return points and weights whose weighted mean approximates the expectation under q(z; phi).

    Formula: `E_{q(z; phi)}[f(z)] ~ sum_s w_s f(T(u_s; phi))`, u_s and w_s the nodes and weights of the standard normal.

    Args:
      phi: variational parameters, [family.size].
      family: record with `noise_dim` and `transform(noise, phi)`.
      expectation: cubature or quadrature.

    Returns:
      Points [S, d] and weights [S], which sum to one.

    Raises:
      ValueError: Monte Carlo, which has no fixed nodes, and quadrature as in `quadrature_elbo`.

    Source: as in `cubature_elbo` and `quadrature_elbo`.
    """
    if expectation.method == "monte_carlo":
        raise ValueError("expectation must be 'cubature' or 'quadrature' to have nodes, got 'monte_carlo'")
    if expectation.method == "cubature":
        points, weights = spherical_cubature(family.noise_dim)
    else:
        points, weights = gauss_hermite(expectation.size, family.noise_dim)
    moved = jax.vmap(lambda noise: family.transform(noise, phi))(jnp.asarray(points, phi.dtype))
    return moved, jnp.asarray(weights, phi.dtype)


def spherical_cubature(dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes [2 dim, dim] and weights of expectations under the standard normal, exact to the third degree.

    Formula: `E_{N(u; 0, I)}[f(u)] ~ 1/(2 dim) sum_j sum_{+-} f(+-sqrt(dim) e_j)`.

    Args:
      dim: dimension of the standard normal.

    Returns:
      Nodes [2 dim, dim] and weights [2 dim], which sum to one.

    Source: Arasaratnam and Haykin, "Cubature Kalman filters" (2009), section III.
    """
    unit = np.sqrt(dim) * np.eye(dim)
    return np.concatenate([unit, -unit]), np.full(2 * dim, 0.5 / dim)


def gauss_hermite(num_nodes: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes [num_nodes^dim, dim] and weights of expectations under the standard normal.

    Formula: `E_{N(u; 0, I)}[f(u)] = sum_j w_j f(u_j)`, the product over axes of the one-dimensional Gauss-Hermite rule.

    Args:
      num_nodes: nodes of one axis, 2 to 128.
      dim: dimension of the standard normal, at most three.

    Returns:
      Nodes [num_nodes^dim, dim] and weights [num_nodes^dim], which sum to one.

    Raises:
      ValueError: more than three dimensions, or num_nodes outside 2 to 128.

    Source: Liu and Pierce, "A note on Gauss-Hermite quadrature" (1994).
    """
    check_count("num_nodes", num_nodes, minimum=2, maximum=MAX_NODES)
    if dim > MAX_QUADRATURE_DIM:
        raise ValueError(
            f"quadrature serves at most {MAX_QUADRATURE_DIM} dimensions, got {dim} standard normals behind one draw; "
            "use Monte Carlo, or cubature where the log joint is quadratic"
        )
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    return _product(nodes, dim), _product(weights / weights.sum(), dim).prod(axis=1)


def plain_gauss_hermite(num_nodes: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes [num_nodes^dim, dim] and log weights of integrals without the normal weight.

    Formula: `integral f(u) du = sum_j exp(l_j) f(u_j)`, with `l_j = log w_j + u_j' u_j / 2` of the product rule.

    Args:
      num_nodes: nodes of one axis.
      dim: dimension of u.

    Returns:
      Nodes [num_nodes^dim, dim], within ten standard deviations, and log weights [num_nodes^dim].

    Source: Liu and Pierce, "A note on Gauss-Hermite quadrature" (1994).
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    log_weights = np.log(weights) + 0.5 * nodes**2
    # Beyond some forty nodes the outermost lie where no posterior has mass; a narrower grid resolves it better.
    factor = min(1.0, _REACH / nodes.max())
    return _product(factor * nodes, dim), _product(log_weights + math.log(factor), dim).sum(axis=1)


def _product(values: np.ndarray, dim: int) -> np.ndarray:
    """Return every choice of one of the values for each axis, [len(values)^dim, dim]."""
    return np.array(list(itertools.product(values, repeat=dim)))
