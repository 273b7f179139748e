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
import os
import pathlib
import platform
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, InvalidStateError
from typing import Any, cast

try:
    import distributed
except ImportError as error:
    raise ImportError("a cluster needs the package distributed: pip install 'amortgap[dask]'") from error
from distributed.cfexecutor import ClientExecutor
from distributed.comm.core import CommClosedError

from amortgap.sweep.execute import RESUMES, ClusterError, Outcome, Task, Unit, captured_warnings, require_gpu
from amortgap.sweep.local_cluster import local_cluster
from amortgap.sweep.provenance import machine, versions

_POLL_SECONDS = 0.5


class DaskExecutor(ClientExecutor):
    """Dask's `concurrent.futures.Executor` for the units of a sweep; made by `dask_executor`.

    Scheduling, retries after a death and back-pressure are Dask's. Added here: checks of store and workers, a
    computation that travels once, an end in bounded time without workers, and a stop that lets running cells finish.
    """

    def __init__(self, client: distributed.Client, *, gpus: bool = False, patience: float = 60.0) -> None:
        super().__init__(client, pure=False, resources={"GPU": 1} if gpus else None)
        self.client, self._gpus, self._patience = client, gpus, patience
        self._open: weakref.WeakSet[Future[list[Outcome]]] = weakref.WeakSet()
        self._shared: tuple[Task, distributed.Future] | None = None
        self._closed = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def submit(self, task: Task, unit: Unit) -> Future[list[Outcome]]:
        """Compute `task(unit)` on a worker.

        Raises ClusterError if the scheduler is lost or a worker does not see the folder of the store.
        """
        with _losing_the_cluster_is_an_error():
            if self._shared is None or self._shared[0] is not task:
                _check_store(self.client, task.store.path)
                # As a task of its own the computation travels once to each worker; what it compiled there is kept.
                self._shared = task, self.client.submit(_itself, task, pure=False)
            expected = comparable(versions())
            future = super().submit(_on_worker, self._shared[1], unit, expected=expected, gpus=self._gpus)
        self._open.add(future)
        return future

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = True) -> None:
        """Cancel the units that no worker computes yet, and let the others go on."""
        running = {key for keys in on_living_workers(self.client, _executing).values() for key in keys}
        self.client.cancel([future for future in list(self._futures) if future.key not in running])

    def close(self) -> None:
        """End the executor: nothing is waited for."""
        self._closed.set()

    def _watch(self) -> None:
        """Give all units an error when no worker has been there for too long."""
        seen = time.monotonic()
        while not self._closed.wait(_POLL_SECONDS):
            with contextlib.suppress(Exception):
                workers = self.client.scheduler_info(n_workers=-1)["workers"]
                seen = time.monotonic() if workers else seen
                cluster = self.client.cluster
                if isinstance(cluster, distributed.SpecCluster) and len(workers) < len(cluster.worker_spec):
                    # Its nanny does not restart a local worker that is killed before it has told that it started.
                    cluster.scale(len(cluster.worker_spec))
            if time.monotonic() - seen > self._patience:
                lost = ClusterError(f"no worker for {self._patience:g} s; {RESUMES}")
                for future in list(self._open):
                    with contextlib.suppress(InvalidStateError):
                        future.set_exception(lost)


@contextlib.contextmanager
def _losing_the_cluster_is_an_error() -> Iterator[None]:
    try:
        yield
    except (CommClosedError, distributed.CancelledError) as error:
        raise ClusterError(f"the scheduler was lost; {RESUMES}") from error


@contextlib.contextmanager
def dask_executor(
    cluster: str, *, gpus: bool = False, memory_limit: str = "auto", patience: float = 60.0
) -> Iterator[DaskExecutor]:
    """Executor on `local:N`, `tcp://host:port` or `file:PATH`, closed at the end of the `with` block.

    gpus: each cell takes one unit of the worker resource GPU; local workers are pinned to one GPU each in turn.
    memory_limit: of each local worker, e.g. `4GB`; beyond 95 % of it the worker is restarted and the cell tried again.
    patience: seconds to wait for a scheduler, for a first worker, and later for a worker to come back.

    Raises ValueError for another form of `cluster`, ClusterError if there is no scheduler or no worker in time, if a
    worker has other versions or more than one thread, or if none offers the GPU that is asked for.
    """
    kind, _, rest = cluster.partition(":")
    if kind not in ("local", "tcp", "tls", "file") or not rest:
        raise ValueError(f"cluster: {cluster!r} is not of the form local:N, tcp://host:port or file:PATH")
    with contextlib.ExitStack() as stack:
        if kind == "local":
            client = distributed.Client(stack.enter_context(local_cluster(rest, gpus, memory_limit)))
        else:
            client = _connect(cluster, pathlib.Path(rest) if kind == "file" else None, patience)
        stack.callback(client.close)
        _check_cluster(client, patience, gpus=gpus)
        if kind != "local":
            _share_script_folder(client)
        executor = DaskExecutor(client, gpus=gpus, patience=patience)
        stack.callback(executor.close)
        yield executor


