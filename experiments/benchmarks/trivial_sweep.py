"""The smallest sweep there is: cells that do a set amount of arithmetic. What the overhead benchmark runs and kills.

Started by `sweep_overhead.py` with `--cells 200 --out FOLDER`; about 2 ms a cell with the default of no work.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from amortgap.sweep import CellResult, Column, Schema, grid, make_cells
from amortgap.sweep.config import parse_args
from amortgap.sweep.script import Flat, SweepOptions, run_sweep

SCHEMA = Schema(
    version=1,
    columns=(Column("number", int, "number of the cell", key=True), Column("total", int, "what the work adds up to")),
)


@dataclasses.dataclass(frozen=True)
class Config:
    """One cell."""

    number: int = 0
    work: int = 0
    """Numbers to add up, in plain Python: about 25 million a second."""


@dataclasses.dataclass(frozen=True)
class Args:
    """A sweep over the number of the cell."""

    cells: int = 200
    cell: Config = dataclasses.field(default_factory=Config)
    sweep: Flat = dataclasses.field(default_factory=lambda: SweepOptions(out=Path("trivial")))


def compute(config: Config) -> CellResult:
    """Add up `work` whole numbers."""
    total = 0
    for i in range(config.work):
        total += i
    return CellResult([{"number": config.number, "total": total}])


def main() -> int:
    """Run the sweep the command line asks for; returns its exit status."""
    args = parse_args(Args, description=__doc__)
    cells = make_cells(grid(args.cell, {"number": range(args.cells)}), schema_version=SCHEMA.version)
    return run_sweep(cells, compute, args.sweep, schema=SCHEMA).exit_status


if __name__ == "__main__":
    raise SystemExit(main())
