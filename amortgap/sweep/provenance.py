"""Provenance: who ran what, when, on which machine, with which versions.

`manifest.json` in the folder of a sweep lists the runs that computed something; the sidecar of a table or figure is a
JSON file beside it that says which command made it, from what, where and when.
Nothing is keyed by time: a run has a random identifier, and its times are information only.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import socket
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from amortgap._internal.files import move_aside, write_atomic
from amortgap.sweep.cells import canonical
from amortgap.sweep.table import Schema

PACKAGES = (
    "amortgap",
    "jax",
    "jaxlib",
    "numpy",
    "flax",
    "optax",
    "numpyro",
    "scipy",
    "scikit-learn",
    "matplotlib",
    "safetensors",
    "distributed",
)


@functools.cache
def versions() -> dict[str, str]:
    """Version of Python and of each package that can move a number; absent ones are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def machine() -> dict[str, Any]:
    """Kind of this machine: processor model, architecture, cores this process may use, operating system."""
    model = platform.processor()
    try:
        with open("/proc/cpuinfo") as lines:
            model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return {"cpu": model, "architecture": platform.machine(), "cores": cores, "system": platform.system()}


def peak_memory() -> dict[str, int] | None:
    """Largest memory so far, MiB, of this process and of the largest process that it started and that has ended.

    None where the operating system does not say.
    """
    try:
        import resource
    except ImportError:
        return None
    # Linux counts in KiB, macOS in bytes.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    processes = {"this_process": resource.RUSAGE_SELF, "largest_child": resource.RUSAGE_CHILDREN}
    return {name: resource.getrusage(who).ru_maxrss // unit for name, who in processes.items()}


def device() -> str:
    """The device JAX computes on in this process, e.g. `cpu` or `gpu: NVIDIA H100`; `cpu` if JAX is not loaded."""
    jax = sys.modules.get("jax")
    if jax is None:
        return "cpu"
    try:
        first = jax.devices()[0]
    except RuntimeError as error:
        return f"unknown: {error}"
    return first.platform if first.platform == first.device_kind else f"{first.platform}: {first.device_kind}"


def git_commit() -> str | None:
    """Commit of the working folder, with `+changes` if tracked files differ from it; None outside a repository.

    Files in `results/` do not count: they are what a run is about to write.
    """
    try:
        run = functools.partial(subprocess.run, capture_output=True, text=True, timeout=10, check=True)
        commit = run(["git", "rev-parse", "HEAD"]).stdout.strip()
        changed = run(
            ["git", "status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)results"]
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changed else "")


def now() -> str:
    """The time, in UTC, to a second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def new_run(sweep: Mapping[str, Any]) -> dict[str, Any]:
    """Entry of the manifest for a run that begins now; `sweep` says what it computes."""
    return {
        "run": uuid.uuid4().hex,
        "command": shlex.join(sys.argv),
        "git_commit": git_commit(),
        "versions": versions(),
        "machine": machine(),
        "host": socket.gethostname(),
        **sweep,
        "started": now(),
        "ended": None,
    }


def write_run(folder: pathlib.Path, entry: Mapping[str, Any]) -> None:
    """Write the entry of a run into the manifest of `folder`, in place of its earlier one."""
    # Read again each time: another sweep in this folder may have added its run since.
    others = [run for run in read_manifest(folder) if run["run"] != entry["run"]]
    text = json.dumps({"runs": [*others, entry]}, allow_nan=False, ensure_ascii=False, indent=1)
    write_atomic(folder / "manifest.json", text.encode())


def read_manifest(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The runs in the manifest of `folder`, oldest first; a damaged manifest is moved aside and counts as empty."""
    path = folder / "manifest.json"
    try:
        runs = json.loads(path.read_bytes())["runs"]
        if not all(isinstance(entry, dict) and "run" in entry for entry in runs):
            raise ValueError("not a list of runs")
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        move_aside(path, folder / "damaged", f"not a manifest: {error!r}")
        return []
    return runs


def write_sidecar(
    path: str | pathlib.Path,
    *,
    config: object,
    files: Sequence[pathlib.Path],
    schema: Schema | None = None,
    computed: bool = True,
    devices: Sequence[str] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> pathlib.Path:
    """Write the sidecar of `files` at `path`, atomically, and return the path.

    Args:
      path: where to write, beside the files.
      config: dataclass with the whole configuration.
      files: the files that the sidecar vouches for; their names and sha256 are recorded.
      schema: columns of the table, written with their meanings.
      computed: False if this run only drew anew what an earlier one computed; of a sidecar of the same configuration
        only the hashes of the files are then renewed, and command, machine and time stay those of the computation.
      devices: the devices that computed, where it was not this process.
      facts: anything else worth keeping, such as seconds or counts; plain data.

    Raises:
      OSError: the file cannot be written, or one of `files` cannot be read.
    """
    path = pathlib.Path(path)
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    if not computed and path.exists():
        old = json.loads(path.read_text())
        # Reuse the old sidecar only if it describes this configuration.
        if old["config"] == described(config):
            return write_json(path, old | {"files": hashes})
    document = {
        "command": _command(),
        "config": described(config),
        "files": hashes,
        "git_commit": git_commit(),
        "versions": versions(),
        "machine": machine() | {"devices": list(devices or [device()]), "peak_memory_mib": peak_memory()},
        "written": now(),
        **(facts or {}),
    }
    if schema is not None:
        document["columns"] = {column.name: column.meaning for column in schema.columns}
    return write_json(path, document)


def _command() -> str:
    """The command that anybody can run to compute the same: its script from the folder of experiments on."""
    script = pathlib.Path(sys.argv[0]).resolve()
    home = next((parent for parent in script.parents if parent.name == "experiments"), script.parent)
    flags = [flag for flag in sys.argv[1:] if flag != "--promote"]
    return shlex.join(["python", script.relative_to(home.parent).as_posix(), *flags])


def described(config: object) -> dict[str, Any]:
    """The configuration as a sidecar states it: plain JSON data of all fields that can change a result."""
    return {name: value for name, value in canonical(config).items() if name != "_type"}


def write_json(path: pathlib.Path, document: Mapping[str, Any]) -> pathlib.Path:
    """Write a sidecar that is complete, atomically, and return the path."""
    write_atomic(path, (json.dumps(document, indent=1, allow_nan=False, default=str) + "\n").encode())
    return path
