"""Measuring the gaps of an encoder: local optimum, both ELBOs on shared draws, evidence, and differences."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from amortgap._internal.checks import (
    check_count,
    check_data,
    check_encoder,
    check_key,
    check_phis,
    check_sizes,
    first_row,
    num_rows,
)
from amortgap._internal.devices import chosen_devices, encode
from amortgap.evidence import Bound, Evidence, EvidenceBounds, warn_unreliable
from amortgap.evidence.hmc import check_prior
from amortgap.evidence.methods import estimate_of_data
from amortgap.evidence.settings import Settings, check_method, chosen_method
from amortgap.evidence.suboptimality import check_suboptimality, suboptimality_bounds
from amortgap.gaps.bounds import evaluate
from amortgap.gaps.estimates import Estimate, paired_difference
from amortgap.gaps.record import Gaps
from amortgap.inference.local.local_vi import LocalFit, fit_local
from amortgap.protocols import Data, Encoder, Family, Model


def inference_gaps(
    key: jax.Array,
    xs: Data,
    *,
    model: Model,
    family: Family,
    encoder: Encoder,
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
      local: local optima of these data and this family; None to fit them now.
      evidence: log p(x) of these data, or bounds on it from both sides, of which the lower then serves as log p(x);
        None to estimate it now.
      evidence_method: as in `evidence_of_data`, with the local optimum as the proposal.
      num_samples: draws per datum for both ELBOs, above 100 rounded up to whole hundreds.
      evidence_samples: draws per datum where log p(x) is had by importance sampling.
      optimum_samples: draws per datum for the upper bound on the best ELBO by `suboptimality_bound`, which closes the
        intervals of the approximation and the amortization gap; None to leave it out.
      every_start: whether local VI runs both from the encoder's output and from the family's standard member, as in
        `fit_local`: on a posterior of several modes the encoder may lead to a lower one. False halves the time.
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
    encoder = check_encoder(encoder, family, first_row(xs))
    check_count("num_samples", num_samples, minimum=2)
    check_count("evidence_samples", evidence_samples, minimum=2)
    n = num_rows(xs)
    # Refuse here whatever can be refused: the local fits below take minutes, and would be lost.
    if optimum_samples is not None:
        check_suboptimality("optimum_samples", optimum_samples, family)
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
    key_local, key_bounds, key_evidence, key_suboptimality = jax.random.split(key, 4)
    if local is None:
        local = fit_local(
            key_local, xs, model=model, family=family, encoder=encoder, every_start=every_start, progress=progress
        )
    # The data are checked: the functions below are the compiled parts of those that would check them again.
    devices = chosen_devices(None)
    if evidence is None:
        method = chosen_method(evidence_method, model, family)
        settings = Settings(num_samples=evidence_samples)
        rows = (local.phi, xs)
        estimated: Evidence = estimate_of_data(
            key_evidence, rows, None, model, family, method=method, settings=settings, devices=devices
        )
        warn_unreliable(estimated)
        evidence = estimated
    upper = suboptimality = None
    if isinstance(evidence, EvidenceBounds):
        upper = Bound(evidence.upper, evidence.upper_standard_error, evidence.proven)
        value, error, bias = evidence.lower, evidence.lower_standard_error, "lower bound"
    else:
        value, error, bias = evidence.log_evidence, evidence.standard_error, evidence.bias
    bounds = evaluate(key_bounds, jnp.stack([local.phi, encoded], axis=1), xs, model, family, num_samples)
    if optimum_samples is not None:
        suboptimality = suboptimality_bounds(
            key_suboptimality, local.phi, xs, model, family, num_samples=optimum_samples, devices=devices
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
        suboptimality_bound=suboptimality,
        evidence_method=evidence.method,
        evidence_bias=bias,
    )


def compare_encoders(
    key: jax.Array,
    xs: Data,
    *,
    model: Model,
    family: Family,
    first: Encoder,
    second: Encoder,
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
    row = first_row(xs)
    encoded = []
    for name, encoder in (("second", second), ("first", first)):
        try:
            encoded.append(encode(check_encoder(encoder, family, row), xs))
        except ValueError as error:
            raise ValueError(f"{name} is no encoder of this family: {error}") from error
    phis = jnp.stack(encoded, axis=1)
    bounds = evaluate(key, phis, xs, model, family, num_samples)
    return paired_difference(bounds.elbo[:, 0], bounds.elbo[:, 1], bounds.paired_standard_error[:, 1])
