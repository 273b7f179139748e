"""The table of the benchmarks that measure a few figures each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from amortgap.sweep import Column, Schema
from amortgap.sweep.files import write_atomic
from amortgap.sweep.sidecar import write_sidecar
from amortgap.sweep.table import Table, csv_text

SCHEMA = Schema(
    version=1,
    columns=(
        Column("figure", str, "what was measured", key=True),
        Column("value", float, "the measured value"),
        Column("unit", str, "its unit"),
        Column("bound", str, "what it must reach"),
    ),
)


def row(figure: str, value: float, unit: str, bound: str = "") -> dict[str, Any]:
    """Return one row of the table, and print it as soon as it is known."""
    print(f"{figure:<60} {value:10.4g} {unit:<10} {bound}", file=sys.stderr, flush=True)
    return {"figure": figure, "value": float(value), "unit": unit, "bound": bound}


def write(folder: Path, name: str, rows: list[dict[str, Any]], *, config: Any, **facts: Any) -> None:
    """Write the rows as FOLDER/NAME.csv with a sidecar NAME.json; `config` is a record with a field `out`."""
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / f"{name}.csv"
    write_atomic(table, csv_text(Table(SCHEMA.columns, rows)).encode())
    write_sidecar(folder / f"{name}.json", config=config, files=[table], schema=SCHEMA, **facts)
