"""Importance sampling of log p(x), the importance-weighted bound with many draws, in memory that K does not change."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from amortgap._internal.checks import check_count, check_datum, check_key, check_phi, check_sizes
from amortgap.evidence.pareto import MIN_DRAWS, empty_tail, keep_tail, tail_shape
from amortgap.evidence.records import Evidence, effective_sample_size, log_mean_error
from amortgap.families import FullRankNormal, LowRankNormal, MeanFieldNormal

# Positive everywhere, so that no posterior mass is out of their reach.
_EVERYWHERE = (MeanFieldNormal, FullRankNormal, LowRankNormal)
_PRIOR_DRAWS, _MISSED_SHARE = 200, 0.01


def importance(
    key: jax.Array,
    x: Any,
    *,
    model: Any,
    family: Any,
    phi: Float[Array, " size"],
    num_samples: int = 1000,
    block_size: int = 100,
    defensive: float = 0.0,
) -> Evidence:
    """Estimate log p(x) of one datum by importance sampling.

    Formula: `log (1/K) sum_k p(x, z_k) / r(z_k)`, `z_k ~ r`, with the proposal `r = (1 - a) q(z; phi) + a p(z)`; in
    expectation a lower bound that rises to log p(x) with K. With a > 0 no weight exceeds `p(x | z) / a`, which keeps
    the variance finite wherever the likelihood is bounded.

    Args:
      key: typed key of the draws.
      x: one datum.
      model: record with `log_joint(z, x)`; also `log_prior(z)` and `sample(key)` if `defensive` is positive.
      family, phi: the proposal q, such as a local optimum or an encoder's output.
      num_samples: K.
      block_size: draws in memory at a time.
      defensive: a, the share of the prior in the proposal, in [0, 1).

    Returns:
      Evidence in nats with its Monte Carlo standard error (delta method), effective sample size and Pareto k-hat. If
      every weight is zero the estimate is -inf with an infinite error. Draws of q cannot tell of posterior mass where q
      is zero; where the model can be sampled and the family is not known to be positive everywhere, 200 draws of the
      prior look for it, and k-hat is inf if they find more than a hundredth of p(x).

    Raises:
      ValueError: bad key, x, sizes or counts, phi of another size, a share outside [0, 1), or a share above zero with a
        model or family that cannot provide the mixture.

    Source: Burda, Grosse and Salakhutdinov (2016), equation 8; Hesterberg (1995) for defensive mixtures.
    """
    check_key(key)
    x = check_datum(x, model)
    check_sizes(model, family)
    check_count("num_samples", num_samples)
    check_count("block_size", block_size)
    check_phi(phi, family)
    if not isinstance(defensive, (int, float)) or not 0 <= defensive < 1:
        raise ValueError(f"defensive must be a number in [0, 1), got {defensive!r}")
    if defensive:
        for owner, name in ((model, "log_prior"), (model, "sample"), (family, "log_prob")):
            if not hasattr(owner, name):
                raise ValueError(f"a defensive mixture with the prior needs {name}, which {type(owner).__name__} lacks")
    size = min(block_size, num_samples)
    blocks = -(-num_samples // size)

    def log_weight(draw_key: jax.Array) -> Array:
        if not defensive:
            z, log_proposal = family.sample_and_log_prob(draw_key, phi)
            return model.log_joint(z, x) - log_proposal
        key_choice, key_prior, key_family = jax.random.split(draw_key, 3)
        from_prior = jax.random.bernoulli(key_choice, defensive)
        z = jnp.where(from_prior, model.sample(key_prior)[0], family.sample_and_log_prob(key_family, phi)[0])
        of_family = jnp.log1p(-defensive) + family.log_prob(z, phi)
        return model.log_joint(z, x) - jnp.logaddexp(of_family, jnp.log(defensive) + model.log_prior(z))

    def add(carry: tuple[Array, Array, Array], block: Array) -> tuple[tuple[Array, Array, Array], None]:
        log_weights = jax.vmap(log_weight)(jax.random.split(jax.random.fold_in(key, block), size))
        # The last block may reach beyond K.
        log_weights = jnp.where(block * size + jnp.arange(size) < num_samples, log_weights, -jnp.inf)
        total, squares, tail = carry
        total = jnp.logaddexp(total, logsumexp(log_weights))
        squares = jnp.logaddexp(squares, logsumexp(2 * log_weights))
        return (total, squares, keep_tail(tail, log_weights)), None

    nothing = jnp.full((), -jnp.inf, jnp.asarray(phi).dtype)
    start = (nothing, nothing, empty_tail(num_samples, nothing.dtype))
    (total, squares, tail), _ = jax.lax.scan(add, start, jnp.arange(blocks))
    effective = effective_sample_size(total, squares)
    shape = tail_shape(tail) if num_samples >= MIN_DRAWS else jnp.full_like(total, jnp.nan)
    if (
        not defensive
        and not isinstance(family, _EVERYWHERE)
        and _has(model, "sample", "log_prior")
        and _has(family, "log_prob")
    ):
        missed = _missed(jax.random.fold_in(key, blocks), x, model, family, phi)
        shape = jnp.where(missed > total - jnp.log(float(num_samples)) + math.log(_MISSED_SHARE), jnp.inf, shape)
    share = f", {defensive:g} of them from the prior" if defensive else ""
    return Evidence(
        log_evidence=total - jnp.log(float(num_samples)),
        standard_error=log_mean_error(effective, float(num_samples)),
        effective_sample_size=effective,
        pareto_k=shape,
        method=f"importance sampling, {num_samples} draws{share}",
        bias="lower bound",
    )


def _has(owner: Any, *names: str) -> bool:
    return all(hasattr(owner, name) for name in names)


def _missed(key: jax.Array, x: Any, model: Any, family: Any, phi: Array) -> Array:
    """Log of the part of p(x) that lies where q is zero, from draws of the prior; -inf if none of them is there."""

    def log_weight(draw_key: jax.Array) -> Array:
        z = model.sample(draw_key)[0]
        log_likelihood = model.log_joint(z, x) - model.log_prior(z)
        return jnp.where(jnp.isneginf(family.log_prob(z, phi)), log_likelihood, -jnp.inf)

    return logsumexp(jax.vmap(log_weight)(jax.random.split(key, _PRIOR_DRAWS))) - math.log(_PRIOR_DRAWS)
