"""A decoder with random weights: the weights are the global latent, the codes of the data the local ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from amortgap._internal.checks import check_count, check_positive, check_row_shape
from amortgap._internal.records import checked_record
from amortgap.networks import Network, count_weights, dense

_LOG_2PI = math.log(2 * math.pi)


@checked_record
@dataclass(frozen=True, kw_only=True)
class BayesianDecoder:
    """A neural decoder with a standard normal prior on every weight; made by `bayesian_decoder`.

    Formula: `theta ~ N(0, I)`, `z_n ~ N(0, I)`, `x_n | z_n, theta ~ N(network_theta(z_n), s^2 I)`.

    Attributes:
      network: the architecture; its own weights only give theta its shape.
      latent_dim: dimension of z.
      data_dim: dimension of x.
      noise_variance: s^2.

    Source: Margossian and Blei, "Amortized variational inference: when and why?" (2024), section 5.3.
    """

    network: Network
    latent_dim: int = field(metadata={"static": True})
    data_dim: int = field(metadata={"static": True})
    noise_variance: float = field(default=1.0, metadata={"static": True})

    @property
    def global_dim(self) -> int:
        """Number of weights and biases."""
        return count_weights(self.network)

    def validate(self, name: str, xs: Any) -> None:
        """Raise a ValueError that names `name` unless `xs` can be data of this model."""
        check_row_shape(name, xs, (self.data_dim,))

    def log_prior(self, theta: Float[Array, " K"]) -> Float[Array, ""]:
        """Return `log p(theta)` in nats."""
        return -0.5 * (jnp.sum(theta**2) + theta.size * _LOG_2PI)

    def decode(self, theta: Float[Array, " K"], z: Float[Array, " d"]) -> Float[Array, " D"]:
        """Return the mean of x [D] at the weights theta [K] and the code z [d]."""
        return ravel_pytree(self.network)[1](theta)(z)

    def log_local(self, theta: Float[Array, " K"], z: Float[Array, " d"], x: Float[Array, " D"]) -> Float[Array, ""]:
        """Return `log p(z) + log p(x | z, theta)` in nats."""
        squares = jnp.sum(z**2) + jnp.sum((x - self.decode(theta, z)) ** 2) / self.noise_variance
        dims = self.latent_dim + self.data_dim
        return -0.5 * (squares + dims * _LOG_2PI + self.data_dim * math.log(self.noise_variance))


def bayesian_decoder(
    key: jax.Array,
    *,
    latent_dim: int,
    data_dim: int,
    width: int,
    depth: int = 2,
    activation: str = "leaky_relu",
    noise_variance: float = 1.0,
) -> BayesianDecoder:
    """Return a decoder with random weights; the key's initial weights serve as a start of q0's means.

    Formula: as in `BayesianDecoder`; the network has `depth` hidden layers of `width` units.

    Args:
      key: typed key.
      latent_dim, data_dim: dimensions of z and x.
      width, depth: of the hidden layers.
      activation: one of `amortgap.networks.ACTIVATIONS`.
      noise_variance: s^2, positive.

    Returns:
      BayesianDecoder.

    Raises:
      ValueError: bad key, a size or noise variance that is not positive, or an unknown activation.

    Source: as in `BayesianDecoder`.
    """
    for name, size in (("latent_dim", latent_dim), ("data_dim", data_dim), ("width", width)):
        check_count(name, size)
    check_count("depth", depth, minimum=0)
    check_positive("noise_variance", noise_variance)
    network = dense(key, (latent_dim, *[width] * depth, data_dim), activation=activation)
    return BayesianDecoder(
        network=network, latent_dim=latent_dim, data_dim=data_dim, noise_variance=float(noise_variance)
    )
