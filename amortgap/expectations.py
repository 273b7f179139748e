"""How the expectation in an ELBO is taken: by draws, by cubature or by quadrature, chosen by one record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from amortgap._checks import check_choice, check_count
from amortgap.nodes import MAX_NODES, gauss_hermite, spherical_cubature
from amortgap.objectives import ESTIMATORS, cubature_elbo, elbo, quadrature_elbo

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

    def check(self, name: str, family: Any) -> None:
        """Refuse a rule that cannot serve the family, naming the argument `name`.

        Args:
          name: what the rule is called in the message.
          family: the variational family.

        Raises:
          ValueError: quadrature on more than three dimensions or with bad nodes.
        """
        if self.method == "quadrature":
            try:
                gauss_hermite(self.size, family.noise_dim)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error


MONTE_CARLO = Expectation()
CUBATURE = Expectation("cubature")


def bound(
    key: jax.Array | None,
    phi: Float[Array, " size"],
    x: Any,
    *,
    model: Any,
    family: Any,
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
    chosen = {"num_samples": expectation.size, "estimator": expectation.estimator}
    return elbo(key, phi, x, model=model, family=family, **chosen)  # pyright: ignore[reportArgumentType]


def nodes(
    phi: Float[Array, " size"], *, family: Any, expectation: Expectation
) -> tuple[Float[Array, "S d"], Float[Array, " S"]]:
    """Return points and weights whose weighted mean stands for the expectation under q(z; phi).

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
