"""Nodes and weights of integrals over a few dimensions: fixed rules in the place of draws."""

from __future__ import annotations

import itertools
import math

import numpy as np

from amortgap._checks import check_count

MAX_QUADRATURE_DIM = 3
# Nodes of one axis; beyond it the outermost weights of the rule leave the range of double precision.
MAX_NODES = 128
# Standard deviations that the nodes of a plain integral reach at most.
_REACH = 10.0


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
    # Beyond some forty nodes the outermost lie where no posterior has mass; drawn together they resolve it better.
    together = min(1.0, _REACH / nodes.max())
    return _product(together * nodes, dim), _product(log_weights + math.log(together), dim).sum(axis=1)


def _product(values: np.ndarray, dim: int) -> np.ndarray:
    """Return every choice of one of the values for each axis, [len(values)^dim, dim]."""
    return np.array(list(itertools.product(values, repeat=dim)))
