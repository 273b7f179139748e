"""The sub-experiments: what one cell of each computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import amortgap as ag
from amortgap.sweep import CellResult
from studies.cremer2018.bounds import bounds, gaps, summary
from studies.cremer2018.estimators import published_ffg
from studies.cremer2018.models import Trained, data_set, key_of, main_training, make_encoder, make_family, trained
from studies.cremer2018.study import PER_IMAGE, PICTURED, Cell, Study, Training

PICTURED_IMAGES = (6, 3, 2, 5)


class Found:
    """Rows and per-image arrays of a cell, as they are found."""

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self.rows: list[dict[str, Any]] = []
        self.arrays: dict[str, np.ndarray] = {}

    def add(self, split: str, step: int, values: dict[str, np.ndarray]) -> None:
        """Add the images of a split at a step, one array for every quantity."""
        cell = self._cell
        where = {"experiment": cell.experiment, "data": cell.data, "model": cell.model, "variant": cell.variant}
        for quantity, of_images in values.items():
            self.rows.append(where | {"step": step, "split": split, "quantity": quantity} | summary(of_images))
            if quantity in PER_IMAGE:
                self.arrays[f"{split}|{step}|{quantity}"] = np.asarray(of_images, np.float32)

    def result(self, *of: Trained) -> CellResult:
        """Return the cell's result; a diverged training is told in its message."""
        message = "" if all(one.finite for one in of) else "training diverged; the best weights before are measured"
        return CellResult(rows=self.rows, arrays=self.arrays, message=message)


def training_of(cell: Cell) -> Training:
    """Return the training behind a cell of the tables, the decoder sizes, the frozen decoder and the comparisons."""
    study, data, model = cell.study, cell.data, cell.model
    if cell.experiment == "larger-encoder":
        return main_training(study, data, model, encoder_width=study.large_width)
    if cell.experiment == "no-warm-up":
        return main_training(study, data, model, warmup_steps=0)
    if cell.experiment == "decoder-size":
        return main_training(study, data, model, decoder_depth=int(cell.variant.split()[0]))
    if cell.experiment == "frozen-decoder":
        return main_training(study, data, "FFG")
    if cell.experiment == "posteriors":
        half = study.width // 2
        return main_training(
            study,
            data,
            "FFG",
            latent_dim=2,
            encoder_width=half,
            decoder_width=half,
            steps=study.picture_steps,
            warmup_steps=0,
        )
    return main_training(study, data, model)


def flow_of(study: Study, latent_dim: int, name: str = "AF") -> tuple[str, Any]:
    """Return name and family of the local flow of a study."""
    return name, make_family(name, latent_dim, (study.flow_layers, study.flow_width, study.flow_context))


def table(cell: Cell, folder: Path) -> CellResult:
    """Return gaps of one model on training and held-out images."""
    study, found = cell.study, Found(cell)
    training = training_of(cell)
    have = trained(training, folder)
    data = data_set(cell.data, study.seed)
    flow = flow_of(study, study.latent_dim)
    for split, xs in (("train", data.train[: study.num_train]), ("test", data.test[: study.num_test])):
        found.add(split, training.steps, gaps(bounds(study, have, xs, flow=flow), cell.model))
    return found.result(have)


def frozen_decoder(cell: Cell, folder: Path) -> CellResult:
    """Return gaps of an encoder without hidden layer, normal or flow, on the frozen decoder of the main experiment."""
    study, found = cell.study, Found(cell)
    have = trained(training_of(cell), folder)
    xs = data_set(cell.data, study.seed).train[: study.train_count]
    family = make_family(cell.variant, study.latent_dim, (study.flow_layers, study.flow_width, study.flow_context))
    fit = ag.amortized_vi(
        key_of("amortized", 1),
        xs,
        model=have.model,
        family=family,
        validation=xs[:1000],
        encoder=make_encoder(key_of("encoder", 1), xs.shape[1:], family, width=1, depth=0),
        num_steps=study.frozen_steps,
        num_evaluations=min(4, study.frozen_steps),
        batch_size=min(100, len(xs)),
        learning_rate=study.learning_rate,
    )
    new = Trained(have.model, fit.encoder, family, have.finite and bool(fit.finite))
    flow = flow_of(study, study.latent_dim, "AF" if cell.variant == "FFG" else cell.variant)
    images = xs[: study.frozen_images]
    values = bounds(study, new, images, flow=flow, with_flow=cell.variant != "FFG", annealed=0)
    found.add("train", study.frozen_steps, gaps(values, cell.variant))
    return found.result(new)


