"""Normalising flows of affine coupling layers and of inverse autoregression.

Every family is a flow of standard normals inside an affine map, `z = mean + scale * flow(noise; context, weights)`,
with `phi = [mean, log scale, context, weights]`. Zeros are the standard normal. Local VI frees all of phi; an encoder
may compute the head `[mean, log scale, context]` and share the weights (`amortgap.encoders.shared_flow`).

The two families differ in their layer alone and share the functions at the top as their methods.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from amortgap._internal.checks import check_count
from amortgap.families.flows.head import FlowHead, Phi, check_layers, split_phi
from amortgap.families.flows.layers import autoregressive, autoregressive_size, coupling, coupling_size
from amortgap.families.normal import standard_normal_log_prob

_Flow: TypeAlias = "CouplingFlow | AutoregressiveFlow"


def _standard(flow: _Flow) -> Float[Array, " size"]:
    """Return the phi of the standard normal."""
    return jnp.zeros(flow.size)


def _from_moments(flow: _Flow, mean: Float[Array, " d"], scale_tril: Float[Array, "d d"]) -> Float[Array, " size"]:
    """Return the phi of the normal with this mean and the marginal scales of `scale_tril scale_tril'`."""
    log_scale = 0.5 * jnp.log(jnp.sum(scale_tril**2, axis=1))
    return jnp.zeros(flow.size).at[: 2 * mean.size].set(jnp.concatenate([mean, log_scale]))


def _layers(flow: _Flow, weights: Array, x: Array, context: Array, *, inverse: bool) -> tuple[Array, Array]:
    """Return the image of x under all layers, every second one reading x backwards, and the log determinant."""
    rows = weights.reshape(flow.num_layers, -1)
    log_det = jnp.zeros((), x.dtype)
    order = range(flow.num_layers)
    for number in reversed(order) if inverse else order:
        step = -1 if number % 2 else 1
        out, change = flow.layer(rows[number], x[::step], context, flow.width, inverse=inverse)
        x, log_det = out[::step], log_det + change
    return x, log_det


def _forward(flow: _Flow, noise: Float[Array, " d"], phi: Phi) -> tuple[Float[Array, " d"], Float[Array, ""]]:
    """Return z and `log |dz / dnoise|`."""
    mean, log_scale, context, weights = split_phi(flow, phi)
    inner, log_det = _layers(flow, weights, noise, context, inverse=False)
    return mean + jnp.exp(log_scale) * inner, log_det + jnp.sum(log_scale)


def _inverse(flow: _Flow, z: Float[Array, " d"], phi: Phi) -> tuple[Float[Array, " d"], Float[Array, ""]]:
    """Return the noise and `log |dnoise / dz|`."""
    mean, log_scale, context, weights = split_phi(flow, phi)
    noise, log_det = _layers(flow, weights, (z - mean) * jnp.exp(-log_scale), context, inverse=True)
    return noise, log_det - jnp.sum(log_scale)


def _log_prob(flow: _Flow, z: Float[Array, " d"], phi: Phi) -> Float[Array, ""]:
    """Return `log q(z; phi)` in nats."""
    noise, log_det = flow.inverse(z, phi)
    return standard_normal_log_prob(noise) + log_det


def _sample_and_log_prob(flow: _Flow, key: jax.Array, phi: Phi) -> tuple[Float[Array, " d"], Float[Array, ""]]:
    """Return one draw and its log density in nats."""
    noise = jax.random.normal(key, (flow.latent_dim,), split_phi(flow, phi).mean.dtype)
    z, log_det = flow.forward(noise, phi)
    return z, standard_normal_log_prob(noise) - log_det


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CouplingFlow:
    """Flow of affine coupling layers; contains the mean field normals (weights zero).

    Formula: `z = mean + scale * f_L(..f_1(noise))`, every second layer with the halves swapped;
    `log q(z) = log N(noise; 0, I) - sum_l log |df_l| - sum_j log scale_j`.

    Args:
      latent_dim: dimension d of z, at least two.
      num_layers: L.
      width: hidden units of every conditioner.
      context_dim: numbers in phi that every conditioner reads, for amortized use with shared weights.

    Attributes:
      name: of the family, "coupling_flow".
      full_support: its density is positive everywhere.

    Raises:
      ValueError: a dimension that cannot be split into two halves, or a size that is not positive.

    Source: Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP" (2017).
    """

    latent_dim: int = field(metadata={"static": True})
    num_layers: int = field(metadata={"static": True}, default=4)
    width: int = field(metadata={"static": True}, default=16)
    context_dim: int = field(metadata={"static": True}, default=0)
    name: ClassVar[str] = "coupling_flow"
    full_support: ClassVar[bool] = True

    layer = staticmethod(coupling)
    standard = _standard
    from_moments = _from_moments
    forward = _forward
    inverse = _inverse
    log_prob = _log_prob
    sample_and_log_prob = _sample_and_log_prob

    def __post_init__(self) -> None:
        check_count("latent_dim", self.latent_dim)
        if self.latent_dim < 2:
            raise ValueError(f"latent_dim must be at least 2 to be split into two halves, got {self.latent_dim}")
        check_layers(self.num_layers, self.width, self.context_dim)

    @property
    def head(self) -> FlowHead:
        """The part of phi before the weights."""
        return FlowHead(self.latent_dim, 2 * self.latent_dim + self.context_dim)

    @property
    def size(self) -> int:
        """Length of phi."""
        return self.head.size + self.num_layers * coupling_size(self.latent_dim, self.context_dim, self.width)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AutoregressiveFlow:
    """Inverse autoregressive flow (IAF); contains the mean field normals (weights zero).

    Formula: `z = mean + scale * f_L(..f_1(noise))`, `f(x)_j = x_j scale_j(x_1..x_{j-1}) + shift_j(x_1..x_{j-1})`, every
    second layer in reversed order. Draws with their density take one pass; the density of other points takes d.

    Args:
      latent_dim: dimension d of z.
      num_layers: L.
      width: hidden units of every masked conditioner.
      context_dim: numbers in phi that every conditioner reads, for amortized use with shared weights.

    Attributes:
      name: of the family, "autoregressive_flow".
      full_support: its density is positive everywhere.

    Raises:
      ValueError: a size that is not positive.

    Source: Kingma et al., "Improved variational inference with inverse autoregressive flow" (2016), algorithm 1.
    """

    latent_dim: int = field(metadata={"static": True})
    num_layers: int = field(metadata={"static": True}, default=2)
    width: int = field(metadata={"static": True}, default=32)
    context_dim: int = field(metadata={"static": True}, default=0)
    name: ClassVar[str] = "autoregressive_flow"
    full_support: ClassVar[bool] = True

    layer = staticmethod(autoregressive)
    standard = _standard
    from_moments = _from_moments
    forward = _forward
    inverse = _inverse
    log_prob = _log_prob
    sample_and_log_prob = _sample_and_log_prob

    def __post_init__(self) -> None:
        check_count("latent_dim", self.latent_dim)
        check_layers(self.num_layers, self.width, self.context_dim)

    @property
    def head(self) -> FlowHead:
        """The part of phi before the weights."""
        return FlowHead(self.latent_dim, 2 * self.latent_dim + self.context_dim)

    @property
    def size(self) -> int:
        """Length of phi."""
        return self.head.size + self.num_layers * autoregressive_size(self.latent_dim, self.context_dim, self.width)
