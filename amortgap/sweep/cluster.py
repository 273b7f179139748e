"""The Dask `distributed` executor (extra `[dask]`): the same records from many processes or machines.

    with dask_executor("local:2") as executor:
        run_cells(cells, compute, store, executor=executor)

    local:N          N worker processes on this machine, bound to loopback, one thread each
    tcp://host:port  a running scheduler (tls:// as well); workers started with `dask worker ... --nthreads 1`
    file:PATH        the same through a scheduler file on a shared folder (SLURM, any account on a cluster)

Scheduling, retries after a death and back-pressure are Dask's. What is added here is what a sweep needs: workers must
see the store, run one cell at a time and have this process' versions; every result is only keys and statuses, and
its future is let go as it completes; a lost scheduler or a cluster without workers is an error in bounded time.
A scheduler port trusts everybody who can reach it: keep it on loopback, a private network, or TLS.
A script that uses `local:N` needs `if __name__ == "__main__":`, since the workers import it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import pathlib
import queue
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .execute import Outcome, Task, Unit
from .manifest import machine, versions
from .run import Stop

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
# Ctrl-C in a terminal reaches the workers as well; only the driver decides what it means.
_IGNORE_INTERRUPTS = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"


class ClusterError(RuntimeError):
    """The cluster cannot be used or was lost; what is finished is in the store, and the same command resumes."""


@dataclasses.dataclass(frozen=True)
class DaskExecutor:
    """Executor over a connected client; make one with `dask_executor`."""

    client: Any
    slots: int
    gpus: bool
    patience: float

    def __call__(
        self, task: Task, units: Sequence[Unit], stop: Stop
    ) -> Iterator[tuple[Unit, list[Outcome] | Exception]]:
        """Run `task` on every unit; KilledWorker is yielded, anything else that goes wrong is raised.

        Raises ClusterError if the workers do not see the store, the scheduler is lost, or no worker is left for
        `patience` seconds; OSError if a worker cannot write a record.
        """
        from distributed import KilledWorker

        self._check_store(task)
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        resources = {"GPU": 1} if self.gpus else None
        # As a task of its own the computation travels once to each worker, so that what it compiled there is kept.
        shared = self.client.submit(_itself, task, pure=False)
        keys = [f"cell-{unit[0].cell.key[:12]}-{uuid.uuid4().hex}" for unit in units]
        futures = self.client.map(_remote, list(units), keys, task=shared, expected=_comparable(versions()), key=keys,
                                  pure=False, resources=resources)  # fmt: skip
        pending = {future.key: (future, unit) for future, unit in zip(futures, units, strict=True)}
        for future in futures:
            future.add_done_callback(done.put)
        del futures
        stopping, seen = False, time.monotonic()
        try:
            while pending:
                if stop.requested and not stopping:
                    stopping = True
                    self._withdraw(pending)
                    continue
                try:
                    future = done.get(timeout=_POLL_SECONDS)
                except queue.Empty:
                    seen = self._check_workers(seen)
                    continue
                seen = time.monotonic()
                if future.key not in pending:
                    continue
                _, unit = pending.pop(future.key)
                if future.status == "finished":
                    yield unit, future.result()
                elif future.status == "error" and isinstance(error := future.exception(), KilledWorker):
                    yield unit, error
                elif future.status == "error":
                    raise future.exception()
                else:
                    raise ClusterError("the scheduler was lost; finished cells are kept, the same command resumes")
        finally:
            with contextlib.suppress(Exception):
                self.client.cancel([future for future, _ in pending.values()] + [shared])

    def _check_workers(self, seen: float) -> float:
        if self.client.status not in ("running", "connecting"):
            raise ClusterError(f"the connection to the scheduler is {self.client.status}; the same command resumes")
        if self.client.scheduler_info(n_workers=-1)["workers"]:
            return time.monotonic()
        if time.monotonic() - seen > self.patience:
            raise ClusterError(f"no worker for {self.patience:g} s; finished cells are kept, the same command resumes")
        return seen

    def _withdraw(self, pending: dict[str, tuple[Any, Unit]]) -> None:
        """Cancel the units that no worker is computing yet; those that run are waited for."""
        running = {key for keys in self.client.run(_executing).values() for key in keys}
        withdrawn = [pending.pop(key)[0] for key in list(pending) if key not in running]
        self.client.cancel(withdrawn)

    def _check_store(self, task: Task) -> None:
        """Every worker must see the folder of the store, not one of the same name on its own disk."""
        token = task.store.path / f".seen~{uuid.uuid4().hex}"
        token.write_bytes(b"")
        try:
            blind = [address for address, sees in self.client.run(os.path.exists, str(token)).items() if not sees]
        finally:
            token.unlink()
        if blind:
            raise ClusterError(f"out: folder {task.store.path} is not shared with the workers {sorted(blind)}")


def _itself(task: Task) -> Task:
    return task


def _remote(unit: Unit, name: str, *, task: Task, expected: Mapping[str, str]) -> list[Outcome]:
    # Again here: a worker may have joined after the check at connect.
    if _comparable(versions()) != expected:
        raise ClusterError(f"worker {name}: {_difference(expected, versions())}")
    _use_compile_cache(task.store.path / "compile-cache")
    return task(unit)


def _executing(dask_worker: Any) -> list[str]:
    return [state.key for state in dask_worker.state.executing]


def _use_compile_cache(folder: pathlib.Path) -> None:
    """Share JAX's compilation cache between workers of one kind of machine, unless the user has set one."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    kind = "-".join(str(machine()[name]) for name in ("cpu", "architecture"))
    path = str(folder / "".join(letter if letter.isalnum() else "-" for letter in kind))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = path
    if (jax := sys.modules.get("jax")) is not None:
        jax.config.update("jax_compilation_cache_dir", path)


