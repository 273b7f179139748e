"""Every remedy for the inference gap on one frozen decoder: nats removed against what they cost.

    python experiments/remedies.py                          # digits: 4 minutes on one core
    python experiments/remedies.py --data fashion_mnist     # a 28 x 28 decoder; or mnist. `make data` fetches both
    python experiments/remedies.py --preset smoke           # a minute or two, for a first look and for the tests

A VAE is trained on binarised digits and its decoder frozen. The baseline is a mean field encoder with one hidden layer
of 32 units. Every remedy changes one thing (a richer family, another encoder, another objective, steps at test time)
and may spend the same number of decoder evaluations on training. The table holds for each the inference gap, the nats
it removes from the baseline's (on the same images and draws), the split into approximation and amortization gap on
training and held-out images, and its cost: parameters, training evaluations, evaluations per datum at test time.

Writes OUT/table.csv, OUT/table.json (config, command, versions, machine, time) and OUT/remedies.{pdf,png}. Run again
with the same OUT to resume; finished cells are not computed again. To expect on digits: five refinement steps remove
0.75 of the 0.89 nats that local VI removes.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Literal

from amortgap.runtime import prepare_compiler

prepare_compiler(one_core=True)

from studies.remedies import cells as remedies_cells
from studies.remedies.figure import derive
from studies.remedies.methods import REMEDIES
from studies.remedies.study import SCHEMA, Study

from amortgap.sweep import Cell, make_cells
from amortgap.sweep.script import Flat, SweepOptions, parse_study, run_study


@dataclasses.dataclass(frozen=True)
class Args:
    """Flags of the comparison; every field of the study can be overridden."""

    study: Study = dataclasses.field(default_factory=Study)
    remedies: tuple[str, ...] = tuple(REMEDIES)
    """Remedies to compare; the baseline is always among them."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the encoders."""
    sweep: Flat = dataclasses.field(default_factory=lambda: SweepOptions(threads=2))


def _images(data: Literal["mnist", "fashion_mnist"]) -> Args:
    study = Study(
        data=data,
        latent_dim=20,
        decoder_width=200,
        decoder_steps=4000,
        training_evaluations=200_000,
        learning_rate=0.003,
        width=64,
        num_samples=100,
        evidence_samples=2000,
    )
    return Args(study=study, sweep=SweepOptions(threads=2))


PRESETS = {
    "digits": Args(),
    "mnist": _images("mnist"),
    "fashion_mnist": _images("fashion_mnist"),
    "smoke": Args(
        study=Study(
            latent_dim=2,
            decoder_width=8,
            decoder_steps=60,
            training_evaluations=4000,
            batch_size=20,
            width=4,
            num_train=12,
            num_test=10,
            num_samples=20,
            evidence_samples=50,
            local_steps=10,
            subset=100,
        ),
        remedies=("baseline", "wide", "refine", "local VI"),
    ),
}


def configurations(args: Args) -> list[Study]:
    """Return the studies of all cells.

    Raises:
      ValueError: an unknown remedy.
    """
    if unknown := sorted(set(args.remedies) - set(REMEDIES)):
        raise ValueError(f"remedies must be among {', '.join(REMEDIES)}, got {', '.join(unknown)}")
    names = [name for name in REMEDIES if name in args.remedies or name == "baseline"]
    return [
        dataclasses.replace(args.study, remedy=name, steps=steps, seed=seed)
        for seed in args.seeds
        for name in names
        for steps in REMEDIES[name].steps
    ]


def cells(args: Args) -> tuple[Cell, ...]:
    """Return the cells of the comparison."""
    data = remedies_cells.load(args.study).sha256
    return make_cells(configurations(args), schema_version=SCHEMA.version, data_sha256=data)


def main() -> int:
    """Run the comparison, write table, figure and sidecar, and return the exit status."""
    args = parse_study(Args, PRESETS, name="remedies", description=__doc__, preset_flags=("--preset", "--data"))
    compute, group = remedies_cells.Compute(), remedies_cells.group
    return run_study(args, cells, compute, schema=SCHEMA, derive=derive, group_by=group).exit_status


if __name__ == "__main__":
    sys.exit(main())