def over_training(cell: Cell, folder: Path) -> CellResult:
    """Return gaps at the checkpoints of one training, on training and held-out images."""
    study, found = cell.study, Found(cell)
    changes: dict[str, Any] = {"encoder_width": study.width, "decoder_width": study.width}
    if cell.variant == "large encoder":
        changes = {"encoder_width": study.large_width, "encoder_depth": 3}
    if cell.variant == "large decoder":
        changes = {"decoder_width": study.large_width, "decoder_depth": 3}
    data = data_set(cell.data, study.seed)
    flow = flow_of(study, study.series_latents, "Flow")
    have: list[Trained] = []
    for number in range(1, study.series_checkpoints + 1):
        training = main_training(
            study,
            cell.data,
            cell.model,
            count=study.series_count,
            latent_dim=study.series_latents,
            warmup_steps=0,
            steps=study.series_steps,
            segments=number,
            **changes,
        )
        have.append(trained(training, folder))
        for split, xs in (("train", data.train[: study.series_images]), ("test", data.test[: study.series_images])):
            # Either way log p(x) comes from the best q here, the local one.
            values = bounds(study, have[-1], xs, flow=flow, with_flow=cell.model == "Flow", annealed=0)
            found.add(split, number * study.series_steps, gaps(values, cell.model))
    return found.result(*have)


def posteriors(cell: Cell, folder: Path) -> CellResult:
    """Return, for four images and two latents, the true posterior on a grid and three approximations to it."""
    study, found = cell.study, Found(cell)
    have = trained(training_of(cell), folder)
    train = data_set(cell.data, study.seed).train
    xs = jnp.asarray(train[jnp.asarray(PICTURED_IMAGES)])
    normal = ag.families.MeanFieldNormal(2)
    coupling = ag.families.CouplingFlow(2, num_layers=4, width=16)
    amortized = jax.vmap(have.encoder)(xs)
    local = ag.fit_local(key_of("local"), xs, model=have.model, family=normal, init=amortized).phi
    embedded = jax.vmap(lambda phi: coupling.from_moments(phi[:2], jnp.diag(jnp.exp(phi[2:]))))(local)
    flow = ag.fit_local(key_of("local", 1), xs, model=have.model, family=coupling, init=embedded).phi

    def joint(image: int, z: jax.Array) -> jax.Array:
        return have.model.log_joint(z, xs[image])

    log_densities: list[Callable[[int, jax.Array], jax.Array]] = [
        joint,
        lambda image, z: normal.log_prob(z, amortized[image]),
        lambda image, z: normal.log_prob(z, local[image]),
        lambda image, z: coupling.log_prob(z, flow[image]),
    ]
    for image in range(len(xs)):
        # Wide enough for both normals, which may lie apart.
        phis = jnp.stack([amortized[image], local[image]])
        reach = 4 * jnp.exp(phis[:, 2:])
        low, high = jnp.min(phis[:, :2] - reach, axis=0), jnp.max(phis[:, :2] + reach, axis=0)
        axes = jnp.linspace(low, high, study.picture_grid, axis=1)
        points = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
        cell_area = jnp.prod((high - low) / (study.picture_grid - 1))
        for name, log_density in zip(PICTURED, log_densities, strict=True):
            values = jax.lax.map(lambda z, f=log_density, i=image: f(i, z), points, batch_size=500)
            # Only the joint needs it; of the others what lies outside of the picture stays outside.
            shift = jax.nn.logsumexp(values) + jnp.log(cell_area) if name == PICTURED[0] else 0.0
            found.arrays[f"picture|{image}|{name}"] = np.asarray(values - shift, np.float32)
        found.arrays[f"points|{image}"] = np.asarray(points, np.float32)
    for name, family, phis in zip(PICTURED[1:], (normal, normal, coupling), (amortized, local, flow), strict=True):
        elbo = ag.evaluate_bounds(
            key_of("amortized"), phis[:, None], xs, model=have.model, family=family, num_samples=1000
        ).elbo[:, 0]
        found.add("train", study.picture_steps, {name: np.asarray(elbo, np.float64)})
    return found.result(have)


