"""What one cell of the capacity sweep computes: the shared references of a study, and encoders trained against them."""

from __future__ import annotations

import dataclasses
import functools
import math
import threading
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from capacity_study import QUANTILES, Study

import amortgap as ag
from amortgap.data import DataSet, load_digits
from amortgap.sweep import CellResult


def make_family(name: str, latent_dim: int) -> Any:
    """Return the variational family of a study."""
    return {"mean_field": ag.families.MeanFieldNormal, "full_rank": ag.families.FullRankNormal}[name](latent_dim)


@functools.lru_cache
def _images(model: str, binarisation: str, data_seed: int, subset: int) -> DataSet:
    data = load_digits(binarisation="none" if model == "factor_analysis" else binarisation, seed=data_seed)
    keep = subset or None
    scale = np.float32(16 if model == "factor_analysis" else 1)
    return data._replace(train=data.train[:keep] / scale, test=data.test[:keep] / scale)


def images(study: Study) -> DataSet:
    """Return the data of a study: binary for the deep model, intensities in [0, 1] for factor analysis."""
    return _images(study.model, study.binarisation, study.data_seed, study.subset)


def all_images(study: Study) -> np.ndarray:
    """Return training and held-out data of a study, in this order."""
    return np.concatenate([images(study).train, images(study).test])


def data_hash(study: Study) -> str:
    """Return the sha256 of the data of a study, part of the hash of its cells."""
    return images(dataclasses.replace(study, model="vae")).sha256


@dataclasses.dataclass(frozen=True)
class Reference:
    """What all encoders of one model and family are compared with; training data first, then held-out ones."""

    local: ag.LocalFit
    evidence: Any


def _key(purpose: str, number: int = 0) -> jax.Array:
    purposes = ("decoder weights", "encoder of the vae", "vae training", "factor analysis", "local", "evidence")
    purposes += ("encoder weights", "encoder training", "evaluation")
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(0), purposes.index(purpose)), number)


def group(study: Study) -> tuple:
    """Return what the cells of one compiled call share; widths up to 32 are padded to one shape."""
    if study.model == "factor_analysis":
        return dataclasses.astuple(dataclasses.replace(study, width=study.latent_dim, seed=0))
    depth = max(study.depth, 1)
    return dataclasses.astuple(dataclasses.replace(study, width=max(study.width, 32), depth=depth, seed=0))


class Compute:
    """Computes groups of cells; models and references are made once per process and kept."""

    def __init__(self) -> None:
        self._locks: dict[tuple, threading.Lock] = {}
        self._lock = threading.Lock()
        self._kept: dict[tuple, Any] = {}

    def __reduce__(self) -> tuple:
        # Workers of a cluster make their own references: deterministic, and cheaper than shipping them.
        return Compute, ()

    def _once(self, name: tuple, make: Any) -> Any:
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            if name not in self._kept:
                self._kept[name] = make()
            return self._kept[name]

    def __call__(self, studies: Sequence[Study]) -> list[CellResult]:
        """Return the results of a group of cells, one each."""
        first = studies[0]
        if first.decoder == "joint" and first.model == "vae":
            return [_joint(study) for study in studies]
        model = self._once(("model", first.model), lambda: make_model(first))
        evidence = self._once(("evidence", first.model), lambda: self._evidence(first, model))
        return train_and_measure(studies, model, Reference(self._local(first, model, first.family), evidence))

    def _local(self, study: Study, model: Any, family: str) -> ag.LocalFit:
        return self._once(("local", study.model, family), lambda: fit_references(study, model, family))

    def _evidence(self, study: Study, model: Any) -> Any:
        # log p(x) is a property of the model: the better proposal serves both families.
        proposal = None if study.model == "factor_analysis" else self._local(study, model, "full_rank")
        return estimate_evidence(study, model, proposal)


def _joint(study: Study) -> CellResult:
    fit = train_decoder(study, make_family(study.family, study.latent_dim), seed=study.seed, mlp=study)
    full = fit_references(study, fit.model, "full_rank")
    local = full if study.family == "full_rank" else fit_references(study, fit.model, study.family)
    reference = Reference(local, estimate_evidence(study, fit.model, full))
    encoders = jax.tree.map(lambda leaf: leaf[None], fit.encoder)
    stacked = dataclasses.replace(fit, **{name: getattr(fit, name)[None] for name in _TRAINING})
    rows = measure([study], fit.model, encoders, reference)
    return _result(study, stacked, rows[0], fit.encoder, study.decoder_steps, 0)


