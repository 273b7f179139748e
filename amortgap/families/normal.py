"""Normal variational families: diagonal, full and low-rank-plus-diagonal covariance.

Every family maps standard normal noise to the latent, `z = T(noise; phi)`, from one unconstrained vector `phi`. The
standard normal density, which models use as a prior, is here too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from amortgap._internal.checks import check_count
from amortgap.protocols import Reparameterised

LOG_2PI = math.log(2 * math.pi)


def standard_normal_log_prob(noise: Float[Array, " n"]) -> Float[Array, ""]:
    """Return `log N(noise; 0, I)` in nats."""
    return -0.5 * (jnp.sum(noise**2) + noise.size * LOG_2PI)


def transformed_draw(
    family: Reparameterised, key: jax.Array, phi: Float[Array, " size"]
) -> tuple[Float[Array, " d"], Float[Array, ""]]:
    """Return one draw, the transform of one block of noise, and its log density in nats."""
    z = family.transform(jax.random.normal(key, (family.noise_dim,), phi.dtype), phi)
    return z, family.log_prob(z, phi)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MeanFieldNormal:
    """Normal family with independent coordinates (mean field, also "fully factorised Gaussian").

    Formula: `q(z; phi) = N(z; mean, diag(scale^2))`, `phi = [mean, log scale]`.

    Args:
      latent_dim: dimension d of z.

    Attributes:
      name: of the family, "mean_field".
      diagonal: whether it holds diagonal covariances only.
      full_support: its density is positive everywhere.

    Raises:
      ValueError: `latent_dim` is not a positive whole number.

    Example:
      >>> import jax.numpy as jnp, amortgap as ag
      >>> family = ag.families.MeanFieldNormal(2)
      >>> phi = family.from_moments(jnp.array([1.0, -1.0]), jnp.diag(jnp.array([0.5, 2.0])))
      >>> print(family.size, [f"{entry:.3f}" for entry in phi])
      4 ['1.000', '-1.000', '-0.693', '0.693']
    """

    latent_dim: int = field(metadata={"static": True})
    name: ClassVar[str] = "mean_field"
    diagonal: ClassVar[bool] = True
    full_support: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count("latent_dim", self.latent_dim)

    @property
    def size(self) -> int:
        """Length of phi, `2 d`."""
        return 2 * self.latent_dim

    @property
    def noise_dim(self) -> int:
        """Number of standard normals behind one draw."""
        return self.latent_dim

    def from_moments(self, mean: Float[Array, " d"], scale_tril: Float[Array, "d d"]) -> Float[Array, " size"]:
        """Return the phi with this mean and the marginal scales of the covariance `scale_tril scale_tril'`."""
        return jnp.concatenate([mean, 0.5 * jnp.log(jnp.sum(scale_tril**2, axis=1))])

    def standard(self) -> Float[Array, " size"]:
        """Return the phi of the standard normal."""
        return jnp.zeros(self.size)

    def moments(self, phi: Float[Array, " size"]) -> tuple[Float[Array, " d"], Float[Array, "d d"]]:
        """Return the mean and a lower triangular square root of the covariance."""
        mean, log_scale = jnp.split(phi, 2)
        return mean, jnp.diag(jnp.exp(log_scale))

    def transform(self, noise: Float[Array, " d"], phi: Float[Array, " size"]) -> Float[Array, " d"]:
        """Return `z = mean + scale * noise`."""
        mean, log_scale = jnp.split(phi, 2)
        return mean + jnp.exp(log_scale) * noise

    def log_prob(self, z: Float[Array, " d"], phi: Float[Array, " size"]) -> Float[Array, ""]:
        """Return `log q(z; phi)` in nats."""
        mean, log_scale = jnp.split(phi, 2)
        return standard_normal_log_prob((z - mean) * jnp.exp(-log_scale)) - jnp.sum(log_scale)

    def entropy(self, phi: Float[Array, " size"]) -> Float[Array, ""]:
        """Return the differential entropy `sum_j log scale_j + d/2 (1 + log 2 pi)` in nats."""
        return jnp.sum(phi[self.latent_dim :]) + 0.5 * self.latent_dim * (1 + LOG_2PI)

    sample_and_log_prob = transformed_draw


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FullRankNormal:
    """Normal family with any covariance.

    Formula: `q(z; phi) = N(z; mean, L L')`, `phi = [mean, log diag L, strict lower part of L by rows]`.

    Args:
      latent_dim: dimension d of z.

    Attributes:
      name: of the family, "full_rank".
      diagonal: whether it holds diagonal covariances only.
      full_support: its density is positive everywhere.

    Raises:
      ValueError: `latent_dim` is not a positive whole number.
    """

    latent_dim: int = field(metadata={"static": True})
    name: ClassVar[str] = "full_rank"
    diagonal: ClassVar[bool] = False
    full_support: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count("latent_dim", self.latent_dim)

    @property
    def size(self) -> int:
        """Length of phi, `d + d (d + 1) / 2`."""
        return self.latent_dim + self.latent_dim * (self.latent_dim + 1) // 2

    @property
    def noise_dim(self) -> int:
        """Number of standard normals behind one draw."""
        return self.latent_dim

    def from_moments(self, mean: Float[Array, " d"], scale_tril: Float[Array, "d d"]) -> Float[Array, " size"]:
        """Return the phi with this mean and covariance `scale_tril scale_tril'` (positive diagonal)."""
        rows, columns = np.tril_indices(self.latent_dim, -1)
        return jnp.concatenate([mean, jnp.log(jnp.diag(scale_tril)), scale_tril[rows, columns]])

    def standard(self) -> Float[Array, " size"]:
        """Return the phi of the standard normal."""
        return jnp.zeros(self.size)

    def moments(self, phi: Float[Array, " size"]) -> tuple[Float[Array, " d"], Float[Array, "d d"]]:
        """Return the mean and the lower triangular square root L of the covariance."""
        d = self.latent_dim
        rows, columns = np.tril_indices(d, -1)
        scale_tril = jnp.diag(jnp.exp(phi[d : 2 * d])).at[rows, columns].set(phi[2 * d :])
        return phi[:d], scale_tril

    def transform(self, noise: Float[Array, " d"], phi: Float[Array, " size"]) -> Float[Array, " d"]:
        """Return `z = mean + L noise`."""
        mean, scale_tril = self.moments(phi)
        return mean + scale_tril @ noise

    def log_prob(self, z: Float[Array, " d"], phi: Float[Array, " size"]) -> Float[Array, ""]:
        """Return `log q(z; phi)` in nats."""
        mean, scale_tril = self.moments(phi)
        noise = jax.scipy.linalg.solve_triangular(scale_tril, z - mean, lower=True)
        return standard_normal_log_prob(noise) - jnp.sum(phi[self.latent_dim : 2 * self.latent_dim])

    def entropy(self, phi: Float[Array, " size"]) -> Float[Array, ""]:
        """Return the differential entropy `log |L| + d/2 (1 + log 2 pi)` in nats."""
        d = self.latent_dim
        return jnp.sum(phi[d : 2 * d]) + 0.5 * d * (1 + LOG_2PI)

    sample_and_log_prob = transformed_draw


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRankNormal:
    """Normal family whose covariance is a diagonal plus a matrix of low rank.

    Formula: `q(z; phi) = N(z; mean, diag(scale^2) + F F')`, `phi = [mean, log scale, F by rows]`, F [d, rank].

    Args:
      latent_dim: dimension d of z.
      rank: number of columns of F, at most d.

    Attributes:
      name: of the family, "low_rank".
      full_support: its density is positive everywhere.

    Raises:
      ValueError: `latent_dim` is not positive, or `rank` is not in [1, d].
    """

    latent_dim: int = field(metadata={"static": True})
    rank: int = field(metadata={"static": True})
    name: ClassVar[str] = "low_rank"
    full_support: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count("latent_dim", self.latent_dim)
        check_count("rank", self.rank, maximum=self.latent_dim)

    @property
    def size(self) -> int:
        """Length of phi, `d (2 + rank)`."""
        return self.latent_dim * (2 + self.rank)

    @property
    def noise_dim(self) -> int:
        """Number of standard normals behind one draw, `d + rank`."""
        return self.latent_dim + self.rank

    def _unpack(self, phi: Array) -> tuple[Array, Array, Array]:
        d = self.latent_dim
        return phi[:d], phi[d : 2 * d], phi[2 * d :].reshape(d, self.rank)

    def from_moments(self, mean: Float[Array, " d"], scale_tril: Float[Array, "d d"]) -> Float[Array, " size"]:
        """Return a phi near the normal with this mean and covariance: leading directions in F, the rest diagonal."""
        covariance = scale_tril @ scale_tril.T
        # F keeps what the strongest directions have above the mean of the discarded ones (probabilistic PCA), so that
        # the diagonal left over stays positive.
        values, vectors = jnp.linalg.eigh(covariance)
        floor = jnp.mean(values[: max(self.latent_dim - self.rank, 1)])
        excess = jnp.maximum(values[-self.rank :] - floor, 1e-3 * values[-self.rank :])
        factor = vectors[:, -self.rank :] * jnp.sqrt(excess)[None, :]
        left = jnp.diag(covariance) - jnp.sum(factor**2, axis=1)
        scale = jnp.sqrt(jnp.maximum(left, 1e-3 * jnp.diag(covariance)))
        return jnp.concatenate([mean, jnp.log(scale), factor.ravel()])

    def standard(self) -> Float[Array, " size"]:
        """Return a phi near the standard normal; F is small but not zero, where its gradient would vanish."""
        d = self.latent_dim
        factor = 0.1 * jnp.eye(d, self.rank)
        log_scale = 0.5 * jnp.log1p(-jnp.sum(factor**2, axis=1))
        return jnp.concatenate([jnp.zeros(d), log_scale, factor.ravel()])

    def moments(self, phi: Float[Array, " size"]) -> tuple[Float[Array, " d"], Float[Array, "d d"]]:
        """Return the mean and the lower triangular square root of the covariance."""
        mean, log_scale, factor = self._unpack(phi)
        return mean, jnp.linalg.cholesky(jnp.diag(jnp.exp(2 * log_scale)) + factor @ factor.T)

    def transform(self, noise: Float[Array, " n"], phi: Float[Array, " size"]) -> Float[Array, " d"]:
        """Return `z = mean + scale * noise_1 + F noise_2`."""
        mean, log_scale, factor = self._unpack(phi)
        return mean + jnp.exp(log_scale) * noise[: self.latent_dim] + factor @ noise[self.latent_dim :]

    def _capacitance(self, log_scale: Array, factor: Array) -> tuple[Array, Array]:
        # Woodbury: only rank x rank systems are solved, never d x d.
        whitened = factor * jnp.exp(-log_scale)[:, None]
        return whitened, jnp.linalg.cholesky(jnp.eye(self.rank) + whitened.T @ whitened)

    def log_prob(self, z: Float[Array, " d"], phi: Float[Array, " size"]) -> Float[Array, ""]:
        """Return `log q(z; phi)` in nats."""
        mean, log_scale, factor = self._unpack(phi)
        whitened, root = self._capacitance(log_scale, factor)
        residual = (z - mean) * jnp.exp(-log_scale)
        projected = jax.scipy.linalg.solve_triangular(root, whitened.T @ residual, lower=True)
        quadratic = jnp.sum(residual**2) - jnp.sum(projected**2)
        log_det = 2 * jnp.sum(log_scale) + 2 * jnp.sum(jnp.log(jnp.diag(root)))
        return -0.5 * (quadratic + log_det + self.latent_dim * LOG_2PI)

    def entropy(self, phi: Float[Array, " size"]) -> Float[Array, ""]:
        """Return the differential entropy `1/2 log |covariance| + d/2 (1 + log 2 pi)` in nats."""
        _, log_scale, factor = self._unpack(phi)
        _, root = self._capacitance(log_scale, factor)
        return jnp.sum(log_scale) + jnp.sum(jnp.log(jnp.diag(root))) + 0.5 * self.latent_dim * (1 + LOG_2PI)

    sample_and_log_prob = transformed_draw
