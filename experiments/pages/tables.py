"""Committed tables and sidecars, and how README and docs write what stands in them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

Row = dict[str, str]


class Tables:
    """The tables and sidecars below a folder of results."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def rows(self, path: str | Path, **where: object) -> list[Row]:
        """Return the rows of a CSV file whose columns have these values."""
        with (self._folder / path).open(newline="") as file:
            return [row for row in csv.DictReader(file) if all(row[name] == str(v) for name, v in where.items())]

    def sidecar(self, path: str) -> dict:
        """Return a sidecar."""
        return json.loads((self._folder / path).read_text())

    def row(self, path: str, **where: object) -> Row:
        """Return the only row with these values; raises LookupError if it is not the only one."""
        found = self.rows(path, **where)
        if len(found) != 1:
            raise LookupError(f"{path}: {len(found)} rows with {where}")
        return found[0]

    def value(self, path: str, column: str = "value", **where: object) -> float:
        """Return a number of the only row with these values."""
        return float(self.row(path, **where)[column])

    def met(self, path: str) -> str:
        """Return how many of the requirements of a table are met."""
        rows = [row for row in self.rows(path) if row["met"]]
        return f"{sum(row['met'] == 'True' for row in rows)} of {len(rows)}"


def machine(tables: Tables, path: str) -> str:
    """Return the machine of a sidecar in words."""
    said = tables.sidecar(path)["machine"]
    name = said["cpu"].replace("(R)", "").removesuffix("Processor").strip()
    return f"{'one core' if said['cores'] == 1 else '{} cores'.format(said['cores'])} of an {name}"


def ran(tables: Tables, path: str) -> str:
    """Return where and how long the run of a sidecar was, or that of the cells which were not kept from earlier."""
    sidecar = tables.sidecar(path)
    seconds, cells = sidecar["seconds"], sidecar.get("cells", {})
    if cells.get("skipped"):
        total = cells["computed"] + cells["skipped"]
        return f"{machine(tables, path)}: {seconds:.0f} s for {cells['computed']} of {total} cells"
    if seconds < 60:
        return f"{machine(tables, path)}, {seconds:.0f} s"
    return f"{machine(tables, path)}, {minutes(seconds)} minutes"


def minutes(seconds: float) -> str:
    """Return a time in minutes, with a tenth below ten."""
    return f"{seconds / 60:.1f}" if seconds < 600 else f"{seconds / 60:.0f}"


def plus(value: float, error: float, places: int = 2) -> str:
    """Return a number and its standard error."""
    return f"{value:.{places}f} ± {error:.{places}f}"