def simulated_data(cell: Cell, folder: Path) -> CellResult:
    """Return bounds on log p(x) from both sides on images simulated from a trained model."""
    study, found = cell.study, Found(cell)
    have = trained(training_of(cell), folder)
    latents, xs = ag.diagnostics.simulate(key_of("simulation"), model=have.model, num_data=study.simulated)
    sandwich = ag.evidence_bounds(
        key_of("annealing"),
        xs,
        model=have.model,
        latents=latents,
        num_temperatures=study.simulated_temperatures,
        num_chains=study.simulated_chains,
        num_leapfrog=study.ais_leapfrog,
        num_pilots=2,
    )
    lower, upper = np.asarray(sandwich.lower, np.float64), np.asarray(sandwich.upper, np.float64)
    values = {"lower bound": lower, "upper bound": upper, "upper - lower": upper - lower}
    phis = jax.lax.map(have.encoder, xs, batch_size=500)
    importance = ag.evidence_of_data(
        key_of("evidence"), xs, model=have.model, family=have.family, phis=phis, num_samples=study.evidence_samples
    ).log_evidence
    values["IWAE - lower"] = np.asarray(importance, np.float64) - lower
    found.add("simulated", study.train_steps, values)
    return found.result(have)


def estimators(cell: Cell, folder: Path) -> CellResult:
    """Return what both published estimators of L[q*_FFG] miss of the certified one, on the same images."""
    study, found = cell.study, Found(cell)
    have = trained(training_of(cell), folder)
    model, normal = have.model, ag.families.MeanFieldNormal(study.latent_dim)
    xs = jnp.asarray(data_set(cell.data, study.seed).train[: study.compared_images])
    # From the prior, as the others.
    certified = ag.fit_local(key_of("local"), xs, model=model, family=normal)
    copies, reported = published_ffg(
        key_of("copies"), xs, model=model, way="independent-copies", copies=study.copies, window=study.window
    )
    single, _ = published_ffg(key_of("copies", 1), xs, model=model, way="adam-1e-3", window=study.window)
    candidates = jnp.stack([certified.phi, single, copies], axis=1)
    at = ag.evaluate_bounds(key_of("amortized"), candidates, xs, model=model, family=normal, num_samples=5000).elbo
    ours, one, copy = (np.asarray(at[:, i], np.float64) for i in range(3))
    values = {
        "certified": ours,
        "certified: what it may miss": np.asarray(certified.suboptimality, np.float64),
        "adam-1e-3": one,
        "independent-copies, as reported": np.asarray(reported, np.float64),
        "independent-copies, first copy": copy,
        "certified - adam-1e-3": ours - one,
        "certified - independent-copies": ours - np.asarray(reported, np.float64),
        "certified - first copy": ours - copy,
    }
    found.add("train", study.train_steps, values)
    return found.result(have)


PARTS: dict[str, Callable[[Cell, Path], CellResult]] = {
    "inference-gaps": table,
    "larger-encoder": table,
    "no-warm-up": table,
    # Long ones before short ones: no worker is left waiting at the end.
    "over-training": over_training,
    "estimators": estimators,
    "decoder-size": table,
    "frozen-decoder": frozen_decoder,
    "posteriors": posteriors,
    "simulated-data": simulated_data,
}
TABLES = ("inference-gaps", "larger-encoder", "no-warm-up")


def cells_of(study: Study, experiment: str, data: tuple[str, ...]) -> list[Cell]:
    """Return the cells of an experiment; those that the paper made on one data set take the first that suits them."""
    first = data[0]
    fashion = "fashion_mnist" if "fashion_mnist" in data else first
    if experiment in TABLES:
        return [Cell(study, experiment, name, family) for name in data for family in ("FFG", "AF")]
    if experiment == "decoder-size":
        return [Cell(study, experiment, first, "FFG", f"{depth} hidden layers") for depth in study.decoder_depths]
    if experiment == "frozen-decoder":
        return [Cell(study, experiment, first, "FFG", family) for family in ("FFG", "Flow", "AF")]
    if experiment == "over-training":
        models = (("FFG", ""), ("Flow", ""), ("FFG", "large decoder"), ("FFG", "large encoder"))
        return [Cell(study, experiment, fashion, model, variant) for model, variant in models]
    if experiment == "simulated-data":
        return [Cell(study, experiment, name, "FFG") for name in data]
    return [Cell(study, experiment, first)]
