"""Derive anew what the committed tables imply, and fail on any difference.

    python experiments/verify_results.py                # all of results/, a minute on one core
    python experiments/verify_results.py --renew        # draw figures and claims anew, renew hashes and marked numbers

Of every folder of results: each file is vouched for by a sidecar with its sha256, which names command, configuration,
commit (of a tree without changes), versions, machine and time; every verdict of a table (`met`) follows from its value
and its requirement; figures and tables of claims come out of the committed tables again, to the last pixel and digit
where the same version of matplotlib draws them, and but for the rendering of text where another does. Of README and
docs: every marked number (`pages/marks.py`) is that of the tables. Prints one line for each difference; the exit status
is 1 if there is any.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
import re
import shlex
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "experiments" / "benchmarks"))

from amortgap.runtime import prepare_compiler

prepare_compiler(one_core=True)

import local_vi_figure
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from pages import marks
from PIL import Image
from studies.capacity import figure as capacity_figure
from studies.certificate import figure as certificate_figure
from studies.cremer2018 import figure as cremer2018_figure
from studies.evidence import figure as evidence_figure
from studies.remedies import figure as remedies_figure
from studies.requirements import Requirement, near
from studies.when_and_why import figure as when_and_why_figure

from amortgap.sweep.committed import RUNS
from amortgap.sweep.config import parse_args
from amortgap.sweep.provenance import write_json

# What follows from the tables of a folder is written by its own `derive`.
DERIVED: dict[str, Callable[[Path, Path], list[Path]]] = {
    "benchmarks": local_vi_figure.derive,
    "capacity_sweep": capacity_figure.derive,
    "capacity_sweep_long": capacity_figure.derive,
    "certificate_check": certificate_figure.derive,
    "cremer2018": cremer2018_figure.derive,
    "evidence_check": evidence_figure.derive,
    "remedies": remedies_figure.derive,
    "remedies_fashion_mnist": remedies_figure.derive,
    "when_and_why": when_and_why_figure.derive,
}
SIDECAR = ("command", "config", "files", "git_commit", "versions", "machine", "written", "seconds")
# Left by a run and not committed.
UNTRACKED = {"manifest.json"}
# Rounding error of a number in a table, in either direction and of its bound too, relative to it.
DIGITS = 1e-5
# Largest mean difference of two pictures, of 255, that another version's rendering of text may make.
TEXT_RENDERING = 2.0


@dataclasses.dataclass(frozen=True)
class Args:
    """What to verify."""

    results: Path = ROOT / "results"
    """Folder with one folder of results for each experiment."""
    readme: Path = ROOT / "README.md"
    """The page whose marked numbers are compared with the tables, together with those in `docs` beside it."""
    renew: bool = False
    """First write figures, claims and marked numbers as they follow from the tables; a sidecar's run stays."""


def sidecars(folder: Path) -> Iterator[str]:
    """Yield what is wrong with the sidecars of a folder, and files that none vouches for."""
    vouched: set[str] = set()
    for path in sorted(folder.glob("*.json")):
        if path.name in UNTRACKED:
            continue
        sidecar = json.loads(path.read_text())
        lacking = [name for name in SIDECAR if name not in sidecar]
        if lacking:
            yield f"{path}: no {', '.join(lacking)}"
            continue
        script = shlex.split(sidecar["command"])[1]
        if not (ROOT / script).exists():
            yield f"{path}: its command names {script}, which does not exist"
        if str(sidecar["git_commit"]).endswith("+changes"):
            yield f"{path}: it was computed from a working tree with changes, which no commit holds"
        for name, digest in sidecar["files"].items():
            vouched.add(name)
            file = folder / name
            if not file.exists():
                yield f"{path}: vouches for {name}, which is missing"
            elif hashlib.sha256(file.read_bytes()).hexdigest() != digest:
                yield f"{path}: {name} is not the file it vouches for"
    for file in sorted(folder.iterdir()):
        ignored = file.suffix in (".json", ".parquet", ".html") or file.is_dir() or file.name in UNTRACKED
        if not ignored and file.name not in vouched:
            yield f"{file}: no sidecar vouches for it"


