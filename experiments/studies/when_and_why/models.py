"""The models of Margossian and Blei (2024): linear, nonlinear, a saw series, and a decoder with random weights.

Every model has a global latent theta and one local latent z for each datum. The prior of a scalar theta is flat unless
a prior variance is given; the ELBO is then a bound on `log integral p(x | theta) d theta`.

Source: Margossian and Blei, "Amortized variational inference: when and why?" (2024).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from amortgap.models import ArrowheadPosterior, arrowhead_posterior
from amortgap.networks import Network, count_weights, dense


def _log_prior(theta: Array, variance: float | None) -> Array:
    """Return `log N(theta; 0, variance)`, or zero for the flat prior."""
    return jnp.zeros((), theta.dtype) if variance is None else jnp.sum(norm.logpdf(theta, scale=variance**0.5))


def _prior_precision(variance: float | None) -> float:
    return 0.0 if variance is None else 1 / variance


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LinearHierarchy:
    """Scalar data around a common shift, each with its own scalar latent.

    Formula: `p(theta) = 1` (or `N(0, s0^2)`), `z_n ~ N(0, 1)`, `x_n | z_n, theta ~ N(theta + tau z_n, sigma^2)`.

    Args:
      tau: effect of the latent on the datum.
      sigma: standard deviation of the noise, positive.
      prior_variance: s0^2; None for the flat prior.

    Source: proposition 3.6.
    """

    tau: float | Array
    sigma: float | Array
    prior_variance: float | None = field(default=None, metadata={"static": True})

    global_dim = 1
    latent_dim = 1

    def log_prior(self, theta: Float[Array, " 1"]) -> Float[Array, ""]:
        """Return `log p(theta)` in nats, zero for the flat prior."""
        return _log_prior(theta, self.prior_variance)

    def log_local(self, theta: Float[Array, " 1"], z: Float[Array, " 1"], x: Float[Array, " 1"]) -> Float[Array, ""]:
        """Return `log p(z | theta) + log p(x | z, theta)` in nats."""
        return jnp.sum(norm.logpdf(z) + norm.logpdf(x, theta + self.tau * z, self.sigma))

    def posterior(self, xs: Float[Array, "N 1"]) -> ArrowheadPosterior:
        """Return the exact posterior of theta and all z given data [N, 1], in double precision."""
        x = np.asarray(xs, np.float64)[:, 0]
        n, tau, variance = x.size, float(self.tau), float(self.sigma) ** 2
        return arrowhead_posterior(
            global_precision=np.array([[n / variance + _prior_precision(self.prior_variance)]]),
            cross=np.full((n, 1, 1), tau / variance),
            local_precision=np.full((n, 1, 1), 1 + tau**2 / variance),
            global_linear=np.array([x.sum() / variance]),
            local_linear=(tau * x / variance)[:, None],
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class NonlinearHierarchy:
    """Scalar data whose mean and scale are nonlinear functions of a scalar latent.

    Formula: `p(theta) = 1`, `z_n ~ N(0, 1)`, `x_n | z_n, theta ~ N(theta + z_n (1 + sin z_n), exp(cos z_n)^2)`.

    Args:
      normalised: whether the log density has its term `-cos z_n`, minus the log standard deviation. The published
        experiment leaves it out; its objective is then no bound on a log evidence.

    Source: section 5.2, in the form of the published code.
    """

    normalised: bool = field(default=True, metadata={"static": True})

    global_dim = 1
    latent_dim = 1

    def log_prior(self, theta: Float[Array, " 1"]) -> Float[Array, ""]:
        """Return zero, the log density of the flat prior."""
        return _log_prior(theta, None)

    def log_local(self, theta: Float[Array, " 1"], z: Float[Array, " 1"], x: Float[Array, " 1"]) -> Float[Array, ""]:
        """Return `log p(z | theta) + log p(x | z, theta)` in nats, or without its term `-cos z`."""
        cosine = jnp.cos(z)
        noise = (x - theta - z * (1 + jnp.sin(z))) * jnp.exp(-cosine)
        value = norm.logpdf(z) + norm.logpdf(noise)
        return jnp.sum(value - cosine if self.normalised else value)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SawSeries:
    """A series whose latent depends on the observation before, so that its posterior needs two observations.

    Formula: `p(theta) = 1` (or `N(0, s0^2)`), `z_n | x_{n-1} ~ N(x_{n-1}, 1)`,
    `x_n | z_n, theta ~ N(alpha (theta + z_n), 1)`; the datum is the pair `(x_{n-1}, x_n)`.

    Args:
      alpha: effect of the latent on the observation.
      prior_variance: s0^2; None for the flat prior.

    Source: section 5.4.
    """

    alpha: float | Array
    prior_variance: float | None = field(default=None, metadata={"static": True})

    global_dim = 1
    latent_dim = 1

    def log_prior(self, theta: Float[Array, " 1"]) -> Float[Array, ""]:
        """Return `log p(theta)` in nats, zero for the flat prior."""
        return _log_prior(theta, self.prior_variance)

    def log_local(self, theta: Float[Array, " 1"], z: Float[Array, " 1"], x: Float[Array, " 2"]) -> Float[Array, ""]:
        """Return `log p(z_n | x_{n-1}) + log p(x_n | z_n, theta)` in nats."""
        before, now = x[:1], x[1:]
        return jnp.sum(norm.logpdf(z, before) + norm.logpdf(now, self.alpha * (theta + z)))

    def posterior(self, xs: Float[Array, "N 2"]) -> ArrowheadPosterior:
        """Return the exact posterior of theta and all z given pairs [N, 2], in double precision."""
        before, now = np.asarray(xs, np.float64).T
        n, alpha = now.size, float(self.alpha)
        return arrowhead_posterior(
            global_precision=np.array([[n * alpha**2 + _prior_precision(self.prior_variance)]]),
            cross=np.full((n, 1, 1), alpha**2),
            local_precision=np.full((n, 1, 1), 1 + alpha**2),
            global_linear=np.array([alpha * now.sum()]),
            local_linear=(before + alpha * now)[:, None],
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class BayesianDecoder:
    """A neural decoder with a standard normal prior on every weight; made by `bayesian_decoder`.

    Formula: `theta ~ N(0, I)`, `z_n ~ N(0, I)`, `x_n | z_n, theta ~ N(network_theta(z_n), s^2 I)`.

    Args:
      network: the architecture; its own weights only give theta its shape.
      latent_dim: dimension of z.
      noise_variance: s^2.

    Source: section 5.3.
    """

    network: Network
    latent_dim: int = field(metadata={"static": True})
    noise_variance: float = field(default=1.0, metadata={"static": True})

    @property
    def global_dim(self) -> int:
        """Number of weights and biases."""
        return count_weights(self.network)

    def log_prior(self, theta: Float[Array, " K"]) -> Float[Array, ""]:
        """Return `log p(theta)` in nats."""
        return jnp.sum(norm.logpdf(theta))

    def decode(self, theta: Float[Array, " K"], z: Float[Array, " d"]) -> Float[Array, " D"]:
        """Return the mean of x [D] at the weights theta [K] and the code z [d]."""
        return ravel_pytree(self.network)[1](theta)(z)

    def log_local(self, theta: Float[Array, " K"], z: Float[Array, " d"], x: Float[Array, " D"]) -> Float[Array, ""]:
        """Return `log p(z) + log p(x | z, theta)` in nats."""
        likelihood = norm.logpdf(x, self.decode(theta, z), self.noise_variance**0.5)
        return jnp.sum(norm.logpdf(z)) + jnp.sum(likelihood)


def bayesian_decoder(
    key: jax.Array, *, latent_dim: int, data_dim: int, width: int, depth: int = 2, noise_variance: float = 1.0
) -> BayesianDecoder:
    """Return a decoder of `depth` hidden layers of `width` units; its initial weights may start q0's means."""
    network = dense(key, (latent_dim, *[width] * depth, data_dim), activation="leaky_relu")
    return BayesianDecoder(network=network, latent_dim=latent_dim, noise_variance=noise_variance)
