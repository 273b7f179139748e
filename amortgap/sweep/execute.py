"""What happens to one unit of work, in whatever process: find its records or compute, and write them.

A unit is a tuple of cells computed by one call: a single cell, or a group (seeds vmapped, widths padded together).
The unit's records are written here, where it was computed, and only keys and statuses travel back: a result held by
a worker is lost with it and would be computed again. Executors may run a unit more than once; a cell that finds its
record returns at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import logging
import os
import platform
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from amortgap._internal.files import disk_full, disk_full_error
from amortgap.sweep.cells import Cell
from amortgap.sweep.provenance import device, versions
from amortgap.sweep.records import CellResult, Record, Status, Store, plain_row
from amortgap.sweep.table import Schema, check_row

logger = logging.getLogger(__name__)

_ERROR_LIMIT = 20_000
RESUMES = "finished cells are kept, the same command resumes"
"""Text for the end of an error that ends a run."""


class ClusterError(RuntimeError):
    """The cluster cannot be used or was lost; finished cells are in the store, and the same command resumes."""


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


@dataclasses.dataclass(frozen=True)
class Job:
    """A cell to compute and the number of this attempt: a record of this attempt or a finished one settles it."""

    cell: Cell
    attempt: int


Unit = tuple[Job, ...]
Outcome = tuple[str, Status]


@dataclasses.dataclass(frozen=True)
class _Checked:
    rows: list[dict[str, Any]]
    finite: bool
    arrays: bytes | None
    message: str


@dataclasses.dataclass(frozen=True)
class Task:
    """The function an executor applies to units; carries all it needs, so that it can run in another process."""

    store: Store
    compute: Callable[..., Any]
    grouped: bool
    schema: Schema | None
    log_level: int

    def __call__(self, unit: Unit) -> list[Outcome]:
        """Compute the cells of `unit` that have no record, write their records, and return (key, status) of each.

        An exception in the computation is recorded as `failed`; when a group fails, its cells are tried one by one,
        so that one bad cell does not take the others with it. Raises OSError if the disk is full or a record cannot be
        written.
        """
        package = logging.getLogger("amortgap")
        if package.getEffectiveLevel() != self.log_level:
            package.setLevel(self.log_level)
        settled: dict[str, Status] = {
            job.cell.key: status for job in unit if (status := self._settled(job)) is not None
        }
        pending = [job for job in unit if job.cell.key not in settled]
        if pending:
            settled.update(self._run(pending))
        return [(job.cell.key, settled[job.cell.key]) for job in unit]

    def _settled(self, job: Job) -> Status | None:
        record = self.store.load(job.cell.key)
        return record.status if record and (record.finished or record.attempt >= job.attempt) else None

    def _run(self, jobs: Sequence[Job]) -> dict[str, Status]:
        start = time.perf_counter()
        try:
            with contextlib.ExitStack() as logs:
                for job in jobs:
                    logs.enter_context(_cell_log(self.store, job))
                results = self._compute(jobs)
        # SystemExit as well: a cell that calls sys.exit must not end the sweep.
        except (Exception, SystemExit) as error:
            if isinstance(error, OSError) and disk_full(error):
                file = error.filename or f"a file of cell {jobs[0].cell.key[:12]}"
                raise disk_full_error(error, file, self.store.path) from error
            if len(jobs) > 1:
                logger.warning("a group of %d cells failed (%r): computing them one by one", len(jobs), error)
                return {key: status for job in jobs for key, status in self._run([job]).items()}
            key = jobs[0].cell.key
            logger.error("cell %s failed: %r (log: %s)", key[:12], error, self.store.log_path(key))
            return {jobs[0].cell.key: self._save_failure(jobs[0], error, time.perf_counter() - start)}
        wall_time = (time.perf_counter() - start) / len(jobs)
        return {job.cell.key: self._save(job, result, wall_time) for job, result in zip(jobs, results, strict=True)}

    def _compute(self, jobs: Sequence[Job]) -> list[_Checked]:
        configs = [job.cell.config for job in jobs]
        results = list(self.compute(configs)) if self.grouped else [self.compute(config) for config in configs]
        if len(results) != len(jobs):
            raise ValueError(f"compute returned {len(results)} results for {len(jobs)} cells")
        return [self._checked(result) for result in results]

    def _checked(self, result: object) -> _Checked:
        if not isinstance(result, CellResult):
            raise ValueError(f"compute must return CellResult, got {type(result).__name__}")
        plain = [plain_row(row) for row in result.rows]
        rows = [check_row(row, self.schema) if self.schema else row for row, _ in plain]
        not_finite = sorted({name for _, names in plain for name in names})
        message = result.message or (f"not finite: {', '.join(not_finite)}" if not_finite else "")
        return _Checked(rows, not not_finite, _arrays_bytes(result), message)

    def _save(self, job: Job, result: _Checked, seconds: float) -> Status:
        status: Status = "ok" if result.finite else "nonfinite"
        data = result.arrays
        described = None if data is None else {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        record = make_record(job, status, seconds, rows=result.rows, error=result.message, arrays=described)
        self.store.save(record, data)
        return status

    def _save_failure(self, job: Job, error: BaseException, seconds: float) -> Status:
        text = f"{error!r}\n{''.join(traceback.format_exception(error))[-_ERROR_LIMIT:]}"
        self.store.save(make_record(job, "failed", seconds, error=text))
        return "failed"


def make_record(
    job: Job,
    status: Status,
    wall_time: float,
    *,
    rows: Sequence[dict[str, Any]] = (),
    error: str = "",
    arrays: dict[str, Any] | None = None,
) -> Record:
    """Record of one attempt at a cell, with the provenance of this process."""
    return Record(
        hash=job.cell.key,
        **job.cell.identity,
        status=status,
        rows=list(rows),
        error=error,
        attempt=job.attempt,
        wall_time=wall_time,
        host=socket.gethostname(),
        device=device(),
        versions=versions(),
        arrays=arrays,
    )


def _arrays_bytes(result: CellResult) -> bytes | None:
    if not result.arrays:
        return None
    import numpy as np
    import safetensors.numpy

    arrays = {name: np.ascontiguousarray(array) for name, array in result.arrays.items()}
    return safetensors.numpy.save(arrays)


@contextlib.contextmanager
def _cell_log(store: Store, job: Job) -> Iterator[None]:
    root = logging.getLogger()
    with store.log_path(job.cell.key).open("a") as file:
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        root.addHandler(handler)
        # Other cells may run in other threads, each with a log of its own.
        thread = threading.get_ident()
        handler.addFilter(lambda record: record.thread == thread)
        file.write(f"attempt {job.attempt} on {socket.gethostname()}, process {os.getpid()}\n")
        try:
            yield
        except BaseException:
            file.write(traceback.format_exc())
            raise
        finally:
            root.removeHandler(handler)


@contextlib.contextmanager
def captured_warnings() -> Iterator[None]:
    """Send warnings to the logs while cells run."""
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
