"""Worker processes on this machine, each kept to a core or to a GPU of its own; `amortgap.sweep.dask` uses them."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import dask.config
import distributed
from distributed.worker_memory import parse_memory_limit

logger = logging.getLogger(__name__)

# Ctrl-C in a terminal reaches the workers as well; only the driver decides what it means.
_IGNORE_INTERRUPTS = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
# Cells of small arrays lose more by handing work from core to core than they gain (several times the processor time).
_KEEP_TO_CORE = "from amortgap.sweep.local_cluster import keep_to_core; keep_to_core({index}, {workers})"
_ENVIRONMENT = "distributed.nanny.pre-spawn-environ"
# Dask gives memory back at once; a cell takes and frees the same arrays over and over, and would spend a tenth of its
# time on page faults. 32 MB is the most that glibc accepts. Two arenas, where each of the compiler's threads has one.
_MALLOC = {"MALLOC_TRIM_THRESHOLD_": 2**27, "MALLOC_MMAP_THRESHOLD_": 2**25, "MALLOC_ARENA_MAX": 2}
# One unit at a worker at a time, so that a death takes as few others with it as possible.
_SETTINGS = {"distributed.scheduler.worker-saturation": 1.0} | {f"{_ENVIRONMENT}.{n}": v for n, v in _MALLOC.items()}


@contextlib.contextmanager
def local_cluster(count: str, gpus: bool, memory_limit: str) -> Iterator[distributed.SpecCluster]:
    """Scheduler and `count` workers of one thread, bound to loopback, which end with the `with` block.

    Raises ValueError for a count that is no positive number, and if GPUs are asked for and none is visible.
    """
    if not count.isdigit() or int(count) < 1:
        raise ValueError(f"cluster: local:{count} does not give a number of workers")
    workers = int(count)
    visible = _visible_gpus() if gpus else []
    spec = {}
    for index in range(workers):
        keep_to_core = [] if gpus else [_KEEP_TO_CORE.format(index=index, workers=workers)]
        options = {
            "nthreads": 1,
            "memory_limit": parse_memory_limit(memory_limit, 1, workers, logger=logger),
            "host": "127.0.0.1",
            "dashboard": False,
            "preload": [_IGNORE_INTERRUPTS, *keep_to_core],
            "silence_logs": logging.ERROR,
            "resources": {"GPU": 1} if gpus else {},
            "env": _pinned(visible, index, workers) if gpus else {},
        }
        spec[index] = {"cls": distributed.Nanny, "options": options}
    scheduler = {
        "cls": distributed.Scheduler,
        "options": {"host": "127.0.0.1", "port": 0, "dashboard": False, "dashboard_address": "127.0.0.1:0"},
    }
    silence: Any = logging.ERROR
    with dask.config.set(_SETTINGS):
        cluster = distributed.SpecCluster(workers=spec, scheduler=scheduler, silence_logs=silence)
        with cluster:
            yield cluster


def keep_to_core(index: int, workers: int) -> None:
    """Keep this process, one of `workers`, to a core of its own, where the system allows and has that many."""
    if sys.platform != "linux" or workers > len(cores := sorted(os.sched_getaffinity(0))):
        return
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(int(thread), {cores[index]})


def _visible_gpus() -> list[str]:
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        try:
            found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
        except (OSError, subprocess.SubprocessError) as error:
            raise ValueError(f"gpus: no GPU found ({error}); without --gpus cells run on the CPU") from error
        listed = ",".join(str(i) for i, line in enumerate(found.splitlines()) if line.startswith("GPU"))
    if not listed:
        raise ValueError("gpus: no GPU is visible; see CUDA_VISIBLE_DEVICES, or run without --gpus on the CPU")
    return listed.split(",")


def _pinned(visible: Sequence[str], index: int, workers: int) -> dict[str, str]:
    share = -(-workers // len(visible))
    environment = {"CUDA_VISIBLE_DEVICES": visible[index % len(visible)]}
    if share > 1:
        # JAX takes three quarters of a GPU at start; workers that share one must share that.
        environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.75 / share:.3f}"
    return environment
