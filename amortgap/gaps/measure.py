"""Measuring the gaps of an encoder: local optimum, both ELBOs on shared draws, evidence, and differences."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from amortgap._internal.checks import (
    check_count,
    check_data,
    check_encoder,
    check_key,
    check_phis,
    check_sizes,
    num_rows,
)
from amortgap._internal.devices import encode, map_data
from amortgap.evidence import Bound, Evidence, EvidenceBounds, evidence_of_data, suboptimality_bound_of_data
from amortgap.evidence.hmc import check_prior
from amortgap.evidence.methods import check_method
from amortgap.gaps.estimates import Estimate, paired_difference
from amortgap.gaps.record import Gaps
from amortgap.inference.local.local_vi import LocalFit, fit_local
from amortgap.objectives import elbo_draws
from amortgap.protocols import Reparameterised


class EvaluatedBounds(NamedTuple):
    """Mean and standard error of the ELBO of every datum at several candidates, on shared draws.

    Attributes:
      elbo: [N, candidates], nats.
      standard_error: Monte Carlo standard error of each entry.
      paired_standard_error: standard error of `elbo[:, 0] - elbo[:, c]`, smaller because the draws are shared.
    """

    elbo: Float[Array, "N candidates"]
    standard_error: Float[Array, "N candidates"]
    paired_standard_error: Float[Array, "N candidates"]


def evaluate_bounds(
    key: jax.Array,
    phis: Float[Array, "N candidates size"],
    xs: Any,
    *,
    model: Any,
    family: Any,
    num_samples: int = 1000,
    block_size: int = 100,
    chunk_size: int = 250,
) -> EvaluatedBounds:
    """Evaluate the ELBO of every datum at several variational parameters with the same draws.

    Formula: `ELBO(phi_ic; x_i)` for data i and candidates c; datum i uses `fold_in(key, i)` for all its candidates.

    Args:
      key: typed key, not one that any candidate was optimised with.
      phis: candidates, [N, candidates, size].
      xs: data.
      model, family: as in `elbo`; pytrees, since the evaluation is compiled as a whole.
      num_samples: draws per datum, rounded up to whole blocks.
      block_size, chunk_size: draws and data in memory at a time.

    Returns:
      EvaluatedBounds in nats, every field [N, candidates].

    Raises:
      ValueError: bad key, data, sizes or counts, phis of another shape, or fewer than two draws.
    """
    check_key(key)
    xs = check_data("xs", xs, model)
    check_sizes(model, family)
    if jnp.ndim(phis) != 3 or jnp.shape(phis)[::2] != (num_rows(xs), family.size):
        raise ValueError(
            f"phis must have shape [N, candidates, size] = [{num_rows(xs)}, candidates, {family.size}], "
            f"got {jnp.shape(phis)}"
        )
    check_count("num_samples", num_samples, minimum=2)
    check_count("block_size", block_size)
    check_count("chunk_size", chunk_size)
    blocks = -(-num_samples // block_size)
    counts = blocks, min(block_size, num_samples), chunk_size
    return _evaluate(key, jnp.asarray(phis), xs, model, family, *counts)


@partial(jax.jit, static_argnames=("blocks", "draws", "chunk_size"))
def _evaluate(
    key: jax.Array, phis: Array, xs: Any, model: Any, family: Any, blocks: int, draws: int, chunk_size: int
) -> EvaluatedBounds:
    def moments(index: Array, candidates: Array, x: Any) -> tuple[Array, Array, Array]:
        datum_key = jax.random.fold_in(key, index)

        def add(carry: tuple[Array, Array, Array], block: Array) -> tuple[tuple[Array, Array, Array], None]:
            block_key = jax.random.fold_in(datum_key, block)
            values = jax.vmap(
                lambda phi: elbo_draws(
                    block_key, phi, x, model=model, family=family, num_samples=draws, estimator="total"
                )
            )(candidates)
            # Deviations are taken from the block's own means, without which float32 loses the variance.
            mean, second, paired = carry
            here = jnp.mean(values, axis=1)
            centred = values - here[:, None]
            change, before = here - mean, (block * draws).astype(values.dtype)
            weight = before * draws / (before + draws)
            merged = (
                mean + change * draws / (before + draws),
                second + jnp.sum(centred**2, axis=1) + weight * change**2,
                paired + jnp.sum((centred[:1] - centred) ** 2, axis=1) + weight * (change[0] - change) ** 2,
            )
            return merged, None

        zeros = jnp.zeros(candidates.shape[0], candidates.dtype)
        (mean, second, paired), _ = jax.lax.scan(add, (zeros, zeros, zeros), jnp.arange(blocks))
        count = float(blocks * draws)
        scale = count * (count - 1)
        return mean, jnp.sqrt(second / scale), jnp.sqrt(paired / scale)

    return EvaluatedBounds(*map_data(lambda i, row: moments(i, *row), (phis, xs), chunk_size=chunk_size))


def inference_gaps(
    key: jax.Array,
    xs: Any,
    *,
    model: Any,
    family: Any,
    encoder: Any,
    local: LocalFit | None = None,
    evidence: Evidence | EvidenceBounds | None = None,
    evidence_method: str = "auto",
    num_samples: int = 1000,
    evidence_samples: int = 5000,
    optimum_samples: int | None = None,
    every_start: bool = True,
    progress: bool = False,
) -> Gaps:
    """Measure how many nats an encoder loses on every datum, and why.

    Formula: `log p(x) - ELBO(encoder(x)) = [log p(x) - ELBO(phi*)] + [ELBO(phi*) - ELBO(encoder(x))]`: the inference
    gap is the approximation gap plus the amortization gap. Both ELBOs use the same draws, which none of the fits saw.

    Args:
      key: typed key.
      xs: data, [N, ...].
      model, family: as in `elbo`.
      encoder: callable from one datum to phi.
      local: local optima of these data and this family, if already known; None to fit them now.
      evidence: log p(x) of these data, if already known, or bounds on it from both sides, whose lower one then stands
        for log p(x); None to estimate it now.
      evidence_method: as in `evidence_of_data`.
      num_samples: draws per datum for both ELBOs, above 100 rounded up to whole hundreds.
      evidence_samples: draws per datum for importance sampling, with the local optimum as the proposal.
      optimum_samples: draws per datum for the upper bound on the best ELBO by `suboptimality_bound`, which closes the
        intervals of the approximation and the amortization gap; None to leave it out.
      every_start: whether local VI runs both from the encoder's output and from the family's standard member, as in
        `fit_local`: on a posterior of several modes the encoder may lead to a lesser one. False halves the time.
      progress: show progress bars on standard error if that is a terminal.

    Returns:
      Gaps, arrays over data; `.summary()` prints means with standard errors.

    Raises:
      ValueError: bad key, data, sizes, or results of other data.

    Source: Cremer, Li and Duvenaud, "Inference suboptimality in variational autoencoders" (2018), equations 3 to 5.

    Example:
      A constant encoder on a model whose family holds the posterior: all of the loss is amortization.

      >>> import jax, jax.numpy as jnp, amortgap as ag
      >>> model = ag.models.FactorAnalysis(loadings=jnp.ones((2, 1)), mean=jnp.zeros(2), noise_variance=jnp.ones(2))
      >>> _, xs = ag.diagnostics.simulate(jax.random.key(0), model=model, num_data=50)
      >>> family = ag.families.MeanFieldNormal(1)
      >>> encoder = ag.encoders.constant(jax.random.key(1), 2, family)
      >>> gaps = ag.inference_gaps(
      ...     jax.random.key(2), xs, model=model, family=family, encoder=encoder, evidence_method="exact"
      ... )
      >>> bool(gaps.amortization.mean() > 0.1), bool(abs(gaps.approximation.mean()) < 0.01)
      (True, True)
    """
    check_key(key)
    xs = check_data("xs", xs, model)
    check_sizes(model, family)
    encoder = check_encoder(encoder, family, jax.tree.map(lambda leaf: leaf[0], xs))
    check_count("num_samples", num_samples, minimum=2)
    check_count("evidence_samples", evidence_samples, minimum=2)
    n = num_rows(xs)
    # All that can be refused is refused here: the local fits below take minutes, and would be lost.
    if optimum_samples is not None:
        check_count("optimum_samples", optimum_samples, minimum=2 * family.latent_dim)
        if not isinstance(family, Reparameterised):
            raise ValueError(f"optimum_samples needs family.transform, which {type(family).__name__} lacks")
    if local is not None:
        check_phis("local.phi", local.phi, family, n)
    if evidence is None:
        check_method("evidence_method", evidence_method, model)
        if evidence_method == "ais":
            check_prior(model)
    else:
        given = evidence.lower if isinstance(evidence, EvidenceBounds) else evidence.log_evidence
        if given.shape != (n,):
            raise ValueError(f"evidence must hold {n} values, got shape {given.shape}")
    encoded = encode(encoder, xs)
    key_local, key_bounds, key_evidence, key_excess = jax.random.split(key, 4)
    if local is None:
        how: dict[str, Any] = {"every_start": every_start, "progress": progress}
        local = fit_local(key_local, xs, model=model, family=family, encoder=encoder, **how)
    if evidence is None:
        evidence = evidence_of_data(
            key_evidence,
            xs,
            model=model,
            method=evidence_method,
            family=family,
            phis=local.phi,
            num_samples=evidence_samples,
        )
    upper = excess = None
    if isinstance(evidence, EvidenceBounds):
        upper = Bound(evidence.upper, evidence.upper_standard_error, evidence.proven)
        value, error, bias = evidence.lower, evidence.lower_standard_error, "lower bound"
    else:
        value, error, bias = evidence.log_evidence, evidence.standard_error, evidence.bias
    phis = jnp.stack([local.phi, encoded], axis=1)
    bounds = evaluate_bounds(key_bounds, phis, xs, model=model, family=family, num_samples=num_samples)
    if optimum_samples is not None:
        excess = suboptimality_bound_of_data(
            key_excess, local.phi, xs, model=model, family=family, num_samples=optimum_samples
        )
    return Gaps(
        log_evidence=value,
        elbo_local=bounds.elbo[:, 0],
        elbo_amortized=bounds.elbo[:, 1],
        log_evidence_standard_error=error,
        elbo_local_standard_error=bounds.standard_error[:, 0],
        elbo_amortized_standard_error=bounds.standard_error[:, 1],
        amortization_standard_error=bounds.paired_standard_error[:, 1],
        converged=local.converged,
        suboptimality=local.suboptimality,
        evidence_upper=upper,
        suboptimality_bound=excess,
        evidence_method=evidence.method,
        evidence_bias=bias,
    )


def compare_encoders(
    key: jax.Array,
    xs: Any,
    *,
    model: Any,
    family: Any,
    first: Any,
    second: Any,
    num_samples: int = 1000,
) -> Estimate:
    """Compare the gaps of two encoders on the same data and the same draws.

    Formula: `(1/N) sum_i gap_first(x_i) - gap_second(x_i) = (1/N) sum_i ELBO(second(x_i)) - ELBO(first(x_i))`, the same
    for amortization and inference gap: log p(x) and the local optimum cancel, so neither is computed.

    Args:
      key: typed key; datum i uses `fold_in(key, i)` for both encoders.
      xs: data, [N, ...].
      model, family: as in `elbo`.
      first, second: callables from one datum to phi.
      num_samples: draws per datum, above 100 rounded up to whole hundreds.

    Returns:
      Estimate in nats, positive where the first encoder loses more, with the standard error of the paired difference
      over data and over draws.

    Raises:
      ValueError: bad key, data or counts, or an encoder that does not return one phi of the family.
    """
    check_key(key)
    xs = check_data("xs", xs, model)
    check_sizes(model, family)
    check_count("num_samples", num_samples, minimum=2)
    row = jax.tree.map(lambda leaf: leaf[0], xs)
    checked = {}
    for name, encoder in (("first", first), ("second", second)):
        try:
            checked[name] = check_encoder(encoder, family, row)
        except ValueError as error:
            raise ValueError(f"{name} is no encoder of this family: {error}") from error
    phis = jnp.stack([encode(checked[name], xs) for name in ("second", "first")], axis=1)
    bounds = evaluate_bounds(key, phis, xs, model=model, family=family, num_samples=num_samples)
    return paired_difference(bounds.elbo[:, 0], bounds.elbo[:, 1], bounds.paired_standard_error[:, 1])
