"""Encoders that are linear in their weights, so that the best weights solve a least-squares problem."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from amortgap._internal.checks import as_data, check_count, check_key
from amortgap._internal.records import checked_record
from amortgap.encoders.basic import check_row
from amortgap.encoders.least_squares import least_squares
from amortgap.networks import weight_count
from amortgap.protocols import Family, Head


@checked_record
@dataclass(frozen=True)
class RandomFeatureEncoder:
    """Fixed random features and a trained affine map; made by `random_features`.

    Formula: `phi = B f(x)`, `f(x) = [1, relu(A x + a)]`, A and a fixed.

    Attributes:
      weights: B, [family.size, num_features + 1], trained.
      projection: A, [num_features, in_dim], and offsets a, [num_features], constants.
      in_dim: length of one datum.
    """

    weights: Float[Array, "size features"]
    projection: tuple[Float[Array, "k in_dim"], Float[Array, " k"]]
    in_dim: int = field(metadata={"static": True})

    def features(self, x: Float[Array, " in_dim"]) -> Float[Array, " features"]:
        """Return `[1, relu(A x + a)]` for one datum, refusing an x that is not a vector of length `in_dim`."""
        check_row(x, self.in_dim)
        matrix, offset = jax.lax.stop_gradient(self.projection)
        return jnp.concatenate([jnp.ones(1, matrix.dtype), jax.nn.relu(matrix @ x + offset)])

    def __call__(self, x: Float[Array, " in_dim"]) -> Float[Array, " size"]:
        """Return phi for one datum, refusing an x that is not a vector of length `in_dim`."""
        return self.weights @ self.features(x)

    num_weights = weight_count("weights")


def random_features(key: jax.Array, in_dim: int, family: Family | Head, *, num_features: int) -> RandomFeatureEncoder:
    """Return an encoder on `num_features` random features; encoders of one key and more features contain it.

    Formula: `phi = B [1, relu(A x + a)]`, A ~ N(0, 1 / in_dim), a ~ N(0, 1).

    Args:
      key: typed key of the features.
      in_dim: length of one datum.
      family: variational family.
      num_features: k, 0 for the constant encoder.

    Returns:
      RandomFeatureEncoder, from one datum [in_dim] to phi [family.size]; it starts at the family's standard member.

    Raises:
      ValueError: a bad key, `in_dim` is not positive or `num_features` is negative.

    Source: Rahimi and Recht, "Random features for large-scale kernel machines" (2007), for the idea.
    """
    check_key(key)
    check_count("in_dim", in_dim)
    check_count("num_features", num_features, minimum=0)

    def feature(index: Array) -> tuple[Array, Array]:
        draw = jax.random.normal(jax.random.fold_in(key, index), (in_dim + 1,))
        return draw[:-1] / jnp.sqrt(float(in_dim)), draw[-1]

    projection = jax.vmap(feature)(jnp.arange(num_features))
    weights = jnp.zeros((family.size, num_features + 1)).at[:, 0].set(family.standard())
    return RandomFeatureEncoder(weights, projection, in_dim)


@runtime_checkable
class HasNormalPosterior(Protocol):
    """A model whose exact posterior is normal, with one precision for all data."""

    @property
    def latent_dim(self) -> int:
        """Dimension d of z."""
        ...

    def posterior_mean(self, x: Array) -> Array:
        """Return `E[z | x]`, [d]."""
        ...

    def posterior_precision(self) -> Array:
        """Return the inverse of the posterior covariance, [d, d]."""
        ...


def fit_random_features(
    encoder: RandomFeatureEncoder, xs: Float[Array, "N in_dim"], *, model: HasNormalPosterior
) -> tuple[RandomFeatureEncoder, float]:
    """Return the best mean field random-feature encoder of factor analysis, and its exact amortization gap in nats.

    Formula: means by `least_squares`, log scales constant at `-1/2 log Lambda_jj`.

    Args:
      encoder: of a mean field normal family.
      xs: data, [N, in_dim].
      model: with `posterior_mean(x)` and a `posterior_precision()` that is the same for every datum.

    Returns:
      The encoder with its best weights, and its mean amortization gap over `xs` in nats.

    Raises:
      ValueError: data that are not finite, or an encoder whose output is not [means, log scales] of the model's
        latents.
    """
    xs = as_data("xs", xs)
    d = model.latent_dim
    if encoder.weights.shape[0] != 2 * d:
        raise ValueError(f"encoder must return phi of size 2 d = {2 * d}, got {encoder.weights.shape[0]}")
    precision = model.posterior_precision()
    best = least_squares(jax.vmap(encoder.features)(xs), jax.vmap(model.posterior_mean)(xs), precision[None])
    log_scales = jnp.zeros((d, encoder.weights.shape[1])).at[:, 0].set(-0.5 * jnp.log(jnp.diag(precision)))
    weights = jnp.concatenate([jnp.asarray(best.weights, log_scales.dtype), log_scales])
    return replace(encoder, weights=weights), best.mean_gap
