"""What one cell of the comparison computes: a remedy trained against the frozen decoder and measured on both splits."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import amortgap as ag
from amortgap.protocols import Encoder, Family, Model
from amortgap.sweep import CellResult
from studies.remedies.methods import REFINE, REMEDIES, Problem, Trained
from studies.remedies.study import Study
from studies.shared import Kept, purpose_key

_SHARED = (
    "data",
    "latent_dim",
    "decoder_width",
    "decoder_steps",
    "num_train",
    "num_test",
    "evidence_samples",
    "subset",
)


@functools.cache
def _data(name: str) -> ag.data.DataSet:
    return getattr(ag.data, f"load_{name}")(binarisation="threshold")


def load(study: Study) -> ag.data.DataSet:
    """Return the data set of a study, binary; the training part cut to `study.subset`.

    Raises:
      ValueError: a data set whose files are not on this machine.
    """
    data = _data(study.data)
    return data._replace(train=data.train[: study.subset or None])


def group(study: Study) -> tuple:
    """Return what the cells of one call share: the trained encoder."""
    # Methods that only differ in what is done at test time start from one encoder.
    return (study.remedy, study.seed)


_PURPOSES = (
    "decoder weights",
    "encoder of the vae",
    "vae training",
    "local",
    "evidence",
    "remedy",
    "evaluation",
    "refinement",
    "local of remedy",
)
_key = functools.partial(purpose_key, 0, _PURPOSES)


@dataclasses.dataclass(frozen=True)
class Fixed:
    """The data, the frozen decoder, the evaluated rows and their evidence, which all remedies share."""

    problem: Problem
    rows: jax.Array
    num_train: int
    evidence: ag.evidence.Evidence


class Compute:
    """Computes cells; the decoder, the evidence and what remedies share are made once per process and kept."""

    def __init__(self) -> None:
        self._kept = Kept()

    def __reduce__(self) -> tuple:
        # Workers of a cluster make their own: deterministic, and cheaper than shipping them.
        return Compute, ()

    def __call__(self, studies: Sequence[Study]) -> list[CellResult]:
        """Return the results of the cells of one remedy and seed."""
        first = studies[0]
        shared = tuple(getattr(first, name) for name in _SHARED)
        fixed = self._kept.once(("fixed", *shared), lambda: make_fixed(first))
        trained = self._trained(first, fixed)
        base = self._kept.once(("values", first.seed), lambda: self._baseline(first, fixed))
        # One optimum serves all remedies of the baseline's family, whichever of them is computed first.
        narrow = isinstance(trained.family, ag.families.MeanFieldNormal)
        start = self._trained(_as_baseline(first), fixed) if narrow else trained
        local = self._kept.once(
            ("local", "mean field", first.seed) if narrow else ("local", first.remedy, first.seed),
            lambda: fit_local(first, fixed, start),
        )
        return [CellResult(rows=measure(study, fixed, trained, base, local)) for study in studies]

    def _baseline(self, study: Study, fixed: Fixed) -> ag.gaps.EvaluatedBounds:
        trained = self._trained(_as_baseline(study), fixed)
        return values_at(study, fixed, trained.family, encode(trained.encoder, fixed.rows))

    def _trained(self, study: Study, fixed: Fixed) -> Trained:
        remedy = REMEDIES[study.remedy]
        # Remedies with the same training share it and its key.
        same = remedy.like or study.remedy
        key = _key("remedy", study.seed)
        problem = dataclasses.replace(fixed.problem, study=study)
        return self._kept.once(("trained", same, study.seed), lambda: remedy.train(key, problem))


def _as_baseline(study: Study) -> Study:
    return dataclasses.replace(study, remedy="baseline", steps=0)


def make_fixed(study: Study) -> Fixed:
    """Train the VAE whose decoder all remedies face, and estimate the evidence of the evaluated data."""
    data = load(study)
    model = ag.models.deep_latent_gaussian(
        _key("decoder weights"),
        latent_dim=study.latent_dim,
        data_dim=data.train.shape[1],
        width=study.decoder_width,
        depth=2,
    )
    family = ag.families.MeanFieldNormal(study.latent_dim)
    encoder = ag.encoders.mlp(_key("encoder of the vae"), data.train.shape[1], family, width=128, depth=2)
    model = ag.train_vae(
        _key("vae training"),
        data.train,
        model=model,
        family=family,
        encoder=encoder,
        validation=data.test,
        num_steps=study.decoder_steps,
        num_evaluations=min(20, study.decoder_steps),
    ).model
    num_train, num_test = min(study.num_train, len(data.train)), min(study.num_test, len(data.test))
    rows = jnp.concatenate([jnp.asarray(data.train[:num_train]), jnp.asarray(data.test[:num_test])])
    full = ag.families.FullRankNormal(study.latent_dim)
    proposal = ag.fit_local(_key("local"), rows, model=model, family=full, max_reruns=0)
    evidence = ag.evidence_of_data(
        _key("evidence"), rows, model=model, family=full, phis=proposal.phi, num_samples=study.evidence_samples
    )
    return Fixed(Problem(model, jnp.asarray(data.train), study), rows, num_train, evidence)


def fit_local(study: Study, fixed: Fixed, trained: Trained) -> ag.LocalFit:
    """Return the local optimum of every evaluated datum in the family of a remedy, started at its encoder."""
    fit = functools.partial(
        ag.fit_local,
        _key("local of remedy"),
        fixed.rows,
        model=fixed.problem.model,
        family=trained.family,
        encoder=trained.encoder,
        max_reruns=0,
    )
    if isinstance(trained.family, (ag.families.MeanFieldNormal, ag.families.FullRankNormal)):
        return fit()
    return fit(num_steps=study.local_steps, num_samples=100)


@jax.jit
def encode(encoder: Encoder, rows: jax.Array) -> jax.Array:
    """Return phi of all rows."""
    return jax.vmap(encoder)(rows)


def values_at(study: Study, fixed: Fixed, family: Family, phis: jax.Array) -> ag.gaps.EvaluatedBounds:
    """Return the ELBO of every evaluated datum at `phis` on draws that are the same for all remedies."""
    return ag.evaluate_bounds(
        _key("evaluation"),
        phis[:, None],
        fixed.rows,
        model=fixed.problem.model,
        family=family,
        num_samples=study.num_samples,
    )


@functools.partial(jax.jit, static_argnames=("num_steps",))
def _refined(
    key: jax.Array, phis: jax.Array, rows: jax.Array, model: Model, family: Family, num_steps: int
) -> jax.Array:
    def one(index: jax.Array, phi: jax.Array, x: jax.Array) -> jax.Array:
        draw_key = jax.random.fold_in(key, index)
        return ag.refine(draw_key, phi, x, model=model, family=family, num_steps=num_steps, **REFINE).phi

    return jax.vmap(one)(jnp.arange(len(rows)), phis, rows)


@functools.partial(jax.jit, static_argnames=("num_steps", "repeats"))
def _buffered(
    key: jax.Array, phis: jax.Array, rows: jax.Array, model: Model, family: Family, num_steps: int, repeats: int
) -> tuple[jax.Array, jax.Array]:
    def one(index: jax.Array, phi: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys = jax.random.split(jax.random.fold_in(key, index), repeats)
        # One draw a step: at a rate that suits the four draws of refinement the steps would diverge.
        bound = functools.partial(
            ag.buffered_bound, model=model, family=family, learning_rate=0.05, optimizer="natural", num_steps=num_steps
        )
        draws = jax.lax.map(lambda k: bound(k, phi, x), keys, batch_size=10)
        return jnp.mean(draws), jnp.std(draws, ddof=1) / repeats**0.5

    return jax.vmap(one)(jnp.arange(len(rows)), phis, rows)


def bound_of(study: Study, fixed: Fixed, trained: Trained, local: ag.LocalFit) -> tuple[jax.Array, jax.Array, int]:
    """Return the bound of every datum, its Monte Carlo error, and the decoder evaluations per datum it takes."""
    model, family, key = fixed.problem.model, trained.family, _key("refinement")
    phis = encode(trained.encoder, fixed.rows)
    if study.remedy == "buffered bound":
        value, error = _buffered(key, phis, fixed.rows, model, family, study.steps, study.num_samples)
        return value, error, study.steps
    cost = 0
    if study.remedy == "local VI":
        phis, cost = local.phi, int(jnp.mean(local.num_gradients))
    elif study.remedy == "iterative":
        cost = 2 * study.steps
    elif study.steps:
        phis = _refined(key, phis, fixed.rows, model, family, study.steps)
        cost = study.steps * REFINE["num_samples"]
    found = values_at(study, fixed, family, phis)
    return resolved(found.elbo[:, 0]), found.standard_error[:, 0], cost


# From here on neighbouring numbers of 32 bits are more than a nat apart: such an ELBO may be rounding alone.
_UNRESOLVED = 2.0**24


def resolved(bound: jax.Array) -> jax.Array:
    """Return the bounds of all data, NaN where 32 bits cannot hold them to a nat, as after an encoder has diverged."""
    return jnp.where(jnp.abs(bound) < _UNRESOLVED, bound, jnp.nan)


def _mean(entries: jax.Array) -> tuple[float, float]:
    values = np.asarray(entries, np.float64)
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)


def measure(
    study: Study, fixed: Fixed, trained: Trained, base: ag.gaps.EvaluatedBounds, local: ag.LocalFit
) -> list[dict[str, Any]]:
    """Return the rows of one cell, one a split."""
    bound, error, cost = bound_of(study, fixed, trained, local)
    best = resolved(values_at(study, fixed, trained.family, local.phi).elbo[:, 0])
    log_evidence, evidence_error = fixed.evidence.log_evidence, fixed.evidence.standard_error
    rows = []
    for split, part in (("train", slice(0, fixed.num_train)), ("test", slice(fixed.num_train, None))):
        gap, gap_se = _mean((log_evidence - bound)[part])
        removed, removed_se = _mean((bound - base.elbo[:, 0])[part])
        approximation, approximation_se = _mean((log_evidence - best)[part])
        amortization, amortization_se = _mean((best - bound)[part])
        split_of_gap: dict[str, float | None] = {
            "approximation_gap": approximation,
            "approximation_gap_se": approximation_se,
            "amortization_gap": amortization,
            "amortization_gap_se": amortization_se,
        }
        if REMEDIES[study.remedy].kind == "bound":
            # Not the ELBO of one distribution of the family: its gap has no such parts.
            split_of_gap = dict.fromkeys(split_of_gap)
        count = len(np.asarray(bound[part]))
        rows.append(
            {
                "data": study.data,
                "remedy": study.remedy,
                "steps": study.steps,
                "seed": study.seed,
                "split": split,
                "kind": REMEDIES[study.remedy].kind,
                "family": trained.family.name,
                "num_data": count,
                "parameters": trained.parameters,
                "training_evaluations": trained.training_evaluations,
                "test_evaluations": cost,
                "inference_gap": gap,
                "inference_gap_se": gap_se,
                "inference_gap_mc_se": float(jnp.sqrt(jnp.sum(error[part] ** 2 + evidence_error[part] ** 2))) / count,
                "removed": removed,
                "removed_se": removed_se,
                **split_of_gap,
                "local_converged": float(jnp.mean(local.converged[part])),
                "local_suboptimality": float(
                    np.nanmean(np.where(np.isfinite(local.suboptimality[part]), local.suboptimality[part], np.nan))
                ),
                "log_evidence": float(jnp.mean(log_evidence[part])),
                "log_evidence_mc_se": float(jnp.sqrt(jnp.sum(evidence_error[part] ** 2))) / count,
                "finite": trained.finite,
            }
        )
    return rows
