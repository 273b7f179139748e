"""Running units of work on a connected Dask cluster; `cluster` makes the connection.

Scheduling, retries after a death and back-pressure are Dask's. What is added here is what a sweep needs: every result
is only keys and statuses and its future is let go as it completes; a lost scheduler or a cluster without workers is
an error in bounded time; the first interrupt lets the running cells finish.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import queue
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from amortgap.sweep.execute import Outcome, Task, Unit, captured_warnings
from amortgap.sweep.executors import Stop
from amortgap.sweep.manifest import machine, require_gpu, versions

_POLL_SECONDS = 0.5
_FETCH_SECONDS = 2.0
_LOST = "the scheduler was lost; finished cells are kept, the same command resumes"


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
        with _losing_the_cluster_is_an_error():
            self._check_store(task)
            yield from self._results(task, units, stop)

    def _results(
        self, task: Task, units: Sequence[Unit], stop: Stop
    ) -> Iterator[tuple[Unit, list[Outcome] | Exception]]:
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        resources = {"GPU": 1} if self.gpus else None
        # As a task of its own the computation travels once to each worker, so that what it compiled there is kept.
        shared = self.client.submit(_itself, task, pure=False)
        keys = [f"cell-{unit[0].cell.key[:12]}-{uuid.uuid4().hex}" for unit in units]
        futures = self.client.map(
            _remote,
            list(units),
            keys,
            task=shared,
            expected=comparable(versions()),
            gpus=self.gpus,
            key=keys,
            pure=False,
            resources=resources,
        )
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
                if future.key not in pending:
                    continue
                try:
                    result = self._result(future)
                except TimeoutError:
                    # A worker's own error may be one of this class: a folder on the network that timed out.
                    if future.status == "error":
                        raise
                    # The result died with its worker; Dask runs the unit again, if there is a worker left.
                    future.add_done_callback(done.put)
                    seen = self._check_workers(seen)
                    continue
                seen = time.monotonic()
                yield pending.pop(future.key)[1], result
        finally:
            with contextlib.suppress(Exception):
                self.client.cancel([future for future, _ in pending.values()] + [shared])

    def _result(self, future: Any) -> list[Outcome] | Exception:
        from distributed import KilledWorker

        try:
            return future.result(timeout=_FETCH_SECONDS)
        except KilledWorker as error:
            return error

    def _check_workers(self, seen: float) -> float:
        if self.client.status not in ("running", "connecting"):
            raise ClusterError(_LOST)
        if self.client.scheduler_info(n_workers=-1)["workers"]:
            return time.monotonic()
        if time.monotonic() - seen > self.patience:
            raise ClusterError(f"no worker for {self.patience:g} s; finished cells are kept, the same command resumes")
        return seen

    def _withdraw(self, pending: dict[str, tuple[Any, Unit]]) -> None:
        """Cancel the units that no worker is computing yet; those that run are waited for."""
        running = {key for keys in on_living_workers(self.client, _executing).values() for key in keys}
        withdrawn = [pending.pop(key)[0] for key in list(pending) if key not in running]
        self.client.cancel(withdrawn)

    def _check_store(self, task: Task) -> None:
        """Every worker must see the folder of the store, not one of the same name on its own disk."""
        token = task.store.path / f".seen~{uuid.uuid4().hex}"
        token.write_bytes(b"")
        try:
            found = on_living_workers(self.client, os.path.exists, str(token))
            blind = [address for address, sees in found.items() if not sees]
        finally:
            token.unlink()
        if blind:
            raise ClusterError(f"out: folder {task.store.path} is not shared with the workers {sorted(blind)}")


def on_living_workers(client: Any, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
    """What `function` gives on each worker; one that dies meanwhile is left out, as it would be a moment later."""
    return client.run(function, *args, on_error="ignore")


@contextlib.contextmanager
def _losing_the_cluster_is_an_error() -> Iterator[None]:
    from distributed import CancelledError
    from distributed.comm.core import CommClosedError

    try:
        yield
    except (CommClosedError, CancelledError) as error:
        raise ClusterError(_LOST) from error


def _itself(task: Task) -> Task:
    return task


def _remote(unit: Unit, name: str, *, task: Task, expected: Mapping[str, str], gpus: bool) -> list[Outcome]:
    # Again here: a worker may have joined after the check at connect.
    if comparable(versions()) != expected:
        raise ClusterError(f"worker {name}: {difference(expected, versions())}")
    _use_compile_cache(task.store.path / "compile-cache")
    if gpus:
        require_gpu()
    with captured_warnings():
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


def comparable(found: Mapping[str, str]) -> dict[str, str]:
    """Versions that must agree between two processes: all, but of Python only the minor version."""
    return {**found, "python": ".".join(found["python"].split(".")[:2])}


def difference(expected: Mapping[str, str], found: Mapping[str, str]) -> str:
    """What an error says about a process whose versions are `found` where `expected` ones are needed."""
    found = comparable(found)
    names = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    return "; ".join(f"{name} is {found.get(name)} there and {expected.get(name)} here" for name in names)