def _comparable(found: Mapping[str, str]) -> dict[str, str]:
    return {**found, "python": ".".join(found["python"].split(".")[:2])}


def _difference(expected: Mapping[str, str], found: Mapping[str, str]) -> str:
    found = _comparable(found)
    names = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    return "; ".join(f"{name} is {found.get(name)} there and {expected.get(name)} here" for name in names)


@contextlib.contextmanager
def dask_executor(
    cluster: str, *, gpus: bool = False, memory_limit: str = "auto", patience: float = 60.0
) -> Iterator[DaskExecutor]:
    """Executor on `local:N`, `tcp://host:port` or `file:PATH`, closed at the end of the `with` block.

    gpus: each cell takes one unit of the worker resource GPU; local workers are pinned to one GPU each in turn.
    memory_limit: of each local worker, e.g. `4GB`; beyond 95 % of it the worker is restarted and the cell tried again.
    patience: seconds to wait for a scheduler, for a first worker, and later for a worker to come back.

    Raises ValueError for another form of `cluster` or if `distributed` is not installed, ClusterError if there is no
    scheduler or no worker in time, or if a worker has other versions or more than one thread.
    """
    kind, _, rest = cluster.partition(":")
    if kind not in ("local", "tcp", "tls", "file") or not rest:
        raise ValueError(f"cluster: {cluster!r} is none of local:N, tcp://host:port, file:PATH")
    try:
        import dask
        import distributed
    except ImportError as error:
        raise ValueError(f"cluster: {cluster!r} needs the package distributed (extra [dask])") from error
    with contextlib.ExitStack() as stack:
        if kind == "local":
            # One unit at a worker at a time, so that a death takes as few others with it as possible.
            stack.enter_context(dask.config.set({"distributed.scheduler.worker-saturation": 1.0}))
            local = stack.enter_context(_local_cluster(_count(rest), gpus, memory_limit))
            client = distributed.Client(local)
        elif kind == "file":
            client = _connect(patience, scheduler_file=str(_awaited(pathlib.Path(rest), patience)))
        else:
            client = _connect(patience, address=cluster)
        stack.callback(client.close)
        yield DaskExecutor(client, _check_cluster(client, patience), gpus, patience)


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


def _connect(patience: float, **where: str) -> Any:
    import distributed

    try:
        return distributed.Client(timeout=patience, **where)
    except (OSError, ValueError) as error:
        raise ClusterError(f"cluster: no scheduler at {', '.join(where.values())}: {error}") from error


def _check_cluster(client: Any, patience: float) -> int:
    """Number of workers, after checking that there is one and that all fit this process."""
    try:
        client.wait_for_workers(1, timeout=patience)
    except TimeoutError as error:
        raise ClusterError(f"cluster: no worker after {patience:g} s") from error
    threads = client.nthreads()
    if several := sorted(address for address, count in threads.items() if count != 1):
        raise ClusterError(f"cluster: workers {several} have several threads; start them with --nthreads 1")
    expected = _comparable(versions())
    for address, found in client.run(versions).items():
        if _comparable(found) != expected:
            raise ClusterError(f"cluster: worker {address}: {_difference(expected, found)}")
    return len(threads)


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
    spec = {
        i: {"cls": distributed.Nanny, "options": {**options, "env": _pinned(visible, i, workers) if gpus else {}}}
        for i in range(workers)
    }
    scheduler = {
        "cls": distributed.Scheduler,
        "options": {"host": "127.0.0.1", "port": 0, "dashboard": False, "dashboard_address": "127.0.0.1:0"},
    }
    return distributed.SpecCluster(workers=spec, scheduler=scheduler, silence_logs=logging.ERROR)


def _visible_gpus() -> list[str]:
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        try:
            found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
        except (OSError, subprocess.SubprocessError) as error:
            raise ValueError(f"gpus: no GPU found ({error})") from error
        listed = ",".join(str(i) for i, line in enumerate(found.splitlines()) if line.startswith("GPU"))
    if not listed:
        raise ValueError("gpus: no GPU is visible")
    return listed.split(",")


def _pinned(visible: Sequence[str], index: int, workers: int) -> dict[str, str]:
    share = -(-workers // len(visible))
    environment = {"CUDA_VISIBLE_DEVICES": visible[index % len(visible)]}
    if share > 1:
        # JAX takes three quarters of a GPU at start; workers that share one must share that.
        environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.75 / share:.3f}"
    return environment
