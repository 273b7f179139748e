"""A mixture prior under a linear decoder: a posterior with several modes, and still everything in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from amortgap._internal.checks import check_row_shape
from amortgap._internal.records import checked_record
from amortgap.families.normal import LOG_2PI
from amortgap.models.array_fields import set_array_fields
from amortgap.models.likelihoods import diagonal_normal_log_prob
from amortgap.protocols import Data


class MixturePosterior(NamedTuple):
    """The exact posterior `sum_k w_k N(m_k, S_k)` of one datum.

    Attributes:
      log_weights: log w_k, [K].
      means: m_k, [K, d].
      covariances: S_k, [K, d, d].
    """

    log_weights: Float[Array, " K"]
    means: Float[Array, "K d"]
    covariances: Float[Array, "K d d"]


@checked_record
@dataclass(frozen=True, kw_only=True)
class MixturePrior:
    """A linear Gaussian decoder under a mixture of normals.

    Formula: `z ~ sum_k w_k N(c_k, diag(s_k^2))`, `x | z ~ N(W z + b, diag(psi))`.

    Args:
      log_weights: log w_k, normalised when used, [K].
      centres: c_k, [K, d].
      scales: s_k, [K, d], positive.
      loadings: W, [D, d].
      mean: b, [D].
      noise_variance: psi, [D], positive.

    Raises:
      ValueError: shapes that do not fit, entries that are not finite, or scales or variances that are not positive.

    Source: Bishop, Pattern Recognition and Machine Learning (2006), equations 2.113 to 2.117, for every component.
    """

    log_weights: Float[Array, " K"]
    centres: Float[Array, "K d"]
    scales: Float[Array, "K d"]
    loadings: Float[Array, "D d"]
    mean: Float[Array, " D"]
    noise_variance: Float[Array, " D"]

    def __post_init__(self) -> None:
        shapes = {
            "log_weights": "K",
            "centres": "K d",
            "scales": "K d",
            "loadings": "D d",
            "mean": "D",
            "noise_variance": "D",
        }
        set_array_fields(self, shapes, positive=("scales", "noise_variance"))

    @property
    def latent_dim(self) -> int:
        """Dimension d of z."""
        return self.loadings.shape[-1]

    @property
    def data_dim(self) -> int:
        """Dimension D of x."""
        return self.loadings.shape[-2]

    def validate(self, name: str, xs: Data) -> None:
        """Raise a ValueError that names `name` unless `xs` can be data of this model."""
        check_row_shape(name, xs, (self.data_dim,))

    def log_prior(self, z: Float[Array, " d"]) -> Float[Array, ""]:
        """Return `log p(z)` in nats."""
        components = jax.vmap(diagonal_normal_log_prob)(z[None, :] - self.centres, self.scales**2)
        return logsumexp(jax.nn.log_softmax(self.log_weights) + components)

    def log_likelihood(self, z: Float[Array, " d"], x: Float[Array, " D"]) -> Float[Array, ""]:
        """Return `log p(x | z)` in nats."""
        return diagonal_normal_log_prob(x - self.mean - self.loadings @ z, self.noise_variance)

    def log_joint(self, z: Float[Array, " d"], x: Float[Array, " D"]) -> Float[Array, ""]:
        """Return `log p(x, z)` in nats."""
        return self.log_prior(z) + self.log_likelihood(z, x)

    def _components(self, x: Array) -> tuple[Array, Array, Array]:
        """Return `log w_k + log p(x | k)`, posterior means and posterior covariances of every component."""

        def one(centre: Array, scale: Array) -> tuple[Array, Array, Array]:
            covariance = (self.loadings * scale[None, :] ** 2) @ self.loadings.T + jnp.diag(self.noise_variance)
            residual = x - self.mean - self.loadings @ centre
            solved = jnp.linalg.solve(covariance, residual)
            log_mass = -0.5 * (residual @ solved + jnp.linalg.slogdet(covariance)[1] + x.shape[0] * LOG_2PI)
            precision = jnp.diag(scale**-2) + (self.loadings / self.noise_variance[:, None]).T @ self.loadings
            return log_mass, centre + scale**2 * (self.loadings.T @ solved), jnp.linalg.inv(precision)

        log_mass, means, covariances = jax.vmap(one)(self.centres, self.scales)
        return jax.nn.log_softmax(self.log_weights) + log_mass, means, covariances

    def posterior(self, x: Float[Array, " D"]) -> MixturePosterior:
        """Return the exact posterior of one datum, a mixture of as many normals as the prior."""
        log_mass, means, covariances = self._components(x)
        return MixturePosterior(jax.nn.log_softmax(log_mass), means, covariances)

    def log_evidence(self, x: Float[Array, " D"]) -> Float[Array, ""]:
        """Return `log p(x) = log sum_k w_k N(x; W c_k + b, W diag(s_k^2) W' + diag(psi))` in nats."""
        return logsumexp(self._components(x)[0])

    def sample(self, key: jax.Array) -> tuple[Float[Array, " d"], Float[Array, " D"]]:
        """Return one draw (z, x) from the joint, [d] and [D]."""
        key_component, key_latent, key_noise = jax.random.split(key, 3)
        k = jax.random.categorical(key_component, self.log_weights)
        dtype = self.mean.dtype
        z = self.centres[k] + self.scales[k] * jax.random.normal(key_latent, (self.latent_dim,), dtype)
        noise = jax.random.normal(key_noise, (self.data_dim,), dtype)
        return z, self.mean + self.loadings @ z + jnp.sqrt(self.noise_variance) * noise
