"""The report of a sweep: its sidecar, its cells by status, what failed, its figures and its tables."""

from __future__ import annotations

import collections
import csv
import json
import os
import re
from pathlib import Path
from typing import Any

from amortgap.report.page import inline_png, write_page
from amortgap.sweep.records import Store

_HASH = re.compile(r"^[0-9a-f]{64}$")
# Entries of the sidecar that are shown.
_FACTS = ("written", "seconds", "machine", "versions", "git_commit", "data_sha256")
# Rows of a table and failed cells shown in the report; the files beside it hold the rest.
_ROWS = 200
_FAILED = 50


def write_sweep(folder: str | os.PathLike[str], path: str | os.PathLike[str] | None = None) -> Path:
    """Write the report of the results in a folder as one HTML file and return its path.

    Args:
      folder: results of an experiment: tables, sidecar, figures, and the records of cells if they are there.
      path: where to write; None for `report.html` in the folder.

    Returns:
      The path written.

    Raises:
      ValueError: no such folder, a folder without table, figure and sidecar, or a sidecar that is no JSON.
      OSError: the file cannot be written.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"folder: no such folder: {str(folder)!r}")
    sidecars = [_sidecar(file) for file in sorted(folder.glob("*.json")) if file.name != "manifest.json"]
    tables = sorted(folder.glob("*.csv"))
    figures = sorted(folder.glob("*.png"))
    if not (sidecars or tables or figures):
        raise ValueError(f"folder {str(folder)!r} holds no table, figure or sidecar of a sweep")
    facts = sidecars[0] if sidecars else {}
    columns = {name: meaning for sidecar in sidecars for name, meaning in sidecar.get("columns", {}).items()}
    cells, failed = _cells(folder)
    values = {
        "title": f"Sweep {folder.resolve().name}",
        "machine": None,
        "command": facts.get("command", "no sidecar says which command made this"),
        "facts": [(name, _text(facts[name])) for name in _FACTS if name in facts],
        "cells": cells,
        "failed": failed[:_FAILED],
        "failed_left_out": max(len(failed) - _FAILED, 0),
        "figures": [{"name": file.stem.replace("_", " "), "data": inline_png(file.read_bytes())} for file in figures],
        "tables": [_table(file, columns) for file in tables],
        "config": json.dumps(facts["config"], indent=1) if "config" in facts else None,
    }
    return write_page(folder / "report.html" if path is None else path, "sweep.html", values)


def _sidecar(file: Path) -> dict[str, Any]:
    try:
        read = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"sidecar {file} is no JSON: {error}") from error
    return read if isinstance(read, dict) else {}


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    return str(value)


def _cells(folder: Path) -> tuple[list[tuple[str, int]], list[dict[str, str]]]:
    """Return counts of cells by status, and the cells that are not ok.

    The folder, which may be read-only, is left as it is, except that damaged records are set aside.
    """
    if not (folder / "cells").is_dir():
        return [], []
    records = Store(folder.resolve()).records()
    failed = [
        {"status": record.status, "where": json.dumps(record.config), "error": record.error or "no message"}
        for record in records
        if record.status != "ok"
    ]
    return sorted(collections.Counter(record.status for record in records).items()), failed


def _table(file: Path, columns: dict[str, str]) -> dict[str, object]:
    """Return header and first rows of a CSV file; every value is a pair: whether it is a number, and its text."""
    with file.open(newline="") as lines:
        reader = csv.reader(lines)
        header = next(reader, [])
        rows = [[_value(text) for text in row] for _, row in zip(range(_ROWS), reader, strict=False)]
        left_out = sum(1 for _ in reader)
    meanings = [(name, columns.get(name, "")) for name in header]
    return {"name": file.name, "columns": meanings, "rows": rows, "left_out": left_out}


def _value(text: str) -> tuple[bool, str]:
    if _HASH.match(text):
        return False, text[:12]
    try:
        number = float(text)
    except ValueError:
        return False, text
    return True, text if text.lstrip("-").isdigit() else f"{number:.6g}"
