"""What one cell of the capacity sweep computes: encoders trained and measured against the references of a study."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import amortgap as ag
from amortgap.gaps import EvaluatedBounds
from amortgap.protocols import CountsWeights, Encoder, Family, Model
from amortgap.sweep import CellResult
from studies.capacity.references import (
    Reference,
    References,
    all_images,
    estimate_evidence,
    fit_references,
    images,
    make_family,
    purpose_key,
    train_decoder,
)
from studies.capacity.study import QUANTILES, Study
from studies.shared import broken_at, release_memory

# Encoders are padded to the next of these widths, to share one compiled call where compiling costs more than padding.
_PADDED = (32, 128)


def group(study: Study) -> tuple:
    """Return what the cells of one compiled call share."""
    if study.model == "factor_analysis":
        return dataclasses.astuple(dataclasses.replace(study, width=study.latent_dim, seed=0))
    width = next((width for width in _PADDED if study.width <= width), study.width)
    return dataclasses.astuple(dataclasses.replace(study, width=width, depth=max(study.depth, 1), seed=0))


class Compute:
    """Computes groups of cells against references that are made once, in `folder` if it is shared."""

    def __init__(self, folder: Path | None = None) -> None:
        self._references = References(folder)

    def __reduce__(self) -> tuple:
        return Compute, (self._references.folder,)

    def __call__(self, studies: Sequence[Study]) -> list[CellResult]:
        """Return the results of a group of cells, one each."""
        first = studies[0]
        if first.decoder == "joint" and first.model == "vae":
            return [_joint(study) for study in studies]
        results = train_and_measure(studies, self._references.model(first), self._references.of(first))
        # The program of a group serves no other; all kept, they would double the memory of a worker.
        _train.clear_cache()  # pyright: ignore[reportAttributeAccessIssue] (jax's stub omits it)
        release_memory()
        return results


def _joint(study: Study) -> CellResult:
    fit = train_decoder(study, make_family(study.family, study.latent_dim), seed=study.seed, mlp=study)
    full = fit_references(study, fit.model, "full_rank")
    local = full if study.family == "full_rank" else fit_references(study, fit.model, study.family)
    reference = Reference(local, estimate_evidence(study, fit.model, full))
    encoders = jax.tree.map(lambda leaf: leaf[None], fit.encoder)
    stacked = dataclasses.replace(fit, **{name: getattr(fit, name)[None] for name in _TRAINING})
    rows = measure([study], fit.model, encoders, reference)
    return _result(study, stacked, rows[0], fit.encoder, study.decoder_steps, 0)


def make_encoder(study: Study, family: Family, xs: np.ndarray) -> Any:
    """Return the untrained encoder of a cell."""
    key = purpose_key("encoder weights", study.seed)
    if study.width == 0:
        # Zero weights have zero gradients, so that all but the last bias stay zero: the constant encoder, in a shape
        # that shares the compiled call of its group.
        smallest = make_encoder(dataclasses.replace(study, width=1, depth=max(study.depth, 1)), family, xs)
        return dataclasses.replace(smallest, network=jax.tree.map(jnp.zeros_like, smallest.network))
    if study.model == "factor_analysis":
        return ag.encoders.linear(key, xs.shape[1], family, rank=study.width, standardize=xs)
    return ag.encoders.mlp(key, xs.shape[1], family, width=study.width, depth=study.depth)


def train_and_measure(studies: Sequence[Study], model: Model, reference: Reference) -> list[CellResult]:
    """Train the encoders of a group in one compiled call and measure them on both splits."""
    first = studies[0]
    family = make_family(first.family, first.latent_dim)
    xs = jnp.asarray(images(first).train)
    ladder = first.model == "factor_analysis"
    encoders = [make_encoder(study, family, images(first).train) for study in studies]
    stacked = ag.encoders.stack_padded(encoders)
    rates = jnp.asarray([_rate(study) for study in studies])
    seeds = jnp.asarray([study.seed for study in studies])
    keys = jax.vmap(lambda seed: jax.random.fold_in(purpose_key("encoder training"), seed))(seeds)
    steps = first.ladder_steps if ladder else first.encoder_steps
    options: dict[str, Any] = {"num_steps": steps, "num_evaluations": min(4, steps)}
    if ladder:
        # The log joint is quadratic in z: the cubature rule gives its exact ELBO, and the ladder can be met to float
        # precision.
        options |= {"optimizer": "lbfgs", "estimator": "cubature"}
    else:
        options |= {"batch_size": first.batch_size}
    fit = _train(keys, xs, model, family, stacked, rates, tuple(options.items()))
    totals = np.full(len(studies), steps)
    for _ in range(first.extensions):
        moving = np.flatnonzero(fit.finite & (jnp.abs(fit.change) > first.convergence_tolerance))
        if not moving.size:
            break
        keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
        start = jax.tree.map(operator.itemgetter(moving), (fit.encoder, rates / 3))
        longer = _train(keys[moving], xs, model, family, *start, tuple(options.items()))
        fit = jax.tree.map(lambda all_, some, rows=moving: all_.at[rows].set(some), fit, longer)
        totals[moving] += steps
    rows = measure(studies, model, fit.encoder, reference)
    return [_result(study, fit, rows[i], encoders[i], int(totals[i]), i) for i, study in enumerate(studies)]


def _rate(study: Study) -> float:
    # The entries of a triangular root are more, and a step along all of them is longer.
    share = 0.5 if study.family == "full_rank" else 1.0
    return share * study.learning_rate * min(1.0, (32 / max(study.width, 1)) ** 0.5)


@functools.partial(jax.jit, static_argnames=("options",))
def _train(
    keys: jax.Array,
    xs: jax.Array,
    model: Model,
    family: Family,
    encoders: Encoder,
    rates: jax.Array,
    options: tuple[tuple[str, Any], ...],
) -> ag.AmortizedFit:
    def train(key: jax.Array, encoder: Encoder, rate: jax.Array) -> ag.AmortizedFit:
        fit = ag.amortized_vi(key, xs, model=model, family=family, encoder=encoder, learning_rate=rate, **dict(options))
        return dataclasses.replace(fit, model=None)

    if dict(options).get("optimizer") == "lbfgs":
        # Under vmap every line search would last as long as the longest.
        return jax.lax.map(lambda args: train(*args), (keys, encoders, rates))
    return jax.vmap(train)(keys, encoders, rates)


def measure(
    studies: Sequence[Study], model: Model, encoders: Encoder, reference: Reference
) -> list[list[dict[str, Any]]]:
    """Return for every encoder its rows, one a split, from draws that neither training nor local VI has seen."""
    first, xs = studies[0], jnp.asarray(all_images(studies[0]))
    family = make_family(first.family, first.latent_dim)
    phis = _encode(encoders, xs)
    rows = []
    for i in range(0, len(studies), _AT_ONCE):
        # Always the same number of candidates: one compilation serves groups of every size.
        chosen = [min(j, len(studies) - 1) for j in range(i, i + _AT_ONCE)]
        candidates = jnp.concatenate([reference.local.phi[:, None], phis[:, jnp.asarray(chosen)]], axis=1)
        samples = first.ladder_samples if first.model == "factor_analysis" else first.num_samples
        key = purpose_key("evaluation")
        bounds = ag.evaluate_bounds(key, candidates, xs, model=model, family=family, num_samples=samples)
        for position, study in enumerate(studies[i : i + _AT_ONCE]):
            rows.append(_rows(study, bounds, position + 1, model, reference))
    return rows


# Encoders measured in one compiled call.
_AT_ONCE = 5


@jax.jit
def _encode(encoders: Encoder, xs: jax.Array) -> jax.Array:
    return jax.vmap(lambda x: jax.vmap(lambda encoder: encoder(x))(encoders))(xs)


def _rows(
    study: Study, bounds: EvaluatedBounds, position: int, model: Model, reference: Reference
) -> list[dict[str, Any]]:
    local, evidence = reference.local, reference.evidence
    num_train = len(images(study).train)
    parts = {"train": slice(0, num_train), "test": slice(num_train, None)}
    return [
        _row(
            study,
            split,
            ag.Gaps(
                log_evidence=evidence.log_evidence[part],
                elbo_local=bounds.elbo[part, 0],
                elbo_amortized=bounds.elbo[part, position],
                log_evidence_standard_error=evidence.standard_error[part],
                elbo_local_standard_error=bounds.standard_error[part, 0],
                elbo_amortized_standard_error=bounds.standard_error[part, position],
                amortization_standard_error=bounds.paired_standard_error[part, position],
                converged=local.converged[part],
                suboptimality=local.suboptimality[part],
                evidence_method=evidence.method,
                evidence_bias=evidence.bias,
            ),
            model,
        )
        for split, part in parts.items()
    ]


def _row(study: Study, split: str, gaps: ag.Gaps, model: Model) -> dict[str, Any]:
    estimates = gaps.estimates()
    local, amortized, gap = (estimates[name] for name in ("approximation", "inference", "amortization"))
    row: dict[str, Any] = {"split": split, "num_data": gaps.elbo_local.shape[0]}
    named = {"kl_local": local, "kl_amortized": amortized, "amortization_gap": gap}
    for name, value in named.items():
        row[name] = float(value.mean)
        row[f"{name}_se"] = float(value.data_standard_error)
        row[f"{name}_mc_se"] = float(value.monte_carlo_standard_error)
        row[f"{name}_sum"] = float(value.total)
    exact_gap, exact_kl = None, None
    if isinstance(model, ag.models.FactorAnalysis):
        data = images(study)
        held_out = None if split == "train" else jnp.asarray(data.test)
        exact_gap = float(model.rank_gap(jnp.asarray(data.train), study.width, held_out=held_out))
        exact_kl = float(model.approximation_gap()) if study.family == "mean_field" else 0.0
    row |= {
        "exact_amortization_gap": exact_gap,
        "exact_approximation_gap": exact_kl,
        "elbo_local": float(estimates["elbo_local"].mean),
        "elbo_amortized": float(estimates["elbo_amortized"].mean),
        "log_evidence": float(estimates["log_evidence"].mean),
        "log_evidence_mc_se": float(estimates["log_evidence"].monte_carlo_standard_error),
        "evidence_method": gaps.evidence_method,
        "evidence_bias": gaps.evidence_bias,
        "local_converged": float(jnp.mean(gaps.converged)),
        "local_suboptimality": float(jnp.mean(gaps.suboptimality)),
    }
    values = np.quantile(np.asarray(gaps.amortization), QUANTILES)
    return row | {f"gap_q{round(100 * q):03d}": float(v) for q, v in zip(QUANTILES, values, strict=True)}


# Fields of a fit that have one entry for each encoder of the group.
_TRAINING = ("change", "change_standard_error", "finite")
# Columns that say nothing where training broke down.
_OF_ENCODER = ("kl_amortized", "amortization_gap", "elbo_amortized", "gap_q")


def _result(
    study: Study, fit: ag.AmortizedFit, rows: list[dict[str, Any]], encoder: CountsWeights, steps: int, index: int
) -> CellResult:
    change, error, finite = (getattr(fit, name)[index] for name in _TRAINING)
    kind = "constant" if study.width == 0 else "linear" if study.model == "factor_analysis" else "mlp"
    # What a constant encoder trains is one phi.
    parameters = encoder.num_weights if study.width else make_family(study.family, study.latent_dim).size
    common = {
        "model": study.model,
        "decoder": study.decoder,
        "family": study.family,
        "encoder": kind,
        "depth": study.depth,
        "capacity": study.width,
        "seed": study.seed,
        "encoder_parameters": parameters,
        "training_steps": steps,
        "training_change": float(change),
        "training_change_se": float(error),
        "converged": bool(finite) and abs(float(change)) <= study.convergence_tolerance,
    }
    message = ""
    if not bool(finite):
        step = broken_at(jax.tree.map(lambda leaf: leaf[index], fit.trace))
        message = f"training met a value that is not finite by step {step} of {steps}; no gap is reported"
    if not bool(finite):
        rows = [row | dict.fromkeys((name for name in row if name.startswith(_OF_ENCODER)), math.nan) for row in rows]
    return CellResult(rows=[common | row for row in rows], message=message)
