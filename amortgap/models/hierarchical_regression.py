"""Hierarchical linear regression: coefficients of every group around common ones; everything is known exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from amortgap._internal.checks import check_count, check_positive, num_rows
from amortgap._internal.records import checked_record
from amortgap.families.normal import LOG_2PI, standard_normal_log_prob
from amortgap.models.arrowhead import ArrowheadPosterior, arrowhead_posterior
from amortgap.protocols import Data


class GroupStatistics(NamedTuple):
    """Sufficient statistics of the observations of one group.

    Attributes:
      gram: `X'X`, [d, d].
      cross: `X'y`, [d].
      square: `y'y`.
      count: number of observations n.
    """

    gram: Float[Array, "*N d d"]
    cross: Float[Array, "*N d"]
    square: Float[Array, "*N"]
    count: Float[Array, "*N"]

    def features(self) -> Float[Array, " p"]:
        """Return the input of an encoder, the statistics per observation: `X'X / n` (lower triangle) and `X'y / n`."""
        rows, columns = np.tril_indices(self.cross.shape[-1])
        return jnp.concatenate([self.gram[rows, columns], self.cross]) / self.count


def group_statistics(features: Array, responses: Array) -> GroupStatistics:
    """Return the sufficient statistics of N groups of n observations each, features [N, n, d], responses [N, n].

    Formula: `X_i' X_i`, `X_i' y_i`, `y_i' y_i` and n for every group i.

    Args:
      features: X, [N, n, d].
      responses: y, [N, n].

    Returns:
      GroupStatistics with a leading axis N.

    Raises:
      ValueError: features and responses whose shapes do not fit.

    Source: as in `HierarchicalRegression`.
    """
    if features.ndim != 3 or responses.shape != features.shape[:2]:
        raise ValueError(
            f"features must be [N, n, d] and responses [N, n], got shapes {features.shape} and {responses.shape}"
        )
    gram = jnp.einsum("nij,nik->njk", features, features)
    cross = jnp.einsum("nij,ni->nj", features, responses)
    count = jnp.full(features.shape[0], float(features.shape[1]), features.dtype)
    return GroupStatistics(gram, cross, jnp.sum(responses**2, axis=1), count)


@checked_record
@dataclass(frozen=True, kw_only=True)
class HierarchicalRegression:
    """Linear regression in groups with normal coefficients.

    Formula: `theta ~ N(0, I)`, `z_i ~ N(theta, I)`, `y_ij ~ N(x_ij' z_i, s^2)`; the datum is a `GroupStatistics`.

    Args:
      dim: d, of theta and of every z_i.
      noise_variance: s^2, positive.

    Raises:
      ValueError: a dim or noise variance that is not positive.

    Source: Agrawal and Domke, "Amortized variational inference for simple hierarchical models" (2021), section 6.1.
    """

    dim: int = field(metadata={"static": True})
    noise_variance: float = field(default=1.0, metadata={"static": True})

    def __post_init__(self) -> None:
        check_count("dim", self.dim)
        check_positive("noise_variance", self.noise_variance)

    @property
    def global_dim(self) -> int:
        """Dimension of theta."""
        return self.dim

    @property
    def latent_dim(self) -> int:
        """Dimension of one z."""
        return self.dim

    def validate(self, name: str, xs: Data) -> None:
        """Raise a ValueError that names `name` unless `xs` are groups of this model."""
        d = self.dim
        if not isinstance(xs, GroupStatistics) or (xs.gram.shape[1:], xs.cross.shape[1:]) != ((d, d), (d,)):
            got = [leaf.shape for leaf in xs] if isinstance(xs, GroupStatistics) else type(xs).__name__
            raise ValueError(f"{name} must be a GroupStatistics with gram [N, {d}, {d}] and cross [N, {d}], got {got}")

    def log_prior(self, theta: Float[Array, " K"]) -> Float[Array, ""]:
        """Return `log p(theta)` in nats."""
        return standard_normal_log_prob(theta)

    def log_local(self, theta: Float[Array, " K"], z: Float[Array, " d"], x: GroupStatistics) -> Float[Array, ""]:
        """Return `log p(z | theta) + log p(y | X, z)` of one group in nats."""
        squares = x.square - 2 * x.cross @ z + z @ x.gram @ z
        likelihood = squares / self.noise_variance + x.count * (math.log(self.noise_variance) + LOG_2PI)
        return standard_normal_log_prob(z - theta) - 0.5 * likelihood

    def sample(self, key: jax.Array, num_data: int, num_observations: int) -> tuple[Array, Array, GroupStatistics]:
        """Return theta [K], all z [N, d] and the N groups, drawn from the model with standard normal features.

        Args:
          key: typed key.
          num_data: N groups.
          num_observations: observations of every group.
        """
        keys = jax.random.split(key, 4)
        theta = jax.random.normal(keys[0], (self.dim,))
        zs = theta[None] + jax.random.normal(keys[1], (num_data, self.dim))
        features = jax.random.normal(keys[2], (num_data, num_observations, self.dim))
        noise = math.sqrt(self.noise_variance) * jax.random.normal(keys[3], (num_data, num_observations))
        return theta, zs, group_statistics(features, jnp.einsum("nij,nj->ni", features, zs) + noise)

    def posterior(self, xs: GroupStatistics) -> ArrowheadPosterior:
        """Return the exact posterior of theta and all z, in double precision."""
        n, d = num_rows(xs), self.dim
        eye = np.eye(d)
        return arrowhead_posterior(
            global_precision=(1 + n) * eye,
            cross=np.tile(-eye[None], (n, 1, 1)),
            local_precision=eye[None] + np.asarray(xs.gram, np.float64) / self.noise_variance,
            global_linear=np.zeros(d),
            local_linear=np.asarray(xs.cross, np.float64) / self.noise_variance,
        )

    def log_evidence_of_data(self, xs: GroupStatistics) -> float:
        """Return `log p(y | X)` of all groups in nats, in double precision."""
        posterior = self.posterior(xs)
        theta, z = posterior.global_mean, posterior.local_mean
        gram, cross, square, count = (np.asarray(leaf, np.float64) for leaf in xs)
        squares = square - 2 * np.sum(cross * z, axis=1) + np.einsum("ni,nij,nj->n", z, gram, z)
        n, d = z.shape
        log_joint = -0.5 * (theta @ theta + d * LOG_2PI + np.sum((z - theta) ** 2) + n * d * LOG_2PI)
        log_joint -= 0.5 * np.sum(squares / self.noise_variance + count * (math.log(self.noise_variance) + LOG_2PI))
        return float(log_joint + posterior.log_normaliser())

    def branch_optimum(self, x: GroupStatistics) -> tuple[Float[Array, " d"], Float[Array, "d d"], Float[Array, "d d"]]:
        """Return offset m, slopes G and covariance of the exact `p(z | theta, x) = N(m + G theta, G)` of one group."""
        covariance = jnp.linalg.inv(jnp.eye(self.dim) + x.gram / self.noise_variance)
        return covariance @ x.cross / self.noise_variance, covariance, covariance
