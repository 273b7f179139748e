"""Observation models `p(x | output of a decoder)`: Bernoulli, Binomial and Gaussian."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.scipy.special import gammaln
from jaxtyping import Array, Float

from amortgap._internal.checks import as_float_array, check_count, check_range, is_concrete
from amortgap._internal.records import checked_record
from amortgap.families.normal import LOG_2PI
from amortgap.protocols import Data


@runtime_checkable
class Likelihood(Protocol):
    """A distribution of the datum given the output of a decoder."""

    def log_prob(self, output: Float[Array, " D"], x: Float[Array, " D"]) -> Float[Array, ""]:
        """Return `log p(x | output)` in nats."""
        ...

    def sample(self, key: jax.Array, output: Float[Array, " D"]) -> Float[Array, " D"]:
        """Return one draw of x."""
        ...

    def validate(self, name: str, xs: Data) -> None:
        """Raise a ValueError that names `name` unless `xs` can be data of this likelihood."""
        ...


def diagonal_normal_log_prob(
    residual: Float[Array, " D"], variance: float | Float[Array, "*features"]
) -> Float[Array, ""]:
    """Return `log N(residual; 0, diag(variance))` in nats, for one variance or one of every entry."""
    return -0.5 * jnp.sum(residual**2 / variance + jnp.log(variance) + LOG_2PI)


@jax.custom_jvp
def logistic_log_mass(logits: Array, count: Array, total: Array) -> Array:
    """Return `count * logits - total * log(1 + exp(logits))` with the derivative `count - total * sigmoid(logits)`.

    The stated derivative spares the gradient the logarithm and the exponential that differentiating softplus costs.
    """
    return count * logits - total * jax.nn.softplus(logits)


def _logistic_log_mass_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    logits, count, total = primals
    # The sigmoid as a tanh is exact to the last digit of one, and saves a twentieth of the gradient of a large decoder
    # against an exponential and a quotient.
    slopes = (
        lambda: count - total * (0.5 + 0.5 * jnp.tanh(0.5 * logits)),
        lambda: logits,
        lambda: -jax.nn.softplus(logits),
    )
    # Data seldom have a tangent. Where they have none, skip its terms, which would cost as much as the rest.
    moved = [(slope, t) for slope, t in zip(slopes, tangents, strict=True) if not isinstance(t, SymbolicZero)]
    return logistic_log_mass(logits, count, total), functools.reduce(jnp.add, [slope() * t for slope, t in moved])


logistic_log_mass.defjvp(_logistic_log_mass_jvp, symbolic_zeros=True)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bernoulli:
    """Independent binary features with logits from the decoder.

    Formula: `log p(x | l) = sum_j x_j l_j - log(1 + exp(l_j))`; x in [0, 1], where fractions are read as the usual
    cross entropy.
    """

    def log_prob(self, output: Float[Array, " D"], x: Float[Array, " D"]) -> Float[Array, ""]:
        """Return `log p(x | output)` in nats."""
        return jnp.sum(logistic_log_mass(output, x, jnp.ones_like(x)))

    def sample(self, key: jax.Array, output: Float[Array, " D"]) -> Float[Array, " D"]:
        """Return one draw of x."""
        return jax.random.bernoulli(key, jax.nn.sigmoid(output)).astype(output.dtype)

    def validate(self, name: str, xs: Data) -> None:
        """Raise a ValueError unless all entries lie in [0, 1]."""
        check_range(name, xs, low=0.0, high=1.0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Binomial:
    """Independent counts out of `total_count` with logits from the decoder.

    Formula: `log p(x | l) = sum_j log C(n, x_j) + x_j l_j - n log(1 + exp(l_j))`.

    Args:
      total_count: n, a positive whole number.

    Raises:
      ValueError: `total_count` is not a positive whole number.
    """

    total_count: int = field(metadata={"static": True})

    def __post_init__(self) -> None:
        check_count("total_count", self.total_count)

    def log_prob(self, output: Float[Array, " D"], x: Float[Array, " D"]) -> Float[Array, ""]:
        """Return `log p(x | output)` in nats."""
        n = jnp.full_like(x, self.total_count)
        log_choose = gammaln(n + 1) - gammaln(x + 1) - gammaln(n - x + 1)
        return jnp.sum(log_choose + logistic_log_mass(output, x, n))

    def sample(self, key: jax.Array, output: Float[Array, " D"]) -> Float[Array, " D"]:
        """Return one draw of x."""
        n = float(self.total_count)
        return jax.random.binomial(key, n, jax.nn.sigmoid(output)).astype(output.dtype)

    def validate(self, name: str, xs: Data) -> None:
        """Raise a ValueError unless all entries are whole numbers in [0, total_count]."""
        check_range(name, xs, low=0.0, high=float(self.total_count), whole=True)


@checked_record
@dataclass(frozen=True)
class Gaussian:
    """Independent normal features with means from the decoder and a noise variance shared by all data.

    Formula: `log p(x | m) = -1/2 sum_j [(x_j - m_j)^2 / v_j + log(2 pi v_j)]`.

    Args:
      log_noise_variance: `log v`, a scalar or one entry a feature; learned with the decoder by `train_vae`.

    Raises:
      ValueError: `log_noise_variance` is no array of numbers or not finite.
    """

    log_noise_variance: Float[Array, "*features"]

    def __post_init__(self) -> None:
        value = as_float_array("log_noise_variance", self.log_noise_variance)
        if is_concrete(value) and not bool(jnp.all(jnp.isfinite(value))):
            raise ValueError(f"log_noise_variance must be finite, got {value}")
        object.__setattr__(self, "log_noise_variance", value)

    def log_prob(self, output: Float[Array, " D"], x: Float[Array, " D"]) -> Float[Array, ""]:
        """Return `log p(x | output)` in nats."""
        log_variance = jnp.broadcast_to(self.log_noise_variance, x.shape)
        return -0.5 * jnp.sum((x - output) ** 2 * jnp.exp(-log_variance) + log_variance + LOG_2PI)

    def sample(self, key: jax.Array, output: Float[Array, " D"]) -> Float[Array, " D"]:
        """Return one draw of x."""
        scale = jnp.exp(0.5 * jnp.broadcast_to(self.log_noise_variance, output.shape))
        return output + scale * jax.random.normal(key, output.shape, output.dtype)

    def validate(self, name: str, xs: Data) -> None:
        """Accept any finite data."""
