"""Provenance: who ran what, when, on which machine, with which versions.

`manifest.json` lists the runs that computed something; a second invocation with nothing to do adds none.
Nothing is keyed by time: a run has a random identifier, and its times are information only.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
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
from typing import Any

from amortgap._internal.files import move_aside, write_atomic

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
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
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
    of = {"this_process": resource.RUSAGE_SELF, "largest_child": resource.RUSAGE_CHILDREN}
    return {name: resource.getrusage(who).ru_maxrss // unit for name, who in of.items()}


def device() -> str:
    """What JAX computes on in this process, e.g. `cpu` or `gpu: NVIDIA H100`; `cpu` if JAX is not loaded."""
    jax = sys.modules.get("jax")
    if jax is None:
        return "cpu"
    try:
        first = jax.devices()[0]
    except RuntimeError as error:
        return f"unknown: {error}"
    return first.platform if first.platform == first.device_kind else f"{first.platform}: {first.device_kind}"


class GpuError(RuntimeError):
    """A GPU was asked for and cannot be used."""


@functools.cache
def require_gpu() -> None:
    """Make sure that JAX computes on a GPU in this process and has memory there.

    Raises GpuError saying what to do; the outcome of success is kept, JAX never changes its device afterwards.
    """
    import jax

    host = f"gpus: process {os.getpid()} on {platform.node()}"
    try:
        backend = jax.default_backend()
        if backend == "gpu":
            jax.block_until_ready(jax.numpy.zeros(1024))
            return
    except RuntimeError as error:
        raise GpuError(
            f"{host} cannot use its GPU ({str(error).strip().splitlines()[0]}): nvidia-smi shows drivers and who holds "
            "the memory; XLA_PYTHON_CLIENT_MEM_FRACTION takes less of it, and without --gpus cells run on the CPU"
        ) from error
    raise GpuError(
        f"{host} has no GPU that JAX can use (backend {backend}): install amortgap[cuda] there, see that nvidia-smi "
        "lists a GPU and JAX_PLATFORMS does not exclude it; without --gpus cells run on the CPU"
    )


def git_commit() -> str | None:
    """Commit of the working folder, with `+changes` if tracked files differ from it; None outside a repository.

    Files in `results/` do not count: whoever asks is about to write them.
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


@dataclasses.dataclass(frozen=True)
class Run:
    """One entry of the manifest, kept up to date by `begin_run` and `end_run`."""

    path: pathlib.Path
    entry: dict[str, Any]


def begin_run(folder: pathlib.Path, sweep: dict[str, Any]) -> Run:
    """Add a run to the manifest of `folder`; `sweep` says what it computes (cells, schema and semantics versions)."""
    entry = {
        "run": uuid.uuid4().hex,
        "command": shlex.join(sys.argv),
        "git_commit": git_commit(),
        "versions": versions(),
        "machine": machine(),
        "host": socket.gethostname(),
        **sweep,
        "started": _now(),
        "ended": None,
    }
    run = Run(folder / "manifest.json", entry)
    _put(run)
    return run


def end_run(run: Run, outcome: dict[str, Any]) -> None:
    """Complete the entry of `run` with the end time and `outcome` (counts by status)."""
    run.entry.update(outcome, ended=_now())
    _put(run)


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


def _put(run: Run) -> None:
    # Read again each time: another sweep in this folder may have added its run since.
    others = [entry for entry in read_manifest(run.path.parent) if entry["run"] != run.entry["run"]]
    text = json.dumps({"runs": [*others, run.entry]}, allow_nan=False, ensure_ascii=False, indent=1)
    write_atomic(run.path, text.encode())


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
