"""Encoder capacity against the gap it leaves, on real digits, with an exact ladder beside it.

    python experiments/capacity_sweep.py --cluster local:2                  # preset digits: 3 minutes on two cores
    python experiments/capacity_sweep.py --cluster local:2 --preset long    # longer training: an hour on two cores
    python experiments/capacity_sweep.py --preset smoke                     # seconds, for a first look and the tests

Two studies share one table. The *ladder*: factor analysis fitted to the digits and linear encoders of rank 0 to d,
whose amortization gap is known in closed form. The *deep model*: a VAE on binarised digits whose decoder is then
frozen, and encoders of width 1 to 256 trained against it. For every encoder the table holds the mean KL of local VI,
the mean KL of the encoder, their difference (the amortization gap) and log p(x), on training and held-out data.

Writes OUT/table.csv, OUT/table.json (config, command, versions, machine, time) and OUT/capacity_sweep.{pdf,png}.
Run again with the same OUT to resume; finished cells are not computed again. To expect of preset digits: the gap on
held-out digits falls from 24.5 nats of one phi for all to 0.33 of two layers of 256 units.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
from typing import Literal

from amortgap.runtime import prepare_compiler

prepare_compiler(one_core=True)

from studies.capacity import cells as capacity_cells
from studies.capacity import references as capacity_references
from studies.capacity.figure import derive
from studies.capacity.study import SCHEMA, Study

from amortgap.sweep import Cell, grid, make_cells
from amortgap.sweep.script import Flat, SweepOptions, parse_study, run_study


@dataclasses.dataclass(frozen=True)
class Args:
    """Flags of the capacity sweep; every field of the study can be overridden."""

    study: Study = dataclasses.field(default_factory=Study)
    families: tuple[Literal["mean_field", "full_rank"], ...] = ("mean_field", "full_rank")
    """Variational families."""
    widths: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    """Hidden units of the encoders of the deep model."""
    depths: tuple[int, ...] = (1, 2)
    """Hidden layers of the encoders of the deep model."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of the encoders of the deep model."""
    sweep: Flat = dataclasses.field(default_factory=SweepOptions)


PRESETS = {
    "digits": Args(),
    # So long that most encoders rest: what then separates them from local VI is their capacity.
    "long": Args(
        study=Study(encoder_steps=24_000, learning_rate=0.02, extensions=1),
    ),
    "smoke": Args(
        study=Study(
            latent_dim=2,
            decoder_width=8,
            decoder_steps=60,
            encoder_steps=60,
            ladder_steps=60,
            num_samples=100,
            ladder_samples=100,
            evidence_samples=200,
            subset=120,
        ),
        families=("mean_field",),
        widths=(2, 8),
        depths=(1,),
        seeds=(0,),
    ),
}


def configurations(args: Args) -> list[Study]:
    """Return the studies of all cells: reference and constant encoders, the ladder, and the deep model's encoders."""
    base, families = args.study, list(args.families)
    ladder = dataclasses.replace(base, model="factor_analysis", depth=0, decoder="shared")
    ranks = list(range(base.latent_dim + 1))
    deep = dataclasses.replace(base, model="vae")
    axes: dict[str | tuple[str, ...], list] = {
        "family": families,
        "depth": list(args.depths),
        "width": list(args.widths),
        "seed": list(args.seeds),
    }
    constant = dataclasses.replace(deep, depth=0, width=0)
    constants = grid(constant, {"family": families}) if base.decoder == "shared" else []
    # The first group of the deep model makes the references that all others wait for; the ladder fills that time.
    return [*constants[:1], *grid(ladder, {"family": families, "width": ranks}), *constants[1:], *grid(deep, axes)]


def cells(args: Args) -> tuple[Cell, ...]:
    """Return the cells of the sweep."""
    data = capacity_references.data_hash(args.study)
    return make_cells(configurations(args), schema_version=SCHEMA.version, data_sha256=data)


def main() -> int:
    """Run the sweep, write table, figure and sidecar, and return the exit status."""
    args = parse_study(Args, PRESETS, name="capacity_sweep", description=__doc__)
    # What is made once for all processes; only a sweep that is to be resumed needs it again.
    shared = args.sweep.out.resolve() / "shared"
    compute, group = capacity_cells.Compute(shared), capacity_cells.group
    finished = run_study(args, cells, compute, schema=SCHEMA, derive=derive, group_by=group)
    shutil.rmtree(shared, ignore_errors=True)
    return finished.exit_status


if __name__ == "__main__":
    sys.exit(main())
