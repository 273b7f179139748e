"""Coupling flow on the latent and auxiliary variables, with a reverse model of the latter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from amortgap._internal.checks import check_count
from amortgap.families.flows.head import FlowHead, Phi, check_layers, split_phi
from amortgap.families.flows.layers import coupling, linear_net, linear_net_size, pack_linear, raw_scale
from amortgap.families.normal import standard_normal_log_prob

# Share of the smallest variance that does not come from the auxiliary variables. With a share of one, z and v are
# independent, which is a saddle point: the gradient that would couple them is zero.
_OWN_SHARE = 0.5


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AuxiliaryFlow:
    """Coupling flow on the latent and auxiliary variables, with a reverse model; its density of z alone is not known.

    Formula: `(z, v) = flow(noise)`, and with `r(v | z) = N(v; mean_r(z), diag(scale_r(z)^2))` the bound
    `E_q(z,v)[log p(x, z) + log r(v | z) - log q(z, v)] <= log p(x)`, below the ELBO of q(z) by the mean of
    `KL(q(v | z) || r(v | z))`. What `sample_and_log_prob` returns as log density is `log q(z, v) - log r(v | z)`. The
    reverse model sees x through phi: through the free phi of local VI, or through the context of an encoder. Layers
    change v given z and z given v in turn. Shifts of z and v and the mean of the reverse model have a linear
    part, so that with `aux_dim >= latent_dim` the family contains every normal, with equality in the bound.

    Args:
      latent_dim: dimension d of z.
      aux_dim: dimension of v.
      num_layers: coupling layers, at least two: the second is the first that changes z.
      width: hidden units of every conditioner and of the reverse model.
      context_dim: numbers in phi that conditioners and reverse model read, for amortized use with shared weights.

    Attributes:
      name: of the family, "auxiliary_flow".
      full_support: its density of z, which is not computed, is positive everywhere.

    Raises:
      ValueError: a size that is not positive, or a single layer.

    Source: Cremer, Li and Duvenaud, "Inference suboptimality in variational autoencoders" (2018), section 3.1.
    """

    latent_dim: int = field(metadata={"static": True})
    aux_dim: int = field(metadata={"static": True})
    num_layers: int = field(metadata={"static": True}, default=4)
    width: int = field(metadata={"static": True}, default=16)
    context_dim: int = field(metadata={"static": True}, default=0)
    name: ClassVar[str] = "auxiliary_flow"
    full_support: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count("latent_dim", self.latent_dim)
        check_count("aux_dim", self.aux_dim)
        check_layers(self.num_layers, self.width, self.context_dim, fewest=2)

    @property
    def head(self) -> FlowHead:
        """The part of phi before the weights."""
        return FlowHead(self.latent_dim, 2 * self.latent_dim + self.context_dim)

    @property
    def _sizes(self) -> tuple[tuple[int, int], ...]:
        """Inputs and outputs of the conditioner of every layer, and of the reverse model."""
        of_v = self.latent_dim + self.context_dim, 2 * self.aux_dim
        of_z = self.aux_dim + self.context_dim, 2 * self.latent_dim
        return (*((of_z, of_v)[number % 2 == 0] for number in range(self.num_layers)), of_v)

    @property
    def size(self) -> int:
        """Length of phi."""
        return self.head.size + sum(linear_net_size(n, self.width, out) for n, out in self._sizes)

    def _weights(self, flat: Array) -> Iterator[Array]:
        first = 0
        for inputs, outputs in self._sizes:
            last = first + linear_net_size(inputs, self.width, outputs)
            yield flat[first:last]
            first = last

    def standard(self) -> Float[Array, " size"]:
        """Return a phi of the standard normal; z and v depend on each other."""
        return self.from_moments(jnp.zeros(self.latent_dim), jnp.eye(self.latent_dim))

    def from_moments(self, mean: Float[Array, " d"], scale_tril: Float[Array, "d d"]) -> Float[Array, " size"]:
        """Return a phi of the normal with this mean and covariance `scale_tril scale_tril'`.

        With `aux_dim < latent_dim` it keeps the variances, and the correlations along the leading directions.
        """
        d, a, c = self.latent_dim, self.aux_dim, self.context_dim
        scale = jnp.sqrt(jnp.sum(scale_tril**2, axis=1))
        root = scale_tril / scale[:, None]
        values, vectors = jnp.linalg.eigh(root @ root.T)
        kept = min(a, d)
        excess = values[-kept:] - _OWN_SHARE * values[0]
        # z = mean + scale * (own * noise + factor v)
        factor = jnp.pad(vectors[:, -kept:] * jnp.sqrt(excess)[None, :], ((0, 0), (0, a - kept)))
        own = 1 - jnp.sum(factor**2, axis=1)
        # q(v | z) = N(covariance factor' (own noise and factor v) / own, covariance): diagonal if nothing was left out.
        covariance = jnp.linalg.inv(jnp.eye(a) + factor.T @ (factor / own[:, None]))
        to_z = jnp.pad(factor, ((0, 0), (0, c))), raw_scale(jnp.sqrt(own))
        to_v = jnp.pad(covariance @ factor.T / own[None, :], ((0, 0), (0, c))), 0.5 * jnp.log(jnp.diag(covariance))
        layers = [jnp.zeros(linear_net_size(n, self.width, out)) for n, out in self._sizes]
        layers[1], layers[-1] = pack_linear(*to_z, self.width), pack_linear(*to_v, self.width)
        return jnp.concatenate([mean, jnp.log(scale), jnp.zeros(c), *layers])

    def _through(self, weights: Array, x: Array, context: Array, *, inverse: bool) -> tuple[Array, Array]:
        """Return the image of `[z, v]` under all layers and the log determinant."""
        log_det = jnp.zeros((), x.dtype)
        layers = list(enumerate(self._weights(weights)))[:-1]
        for number, layer in reversed(layers) if inverse else layers:
            odd = number % 2
            kept, swap = (self.aux_dim, -self.latent_dim) if odd else (self.latent_dim, 0)
            rolled = jnp.roll(x, swap)
            x, change = coupling(
                layer, rolled, context, self.width, inverse=inverse, num_kept=kept, conditioner=linear_net
            )
            x, log_det = jnp.roll(x, -swap), log_det + change
        return x, log_det

    def forward(self, noise: Float[Array, " n"], phi: Phi) -> tuple[Float[Array, " n"], Float[Array, ""]]:
        """Return `[z, v]` and `log |d(z, v) / dnoise|`, noise [latent_dim + aux_dim]."""
        mean, log_scale, context, weights = split_phi(self, phi)
        inner, log_det = self._through(weights, noise, context, inverse=False)
        z = mean + jnp.exp(log_scale) * inner[: self.latent_dim]
        return jnp.concatenate([z, inner[self.latent_dim :]]), log_det + jnp.sum(log_scale)

    def joint_log_prob(self, z: Float[Array, " d"], v: Float[Array, " a"], phi: Phi) -> Float[Array, ""]:
        """Return `log q(z, v; phi)` in nats."""
        mean, log_scale, context, weights = split_phi(self, phi)
        inner = jnp.concatenate([(z - mean) * jnp.exp(-log_scale), v])
        noise, log_det = self._through(weights, inner, context, inverse=True)
        return standard_normal_log_prob(noise) + log_det - jnp.sum(log_scale)

    def reverse_log_prob(self, v: Float[Array, " a"], z: Float[Array, " d"], phi: Phi) -> Float[Array, ""]:
        """Return `log r(v | z; phi)` in nats."""
        mean, log_scale, context, weights = split_phi(self, phi)
        seen = jnp.concatenate([(z - mean) * jnp.exp(-log_scale), context])
        *_, reverse = self._weights(weights)
        centre, log_spread = linear_net(reverse, seen, self.width, 2 * self.aux_dim).reshape(-1, 2).T
        return standard_normal_log_prob((v - centre) * jnp.exp(-log_spread)) - jnp.sum(log_spread)

    def sample_and_log_prob(self, key: jax.Array, phi: Phi) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """Return one draw of z and `log q(z, v) - log r(v | z)` in nats."""
        noise = jax.random.normal(key, (self.latent_dim + self.aux_dim,), split_phi(self, phi).mean.dtype)
        both, log_det = self.forward(noise, phi)
        z, v = both[: self.latent_dim], both[self.latent_dim :]
        return z, standard_normal_log_prob(noise) - log_det - self.reverse_log_prob(v, z, phi)
