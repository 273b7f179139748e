"""Inference suboptimality in variational autoencoders (2018): every table and figure again, with intervals.

    python experiments/cremer2018.py --cluster local:2     # preset laptop: 28 minutes on two cores
    python experiments/cremer2018.py --preset paper        # the published protocol, for a GPU
    python experiments/cremer2018.py --preset smoke        # a minute or two on digits, mostly compilation

*inference-gaps*, *larger-encoder*, *no-warm-up*: the three tables, a diagonal normal (FFG) and an auxiliary flow (AF)
on every data set. *decoder-size*: decoders with 0, 2 and 4 hidden layers. *frozen-decoder*: flows on an encoder without
hidden layer. *over-training*: gaps at checkpoints, training and held-out images. *posteriors*: pictures with two
latents. *simulated-data*: log p(x) from both sides by bidirectional Monte Carlo. *estimators*: L[q*] as both official
codes estimated it, beside certified local optima; `--study.local-estimator` uses one of theirs everywhere.

log p(x) is the larger of the importance-weighted bound and annealed importance sampling, both from local optima, both
reported. Writes OUT/table.csv, OUT/tables.csv (the paper's layout), OUT/claims.csv, OUT/images_*.csv (every image),
OUT/posteriors.csv, OUT/table.json and the figures OUT/{gaps,decoders,training,posteriors}.{pdf,png}. Trained models are
kept in OUT/models; run again to resume. `make data` fetches MNIST and Fashion-MNIST; CIFAR-10 is left out where absent.
To expect of preset laptop: 20 of 20 tests not resolved, since its trainings are short and of one seed.

Source: Cremer, Li and Duvenaud, "Inference suboptimality in variational autoencoders" (2018).
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from amortgap.runtime import prepare_compiler

prepare_compiler(one_core=True)

import numpy as np
from studies.cremer2018.claims import CLAIMS
from studies.cremer2018.figure import derive, images_file
from studies.cremer2018.models import data_set
from studies.cremer2018.parts import PARTS, PICTURED_IMAGES, cells_of
from studies.cremer2018.study import DATA, IMAGES, PER_IMAGE, PICTURE, PICTURED, SCHEMA, Cell, Study

import amortgap as ag
from amortgap import sweep
from amortgap.sweep import write_atomic
from amortgap.sweep.script import Flat, SweepOptions, parse_study, run_study
from amortgap.sweep.table import Table, csv_text, read_columns

Experiment = Literal[
    "inference-gaps",
    "larger-encoder",
    "no-warm-up",
    "decoder-size",
    "frozen-decoder",
    "over-training",
    "posteriors",
    "simulated-data",
    "estimators",
]


@dataclasses.dataclass(frozen=True)
class Args:
    """Flags of the reproduction; every field of the study can be overridden."""

    study: Study = dataclasses.field(default_factory=Study)
    experiments: tuple[Experiment, ...] = tuple(PARTS)  # type: ignore[assignment]
    """Sub-experiments to run."""
    data: tuple[Literal["mnist", "fashion_mnist", "kmnist", "cifar10", "digits"], ...] = (
        "mnist",
        "fashion_mnist",
        "cifar10",
    )
    """Data sets; `make data` fetches the first two."""
    sweep: Flat = dataclasses.field(default_factory=SweepOptions)


PRESETS = {
    "laptop": Args(),
    "paper": Args(
        study=Study(
            num_test=1000,
            ais_images=1000,
            frozen_images=500,
            train_steps=1_968_000,
            learning_rate=1e-3,
            flow_width=200,
            flow_context=50,
            bound_samples=5000,
            local_tolerance=0.01,
            local_samples=256,
            local_flow_steps=2000,
            evidence_samples=5000,
            ais_temperatures=10_000,
            ais_chains=100,
            ais_leapfrog=10,
            frozen_steps=200_000,
            series_count=50_000,
            series_checkpoints=10,
            series_steps=300_000,
            series_images=1000,
            picture_steps=1_800_000,
            simulated=1000,
            simulated_temperatures=10_000,
            simulated_chains=100,
            compared_images=100,
        )
    ),
    "smoke": Args(
        data=("digits",),
        study=Study(
            train_count=100,
            num_train=12,
            num_test=10,
            latent_dim=2,
            width=8,
            large_width=10,
            train_steps=40,
            flow_width=4,
            flow_context=2,
            bound_samples=20,
            local_flow_steps=10,
            evidence_samples=50,
            ais_images=6,
            ais_temperatures=5,
            ais_chains=2,
            ais_leapfrog=2,
            decoder_depths=(0,),
            frozen_images=10,
            frozen_steps=20,
            series_latents=2,
            series_count=60,
            series_checkpoints=2,
            series_steps=20,
            series_images=8,
            picture_steps=40,
            picture_grid=9,
            simulated=8,
            simulated_temperatures=10,
            simulated_chains=2,
            compared_images=3,
            copies=3,
            window=5,
        ),
    ),
}


class Compute:
    """Computes cells; trained models are kept in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, cell: Cell) -> sweep.CellResult:
        """Return the result of one cell."""
        return PARTS[cell.experiment](cell, self._folder)


