"""The Dask `distributed` executor (extra `[dask]`): the same records from many processes or machines.

    with dask_executor("local:2") as executor:
        run_cells(cells, compute, store, executor=executor)

    local:N          N worker processes on this machine, bound to loopback, one thread and one core each
    tcp://host:port  a running scheduler (tls:// as well); workers started with `dask worker ... --nthreads 1`
    file:PATH        the same through a scheduler file on a shared folder (SLURM, any account on a cluster)

Workers must run one cell at a time, have this process' versions, and see the folder of the store and of the script.
A scheduler port trusts everybody who can reach it: keep it on loopback, a private network, or TLS.
A script that uses `local:N` needs `if __name__ == "__main__":`, since the workers import it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from amortgap.sweep.manifest import versions
from amortgap.sweep.remote import ClusterError, DaskExecutor, comparable, difference, on_living_workers

logger = logging.getLogger(__name__)

# Ctrl-C in a terminal reaches the workers as well; only the driver decides what it means.
_IGNORE_INTERRUPTS = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
# Cells of small arrays lose more by handing work from core to core than they gain (several times the processor time).
_KEEP_TO_CORE = "from amortgap.sweep.cluster import keep_to_core; keep_to_core({index}, {workers})"

_ENVIRONMENT = "distributed.nanny.pre-spawn-environ"
# Dask gives memory back at once; a cell takes and frees the same arrays over and over, and would spend a tenth of its
# time on page faults. 32 MB is the most that glibc accepts. Two arenas, where each of the compiler's threads has one.
_MALLOC = {"MALLOC_TRIM_THRESHOLD_": 2**27, "MALLOC_MMAP_THRESHOLD_": 2**25, "MALLOC_ARENA_MAX": 2}


@contextlib.contextmanager
def dask_executor(
    cluster: str, *, gpus: bool = False, memory_limit: str = "auto", patience: float = 60.0
) -> Iterator[DaskExecutor]:
    """Executor on `local:N`, `tcp://host:port` or `file:PATH`, closed at the end of the `with` block.

    gpus: each cell takes one unit of the worker resource GPU; local workers are pinned to one GPU each in turn.
    memory_limit: of each local worker, e.g. `4GB`; beyond 95 % of it the worker is restarted and the cell tried again.
    patience: seconds to wait for a scheduler, for a first worker, and later for a worker to come back.

    Raises ValueError for another form of `cluster` or if `distributed` is not installed, ClusterError if there is no
    scheduler or no worker in time, if a worker has other versions or more than one thread, or if none offers the GPU
    that is asked for.
    """
    kind, _, rest = cluster.partition(":")
    if kind not in ("local", "tcp", "tls", "file") or not rest:
        raise ValueError(f"cluster: {cluster!r} is none of local:N, tcp://host:port, file:PATH")
    try:
        import dask.config
        import distributed
    except ImportError as error:
        raise ValueError(f"cluster: {cluster!r} needs the package distributed (extra [dask])") from error
    with contextlib.ExitStack() as stack:
        if kind == "local":
            # One unit at a worker at a time, so that a death takes as few others with it as possible.
            stack.enter_context(dask.config.set({"distributed.scheduler.worker-saturation": 1.0}))
            stack.enter_context(dask.config.set({f"{_ENVIRONMENT}.{name}": value for name, value in _MALLOC.items()}))
            local = stack.enter_context(_local_cluster(_count(rest), gpus, memory_limit))
            client = distributed.Client(local)
        elif kind == "file":
            client = _connect(patience, scheduler_file=str(_awaited(pathlib.Path(rest), patience)))
        else:
            client = _connect(patience, address=cluster)
        stack.callback(client.close)
        slots = _check_cluster(client, patience, gpus=gpus)
        if kind != "local":
            _share_script_folder(client)
        yield DaskExecutor(client, slots, gpus, patience)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"cluster: local:{text} does not give a number of workers")
    return int(text)


def _awaited(path: pathlib.Path, patience: float) -> pathlib.Path:
    deadline = time.monotonic() + patience
    while not path.is_file():
        if time.monotonic() > deadline:
            raise ClusterError(f"cluster: no scheduler file {path} after {patience:g} s")
        time.sleep(0.1)
    return path


def _connect(patience: float, address: str | None = None, scheduler_file: str | None = None) -> Any:
    import distributed

    try:
        return distributed.Client(address, timeout=patience, scheduler_file=scheduler_file)
    except (OSError, ValueError) as error:
        raise ClusterError(f"cluster: no scheduler at {address or scheduler_file}: {error}") from error


def _check_cluster(client: Any, patience: float, *, gpus: bool = False) -> int:
    """Number of workers, after checking that there is one and that all fit this process."""
    try:
        client.wait_for_workers(1, timeout=patience)
    except TimeoutError as error:
        raise ClusterError(f"cluster: no worker after {patience:g} s") from error
    threads = client.nthreads()
    if several := sorted(address for address, count in threads.items() if count != 1):
        raise ClusterError(f"cluster: workers {several} have several threads; start them with --nthreads 1")
    expected = comparable(versions())
    for address, found in on_living_workers(client, versions).items():
        if comparable(found) != expected:
            raise ClusterError(f"cluster: worker {address}: {difference(expected, found)}")
    if not gpus:
        return len(threads)
    workers = client.scheduler_info(n_workers=-1)["workers"]
    # Dask would keep cells waiting for ever for a resource that nobody offers.
    with_gpu = [address for address, worker in workers.items() if worker["resources"].get("GPU", 0) >= 1]
    if not with_gpu:
        raise ClusterError("gpus: no worker offers one; start them with --resources GPU=1, or run without --gpus")
    return len(with_gpu)


def _share_script_folder(client: Any) -> None:
    """Let scheduler and workers import what lies beside the running script, as this process does."""
    import distributed

    script = getattr(sys.modules["__main__"], "__file__", None)
    if script is None:
        return
    folder = str(pathlib.Path(script).resolve().parent)

    class ScriptFolder(distributed.WorkerPlugin):
        name = "amortgap-script-folder"

        def setup(self, worker: Any) -> None:
            _append_path(folder)

    client.run_on_scheduler(_append_path, folder)
    client.register_plugin(ScriptFolder())


def _append_path(folder: str) -> None:
    if folder not in sys.path:
        sys.path.append(folder)


def _local_cluster(workers: int, gpus: bool, memory_limit: str) -> Any:
    import distributed
    from distributed.worker_memory import parse_memory_limit

    options = {
        "nthreads": 1,
        "memory_limit": parse_memory_limit(memory_limit, 1, workers, logger=logger),
        "host": "127.0.0.1",
        "dashboard": False,
        "preload": [_IGNORE_INTERRUPTS],
        "silence_logs": logging.ERROR,
        "resources": {"GPU": 1} if gpus else {},
    }
    visible = _visible_gpus() if gpus else []
    spec = {}
    for i in range(workers):
        own = (
            {"env": _pinned(visible, i, workers)}
            if gpus
            else {"preload": [*options["preload"], _KEEP_TO_CORE.format(index=i, workers=workers)]}
        )
        spec[i] = {"cls": distributed.Nanny, "options": {**options, **own}}
    scheduler = {
        "cls": distributed.Scheduler,
        "options": {"host": "127.0.0.1", "port": 0, "dashboard": False, "dashboard_address": "127.0.0.1:0"},
    }
    silence: Any = logging.ERROR
    return distributed.SpecCluster(workers=spec, scheduler=scheduler, silence_logs=silence)


def keep_to_core(index: int, workers: int) -> None:
    """Keep this process, one of `workers`, to a core of its own, where the system allows and has that many."""
    if not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    if workers > len(cores):
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
