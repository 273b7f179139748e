"""Poisson counts with a Gamma rate: a skewed posterior on which the normal family's gap is still elementary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln
from jaxtyping import Array, Float

from amortgap._internal.checks import check_range, check_row_shape, is_concrete
from amortgap._internal.records import checked_record
from amortgap.families.normal import LOG_2PI
from amortgap.models.array_fields import set_array_fields
from amortgap.protocols import Data


@checked_record
@dataclass(frozen=True, kw_only=True)
class PoissonGamma:
    """Poisson counts with a Gamma prior on the rate; the latent is the log rate.

    Formula: `lambda = exp(z) ~ Gamma(shape, rate)`, `count | z ~ Poisson(exposure * exp(z))`.
    One datum is `x = [count]` (exposure one) or `x = [count, exposure]`.

    Args:
      shape: a > 0.
      rate: b > 0.

    Attributes:
      log_concave: True, `log p(x, z)` is concave in z.

    Raises:
      ValueError: a shape or rate that is no positive scalar.
    """

    shape: Float[Array, ""]
    rate: Float[Array, ""]
    log_concave: ClassVar[bool] = True

    def __post_init__(self) -> None:
        set_array_fields(self, {"shape": "", "rate": ""}, positive=("shape", "rate"))

    @property
    def latent_dim(self) -> int:
        """Dimension of z, one."""
        return 1

    def validate(self, name: str, xs: Data) -> None:
        """Raise a ValueError that names `name` unless `xs` can be data of this model."""
        if getattr(xs, "ndim", None) != 2 or xs.shape[1] != 1:
            check_row_shape(name, xs, (2,))
        check_range(f"{name}[:, 0] (counts)", xs[:, 0], low=0.0, whole=True)
        if xs.shape[1] == 2 and is_concrete(xs) and float(xs[:, 1].min()) <= 0:
            raise ValueError(f"{name}[:, 1] (exposures) must be positive, got {float(xs[:, 1].min()):g}")

    def _split(self, x: Array) -> tuple[Array, Array]:
        return x[0], (x[1] if x.shape[0] == 2 else jnp.ones_like(x[0]))

    def log_prior(self, z: Float[Array, " 1"]) -> Float[Array, ""]:
        """Return `log p(z) = a log b - log Gamma(a) + a z - b exp(z)` in nats, the Jacobian of the log included."""
        return self.shape * jnp.log(self.rate) - gammaln(self.shape) + self.shape * z[0] - self.rate * jnp.exp(z[0])

    def log_likelihood(self, z: Float[Array, " 1"], x: Float[Array, " columns"]) -> Float[Array, ""]:
        """Return `log p(count | z)` in nats."""
        count, exposure = self._split(x)
        return count * (jnp.log(exposure) + z[0]) - exposure * jnp.exp(z[0]) - gammaln(count + 1)

    def log_joint(self, z: Float[Array, " 1"], x: Float[Array, " columns"]) -> Float[Array, ""]:
        """Return `log p(x, z)` in nats."""
        return self.log_prior(z) + self.log_likelihood(z, x)

    def posterior_parameters(self, x: Float[Array, " columns"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Return shape and rate of the exact Gamma posterior of the rate, `(a + count, b + exposure)`."""
        count, exposure = self._split(x)
        return self.shape + count, self.rate + exposure

    def log_evidence(self, x: Float[Array, " columns"]) -> Float[Array, ""]:
        """Return the exact `log p(x)` in nats, a negative binomial mass."""
        count, exposure = self._split(x)
        alpha, beta = self.posterior_parameters(x)
        prior = self.shape * jnp.log(self.rate) - gammaln(self.shape)
        return gammaln(alpha) + prior - gammaln(count + 1) + count * jnp.log(exposure) - alpha * jnp.log(beta)

    def normal_optimum(self, x: Float[Array, " columns"]) -> tuple[Float[Array, " 1"], Float[Array, " 1"]]:
        """Return mean and scale of the normal on z that is nearest to the posterior in KL(q || p).

        Formula: `scale^2 = 1 / alpha`, `mean = log(alpha / beta) - 1 / (2 alpha)` for the posterior Gamma(alpha, beta).
        """
        alpha, beta = self.posterior_parameters(x)
        return (jnp.log(alpha / beta) - 0.5 / alpha)[None], (alpha**-0.5)[None]

    def approximation_gap(self, x: Float[Array, " columns"]) -> Float[Array, ""]:
        """Return the approximation gap of the normal family for one datum, in nats.

        Formula: `log Gamma(alpha) - (alpha - 1/2) log alpha + alpha - 1/2 log 2 pi`, the remainder of Stirling's
        series, about `1 / (12 alpha)`.
        """
        alpha, _ = self.posterior_parameters(x)
        return gammaln(alpha) - (alpha - 0.5) * jnp.log(alpha) + alpha - 0.5 * LOG_2PI

    def sample(self, key: jax.Array) -> tuple[Float[Array, " 1"], Float[Array, " 1"]]:
        """Return one draw (z, [count]) from the joint, with exposure one."""
        key_rate, key_count = jax.random.split(key)
        rate = jax.random.gamma(key_rate, self.shape) / self.rate
        return jnp.log(rate)[None], jax.random.poisson(key_count, rate).astype(rate.dtype)[None]
