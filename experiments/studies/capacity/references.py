"""What all encoders of a study are compared with: model, local optima and log p(x), made once for all processes."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

import amortgap as ag
from amortgap.data import DataSet, load_digits
from amortgap.protocols import Family, Model
from amortgap.sweep import locked, write_atomic
from studies import shared
from studies.capacity.study import Study

T = TypeVar("T")
# A record as arrays and words, which safetensors can hold.
Parts = tuple[dict[str, Any], dict[str, str]]
TakeApart = Callable[[T], Parts]
Restore = Callable[[dict[str, jax.Array], dict[str, str]], T]


def make_family(name: str, latent_dim: int) -> Family:
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


_PURPOSES = (
    "decoder weights",
    "encoder of the vae",
    "vae training",
    "factor analysis",
    "local",
    "evidence",
    "encoder weights",
    "encoder training",
    "evaluation",
)
purpose_key = functools.partial(shared.purpose_key, 0, _PURPOSES)


def untrained_decoder(study: Study, *, seed: int) -> Model:
    """Return the deep model with initial weights."""
    return ag.models.deep_latent_gaussian(
        purpose_key("decoder weights", seed),
        latent_dim=study.latent_dim,
        data_dim=images(study).train.shape[1],
        width=study.decoder_width,
        depth=2,
    )


def train_decoder(study: Study, family: Family, *, seed: int, mlp: Study) -> ag.AmortizedFit:
    """Train a VAE with the encoder of `mlp`; the held-out images choose the step at which the decoder is kept."""
    data = images(study)
    features = data.train.shape[1]
    model = untrained_decoder(study, seed=seed)
    key = purpose_key("encoder of the vae", seed)
    return ag.train_vae(
        purpose_key("vae training", seed),
        data.train,
        model=model,
        family=family,
        encoder=ag.encoders.mlp(key, features, family, width=mlp.width, depth=mlp.depth),
        validation=data.test,
        num_steps=study.decoder_steps,
        num_evaluations=min(20, study.decoder_steps),
    )


def make_model(study: Study) -> Model:
    """Return the frozen model of a study: factor analysis by maximum likelihood, or the decoder of a trained VAE."""
    if study.model == "factor_analysis":
        data = images(study)
        return ag.models.fit_factor_analysis(
            purpose_key("factor analysis"), data.train, latent_dim=study.latent_dim, num_steps=300
        ).model
    family = make_family("mean_field", study.latent_dim)
    return train_decoder(study, family, seed=0, mlp=dataclasses.replace(study, width=128, depth=2)).model


def fit_references(study: Study, model: Model, family: str) -> ag.LocalFit:
    """Return the local optimum of every datum, training data first."""
    xs = all_images(study)
    options: dict[str, Any] = {}
    if study.model == "factor_analysis":
        # On a quadratic log joint a Newton step is exact, and the ladder needs local optima far better than its gaps.
        options = {"method": "newton", "warmup_steps": 0, "num_steps": 6, "max_reruns": 0, "tolerance": 1e-4}
    return ag.fit_local(
        purpose_key("local"),
        xs,
        model=model,
        family=make_family(family, study.latent_dim),
        chunk_size=-(-len(xs) // 3),
        **options,
    )


def estimate_evidence(study: Study, model: Model, proposal: ag.LocalFit | None) -> ag.evidence.Evidence:
    """Return log p(x) of every datum: exact, or by importance sampling from full rank local optima."""
    family = make_family("full_rank", study.latent_dim)
    phis = None if proposal is None else proposal.phi
    samples = study.evidence_samples
    return ag.evidence_of_data(
        purpose_key("evidence"), all_images(study), model=model, family=family, phis=phis, num_samples=samples
    )


@dataclasses.dataclass(frozen=True)
class Reference:
    """What all encoders of one model and family are compared with; training data first, then held-out ones."""

    local: ag.LocalFit
    evidence: ag.evidence.Evidence


class References:
    """Makes models, local optima and log p(x) once, keeps them, and shares those of the deep model through files.

    Args:
      folder: where processes share what they made, in the folder of the results; None, or where those results are on
        another machine, for every process on its own. What is made is deterministic: sharing only saves time.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._kept = shared.Kept()

    def model(self, study: Study) -> Model:
        """Return the frozen model of a study."""

        def restore(leaves: dict[str, jax.Array], _: dict[str, str]) -> Model:
            structure = jax.tree.structure(untrained_decoder(study, seed=0))
            return jax.tree.unflatten(structure, [leaves[str(i)] for i in range(len(leaves))])

        def take_apart(model: Model) -> Parts:
            return {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(model))}, {}

        return self._once(study, "model", lambda: make_model(study), take_apart, restore)

    def local(self, study: Study, family: str) -> ag.LocalFit:
        """Return the local optima of a study in this family."""

        def restore(arrays: dict[str, jax.Array], _: dict[str, str]) -> ag.LocalFit:
            return ag.LocalFit(**arrays)

        return self._once(
            study, f"local_{family}", lambda: fit_references(study, self.model(study), family), _fields_of, restore
        )

    def evidence(self, study: Study) -> ag.evidence.Evidence:
        """Return log p(x) of a study's data, a property of the model: the better proposal serves both families."""

        def make() -> ag.evidence.Evidence:
            proposal = None if study.model == "factor_analysis" else self.local(study, "full_rank")
            return estimate_evidence(study, self.model(study), proposal)

        def restore(arrays: dict[str, jax.Array], words: dict[str, str]) -> ag.evidence.Evidence:
            count = int(words["num_draws"])
            return ag.evidence.Evidence(**arrays, method=words["method"], bias=words["bias"], num_draws=count)

        return self._once(study, "evidence", make, _fields_of, restore)

    def of(self, study: Study) -> Reference:
        """Return what the encoders of this study's family are compared with."""
        return Reference(self.local(study, study.family), self.evidence(study))

    def _once(self, study: Study, what: str, make: Callable[[], T], take_apart: TakeApart[T], restore: Restore[T]) -> T:
        of = dataclasses.replace(study, family="mean_field", width=0, depth=1, seed=0)
        name = f"{what}_{hashlib.sha256(repr(of).encode()).hexdigest()[:16]}"

        def made() -> T:
            if self.folder is not None and self.folder.parent.is_dir() and study.model == "vae":
                self.folder.mkdir(exist_ok=True)
                return _through(self.folder / f"{name}.safetensors", make, take_apart, restore)
            return make()

        return self._kept.once(name, made)


def _fields_of(record: ag.LocalFit | ag.evidence.Evidence) -> Parts:
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    words = {name: str(value) for name, value in values.items() if isinstance(value, (str, int))}
    return {name: value for name, value in values.items() if name not in words}, words


def _through(file: Path, make: Callable[[], T], take_apart: TakeApart[T], restore: Restore[T]) -> T:
    """Return what another process has written, or make it and write it; others wait meanwhile."""
    with locked(file.with_suffix(".lock")):
        if not file.exists():
            made = make()
            # What was compiled for this is not needed again.
            jax.clear_caches()
            shared.release_memory()
            arrays, words = take_apart(made)
            plain = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
            write_atomic(file, save(plain, metadata=words))
            return made
        with safe_open(file, framework="np") as opened:
            arrays = {name: jax.numpy.asarray(opened.get_tensor(name)) for name in opened.keys()}  # noqa: SIM118
            return restore(arrays, opened.metadata() or {})
