"""Mixtures of diagonal normals, for posteriors with several modes or heavy shoulders."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp, ndtr
from jaxtyping import Array, Float

from amortgap._internal.checks import check_count
from amortgap.families.normal import LOG_2PI


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MixtureOfNormals:
    """Mixture of normals with diagonal covariances.

    Formula: `q(z; phi) = sum_k w_k N(z; m_k, diag(s_k^2))`, `phi = [logits of w, m_1..m_K, log s_1..log s_K]`.

    Draws are reparameterised implicitly: with F(z; phi) the map from z to its conditional distribution functions
    `F_j(z_j | z_1..z_{j-1})`, `dz/dphi = -(dF/dz)^-1 dF/dphi`. The gradient of the ELBO is then unbiased for the
    weights too, although a component is drawn. The ELBO has several local optima: see `local_vi_from_starts`.

    Args:
      latent_dim: dimension d of z.
      num_components: K.

    Attributes:
      name: of the family, "mixture".
      full_support: its density is positive everywhere.

    Raises:
      ValueError: `num_components` or `latent_dim` is not a positive whole number.

    Source: Figurnov, Mohamed and Mnih, "Implicit reparameterization gradients" (2018), section 4.
    """

    latent_dim: int = field(metadata={"static": True})
    num_components: int = field(metadata={"static": True})
    name: ClassVar[str] = "mixture"
    full_support: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count("latent_dim", self.latent_dim)
        check_count("num_components", self.num_components)

    @property
    def size(self) -> int:
        """Length of phi, `K (2 d + 1)`."""
        return self.num_components * (2 * self.latent_dim + 1)

    def unpack(self, phi: Float[Array, " size"]) -> tuple[Float[Array, " K"], Float[Array, "K d"], Float[Array, "K d"]]:
        """Return log weights [K], means [K, d] and log scales [K, d] of the components."""
        return _unpack(phi, self.latent_dim)

    def pack(
        self, log_weights: Float[Array, " K"], means: Float[Array, "K d"], log_scales: Float[Array, "K d"]
    ) -> Float[Array, " size"]:
        """Return the phi with these (unnormalised) log weights, means and log scales."""
        return jnp.concatenate([log_weights, means.ravel(), log_scales.ravel()])

    def from_moments(self, mean: Float[Array, " d"], scale_tril: Float[Array, "d d"]) -> Float[Array, " size"]:
        """Return the phi whose components all have this mean and the marginal scales of `scale_tril scale_tril'`."""
        log_scale = 0.5 * jnp.log(jnp.sum(scale_tril**2, axis=1))
        tile = (self.num_components, 1)
        return self.pack(jnp.zeros(self.num_components), jnp.tile(mean, tile), jnp.tile(log_scale, tile))

    def standard(self) -> Float[Array, " size"]:
        """Return a phi near the standard normal, with means apart: equal components would have equal gradients."""
        shape = (self.num_components, self.latent_dim)
        spread = 0.0 if self.num_components == 1 else 0.5
        means = spread * np.random.default_rng(0).standard_normal(shape)
        log_scales = jnp.full(shape, 0.5 * math.log1p(-(spread**2)))
        return self.pack(jnp.zeros(self.num_components), jnp.asarray(means), log_scales)

    def random_start(self, key: jax.Array, spread: float) -> Float[Array, " size"]:
        """Return components of equal weight and unit scales around means drawn from `N(0, spread^2 I)`.

        Weights are not drawn: a component that starts with almost no weight has almost no gradient.
        """
        shape = (self.num_components, self.latent_dim)
        return self.pack(jnp.zeros(self.num_components), spread * jax.random.normal(key, shape), jnp.zeros(shape))

    def log_prob(self, z: Float[Array, " d"], phi: Float[Array, " size"]) -> Float[Array, ""]:
        """Return `log q(z; phi)` in nats."""
        log_weights, means, log_scales = self.unpack(phi)
        noise = (z[None, :] - means) * jnp.exp(-log_scales)
        return logsumexp(log_weights - jnp.sum(0.5 * noise**2 + log_scales + 0.5 * LOG_2PI, axis=1))

    def sample_and_log_prob(
        self, key: jax.Array, phi: Float[Array, " size"]
    ) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """Return one draw and its log density in nats."""
        key_component, key_noise = jax.random.split(key)
        uniform = jax.random.uniform(key_component, (), phi.dtype)
        z = _draw(uniform, jax.random.normal(key_noise, (self.latent_dim,), phi.dtype), phi)
        return z, self.log_prob(z, phi)


def _unpack(phi: Array, d: int) -> tuple[Array, Array, Array]:
    k = phi.size // (2 * d + 1)
    means, log_scales = phi[k:].reshape(2, k, d)
    return jax.nn.log_softmax(phi[:k]), means, log_scales


@jax.custom_jvp
def _draw(uniform: Array, noise: Array, phi: Array) -> Array:
    log_weights, means, log_scales = _unpack(phi, noise.size)
    reached = jnp.cumsum(jnp.exp(log_weights))
    index = jnp.minimum(jnp.sum(uniform >= reached), log_weights.size - 1)
    return means[index] + jnp.exp(log_scales[index]) * noise


@_draw.defjvp
def _draw_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    uniform, noise, phi = primals
    # The same function draws z, so that second derivatives are implicit too.
    z = _draw(uniform, noise, phi)
    _, moved = jax.jvp(lambda phi: _conditional_cdfs(z, phi), (phi,), (tangents[2],))
    slope = jax.jacfwd(_conditional_cdfs)(z, phi)
    return z, -jax.scipy.linalg.solve_triangular(slope, moved, lower=True)


def _conditional_cdfs(z: Array, phi: Array) -> Array:
    """Return `F_j(z_j | z_1..z_{j-1}) = sum_k w_k(z_1..z_{j-1}) Phi((z_j - m_kj) / s_kj)` for every j."""
    log_weights, means, log_scales = _unpack(phi, z.size)
    noise = (z[None, :] - means) * jnp.exp(-log_scales)
    log_density = -0.5 * noise**2 - log_scales
    before = jnp.cumsum(log_density, axis=1) - log_density
    weights = jax.nn.softmax(log_weights[:, None] + before, axis=0)
    return jnp.sum(weights * ndtr(noise), axis=0)
