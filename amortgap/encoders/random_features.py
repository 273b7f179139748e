"""Encoders that are linear in what is trained, so that their best weights are a least-squares problem."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from amortgap._internal.checks import as_data, check_count, check_key
from amortgap._internal.least_squares import generalised_least_squares
from amortgap._internal.records import checked_record
from amortgap.encoders.basic import check_row


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
        """Return `[1, relu(A x + a)]` for one datum.

        Raises:
          ValueError: x is not a vector of length `in_dim`.
        """
        check_row(x, self.in_dim)
        matrix, offset = jax.lax.stop_gradient(self.projection)
        return jnp.concatenate([jnp.ones(1, matrix.dtype), jax.nn.relu(matrix @ x + offset)])

    def __call__(self, x: Float[Array, " in_dim"]) -> Float[Array, " size"]:
        """Return phi for one datum.

        Raises:
          ValueError: x is not a vector of length `in_dim`.
        """
        return self.weights @ self.features(x)

    @property
    def num_weights(self) -> int:
        """Number of trained scalars."""
        return self.weights.size


def random_features(key: jax.Array, in_dim: int, family: Any, *, num_features: int) -> RandomFeatureEncoder:
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
      ValueError: bad key, `in_dim` is not positive or `num_features` is negative.

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


class LeastSquares(NamedTuple):
    """The best weights of an encoder that is linear in them, for normal posteriors.

    Attributes:
      weights: B, [d, features].
      mean_gap: the part of the amortization gap that the means cause, averaged over data, nats.
    """

    weights: np.ndarray
    mean_gap: float


def least_squares(
    features: Float[Array, "N features"], means: Float[Array, "N d"], precisions: Float[Array, "M d d"]
) -> LeastSquares:
    """Return the linear map from features to means that loses least, and what it loses.

    Formula: `B = argmin 1/(2N) sum_i (B f_i - m_i)' Lambda_i (B f_i - m_i)`, generalised least squares. For normal
    families and posteriors N(m_i, Lambda_i^-1) this is the mean part of the amortization gap; with posterior precisions
    that are the same for all data it is all of it.

    Args:
      features: f_i, [N, features], the constant among them.
      means: m_i, [N, d].
      precisions: Lambda_i, [N, d, d], or one for all, [1, d, d].

    Returns:
      LeastSquares with B [d, features] and the mean gap in nats.

    Raises:
      ValueError: shapes that do not fit, or entries that are not finite.

    Source: Aitken, "On least squares and linear combination of observations" (1935).
    """
    # In double precision on the host.
    f, m, p = (
        np.asarray(as_data(name, value), np.float64)
        for name, value in (("features", features), ("means", means), ("precisions", precisions))
    )
    n, d = m.shape
    if f.ndim != 2 or len(f) != n or p.shape not in ((n, d, d), (1, d, d)):
        raise ValueError(
            "features, means and precisions must be [N, features], [N, d] and [N or 1, d, d], "
            f"got {f.shape}, {m.shape} and {p.shape}"
        )
    root = np.linalg.cholesky(p).transpose(0, 2, 1)
    if len(root) == 1:
        # One precision for all data: the outputs separate.
        weights = generalised_least_squares(f, m).coefficients.T
    else:
        design = np.einsum("nk,ij->nikj", f, np.eye(d)).reshape(n * d, f.shape[1] * d)

        def whiten(columns: np.ndarray) -> np.ndarray:
            return (root @ columns.reshape(n, d, -1)).reshape(n * d, -1)

        weights = generalised_least_squares(design, m.reshape(n * d, 1), whiten=whiten).coefficients
        weights = weights.reshape(f.shape[1], d).T
    left = np.einsum("nij,nj->ni", np.broadcast_to(root, (n, d, d)), f @ weights.T - m)
    return LeastSquares(weights, float(0.5 * np.mean(np.sum(left**2, axis=1))))


def fit_random_features(
    encoder: RandomFeatureEncoder, xs: Float[Array, "N in_dim"], *, model: Any
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

    Source: as in `random_features` and `least_squares`.
    """
    xs = as_data("xs", xs)
    d = model.latent_dim
    if encoder.weights.shape[0] != 2 * d:
        raise ValueError(f"encoder must return phi of size 2 d = {2 * d}, got {encoder.weights.shape[0]}")
    precision = model.posterior_precision()
    found = least_squares(jax.vmap(encoder.features)(xs), jax.vmap(model.posterior_mean)(xs), precision[None])
    log_scales = jnp.zeros((d, encoder.weights.shape[1])).at[:, 0].set(-0.5 * jnp.log(jnp.diag(precision)))
    weights = jnp.concatenate([jnp.asarray(found.weights, log_scales.dtype), log_scales])
    return replace(encoder, weights=weights), found.mean_gap
