"""Where benchmarks write, and the table of those that measure a few figures each."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

# A benchmark is run as a script, from its own folder.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from studies.requirements import WITHIN, Requirement

from amortgap.sweep import NOT_HASHED, Column, Schema, write_atomic
from amortgap.sweep.committed import RESULTS, RUNS, check_promotion, promote
from amortgap.sweep.provenance import write_sidecar
from amortgap.sweep.table import Table, csv_text

SCHEMA = Schema(
    version=2,
    columns=(
        Column("figure", str, "what was measured", key=True),
        Column("value", float, "the measured value"),
        Column("unit", str, "its unit"),
        *WITHIN,
    ),
)


@dataclasses.dataclass(frozen=True)
class Output:
    """Flags that every benchmark has."""

    out: Path = dataclasses.field(default=RUNS / "benchmarks", metadata=NOT_HASHED)
    """Folder of the results; git ignores the default."""
    promote: bool = dataclasses.field(default=False, metadata=NOT_HASHED)
    """Copy the results to results/benchmarks, where they are committed (for maintainers)."""


def promote_output(config: Output, files: list[Path]) -> None:
    """Copy `files`, the last of them their sidecar, to the committed results if the flags say so."""
    if config.promote:
        promote(files, check_promotion(config.out, RESULTS / "benchmarks"))


def row(figure: str, value: float, unit: str, *, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    """Return one row of the table with its goal, if it has one, and print it as soon as it is known."""
    value, goal = float(value), Requirement(low, high)
    met = goal.met(value)
    print(
        f"{figure:<60} {value:10.4g} {unit:<12} {goal}{': missed' if met is False else ''}", file=sys.stderr, flush=True
    )
    return {"figure": figure, "value": value, "unit": unit, "low": low, "high": high, "met": met}


def write(folder: Path, name: str, rows: list[dict[str, Any]], *, config: Output, **facts: Any) -> None:
    """Write the rows as FOLDER/NAME.csv with a sidecar NAME.json, and promote both if `config` says so."""
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / f"{name}.csv"
    write_atomic(table, csv_text(Table(SCHEMA.columns, rows)).encode())
    sidecar = write_sidecar(folder / f"{name}.json", config=config, files=[table], schema=SCHEMA, facts=facts)
    promote_output(config, [table, sidecar])
