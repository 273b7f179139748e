"""The report of a sweep: its sidecar, its cells by status, what failed, its figures and its tables."""

from __future__ import annotations

import collections
import csv
import json
import os
import re
from pathlib import Path
from typing import Any

import amortgap
from amortgap.report.page import inline_png, write_page
from amortgap.sweep.records import Store

_HASH = re.compile(r"^[0-9a-f]{64}$")
# Rows of a table in the report; the rest stays in the file beside it.
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
      ValueError: the folder is none, or holds neither table nor figure nor sidecar, or a sidecar that cannot be read.
      OSError: the file cannot be written.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"folder must be one of results, got {str(folder)!r}, which is none")
    sidecars = [_sidecar(file) for file in sorted(folder.glob("*.json")) if file.name != "manifest.json"]
    tables = sorted(folder.glob("*.csv"))
    figures = sorted(folder.glob("*.png"))
    if not (sidecars or tables or figures):
        raise ValueError(f"folder {str(folder)!r} holds no table, figure or sidecar of a sweep")
    facts = sidecars[0] if sidecars else {}
    columns = {name: meaning for sidecar in sidecars for name, meaning in sidecar.get("columns", {}).items()}
    cells, failed, left_out = _cells(folder)
    return write_page(
        folder / "report.html" if path is None else path,
        "sweep.html",
        title=f"Sweep {folder.resolve().name}",
        version=amortgap.__version__,
        machine=None,
        command=facts.get("command", "no sidecar says which command made this"),
        facts=[(name, _plain(facts[name])) for name in _FACTS if name in facts],
        cells=cells,
        failed=failed,
        failed_left_out=left_out,
        figures=[{"name": file.stem.replace("_", " "), "data": inline_png(file.read_bytes())} for file in figures],
        tables=[_table(file, columns) for file in tables],
        config=json.dumps(facts["config"], indent=1) if "config" in facts else None,
    )


_FACTS = ("written", "seconds", "machine", "versions", "git_commit", "data_sha256")


def _sidecar(file: Path) -> dict[str, Any]:
    try:
        read = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"sidecar {file} is no JSON: {error}") from error
    return read if isinstance(read, dict) else {}


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    return str(value)


def _cells(folder: Path) -> tuple[list[tuple[str, int]], list[dict[str, str]], int]:
    """Return counts of cells by status, those that are not ok, and how many of these are left out.

    Nothing is made in the folder, which may be read-only, but for damaged records, which are set aside.
    """
    if not (folder / "cells").is_dir():
        return [], [], 0
    records = Store(folder.resolve()).records()
    counts = collections.Counter(record.status for record in records)
    failed = [
        {"status": record.status, "where": json.dumps(record.config), "error": record.error or "no message"}
        for record in records
        if record.status != "ok"
    ]
    return sorted(counts.items()), failed[:_FAILED], max(len(failed) - _FAILED, 0)


def _table(file: Path, columns: dict[str, str]) -> dict[str, Any]:
    """Return head and first rows of a CSV file; every value is a pair: whether it is a number, and its text."""
    with file.open(newline="") as lines:
        reader = csv.reader(lines)
        head = next(reader, [])
        rows = [[_value(text) for text in row] for _, row in zip(range(_ROWS), reader, strict=False)]
        left_out = sum(1 for _ in reader)
    return {
        "name": file.name, "columns": [(name, columns.get(name, "")) for name in head], "rows": rows,
        "left_out": left_out,
    }  # fmt: skip


def _value(text: str) -> tuple[bool, str]:
    if _HASH.match(text):
        return False, text[:12]
    try:
        number = float(text)
    except ValueError:
        return False, text
    return True, text if text.lstrip("-").isdigit() else f"{number:.6g}"
