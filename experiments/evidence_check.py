"""Every estimate of log p(x) against the exact value, and intervals of gaps against their nominal coverage.

    python experiments/evidence_check.py                    # preset default: 5 minutes on one core
    python experiments/evidence_check.py --preset smoke     # a few minutes, mostly compilation

Four parts share one table. *Methods*: factor analysis (d = 2, 10, 50), Poisson-Gamma, a mixture prior (two posterior
modes) and a nonlinear decoder; the bias must have the stated direction and the mean weight ratio must be one within
chance. Where a method itself warns of most data (Pareto k-hat above 0.7), or its chains start in one of two modes,
only the direction is required. *Draws*: the importance-weighted bound may not fall with K. *Sandwich*: bidirectional
Monte Carlo on 1000 simulated data; each bound may miss by c nats with probability at most exp(-c), so that at least
95 % of the replicates lie between bounds widened by log 40 nats, and the width must fall as one over the number of
temperatures. *Coverage*: nominal 95 % intervals of the three gaps must contain the truth in 93 to 97 % of 1000
replicated data sets.

Writes OUT/table.csv, OUT/table.json and OUT/evidence_check.{pdf,png}; the exit status is 1 if any row of the
default preset misses its bound (to expect: 137 of 137 met). Every model and part is a cell of a sweep: run again with
the same OUT to resume.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Literal

from amortgap.runtime import prepare_compiler

prepare_compiler()

from studies.evidence.coverage import coverage
from studies.evidence.figure import derive
from studies.evidence.parts import bound_against_draws, make_case, methods, sandwich_ladder
from studies.evidence.study import SCHEMA, Study, models
from studies.requirements import say_missed, tally

from amortgap.sweep import Cell, CellResult, make_cells
from amortgap.sweep.script import Flat, SweepOptions, parse_study, run_study


@dataclasses.dataclass(frozen=True)
class Part:
    """One cell: a part of the check, on one model where a part has several."""

    study: Study
    name: str
    model: str = ""


@dataclasses.dataclass(frozen=True)
class Args:
    """Flags of the check."""

    study: Study = dataclasses.field(default_factory=Study)
    parts: tuple[Literal["methods", "draws", "sandwich", "coverage"], ...] = (
        "methods",
        "draws",
        "sandwich",
        "coverage",
    )
    """Parts to measure."""
    enforce: bool = True
    """Exit with status 1 if a requirement is missed; the smoke preset is too small to meet them."""
    sweep: Flat = dataclasses.field(default_factory=SweepOptions)


PRESETS = {
    "default": Args(),
    "smoke": Args(
        enforce=False,
        study=Study(
            num_data=10,
            num_samples=50,
            num_chains=4,
            num_leapfrog=2,
            temperature_factor=0.1,
            dims=(2,),
            replicates=20,
            ladder=(5, 10),
            draws=(1, 10),
            data_sets=10,
            data_per_set=10,
        ),
    ),
}


OF_MODEL = {"methods": methods, "draws": bound_against_draws}
OF_ALL = {"sandwich": sandwich_ladder, "coverage": coverage}


def configurations(args: Args) -> list[Part]:
    """Return the parts that were asked for, those of one model side by side."""
    wanted = [part for part in OF_MODEL if part in args.parts]
    names = [name for name, _, _ in models(args.study)] if wanted else []
    cells = [Part(args.study, part, name) for name in names for part in wanted]
    return cells + [Part(args.study, part) for part in OF_ALL if part in args.parts]


def group(part: Part) -> str:
    """Return what the parts of one call share: the model with its data and fits."""
    return part.model or part.name


def compute(parts: Sequence[Part]) -> list[CellResult]:
    """Return the rows of each part."""
    study, name = parts[0].study, parts[0].model
    if not name:
        return [CellResult(rows=list(OF_ALL[part.name](part.study))) for part in parts]
    model, temperatures = next((model, count) for other, model, count in models(study) if other == name)
    case = make_case(study, name, model, temperatures)
    return [CellResult(rows=list(OF_MODEL[part.name](study, case))) for part in parts]


def cells(args: Args) -> tuple[Cell, ...]:
    """Return the cells of the check."""
    return make_cells(configurations(args), schema_version=SCHEMA.version)


def main() -> int:
    """Measure, write table, figure and sidecar, and return the exit status."""
    args = parse_study(Args, PRESETS, name="evidence_check", description=__doc__)
    finished = run_study(args, cells, compute, schema=SCHEMA, derive=derive, group_by=group, facts=tally)
    return finished.exit_status or (1 if say_missed(finished.rows, "requirements") and args.enforce else 0)


if __name__ == "__main__":
    sys.exit(main())
