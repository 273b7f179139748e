"""Importance sampling of log p(x): the importance-weighted bound with many draws, in memory that does not grow."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from amortgap._internal.checks import check_count, check_datum, check_key
from amortgap.evidence.pareto import MIN_DRAWS, empty_tail, keep_tail, tail_shape
from amortgap.evidence.proposal import check_proposal, fit_proposal
from amortgap.evidence.records import Evidence, effective_sample_size, log_mean_error
from amortgap.objectives import log_mean_exp, log_weight
from amortgap.protocols import Datum, Family, HasDensity, HasPrior, Model, Simulating, has_full_support

# Share of the prior in the proposal that is fitted here, where the model can be sampled.
_FITTED_DEFENSIVE = 0.1
# Draws of the prior that look for posterior mass where q is zero, and the share of p(x) that may be missed.
_PRIOR_DRAWS, _MISSED_SHARE = 200, 0.01


def importance(
    key: jax.Array,
    x: Datum,
    *,
    model: Model,
    family: Family | None = None,
    phi: Float[Array, " size"] | None = None,
    num_samples: int = 5000,
    block_size: int = 100,
    defensive: float | None = None,
) -> Evidence:
    """Estimate log p(x) of one datum by importance sampling.

    Formula: `log (1/K) sum_k p(x, z_k) / r(z_k)`, `z_k ~ r`, with the proposal `r = (1 - a) q(z; phi) + a p(z)`; in
    expectation a lower bound that rises to log p(x) with K. With a > 0 no weight exceeds `p(x | z) / a`, which keeps
    the variance finite wherever the likelihood is bounded.

    Args:
      key: typed key of the draws.
      x: one datum.
      model: record with `log_joint(z, x)`; also `log_prior(z)` and `sample(key)` if `defensive` is positive.
      family, phi: the proposal q, such as a local optimum or an encoder's output; None to fit a full rank normal here.
      num_samples: K.
      block_size: draws in memory at a time.
      defensive: a, the share of the prior in the proposal, in [0, 1). None for 0 with a given proposal, and for 0.1
        with a fitted one where the model has `log_prior` and `sample`.

    Returns:
      Evidence in nats with its Monte Carlo standard error (delta method), effective sample size and Pareto k-hat. If
      every weight is zero the estimate is -inf with an infinite error. Draws of q cannot show posterior mass where q
      is zero; where the model can be sampled and the family does not state full support, 200 draws of the prior look
      for it, and k-hat is inf if they find more than a hundredth of p(x).

    Raises:
      ValueError: bad key, x, sizes or counts, only one of family and phi, a share outside [0, 1), or a share above zero
        with a model or family that cannot provide the mixture.

    Source: Burda, Grosse and Salakhutdinov (2016), equation 8; Hesterberg (1995) for defensive mixtures.
    """
    check_key(key)
    x = check_datum(x, model)
    check_count("num_samples", num_samples)
    check_count("block_size", block_size)
    check_proposal(model, family, phi)
    size = min(block_size, num_samples)
    blocks = -(-num_samples // size)
    fitted = ""
    if family is None or phi is None:
        family, phi = fit_proposal(jax.random.fold_in(key, blocks + 1), x, model=model)
        fitted = " of a fitted normal"
        if defensive is None and isinstance(model, HasPrior) and isinstance(model, Simulating):
            defensive = _FITTED_DEFENSIVE
    defensive = check_share(defensive, model, family)

    def draw_log_weight(draw_key: jax.Array) -> Array:
        if not (defensive and isinstance(model, HasPrior) and isinstance(model, Simulating)):
            z, log_q = family.sample_and_log_prob(draw_key, phi)
            return log_weight(z, x, phi, model=model, family=family, log_q=log_q)
        assert isinstance(family, HasDensity)
        key_choice, key_prior, key_family = jax.random.split(draw_key, 3)
        from_prior = jax.random.bernoulli(key_choice, defensive)
        z = jnp.where(from_prior, model.sample(key_prior)[0], family.sample_and_log_prob(key_family, phi)[0])
        of_family = jnp.log1p(-defensive) + family.log_prob(z, phi)
        log_mixture = jnp.logaddexp(of_family, jnp.log(defensive) + model.log_prior(z))
        return log_weight(z, x, phi, model=model, family=family, log_q=log_mixture)

    def add(carry: tuple[Array, Array, Array], block: Array) -> tuple[tuple[Array, Array, Array], None]:
        log_weights = jax.vmap(draw_log_weight)(jax.random.split(jax.random.fold_in(key, block), size))
        # The last block may reach beyond K.
        log_weights = jnp.where(block * size + jnp.arange(size) < num_samples, log_weights, -jnp.inf)
        total, squares, tail = carry
        total = jnp.logaddexp(total, logsumexp(log_weights))
        squares = jnp.logaddexp(squares, logsumexp(2 * log_weights))
        return (total, squares, keep_tail(tail, log_weights)), None

    zero = jnp.full((), -jnp.inf, jnp.asarray(phi).dtype)
    start = (zero, zero, empty_tail(num_samples, zero.dtype))
    (total, squares, tail), _ = jax.lax.scan(add, start, jnp.arange(blocks))
    value = total - jnp.log(float(num_samples))
    effective = effective_sample_size(total, squares)
    shape = tail_shape(tail) if num_samples >= MIN_DRAWS else jnp.full_like(total, jnp.nan)
    if not defensive and not has_full_support(family):
        missed = _log_missed(jax.random.fold_in(key, blocks), x, model, family, phi)
        shape = jnp.where(missed > value + math.log(_MISSED_SHARE), jnp.inf, shape)
    share = f", {defensive:g} of them from the prior" if defensive else ""
    return Evidence(
        log_evidence=value,
        standard_error=log_mean_error(effective, float(num_samples)),
        effective_sample_size=effective,
        pareto_k=shape,
        method=f"importance sampling, {num_samples} draws{fitted}{share}",
        bias="lower bound",
        num_draws=num_samples,
    )


def check_share(defensive: object, model: Model, family: Family) -> float:
    """Return the share of the prior in a proposal, refusing one that this model or family cannot provide."""
    share = 0.0 if defensive is None else defensive
    if not isinstance(share, (int, float)) or not 0 <= share < 1:
        raise ValueError(f"defensive must be a number in [0, 1), got {defensive!r}")
    if share:
        for value, part, name in (
            (model, HasPrior, "log_prior"),
            (model, Simulating, "sample"),
            (family, HasDensity, "log_prob"),
        ):
            if not isinstance(value, part):
                raise ValueError(f"a defensive mixture with the prior needs {name}, which {type(value).__name__} lacks")
    return float(share)


def _log_missed(key: jax.Array, x: Datum, model: Model, family: Family, phi: Array) -> Array:
    """Return the log of the part of p(x) that lies where q is zero, from draws of the prior; -inf if none is there.

    It is -inf too where the model has no prior to draw from, or the family no density.
    """
    if not (isinstance(model, HasPrior) and isinstance(model, Simulating) and isinstance(family, HasDensity)):
        return jnp.full((), -jnp.inf)

    def log_missed(draw_key: jax.Array) -> Array:
        z = model.sample(draw_key)[0]
        log_likelihood = model.log_joint(z, x) - model.log_prior(z)
        return jnp.where(jnp.isneginf(family.log_prob(z, phi)), log_likelihood, -jnp.inf)

    return log_mean_exp(jax.vmap(log_missed)(jax.random.split(key, _PRIOR_DRAWS)))
