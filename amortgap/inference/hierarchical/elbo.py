"""The ELBO of global and local latents together, made of one-datum ELBOs and nothing else.

The whole data set is one datum whose latent is theta and whose log joint holds the ELBOs of the local latents:

    ELBO = E_{q0(theta)}[ log p(theta) - log q0(theta) + sum_i ELBO(phi_i; x_i, theta) ]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from amortgap._internal.checks import as_data, check_count, check_data, check_key, check_latent_dim, num_rows
from amortgap._internal.devices import map_data
from amortgap.expectations import MONTE_CARLO, Expectation
from amortgap.inference.hierarchical.factors import LocalFactors, check_factors, model_datum
from amortgap.models.hierarchical import FixedGlobal, check_global_model
from amortgap.objectives import bound

# Data whose local terms are computed together.
_CHUNK = 20_000


@dataclass(frozen=True)
class _Whole:
    """The data as one datum: `log p(theta) + (N / |B|) sum_{i in B} ELBO(phi_i; x_i, theta)`."""

    key: Any
    factors: LocalFactors
    model: Any
    family: Any
    expectation: Expectation
    scale: float | Array

    @property
    def latent_dim(self) -> int:
        return self.model.global_dim

    def log_joint(self, theta: Array, x: tuple[Array, Any]) -> Array:
        def local(_: Array, row: tuple[Array, Any]) -> Array:
            index, datum = row
            key = None if self.key is None else jax.random.fold_in(self.key, index)
            at_theta = FixedGlobal(model=self.model, theta=theta)
            phi = self.factors(index, datum, theta)
            given = {"model": at_theta, "family": self.family, "expectation": self.expectation}
            return bound(key, phi, model_datum(datum), **given)

        return self.model.log_prior(theta) + self.scale * jnp.sum(map_data(local, x, chunk_size=_CHUNK))


def whole_elbo(
    key: jax.Array | None,
    global_phi: Float[Array, " global_size"],
    factors: Any,
    xs: Any,
    *,
    model: Any,
    global_family: Any,
    family: Any,
    global_expectation: Expectation = MONTE_CARLO,
    local_expectation: Expectation = MONTE_CARLO,
    rows: Int[Array, " batch"] | None = None,
) -> Float[Array, ""]:
    """ELBO of theta and all local latents, or its unbiased estimate from a minibatch.

    Formula: `E_{q0(theta)}[log p(theta) - log q0(theta) + (N / |B|) sum_{i in B} ELBO(phi_i(theta); x_i, theta)]`,
    `q(theta, z) = q0(theta) prod_i q(z_i; phi_i(theta))`.

    Both levels are `bound`: the outer one takes the data set as one datum with latent theta. Each Monte Carlo draw of
    theta has its own draws of z.

    Args:
      key: typed key of the draws, or None if both expectations are deterministic.
      global_phi: parameters of q0, [global_family.size].
      factors: LocalFactors.
      xs: data; a dict with the entries "datum" and "input" if the encoder reads something else than the model.
      model: record with `global_dim`, `latent_dim`, `log_prior(theta)` and `log_local(theta, z, x)`.
      global_family, family: of theta and of one z.
      global_expectation, local_expectation: how the expectations over theta and over z are taken. Cubature over theta
        is exact if the whole log joint is quadratic in theta at fixed z, quadrature over z for any smooth model.
      rows: indices of the minibatch B; None for all data.

    Returns:
      A scalar in nats for the whole data set.

    Raises:
      ValueError: parts that do not fit each other, a batch larger than N, or quadrature on too many dimensions.

    Source: Agrawal and Domke (2021), equation 9; Margossian and Blei (2024), section 2.
    """
    xs = check_whole(xs, factors, model, global_family, family, global_expectation, local_expectation)
    n = num_rows(xs)
    if rows is None:
        chosen, rows = xs, jnp.arange(n)
    else:
        check_count("rows.shape[0]", rows.shape[0], maximum=n)
        chosen = jax.tree.map(lambda leaf: leaf[rows], xs)
    scale = n / rows.shape[0]

    def value(key_global: Any, key_local: Any, expectation: Expectation) -> Array:
        whole = _Whole(key_local, factors, model, family, local_expectation, scale)
        given = {"model": whole, "family": global_family, "expectation": expectation}
        return bound(key_global, global_phi, (rows, chosen), **given)

    if global_expectation.method != "monte_carlo":
        return value(None, key, global_expectation)
    one = Expectation("monte_carlo", 1, global_expectation.estimator)
    check_key(key)
    keys = jax.random.split(key, (global_expectation.size, 2))  # pyright: ignore[reportArgumentType]
    return jnp.mean(jax.vmap(lambda pair: value(pair[0], pair[1], one))(keys))


def check_whole(
    xs: Any,
    factors: Any,
    model: Any,
    global_family: Any,
    family: Any,
    global_expectation: Expectation,
    local_expectation: Expectation,
) -> Any:
    """Return the data as checked arrays, refusing parts that do not fit each other; see `whole_elbo`."""
    check_global_model(model)
    if global_family is None or global_family.latent_dim != model.global_dim:
        got = None if global_family is None else global_family.latent_dim
        raise ValueError(f"global_family must have latent_dim = model.global_dim = {model.global_dim}, got {got}")
    check_latent_dim(model, family)
    xs = as_data("xs", xs)
    check_data("xs", model_datum(xs), model)
    check_factors(factors, xs, family, model)
    global_expectation.check("global_expectation", global_family)
    local_expectation.check("local_expectation", family)
    return xs
