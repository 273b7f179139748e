"""What the two commands take on a bare machine: a fresh clone, a fresh virtual environment and empty caches.

    python experiments/benchmarks/fresh_clone.py                                       # 18 minutes on two cores
    python experiments/benchmarks/fresh_clone.py --pythons python3.11 python3.13       # twice that
    python experiments/benchmarks/fresh_clone.py --preset smoke                        # without the tests

Needs the extra [dask], git and a package index. Clones the last commit, runs `make sweep` (twice, the second time into
another folder) and `make test` in the clone, and writes fresh_clone.csv and its JSON sidecar to OUT.
Installing is timed apart. Memory is that of all processes at once, pages they share counted once (PSS), sampled twice
a second.
Numbers to expect: the sweep within 4 minutes and 2 GB, the tests within 12 minutes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from figures_table import Output, row, write

from amortgap.sweep.config import parse_args

ROOT = Path(__file__).resolve().parents[2]
# What would lead to caches and packages of the machine, or change what make does.
HIDDEN = (
    "JAX_COMPILATION_CACHE_DIR",
    "AMORTGAP_DATA",
    "PYTHONPATH",
    "VIRTUAL_ENV",
    "XDG_CACHE_HOME",
    "PIP_CACHE_DIR",
    "UV_CACHE_DIR",
    "MPLCONFIGDIR",
    "XLA_FLAGS",
    "MAKEFLAGS",
    "PYTHON",
    "VENV",
    "ARGS",
    "WORKERS",
)


@dataclasses.dataclass(frozen=True)
class Args(Output):
    """What is run in the clone."""

    pythons: tuple[str, ...] = ("python3",)
    """Interpreters; each gets a clone of its own."""
    sweep: str = ""
    """Flags of the sweep, such as "--preset smoke"."""
    tests: bool = True
    """Whether to run the tests too."""


PRESETS = {"default": Args(), "smoke": Args(sweep="--preset smoke", tests=False)}


def memory_of_tree(process: psutil.Process) -> int:
    """Return the bytes that a process and its descendants take, shared pages counted once."""
    total = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            total += member.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            # It has ended since it was listed.
            continue
    return total


def run(command: list[str], folder: Path, home: Path) -> tuple[float, float, str]:
    """Return the seconds that a command took, its peak in GB, and what it printed."""
    environment = {name: value for name, value in os.environ.items() if name not in HIDDEN} | {"HOME": str(home)}
    start, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
        watched = psutil.Process(process.pid)
        try:
            while process.poll() is None:
                # The command may end between the question and the look.
                with contextlib.suppress(psutil.NoSuchProcess):
                    peak = max(peak, memory_of_tree(watched))
                time.sleep(0.5)
        except BaseException:
            process.kill()
            raise
        status, seconds = process.wait(), time.perf_counter() - start
        output.seek(0)
        said = output.read()
    if status:
        raise SystemExit(f"no measurement: {' '.join(command)} ended with {status}\n{said[-3000:]}")
    return seconds, peak / 1e9, said


def in_a_clone(python: str, args: Args, folder: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the rows of one interpreter, and the versions that were installed."""
    clone, home = folder / "clone", folder / "home"
    home.mkdir()
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    make = ["make", f"PYTHON={python}"]
    installation, _, _ = run([*make, ".venv/.installed"], clone, home)
    asked = "import sys, json, jax; print(json.dumps({'python': sys.version.split()[0], 'jax': jax.__version__}))"
    versions = json.loads(run([".venv/bin/python", "-c", asked], clone, home)[2].splitlines()[-1])
    named = "Python " + ".".join(versions["python"].split(".")[:2])
    # Goals are those of the default sweep.
    time_goal, memory_goal = (None, None) if args.sweep else (240.0, 2.0)
    seconds, peak, _ = run([*make, "sweep", f"ARGS={args.sweep}"], clone, home)
    # All cells anew, every program as the first run compiled it: what is saved is what compiling takes.
    again, _, _ = run([*make, "sweep", f"ARGS={args.sweep} --out again"], clone, home)
    rows = [
        row(f"{named}, installation for the sweep", installation, "s"),
        row(f"{named}, make sweep", seconds, "s", high=time_goal),
        row(f"{named}, memory of make sweep", peak, "GB", high=memory_goal),
        row(f"{named}, make sweep with every program compiled before", again, "s"),
        row(f"{named}, share of compiling in make sweep", 1 - again / seconds, "of its time"),
    ]
    if args.tests:
        installation, _, _ = run([*make, ".venv/.installed-dev"], clone, home)
        seconds, peak, said = run([*make, "test"], clone, home)
        passed = re.findall(r"(\d+) passed", said)
        rows += [
            row(f"{named}, installation for the tests", installation, "s"),
            row(f"{named}, make test", seconds, "s", high=720),
            row(f"{named}, memory of make test", peak, "GB"),
            row(f"{named}, tests passed", int(passed[-1]), "tests"),
        ]
    return rows, versions


def main() -> None:
    """Measure every interpreter in a temporary folder and write the table."""
    args = parse_args(Args, presets=PRESETS, description=__doc__)
    missing = [python for python in args.pythons if shutil.which(python) is None]
    if missing or not args.pythons:
        raise SystemExit(f"error: --pythons must name interpreters, got {' '.join(missing) or 'none'}")
    if not (ROOT / ".git").exists():
        raise SystemExit(f"error: {ROOT} is no clone of the repository, and what is measured is a clone of it")
    start, load, rows, installed = time.time(), os.getloadavg(), [], []
    for python in args.pythons:
        with tempfile.TemporaryDirectory() as folder:
            found, versions = in_a_clone(shutil.which(python) or python, args, Path(folder))
        rows += found
        installed.append(versions)
        # After every interpreter: what fails with the next one does not take these along.
        busy = {"before": load, "after": os.getloadavg()}
        seconds = round(time.time() - start, 1)
        write(args.out, "fresh_clone", rows, config=args, seconds=seconds, load_average=busy, installed=installed)


if __name__ == "__main__":
    main()
