"""A sweep script for the tests: trivial cells, some of which do harm. Run as a program, like an experiment."""

from __future__ import annotations

import dataclasses

from driver_cells import SCHEMA, Config, compute, compute_group

from amortgap.sweep import grid, make_cells
from amortgap.sweep.config import parse_args
from amortgap.sweep.script import Flat, SweepOptions, run_sweep


@dataclasses.dataclass(frozen=True)
class Args:
    cells: int = 8
    grouped: bool = False
    cell: Config = dataclasses.field(default_factory=Config)
    sweep: Flat = dataclasses.field(default_factory=SweepOptions)


def main() -> int:
    args = parse_args(Args, description=__doc__)
    cells = make_cells(grid(args.cell, {"number": range(args.cells)}), schema_version=SCHEMA.version)
    if args.grouped:
        summary = run_sweep(cells, compute_group, args.sweep, schema=SCHEMA, group_by=lambda config: config.number // 4)
    else:
        summary = run_sweep(cells, compute, args.sweep, schema=SCHEMA)
    return summary.exit_status


if __name__ == "__main__":
    raise SystemExit(main())
