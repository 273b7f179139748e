"""Three hierarchical models with scalar latents whose optimal factors are known: linear, nonlinear and saw series.

Priors of theta are flat unless a prior variance is given; the ELBO is then a bound on `log integral p(x | theta)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from amortgap._internal.checks import as_float_array, check_finite, check_positive, check_row_shape, is_concrete
from amortgap._internal.records import checked_record
from amortgap.models.arrowhead import ArrowPosterior, arrow_posterior

_LOG_2PI = math.log(2 * math.pi)


def _log_normal(residual: Array, variance: Any) -> Array:
    return -0.5 * (residual**2 / variance + jnp.log(variance) + _LOG_2PI)


@checked_record
@dataclass(frozen=True, kw_only=True)
class LinearHierarchy:
    """Scalar data around a common shift, each with its own scalar latent.

    Formula: `p(theta) = 1` (or `N(0, s0^2)`), `z_n ~ N(0, 1)`, `x_n | z_n, theta ~ N(theta + tau z_n, sigma^2)`.

    Args:
      tau: effect of the latent on the datum.
      sigma: standard deviation of the noise, positive.
      prior_variance: s0^2; None for the flat prior.

    Raises:
      ValueError: a tau that is not finite, or a sigma or a prior variance that is not positive.

    Source: Margossian and Blei, "Amortized variational inference: when and why?" (2024), proposition 3.6.
    """

    tau: float | Array
    sigma: float | Array
    prior_variance: float | None = field(default=None, metadata={"static": True})

    global_dim = 1
    latent_dim = 1

    def __post_init__(self) -> None:
        _check_numbers(self, finite=("tau",), positive=("sigma",))

    def validate(self, name: str, xs: Any) -> None:
        """Raise a ValueError that names `name` unless `xs` can be data of this model: shape [N, 1]."""
        check_row_shape(name, xs, (1,))

    def log_prior(self, theta: Float[Array, " 1"]) -> Float[Array, ""]:
        """Return `log p(theta)` in nats, zero for the flat prior."""
        return _log_prior(theta, self.prior_variance)

    def log_local(self, theta: Float[Array, " 1"], z: Float[Array, " 1"], x: Float[Array, " 1"]) -> Float[Array, ""]:
        """Return `log p(z | theta) + log p(x | z, theta)` in nats."""
        noise = x - theta - self.tau * z
        return jnp.sum(_log_normal(z, 1.0) + _log_normal(noise, jnp.asarray(self.sigma) ** 2))

    def posterior(self, xs: Any) -> ArrowPosterior:
        """Return the exact posterior of theta and all z given data [N, 1], in double precision."""
        x = np.asarray(xs, np.float64)[:, 0]
        n, tau, variance = x.size, float(self.tau), float(self.sigma) ** 2
        prior = 0.0 if self.prior_variance is None else 1 / self.prior_variance
        return arrow_posterior(
            global_precision=np.array([[n / variance + prior]]),
            cross=np.full((n, 1, 1), tau / variance),
            local_precision=np.full((n, 1, 1), 1 + tau**2 / variance),
            global_linear=np.array([x.sum() / variance]),
            local_linear=(tau * x / variance)[:, None],
        )


@checked_record
@dataclass(frozen=True, kw_only=True)
class NonlinearHierarchy:
    """Scalar data whose mean and scale are nonlinear functions of a scalar latent.

    Formula: `p(theta) = 1`, `z_n ~ N(0, 1)`, `x_n | z_n, theta ~ N(theta + z_n (1 + sin z_n), exp(cos z_n)^2)`.
    With `normalised` False the term `-cos z_n`, minus the log standard deviation, is left out of the log density, as in
    the published experiment; the objective is then no bound on a log evidence.

    Args:
      normalised: whether the log density has its normalising term.

    Source: Margossian and Blei (2024), section 5.2, in the form their code implements.
    """

    normalised: bool = field(default=True, metadata={"static": True})

    global_dim = 1
    latent_dim = 1

    def validate(self, name: str, xs: Any) -> None:
        """Raise a ValueError that names `name` unless `xs` can be data of this model: shape [N, 1]."""
        check_row_shape(name, xs, (1,))

    def log_prior(self, theta: Float[Array, " 1"]) -> Float[Array, ""]:
        """Return zero, the log density of the flat prior."""
        return _log_prior(theta, None)

    def log_local(self, theta: Float[Array, " 1"], z: Float[Array, " 1"], x: Float[Array, " 1"]) -> Float[Array, ""]:
        """Return `log p(z | theta) + log p(x | z, theta)` in nats, or without its term `-cos z`."""
        cosine = jnp.cos(z)
        noise = (x - theta - z * (1 + jnp.sin(z))) * jnp.exp(-cosine)
        value = _log_normal(z, 1.0) + _log_normal(noise, 1.0)
        return jnp.sum(value - cosine if self.normalised else value)


@checked_record
@dataclass(frozen=True, kw_only=True)
class SawSeries:
    """A series whose latent depends on the observation before, so that its posterior needs two observations.

    Formula: `p(theta) = 1` (or `N(0, s0^2)`), `z_n | x_{n-1} ~ N(x_{n-1}, 1)`,
    `x_n | z_n, theta ~ N(alpha (theta + z_n), 1)`; the datum is the pair `(x_{n-1}, x_n)`.

    Args:
      alpha: effect of the latent on the observation.
      prior_variance: s0^2; None for the flat prior.

    Raises:
      ValueError: an alpha that is not finite, or a prior variance that is not positive.

    Source: Margossian and Blei (2024), section 5.4.
    """

    alpha: float | Array
    prior_variance: float | None = field(default=None, metadata={"static": True})

    global_dim = 1
    latent_dim = 1

    def __post_init__(self) -> None:
        _check_numbers(self, finite=("alpha",), positive=())

    def validate(self, name: str, xs: Any) -> None:
        """Raise a ValueError that names `name` unless `xs` can be data of this model: pairs, shape [N, 2]."""
        check_row_shape(name, xs, (2,))

    def log_prior(self, theta: Float[Array, " 1"]) -> Float[Array, ""]:
        """Return `log p(theta)` in nats, zero for the flat prior."""
        return _log_prior(theta, self.prior_variance)

    def log_local(self, theta: Float[Array, " 1"], z: Float[Array, " 1"], x: Float[Array, " 2"]) -> Float[Array, ""]:
        """Return `log p(z_n | x_{n-1}) + log p(x_n | z_n, theta)` in nats."""
        return jnp.sum(_log_normal(z - x[:1], 1.0) + _log_normal(x[1:] - self.alpha * (theta + z), 1.0))

    def posterior(self, xs: Any) -> ArrowPosterior:
        """Return the exact posterior of theta and all z given pairs [N, 2], in double precision."""
        before, now = np.asarray(xs, np.float64).T
        n, alpha = now.size, float(self.alpha)
        prior = 0.0 if self.prior_variance is None else 1 / self.prior_variance
        return arrow_posterior(
            global_precision=np.array([[n * alpha**2 + prior]]),
            cross=np.full((n, 1, 1), alpha**2),
            local_precision=np.full((n, 1, 1), 1 + alpha**2),
            global_linear=np.array([alpha * now.sum()]),
            local_linear=(before + alpha * now)[:, None],
        )


def _log_prior(theta: Array, variance: float | None) -> Array:
    return jnp.zeros((), theta.dtype) if variance is None else jnp.sum(_log_normal(theta, variance))


def _check_numbers(model: Any, *, finite: tuple[str, ...], positive: tuple[str, ...]) -> None:
    for name in finite:
        check_finite(name, as_float_array(name, getattr(model, name)))
    for name in positive:
        if is_concrete(as_float_array(name, getattr(model, name))):
            check_positive(name, float(getattr(model, name)))
    if model.prior_variance is not None:
        check_positive("prior_variance", model.prior_variance)
