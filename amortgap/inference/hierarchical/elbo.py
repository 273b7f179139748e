"""The ELBO of global and local latents together, made of one-datum ELBOs and nothing else.

The data set is one datum whose latent is theta and whose log joint holds the ELBOs of the local latents:

    ELBO = E_{q0(theta)}[ log p(theta) - log q0(theta) + sum_i ELBO(phi_i; x_i, theta) ]
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from amortgap._internal.checks import as_data, check_count, check_data, check_key, check_latent_dim, num_rows
from amortgap._internal.devices import map_data
from amortgap.expectations import MONTE_CARLO, Expectation
from amortgap.inference.hierarchical.factors import LocalFactors, check_factors, model_datum
from amortgap.models.hierarchical import FixedGlobal, check_global_model
from amortgap.objectives import bound
from amortgap.protocols import Data, Datum, Family, HierarchicalModel

# Number of data whose local terms are in memory together.
_CHUNK = 20_000


@dataclass(frozen=True)
class _DataSetAsDatum:
    """A model of theta alone: `log p(theta) + (N / |B|) sum_{i in B} ELBO(phi_i; x_i, theta)`."""

    key: jax.Array | None
    factors: LocalFactors
    model: HierarchicalModel
    family: Family
    expectation: Expectation
    scale: float

    @property
    def latent_dim(self) -> int:
        return self.model.global_dim

    def log_joint(self, z: Array, x: tuple[Array, Data]) -> Array:
        """Return the value at theta = z for the data x, indices and rows."""
        at_theta = FixedGlobal(model=self.model, theta=z)

        def local_elbo(_: Array, row: tuple[Array, Datum]) -> Array:
            index, datum = row
            return bound(
                None if self.key is None else jax.random.fold_in(self.key, index),
                self.factors(index, datum, z),
                model_datum(datum),
                model=at_theta,
                family=self.family,
                expectation=self.expectation,
            )

        return self.model.log_prior(z) + self.scale * jnp.sum(map_data(local_elbo, x, chunk_size=_CHUNK))


def hierarchical_elbo(
    key: jax.Array | None,
    global_phi: Float[Array, " global_size"],
    factors: LocalFactors,
    xs: Data,
    *,
    model: HierarchicalModel,
    global_family: Family,
    family: Family,
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
      xs: data; a dict with the entries "datum" and "input" if encoder and model read different parts.
      model: HierarchicalModel.
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
    xs = check_hierarchy(xs, factors, model, global_family, family)
    global_expectation.check("global_expectation", global_family)
    local_expectation.check("local_expectation", family)
    n = num_rows(xs)
    if rows is None:
        batch, rows = xs, jnp.arange(n)
    else:
        check_count("rows.shape[0]", rows.shape[0], maximum=n)
        batch = jax.tree.map(lambda leaf: leaf[rows], xs)
    scale = n / rows.shape[0]

    def value(key_global: jax.Array | None, key_local: jax.Array | None, expectation: Expectation) -> Array:
        data_set = _DataSetAsDatum(key_local, factors, model, family, local_expectation, scale)
        return bound(
            key_global, global_phi, (rows, batch), model=data_set, family=global_family, expectation=expectation
        )

    if global_expectation.method != "monte_carlo":
        return value(None, key, global_expectation)
    check_key(key)
    assert key is not None
    one_draw = Expectation("monte_carlo", 1, global_expectation.estimator)
    keys = jax.random.split(key, (global_expectation.size, 2))
    return jnp.mean(jax.vmap(lambda pair: value(pair[0], pair[1], one_draw))(keys))


# The public name of the package's first release.
whole_elbo = hierarchical_elbo


def check_hierarchy(
    xs: Data, factors: LocalFactors, model: HierarchicalModel, global_family: Family, family: Family
) -> Data:
    """Return the data as checked arrays, refusing parts that do not fit each other; see `hierarchical_elbo`."""
    check_global_model(model)
    got = getattr(global_family, "latent_dim", None)
    if got != model.global_dim:
        raise ValueError(f"global_family must have latent_dim = model.global_dim = {model.global_dim}, got {got}")
    check_latent_dim(model, family)
    xs = as_data("xs", xs)
    check_data("xs", model_datum(xs), model)
    check_factors(factors, xs, family, model)
    return xs