def verdicts(folder: Path) -> Iterator[str]:
    """Yield rows whose `met` does not follow from their value and requirement."""
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        if not rows or "met" not in rows[0]:
            continue
        for number, row in enumerate(rows, start=2):
            if row["met"] == "" or not any(row.get(name) for name in ("target", "tolerance", "low", "high")):
                # Without a number to compare with, the requirement is one of another kind, such as a distance at all.
                continue
            value = float(row["value"]) if row["value"] else math.nan
            if "target" in row:
                tolerance = float(row["tolerance"] or 0)
                required = near(float(row["target"]), tolerance) if row["target"] else Requirement(high=tolerance)
            else:
                required = Requirement(*(float(row[name]) if row[name] else None for name in ("low", "high")))
            # A table has six digits of what was compared: as close to a bound as that, either verdict may be right.
            bounds = [bound for bound in (required.low, required.high) if bound is not None]
            if min(abs(value - bound) for bound in bounds) <= DIGITS * abs(value):
                continue
            met = required.met(value)
            if met != (row["met"] == "True"):
                yield f"{path}, line {number}: met is {row['met']}, but {value} against its requirement is {met}"


def derived(folder: Path, derive: Callable[[Path, Path], list[Path]]) -> Iterator[str]:
    """Yield files that do not come out of the tables of their folder again."""
    with tempfile.TemporaryDirectory() as scratch:
        drawn = {path.name: path for path in derive(folder, Path(scratch))}
        same = all(_drawn_by(folder / name) == matplotlib.__version__ for name in drawn if name.endswith(".png"))
        for name, new in drawn.items():
            old = folder / name
            if not old.exists():
                yield f"{old}: missing, though its table implies it"
            elif same or name.endswith(".csv"):
                if _content(old) != _content(new):
                    yield f"{old}: made anew from the tables it differs"
            elif name.endswith(".png"):
                difference = _difference(plt.imread(old), plt.imread(new))
                if difference > TEXT_RENDERING:
                    yield f"{old}: drawn anew it differs by {difference:.1f} of 255 on average"


def _content(path: Path) -> object:
    """Return what a file says, whichever library compressed it."""
    if path.suffix == ".png":
        return plt.imread(path).tobytes()
    if path.suffix == ".pdf":
        streams = re.findall(rb"FlateDecode.*?stream\n(.*?)\nendstream", path.read_bytes(), re.DOTALL)
        return [zlib.decompress(stream) for stream in streams]
    return path.read_bytes()


def renew(folder: Path, derive: Callable[[Path, Path], list[Path]]) -> None:
    """Write what follows from the tables of a folder, and renew the hashes in its sidecar."""
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in derive(folder, folder)}
    for path in sorted(folder.glob("*.json")):
        sidecar = json.loads(path.read_text())
        mine = {name: digest for name, digest in hashes.items() if name in sidecar.get("files", {})}
        if mine:
            write_json(path, sidecar | {"files": sidecar["files"] | mine})


def _drawn_by(png: Path) -> str | None:
    """Return the version of matplotlib that wrote a picture, as the picture itself says."""
    with Image.open(png) as picture:
        return picture.info.get("Software", "").removeprefix("matplotlib ") or None


def _difference(old: np.ndarray, new: np.ndarray) -> float:
    return float(255 * np.mean(np.abs(old - new))) if old.shape == new.shape else math.inf


def pages(readme: Path) -> list[Path]:
    """Return the README and the pages in `docs` beside it."""
    return [readme, *sorted((readme.parent / "docs").glob("*.md"))]


def main() -> int:
    """Verify everything and return the exit status."""
    args = parse_args(Args, description=__doc__)
    if not args.results.is_dir():
        print(f"error: {args.results} is not a folder", file=sys.stderr)
        return 2
    found, folders = [], 0
    # Where runs are that were not promoted.
    ignored = args.results / RUNS.name
    for folder in sorted(path for path in args.results.iterdir() if path.is_dir() and path != ignored):
        if folder.name not in DERIVED:
            found.append(f"{folder}: no experiment derives it")
            continue
        folders += 1
        if args.renew:
            renew(folder, DERIVED[folder.name])
        found += [*sidecars(folder), *verdicts(folder), *derived(folder, DERIVED[folder.name])]
    for page in pages(args.readme):
        if args.renew:
            marks.renew(page, args.results)
        found += marks.faults(page, args.results)
    for difference in found:
        print(difference)
    print(f"{folders} folders verified, {len(found)} differences", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
