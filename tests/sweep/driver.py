"""A sweep script for the tests: trivial cells, some of which do harm. Run as a program, like an experiment.

Every computation appends the number of its cell to `trace`, so that a test can count what was computed.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from pathlib import Path

from amortgap.sweep import NOT_HASHED, CellResult, Column, Schema, grid, make_cells
from amortgap.sweep.config import parse_args
from amortgap.sweep.script import Flat, SweepOptions, run_sweep

SCHEMA = Schema(
    version=1,
    columns=(Column("number", int, "number of the cell", key=True), Column("root", float, "its square root")),
)


@dataclasses.dataclass(frozen=True)
class Config:
    number: int = 0
    trace: Path = dataclasses.field(default=Path("trace"), metadata=NOT_HASHED)
    seconds: float = dataclasses.field(default=0.0, metadata=NOT_HASHED)
    raise_at: int = dataclasses.field(default=-1, metadata=NOT_HASHED)
    kill_once_at: int = dataclasses.field(default=-1, metadata=NOT_HASHED)
    kill_always_at: int = dataclasses.field(default=-1, metadata=NOT_HASHED)


@dataclasses.dataclass(frozen=True)
class Args:
    cells: int = 8
    grouped: bool = False
    cell: Config = dataclasses.field(default_factory=Config)
    sweep: Flat = dataclasses.field(default_factory=SweepOptions)


def compute(config: Config) -> CellResult:
    with config.trace.open("a") as file:
        file.write(f"{config.number}\n")
    time.sleep(config.seconds)
    if config.number == config.raise_at:
        raise RuntimeError(f"cell {config.number} <b>fails</b>")
    marker = config.trace.with_suffix(".killed")
    if config.number == config.kill_once_at and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if config.number == config.kill_always_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return CellResult([{"number": config.number, "root": config.number**0.5}])


def compute_group(configs: list[Config]) -> list[CellResult]:
    return [compute(config) for config in configs]


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
