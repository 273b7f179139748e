"""Committed results: a run is compared with them, and becomes one of them only when it is promoted.

results/runs/NAME-PRESET    what a run writes; git ignores it
results/NAME                what is committed of the first preset, and results/NAME_PRESET of every other
"""

from __future__ import annotations

import json
import math
import pathlib
import subprocess
from collections.abc import Sequence
from typing import Any

from amortgap._internal.files import write_atomic
from amortgap.sweep.provenance import git_commit, read_manifest
from amortgap.sweep.table import Column, Schema, read_csv

RESULTS = pathlib.Path("results")
RUNS = RESULTS / "runs"
# What a certified local optimum may still miss: two tables that differ by less say the same.
AGREEMENT = 0.01

Row = dict[str, Any]


def is_committed(folder: pathlib.Path) -> bool:
    """Whether git tracks the table or the sidecar in `folder`."""
    if not folder.is_dir():
        return False
    asked = ["git", "ls-files", "--", "table.csv", "table.json"]
    try:
        found = subprocess.run(asked, cwd=folder, capture_output=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    return bool(found.strip())


def compare(folder: pathlib.Path, rows: Sequence[Row], schema: Schema, config: dict[str, Any]) -> str | None:
    """Say in one sentence whether `rows` agree with the committed table in `folder`.

    Args:
      folder: of the committed table.
      rows: of the new table.
      schema: of both tables.
      config: the configuration of `rows` as a sidecar states it.

    Returns:
      The sentence, with the largest absolute difference of a number in nats (sums over data are left out); None if
      there is no committed table of the same configuration.
    """
    try:
        if json.loads((folder / "table.json").read_bytes())["config"] != config:
            return None
        committed = read_csv(folder / "table.csv", schema).rows
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        return f"cannot be compared with {folder}: {error}"
    keys = [column.name for column in schema.columns if column.key]
    here, there = ({tuple(row[name] for name in keys): row for row in table} for table in (rows, committed))
    if here.keys() != there.keys():
        only_here, only_there = len(here.keys() - there.keys()), len(there.keys() - here.keys())
        return f"differs from {folder}: {only_here} rows are only in the new table and {only_there} only in the old one"
    worst, where = 0.0, ""
    for about, row in here.items():
        for column in schema.columns:
            new, old = row[column.name], there[about][column.name]
            if not _in_nats(column, row) or new == old:
                continue
            difference = math.inf if new is None or old is None else abs(new - old)
            if difference > worst:
                named = ", ".join(f"{name} {value}" for name, value in zip(keys, about, strict=True))
                worst, where = difference, f"{column.name} of {named} is {_shown(new)} here and {_shown(old)} there"
    if worst <= AGREEMENT:
        return f"agrees with {folder} within {worst:.2g} nats"
    return f"differs from {folder}" + (f" by up to {worst:.2g} nats" if worst < math.inf else "") + f": {where}"


def _in_nats(column: Column, row: Row) -> bool:
    """Whether a number is in nats, by its column's meaning or by the row's quantity; a sum over data is left out."""
    if column.type is not float or column.key:
        return False
    meaning = row.get("quantity", "") if column.name == "value" else column.meaning
    return "nats" in meaning and "summed" not in meaning


def _shown(value: float | None) -> str:
    return "empty" if value is None else f"{value:.6g}"


def check_promotion(out: pathlib.Path, target: pathlib.Path | None) -> pathlib.Path:
    """Return the folder that the run in `out` may be promoted to.

    Raises ValueError if its preset is never committed, or if the commit that computed the run, now or earlier, does not
    hold all of the code.
    """
    if target is None:
        raise ValueError("--promote: the results of this preset are not committed")
    commits = [git_commit(), *(entry.get("git_commit") for entry in read_manifest(out))]
    if any(commit is None or commit.endswith("+changes") for commit in commits):
        raise ValueError(
            f"--promote: some of {out} was or would be computed by code that no commit holds; "
            f"commit all changes and compute it again in an empty folder"
        )
    return target


def promote(files: Sequence[pathlib.Path], target: pathlib.Path) -> None:
    """Copy `files`, the last of them their sidecar, to the folder `target`, in place of what its old sidecar lists."""
    target.mkdir(parents=True, exist_ok=True)
    sidecar = target / files[-1].name
    old = json.loads(sidecar.read_bytes())["files"] if sidecar.exists() else {}
    for file in files:
        write_atomic(target / file.name, file.read_bytes())
    for name in old.keys() - {file.name for file in files}:
        (target / name).unlink(missing_ok=True)
