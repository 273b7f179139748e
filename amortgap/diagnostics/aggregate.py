"""The aggregated posterior `q(z) = (1/N) sum_i q(z | x_i)` and what the rate of an encoder is made of.

Three objects share the letter q: the free `q_i(z)` that local VI fits to one datum, the `q(z | x)` that an encoder
computes from one datum, and the mixture of either over all data, which this module computes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from amortgap._internal.checks import (
    as_data,
    check_count,
    check_encoder,
    check_key,
    check_latent_dim,
    check_phis,
    first_row,
    num_rows,
)
from amortgap._internal.devices import encode, map_data
from amortgap.gaps import Estimate, estimate
from amortgap.protocols import Data, Encoder, Family, HasDensity, HasPrior


class RateSplit(NamedTuple):
    """The mean rate and its two parts, in nats, each with standard errors over data and over draws.

    Attributes:
      rate: `(1/N) sum_i KL(q(z | x_i) || p(z))`.
      mutual_information: `I_q(x; z) = (1/N) sum_i KL(q(z | x_i) || q(z))`, at most log N.
      marginal_kl: `KL(q(z) || p(z))`.
    """

    rate: Estimate
    mutual_information: Estimate
    marginal_kl: Estimate


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class AggregatePosterior:
    """The mixture of N approximate posteriors with equal weights; made by `aggregate_posterior`.

    Formula: `q(z) = (1/N) sum_i q(z; phi_i)`.

    Attributes:
      phis: variational parameters of every datum, [N, size].
      family: the variational family.
      block_size: components whose densities are in memory together.
    """

    phis: Float[Array, "N size"]
    family: HasDensity
    block_size: int = field(metadata={"static": True}, default=1000)

    @property
    def latent_dim(self) -> int:
        """Dimension d of z."""
        return self.family.latent_dim

    def sample(self, key: jax.Array) -> Float[Array, " d"]:
        """Return one draw: a datum chosen at random, then a draw of its posterior."""
        key_datum, key_draw = jax.random.split(key)
        index = jax.random.randint(key_datum, (), 0, self.phis.shape[0])
        return self.family.sample_and_log_prob(key_draw, self.phis[index])[0]

    def log_prob(self, z: Float[Array, " d"]) -> Float[Array, ""]:
        """Return `log q(z)` in nats, by a running sum over blocks of components."""
        n = self.phis.shape[0]
        size = min(self.block_size, n)

        def add(total: Array, block: Array) -> tuple[Array, None]:
            index = block * size + jnp.arange(size)
            parts = jax.vmap(lambda phi: self.family.log_prob(z, phi))(self.phis[index % n])
            # The last block may reach beyond N.
            return jnp.logaddexp(total, logsumexp(jnp.where(index < n, parts, -jnp.inf))), None

        start = jnp.full((), -jnp.inf, z.dtype)
        total, _ = jax.lax.scan(add, start, jnp.arange(-(-n // size)))
        return total - jnp.log(float(n))

    def rate_split(self, key: jax.Array, *, model: HasPrior, num_samples: int = 100) -> RateSplit:
        """Split the mean rate into mutual information and the KL divergence of the aggregated posterior.

        Formula: `(1/N) sum_i KL(q(z | x_i) || p(z)) = I_q(x; z) + KL(q(z) || p(z))`. All three terms use the same
        draws, so the identity holds exactly for the estimates too. The errors over data treat the mixture as known:
        to first order its own dependence on the data cancels, since `integral q (dq / q) = 0`.

        Args:
          key: typed key; datum i uses `fold_in(key, i)`.
          model: record with `log_prior(z)`.
          num_samples: draws per datum; the cost is N^2 num_samples densities.

        Returns:
          RateSplit, in nats.

        Raises:
          ValueError: bad key or count, fewer than two draws, or a model without `log_prior` or of another dimension.

        Source: Hoffman and Johnson, "ELBO surgery" (2016), section 3.
        """
        check_key(key)
        check_latent_dim(model, self.family)
        check_count("num_samples", num_samples, minimum=2)
        if not isinstance(model, HasPrior):
            raise ValueError(f"the rate needs model.log_prior, which {type(model).__name__} lacks")
        means, errors = _split(key, self, model, num_samples)
        return RateSplit(*(estimate(mean, error) for mean, error in zip(means, errors, strict=True)))


def aggregate_posterior(
    xs: Data,
    *,
    family: Family,
    encoder: Encoder | None = None,
    phi: Float[Array, "N size"] | None = None,
    block_size: int = 1000,
) -> AggregatePosterior:
    """Return the aggregated posterior of data, of amortized or of local variational posteriors.

    Formula: `q(z) = (1/N) sum_i q(z; phi_i)`, with `phi_i = encoder(x_i)` or the local optimum of x_i.

    Args:
      xs: data, N rows.
      family: variational family with `log_prob(z, phi)`.
      encoder: callable from one datum to phi.
      phi: variational parameters of every datum, [N, size], such as `fit_local(...).phi`.
      block_size: components whose densities are in memory together.

    Returns:
      AggregatePosterior with `sample(key)`, `log_prob(z)` and `rate_split(key, model=...)`.

    Raises:
      ValueError: both or neither of encoder and phi, bad data, phi of another shape, or a family without `log_prob`.

    Source: Hoffman and Johnson (2016); Makhzani et al. (2015) for the name.
    """
    xs = as_data("xs", xs)
    check_count("block_size", block_size)
    if (encoder is None) == (phi is None):
        raise ValueError("give the encoder or the phi of every datum, one of the two")
    if not isinstance(family, HasDensity):
        raise ValueError(f"an aggregated posterior needs family.log_prob, which {type(family).__name__} lacks")
    if encoder is not None:
        phi = encode(check_encoder(encoder, family, first_row(xs)), xs)
    phis = jnp.asarray(phi)
    check_phis("phi", phis, family, num_rows(xs))
    return AggregatePosterior(phis=phis, family=family, block_size=block_size)


@partial(jax.jit, static_argnames=("num_samples",))
def _split(key: jax.Array, aggregate: AggregatePosterior, model: HasPrior, num_samples: int) -> tuple[Array, Array]:
    def datum(index: Array, phi: Array) -> tuple[Array, Array]:
        def draw(draw_key: jax.Array) -> Array:
            z, log_q = aggregate.family.sample_and_log_prob(draw_key, phi)
            log_aggregate, log_prior = aggregate.log_prob(z), model.log_prior(z)
            information, marginal = log_q - log_aggregate, log_aggregate - log_prior
            return jnp.stack([information + marginal, information, marginal])

        values = jax.vmap(draw)(jax.random.split(jax.random.fold_in(key, index), num_samples))
        return jnp.mean(values, axis=0), jnp.std(values, axis=0, ddof=1) / num_samples**0.5

    means, errors = map_data(datum, aggregate.phis, chunk_size=max(1, 1000 // num_samples))
    return means.T, errors.T
