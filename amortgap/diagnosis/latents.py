"""The activity of each latent dimension, and the posterior mass that the encoder's q covers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from amortgap._internal.devices import map_data
from amortgap.diagnosis.measure import proposal_family
from amortgap.diagnosis.records import Coverage, Latents, Measured, Problem
from amortgap.evidence.pareto import pareto_k, reliable_below
from amortgap.objectives import log_weight
from amortgap.protocols import Data, Datum, Family, HasDensity, HasMoments, Model

LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
# Draws per datum from every q.
_DRAWS = 500


@jax.jit
def _moments(key: jax.Array, phis: Array, family: Family) -> tuple[Array, Array]:
    """Return mean and variance of every coordinate under q of every datum, each [N, d]."""

    def moments(index: Array, phi: Array) -> tuple[Array, Array]:
        if isinstance(family, HasMoments):
            mean, scale = family.moments(phi)
            return mean, jnp.sum(scale**2, axis=1)
        keys = jax.random.split(jax.random.fold_in(key, index), _DRAWS)
        draws = jax.vmap(lambda k: family.sample_and_log_prob(k, phi)[0])(keys)
        return jnp.mean(draws, axis=0), jnp.var(draws, axis=0)

    return map_data(moments, phis, chunk_size=100)


def activity(key: jax.Array, measured: Measured, family: Family) -> Latents:
    """Return the activity of each latent on the measured data."""

    def share(phis: Array) -> np.ndarray:
        mean, variance = map(np.asarray, _moments(key, phis, family))
        between = mean.var(axis=0)
        return between / (between + variance.mean(axis=0))

    return Latents(share(measured.encoded), share(measured.local))


def coverage(key: jax.Array, measured: Measured, xs: Data, problem: Problem) -> Coverage | None:
    """Return the posterior mass in highest-density regions of the encoder's q, None for a family without `log_prob`.

    Formula: `P(log q(z) > t_l | x)`, with `P(log q(z) > t_l) = l` under q; the first by draws from `measured.proposal`,
    weighted by `p(x, z) / proposal(z)`. Data whose weights have a k-hat above `reliable_below` are left out.
    """
    of = proposal_family(problem.family)
    if not (isinstance(problem.family, HasDensity) and isinstance(of, HasDensity)):
        return None
    found = _mass_inside(key, measured.encoded, measured.proposal, xs, problem.model, problem.family, of)
    inside, k_hat = map(np.asarray, found)
    inside = inside[np.isfinite(inside).all(axis=1) & ~(k_hat > reliable_below(_DRAWS))]
    if len(inside) < 2:
        return None
    error = inside.std(axis=0, ddof=1) / len(inside) ** 0.5
    return Coverage(np.asarray(LEVELS), inside.mean(axis=0), error)


@jax.jit
def _mass_inside(
    key: jax.Array, encoded: Array, proposals: Array, xs: Data, model: Model, family: HasDensity, of: HasDensity
) -> tuple[Array, Array]:
    """Return the posterior mass inside the region of every level, [N, L], and k-hat of the weights, [N]."""

    def one(index: Array, row: tuple[Array, Array, Datum]) -> tuple[Array, Array]:
        phi, proposal, x = row
        key_q, key_p = jax.random.split(jax.random.fold_in(key, index))
        log_q = jax.vmap(lambda k: family.sample_and_log_prob(k, phi)[1])(jax.random.split(key_q, _DRAWS))
        thresholds = jnp.quantile(log_q, 1 - jnp.asarray(LEVELS))

        def draw(k: jax.Array) -> tuple[Array, Array]:
            z, log_proposal = of.sample_and_log_prob(k, proposal)
            return z, log_weight(z, x, proposal, model=model, family=of, log_q=log_proposal)

        draws, log_weights = jax.vmap(draw)(jax.random.split(key_p, _DRAWS))
        weights = jax.nn.softmax(log_weights)
        log_q = jax.vmap(lambda z: family.log_prob(z, phi))(draws)
        inside = jax.vmap(lambda threshold: jnp.sum(jnp.where(log_q > threshold, weights, 0.0)))(thresholds)
        return inside, pareto_k(log_weights)

    return map_data(one, (encoded, proposals, xs), chunk_size=4)