def train_decoder(study: Study, family: Any, *, seed: int, mlp: Study) -> ag.AmortizedFit:
    """Train a VAE with the encoder of `mlp`; the held-out images choose the step at which the decoder is kept."""
    data = images(study)
    features = data.train.shape[1]
    model = ag.models.deep_latent_gaussian(
        _key("decoder weights", seed),
        latent_dim=study.latent_dim,
        data_dim=features,
        width=study.decoder_width,
        depth=2,
    )
    key = _key("encoder of the vae", seed)
    return ag.train_vae(
        _key("vae training", seed),
        data.train,
        model=model,
        family=family,
        encoder=ag.encoders.mlp(key, features, family, width=mlp.width, depth=mlp.depth),
        validation=data.test,
        num_steps=study.decoder_steps,
        num_evaluations=min(20, study.decoder_steps),
    )


def make_model(study: Study) -> Any:
    """Return the frozen model of a study: factor analysis by maximum likelihood, or the decoder of a trained VAE."""
    if study.model == "factor_analysis":
        data = images(study)
        return ag.models.fit_factor_analysis(
            _key("factor analysis"), data.train, latent_dim=study.latent_dim, num_steps=300
        ).model
    family = make_family("mean_field", study.latent_dim)
    return train_decoder(study, family, seed=0, mlp=dataclasses.replace(study, width=128, depth=2)).model