def _connect(address: str, file: pathlib.Path | None, patience: float) -> distributed.Client:
    deadline = time.monotonic() + patience
    while file is not None and not file.is_file():
        if time.monotonic() > deadline:
            raise ClusterError(f"cluster: no scheduler file {file} after {patience:g} s")
        time.sleep(0.1)
    try:
        if file is not None:
            return distributed.Client(scheduler_file=str(file), timeout=patience)
        return distributed.Client(address, timeout=patience)
    except (OSError, ValueError) as error:
        raise ClusterError(f"cluster: no scheduler at {address}: {error}") from error


def _check_cluster(client: distributed.Client, patience: float, *, gpus: bool = False) -> None:
    """Check that there is a worker, and that all of them fit this process."""
    try:
        client.wait_for_workers(1, timeout=patience)
    except TimeoutError as error:
        raise ClusterError(f"cluster: no worker after {patience:g} s") from error
    workers = client.scheduler_info(n_workers=-1)["workers"]
    if several := sorted(address for address, worker in workers.items() if worker["nthreads"] != 1):
        raise ClusterError(f"cluster: workers {several} have several threads; start them with --nthreads 1")
    for address, found in on_living_workers(client, versions).items():
        if comparable(found) != comparable(versions()):
            raise ClusterError(f"cluster: worker {address}: {difference(versions(), found)}")
    # Dask would keep cells waiting for ever for a resource that nobody offers.
    if gpus and not any(worker["resources"].get("GPU", 0) >= 1 for worker in workers.values()):
        raise ClusterError("gpus: no worker offers one; start them with --resources GPU=1, or run without --gpus")


def _check_store(client: distributed.Client, folder: pathlib.Path) -> None:
    """Every worker must see the folder of the store, not one of the same name on its own disk."""
    token = folder / f".seen~{uuid.uuid4().hex}"
    token.touch()
    try:
        found = on_living_workers(client, os.path.exists, str(token))
    finally:
        token.unlink()
    if blind := sorted(address for address, sees in found.items() if not sees):
        raise ClusterError(f"out: folder {folder} is not shared with the workers {blind}")


def on_living_workers(client: distributed.Client, function: Callable[..., Any], *args: str) -> dict[str, Any]:
    """Results of `function` on each worker; one that dies meanwhile is left out, as it would be a moment later."""
    return cast(dict[str, Any], client.run(function, *args, on_error="ignore"))


def _executing(dask_worker: distributed.Worker) -> list[str]:
    return [str(state.key) for state in dask_worker.state.executing]


def _itself(task: Task) -> Task:
    return task


def _on_worker(task: Task, unit: Unit, *, expected: Mapping[str, str], gpus: bool) -> list[Outcome]:
    # Here as well as at connect: a worker may have joined later.
    if comparable(versions()) != expected:
        raise ClusterError(f"cluster: a worker on {platform.node()}: {difference(expected, versions())}")
    _use_compile_cache(task.store.path / "compile-cache")
    if gpus:
        require_gpu()
    with captured_warnings():
        return task(unit)


def _use_compile_cache(folder: pathlib.Path) -> None:
    """Share JAX's compilation cache between workers of one kind of machine, unless the user has set one."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    kind = "-".join(str(machine()[name]) for name in ("cpu", "architecture"))
    path = str(folder / "".join(letter if letter.isalnum() else "-" for letter in kind))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = path
    if (jax := sys.modules.get("jax")) is not None:
        jax.config.update("jax_compilation_cache_dir", path)


def comparable(found: Mapping[str, str]) -> dict[str, str]:
    """Versions that must agree between two processes: all, but of Python only the minor version."""
    return {**found, "python": ".".join(found["python"].split(".")[:2])}


def difference(expected: Mapping[str, str], found: Mapping[str, str]) -> str:
    """Text of an error about a process whose versions are `found` where `expected` ones are needed."""
    expected, found = comparable(expected), comparable(found)
    names = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    return "; ".join(f"{name} is {found.get(name)} there and {expected.get(name)} here" for name in names)


def _share_script_folder(client: distributed.Client) -> None:
    """Let scheduler and workers import what lies beside the running script, as this process does."""
    script = getattr(sys.modules["__main__"], "__file__", None)
    if script is None:
        return
    folder = str(pathlib.Path(script).resolve().parent)

    class ScriptFolder(distributed.WorkerPlugin):
        name = "amortgap-script-folder"

        def setup(self, worker: distributed.Worker) -> None:
            _append_path(folder)

    client.run_on_scheduler(_append_path, folder)
    client.register_plugin(ScriptFolder())


def _append_path(folder: str) -> None:
    if folder not in sys.path:
        sys.path.append(folder)