def present(data: Sequence[str]) -> tuple[str, ...]:
    """Return the data sets to use: all that were asked for, CIFAR-10 only where its files are.

    Raises:
      ValueError: a data set whose files are missing, damaged or of another size, with what to do.
    """
    if "cifar10" in data and not ag.data.is_available("cifar10"):
        print("cifar10 is left out: its files are not on this machine", file=sys.stderr)
        data = [name for name in data if name != "cifar10"]
    if not data:
        raise ValueError(f"data must name at least one data set that is here, of {', '.join(DATA)}")
    return tuple(data)


def configurations(args: Args, data: tuple[str, ...]) -> list[Cell]:
    """Return the cells of all experiments, those of the main tables first."""
    return [cell for name in PARTS if name in args.experiments for cell in cells_of(args.study, name, data)]


def image_rows(cell: Cell, arrays: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of every image of a cell."""
    where = {"experiment": cell.experiment, "data": cell.data, "model": cell.model, "variant": cell.variant}
    groups: dict[tuple[str, int], dict[str, Any]] = {}
    for name, values in arrays.items():
        split, step, quantity = name.split("|")
        groups.setdefault((split, int(step)), {})[quantity] = values
    return [
        where
        | {"split": split, "step": step, "image": image}
        | {name: _finite(found[name][image]) if name in found else None for name in PER_IMAGE}
        for (split, step), found in sorted(groups.items())
        for image in range(len(next(iter(found.values()))))
    ]


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def picture_rows(arrays: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the grids of the posterior pictures."""
    rows = []
    for number, image in enumerate(PICTURED_IMAGES):
        densities = {name: arrays[f"picture|{number}|{name}"] for name in PICTURED}
        for i, (z1, z2) in enumerate(arrays[f"points|{number}"]):
            values = {name: _finite(of[i]) for name, of in densities.items()}
            rows.append({"image": image, "z1": float(z1), "z2": float(z2)} | values)
    return rows


def write_images(out: Path, cells: Sequence[sweep.Cell]) -> list[Path]:
    """Write the values of every image and the grids of the pictures from the records of finished cells."""
    store = sweep.open_store(out)
    of_images: dict[str, list[dict[str, Any]]] = {}
    picture: list[dict[str, Any]] = []
    for cell in cells:
        record = store.load(cell.key)
        if record is None or not record.finished or record.arrays is None:
            continue
        arrays = store.load_arrays(record)
        if cell.config.experiment == "posteriors":
            picture = picture_rows(arrays)
        else:
            of_images.setdefault(cell.config.experiment, []).extend(image_rows(cell.config, arrays))
    written: dict[str, tuple[Any, list[dict[str, Any]]]]
    written = {images_file(name): (IMAGES, found) for name, found in of_images.items()}
    if picture:
        written["posteriors.csv"] = (PICTURE, picture)
    for name, table in written.items():
        write_atomic(out / name, csv_text(Table(*table)).encode())
    return [out / name for name in written]


@functools.cache
def cells(args: Args) -> tuple[sweep.Cell, ...]:
    """Return the cells of all experiments, each with the sha256 of its data."""
    data = present(args.data)
    hashes = {name: data_set(name, args.study.seed).sha256 for name in data}
    return sweep.make_cells(
        configurations(args, data), schema_version=SCHEMA.version, data_sha256=lambda cell: hashes[cell.data]
    )


def main() -> int:
    """Run the experiments, write tables, figures and sidecar, and return the exit status."""
    args = parse_study(Args, PRESETS, name="cremer2018", description=__doc__)

    def all_derived(folder: Path, out: Path) -> list[Path]:
        return [*write_images(folder, cells(args)), *derive(folder, out)]

    def facts(_: Any) -> dict[str, Any]:
        return {"data": {cell.config.data: cell.identity["data_sha256"] for cell in cells(args)}}

    compute = Compute(args.sweep.out.resolve() / "models")
    finished = run_study(args, cells, compute, schema=SCHEMA, derive=all_derived, facts=facts)
    for claim in read_columns(args.sweep.out / "claims.csv", CLAIMS).rows:
        print(f"{claim['verdict']}: {claim['claim']}")
    return finished.exit_status


if __name__ == "__main__":
    sys.exit(main())