def fit_references(study: Study, model: Any, family: str) -> ag.LocalFit:
    """Return the local optimum of every datum, training data first."""
    xs = all_images(study)
    options: dict[str, Any] = {}
    if study.model == "factor_analysis":
        # On a quadratic log joint a Newton step is exact, and the ladder needs local optima far better than its gaps.
        options = {"method": "newton", "warmup_steps": 0, "num_steps": 6, "max_reruns": 0, "tolerance": 1e-4}
    return ag.fit_local(
        _key("local"),
        xs,
        model=model,
        family=make_family(family, study.latent_dim),
        chunk_size=-(-len(xs) // 3),
        **options,
    )


def estimate_evidence(study: Study, model: Any, proposal: ag.LocalFit | None) -> Any:
    """Return log p(x) of every datum: exact, or by importance sampling from full rank local optima."""
    family = make_family("full_rank", study.latent_dim)
    phis = None if proposal is None else proposal.phi
    samples = study.evidence_samples
    return ag.evidence_of_data(
        _key("evidence"), all_images(study), model=model, family=family, phis=phis, num_samples=samples
    )


def make_encoder(study: Study, family: Any, xs: np.ndarray) -> Any:
    """Return the untrained encoder of a cell."""
    key = _key("encoder weights", study.seed)
    if study.width == 0:
        # Zero weights have zero gradients, so that all but the last bias stay zero: the constant encoder, in a shape
        # that shares the compiled call of its group.
        smallest = make_encoder(dataclasses.replace(study, width=1, depth=max(study.depth, 1)), family, xs)
        return dataclasses.replace(smallest, network=jax.tree.map(jnp.zeros_like, smallest.network))
    if study.model == "factor_analysis":
        return ag.encoders.linear(key, xs.shape[1], family, rank=study.width, standardize=xs)
    return ag.encoders.mlp(key, xs.shape[1], family, width=study.width, depth=study.depth)


def train_and_measure(studies: Sequence[Study], model: Any, reference: Reference) -> list[CellResult]:
    """Train the encoders of a group in one compiled call and measure them on both splits."""
    first = studies[0]
    family = make_family(first.family, first.latent_dim)
    xs = jnp.asarray(images(first).train)
    ladder = first.model == "factor_analysis"
    encoders = [make_encoder(study, family, images(first).train) for study in studies]
    stacked = ag.encoders.stack_padded(encoders)
    rates = jnp.asarray([_rate(study) for study in studies])
    seeds = jnp.asarray([study.seed for study in studies])
    keys = jax.vmap(lambda seed: jax.random.fold_in(_key("encoder training"), seed))(seeds)
    steps = first.ladder_steps if ladder else first.encoder_steps
    options: dict[str, Any] = {"num_steps": steps, "num_evaluations": min(4, steps)}
    if ladder:
        # The log joint is quadratic in z: the cubature rule gives its exact ELBO, and the ladder can be met to float
        # precision.
        options |= {"optimizer": "lbfgs", "estimator": "cubature"}
    else:
        options |= {"batch_size": first.batch_size}
    fit = _train(keys, xs, model, family, stacked, rates, tuple(options.items()))
    total = steps
    for _ in range(first.extensions):
        if bool(jnp.all(jnp.abs(fit.change) <= first.convergence_tolerance)):
            break
        keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
        fit = _train(keys, xs, model, family, fit.encoder, rates / 3, tuple(options.items()))
        total += steps
    rows = measure(studies, model, fit.encoder, reference)
    return [_result(study, fit, rows[i], encoders[i], total, i) for i, study in enumerate(studies)]


def _rate(study: Study) -> float:
    # The entries of a triangular root are more, and a step along all of them is longer.
    share = 0.5 if study.family == "full_rank" else 1.0
    return share * study.learning_rate * min(1.0, (32 / max(study.width, 1)) ** 0.5)


@functools.partial(jax.jit, static_argnames=("options",))
def _train(keys: Any, xs: Any, model: Any, family: Any, encoders: Any, rates: Any, options: tuple) -> ag.AmortizedFit:
    def train(key: jax.Array, encoder: Any, rate: jax.Array) -> ag.AmortizedFit:
        fit = ag.amortized_vi(key, xs, model=model, family=family, encoder=encoder, learning_rate=rate, **dict(options))
        return dataclasses.replace(fit, model=None)

    if dict(options).get("optimizer") == "lbfgs":
        # Under vmap every line search would last as long as the longest.
        return jax.lax.map(lambda args: train(*args), (keys, encoders, rates))
    return jax.vmap(train)(keys, encoders, rates)


def measure(studies: Sequence[Study], model: Any, encoders: Any, reference: Reference) -> list[list[dict[str, Any]]]:
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
        bounds = _bounds(_key("evaluation"), xs, candidates, model, family, samples)
        for position, study in enumerate(studies[i : i + _AT_ONCE]):
            rows.append(_rows(study, bounds, position + 1, model, reference))
    return rows


# Encoders measured in one compiled call.
_AT_ONCE = 5


@jax.jit
def _encode(encoders: Any, xs: Any) -> Any:
    return jax.vmap(lambda x: jax.vmap(lambda encoder: encoder(x))(encoders))(xs)


@functools.partial(jax.jit, static_argnames=("num_samples",))
def _bounds(key: Any, xs: Any, candidates: Any, model: Any, family: Any, num_samples: int) -> Any:
    return ag.evaluate_bounds(key, candidates, xs, model=model, family=family, num_samples=num_samples)


def _rows(study: Study, bounds: Any, position: int, model: Any, reference: Reference) -> list[dict[str, Any]]:
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


def _row(study: Study, split: str, gaps: ag.Gaps, model: Any) -> dict[str, Any]:
    estimates = gaps.estimates()
    local, amortized, gap = (estimates[name] for name in ("approximation", "inference", "amortization"))
    row: dict[str, Any] = {"split": split, "num_data": gaps.elbo_local.shape[0]}
    named = {"kl_local": local, "kl_amortized": amortized, "amortization_gap": gap}
    for name, value in named.items():
        row[name] = float(value.mean)
        row[f"{name}_se"] = float(value.data_standard_error)
        row[f"{name}_mc_se"] = float(value.monte_carlo_standard_error)
        row[f"{name}_sum"] = float(value.total)
    ladder = study.model == "factor_analysis"
    data = images(study)
    held_out = None if split == "train" else jnp.asarray(data.test)
    kl = (model.mean_field_kl() if study.family == "mean_field" else 0.0) if ladder else None
    row |= {
        "exact_amortization_gap": float(model.rank_gap(jnp.asarray(data.train), study.width, held_out=held_out))
        if ladder
        else None,
        "exact_approximation_gap": None if kl is None else float(kl),
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


def _broken_at(trace: Any) -> int:
    good = np.isfinite(trace.batch_elbo) & np.isfinite(trace.elbo)
    return int(np.asarray(trace.step)[np.argmin(good)])


def _result(
    study: Study, fit: ag.AmortizedFit, rows: list[dict[str, Any]], encoder: Any, steps: int, index: int
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
        step = _broken_at(jax.tree.map(lambda leaf: leaf[index], fit.trace))
        message = f"training met a value that is not finite by step {step} of {steps}; no gap is reported"
    if not bool(finite):
        rows = [row | dict.fromkeys((name for name in row if name.startswith(_OF_ENCODER)), math.nan) for row in rows]
    return CellResult(rows=[common | row for row in rows], message=message)
