"""Running the cells of a sweep: `run_cells(cells, compute, store, executor=...)`.

    cells = make_cells(grid(Config(), {"width": [1, 2, 4], "seed": range(5)}), schema_version=SCHEMA.version)
    store = open_store("results/my_sweep")
    summary = run_cells(cells, compute, store, schema=SCHEMA)        # compute(config) -> CellResult
    write_table(store.path / "table.csv", build_table(store.records(cells), SCHEMA))
    raise SystemExit(summary.exit_status)

A finished cell is never computed again, so running the same command again resumes. Where cells run is the executor's
business (any of `concurrent.futures`, or that of `amortgap.sweep.dask`) and makes no difference to the records.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import queue
import sys
import typing
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from typing import Any

from amortgap.sweep.cells import Cell, varying
from amortgap.sweep.execute import (
    RESUMES,
    ClusterError,
    Job,
    Outcome,
    Task,
    Unit,
    captured_warnings,
    make_record,
)
from amortgap.sweep.provenance import new_run, now, write_run
from amortgap.sweep.records import CellResult, Record, Store
from amortgap.sweep.table import Schema
from amortgap.sweep.terminal import Interrupts, show_progress

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Summary:
    """Outcome of `run_cells`, counted in cells.

    Attributes:
      computed: newly finished.
      skipped: found finished.
      failed: computed now without success, or earlier and not retried.
      nonfinite: finished (now or earlier) with a number that is not finite.
      remaining: not reached.
      interrupted: whether the user stopped the run before every cell was reached.
    """

    computed: int
    skipped: int
    failed: int
    nonfinite: int
    remaining: int
    interrupted: bool

    @property
    def exit_status(self) -> int:
        """0 if every cell is finished, 1 if any failed, 130 if interrupted."""
        return 130 if self.interrupted else int(self.failed > 0)

    def __str__(self) -> str:
        return ", ".join(f"{value} {name}" for name, value in dataclasses.asdict(self).items() if name != "interrupted")


def run_cells(
    cells: Sequence[Cell],
    compute: Callable[..., CellResult | Sequence[CellResult]],
    store: Store,
    *,
    executor: Executor | None = None,
    schema: Schema | None = None,
    group_by: Callable[[Any], Hashable] | None = None,
    retry_failed: bool = False,
) -> Summary:
    """Compute every cell that has no finished record in `store`, and write one record for each.

    A cell that raises is `failed`, and the rest go on. The first interrupt (Ctrl-C, or SIGTERM) lets the running cells
    finish, the second ends them; either way finished cells are kept and the summary says so.

    Args:
      cells: what to compute, in order.
      compute: configuration -> CellResult. With `group_by` it is instead a function of the list of configurations that
        share a key (those still to do, in order of cells) to as many results.
      store: where records are.
      executor: where cells run: None for this thread, a ThreadPoolExecutor, or that of `dask_executor`. An interrupt
        shuts it down.
      schema: rows that do not fit it make the cell `failed`; None for any rows.
      group_by: configuration -> key of the group that is computed together; None for cells one by one.
      retry_failed: compute again what failed earlier.

    Returns:
      Summary, in cells.

    Raises:
      OSError: a record or the manifest cannot be written.
    """
    records = {cell.key: store.load(cell.key) for cell in cells}
    jobs = _jobs(cells, records, retry_failed)
    waiting = {job.cell.key for job in jobs}
    status: dict[str, str] = {key: record.status for key, record in records.items() if record and key not in waiting}
    skipped = sum(value != "failed" for value in status.values())
    logger.info("%d cells: %d done, %d to compute", len(cells), skipped, len(jobs))
    if earlier := len(status) - skipped:
        logger.warning("%d cells failed earlier; --retry-failed (retry_failed=True) computes them again", earlier)
    stop, interrupted = Interrupts(), False
    if jobs:
        task = Task(store, compute, group_by is not None, schema, logging.getLogger("amortgap").getEffectiveLevel())
        entry = new_run(_describe(cells))
        write_run(store.path, entry)
        try:
            with stop, captured_warnings(), show_progress(len(cells), status) as progress:
                for key, outcome in _outcomes(executor, task, _units(jobs, group_by), stop):
                    status[key] = outcome
                    progress(outcome)
        except KeyboardInterrupt:
            interrupted = True
        except BaseException:
            # A full disk would fail here again and hide which file was the first.
            with contextlib.suppress(OSError):
                write_run(store.path, entry | {"ended": now(), "outcome": Counter(status.values())})
            raise
        write_run(store.path, entry | {"ended": now(), "outcome": Counter(status.values())})
    summary = Summary(
        computed=sum(value != "failed" for value in status.values()) - skipped,
        skipped=skipped,
        failed=sum(value == "failed" for value in status.values()),
        nonfinite=sum(value == "nonfinite" for value in status.values()),
        remaining=len(cells) - len(status),
        interrupted=(interrupted or stop.requested) and len(status) < len(cells),
    )
    logger.info("%s", summary)
    if summary.interrupted:
        print(f"interrupted: {summary}; run the same command again to resume", file=sys.stderr)
    return summary


def unfinished(cells: Sequence[Cell], store: Store, *, retry_failed: bool = False) -> list[Cell]:
    """The cells `run_cells` would compute, in order."""
    records = {cell.key: store.load(cell.key) for cell in cells}
    return [job.cell for job in _jobs(cells, records, retry_failed)]


def _jobs(cells: Sequence[Cell], records: Mapping[str, Record | None], retry_failed: bool) -> list[Job]:
    jobs = []
    for cell in cells:
        record = records[cell.key]
        if record is None:
            jobs.append(Job(cell, attempt=1))
        elif not record.finished and retry_failed:
            jobs.append(Job(cell, attempt=record.attempt + 1))
    return jobs


def _units(jobs: Sequence[Job], group_by: Callable[[Any], Hashable] | None) -> list[Unit]:
    if group_by is None:
        return [(job,) for job in jobs]
    groups: dict[Hashable, list[Job]] = {}
    for job in jobs:
        groups.setdefault(group_by(job.cell.config), []).append(job)
    return [tuple(group) for group in groups.values()]


def _outcomes(
    executor: Executor | None, task: Task, units: Sequence[Unit], stop: Interrupts, *, alone: bool = False
) -> Iterator[Outcome]:
    """Outcomes of all units; those lost with their worker are tried once more, cell by cell and one at a time.

    A worker's death fails all its cells; retried one by one (`alone`), only the guilty cell fails again.
    """
    lost: list[Job] = []
    for unit, result in _results(executor, task, units, stop):
        if not isinstance(result, Exception):
            yield from result
        elif alone:
            task.store.save(make_record(unit[0], "failed", 0.0, error=f"{type(result).__name__}: {result}"))
            yield unit[0].cell.key, "failed"
        else:
            logger.warning("%d cells could not be run: %s", len(unit), result)
            lost.extend(unit)
    for job in lost:
        yield from _outcomes(executor, task, [(job,)], stop, alone=True)


def _results(
    executor: Executor | None, task: Task, units: Sequence[Unit], stop: Interrupts
) -> Iterator[tuple[Unit, list[Outcome] | Exception]]:
    """Each unit with its outcomes, or with the error that says that its worker died; any other error is raised."""
    if executor is None:
        for unit in units:
            if stop.requested:
                return
            yield unit, task(unit)
        return
    if stop.requested:
        return
    done: queue.SimpleQueue[Future[list[Outcome]]] = queue.SimpleQueue()
    waiting = {executor.submit(task, unit): unit for unit in units}
    for future in waiting:
        future.add_done_callback(done.put)
    stopping = False
    try:
        while waiting:
            if stop.requested and not stopping:
                stopping = True
                executor.shutdown(wait=False, cancel_futures=True)
            try:
                # The timeout lets the main thread look at signals while the cells run.
                future = done.get(timeout=0.5)
            except queue.Empty:
                continue
            unit = waiting.pop(future)
            if not future.cancelled():
                error = future.exception()
                # Dask's error of a unit that killed its workers is known by name: Dask need not be installed.
                if isinstance(error, BrokenExecutor) or type(error).__name__ == "KilledWorker":
                    yield unit, typing.cast(Exception, error)
                else:
                    yield unit, future.result()
            elif not stopping:
                raise ClusterError(f"the scheduler was lost; {RESUMES}")
    finally:
        for future in waiting:
            future.cancel()


def _describe(cells: Sequence[Cell]) -> dict[str, Any]:
    names = ("schema_version", "semantics_version", "data_sha256")
    found = {name: {cell.identity[name] for cell in cells} - {None} for name in names}
    return {"cells": len(cells), **{name: sorted(values) for name, values in found.items()}}


def list_cells(cells: Sequence[Cell], store: Store) -> str:
    """What `--dry-run` prints: for each cell its state (done, failed, nonfinite, to do), hash and varying fields.

    Args:
      cells: the cells of a sweep.
      store: where their records are, if there are any.

    Returns:
      One line for each cell, and one of counts.
    """
    lines = []
    counts: Counter[str] = Counter()
    for cell, fields in zip(cells, varying(cells), strict=True):
        record = store.load(cell.key)
        state = "to do" if record is None else {"ok": "done"}.get(record.status, record.status)
        counts[state] += 1
        lines.append(f"{state:<9} {cell.key[:12]}  " + " ".join(f"{name}={value}" for name, value in fields.items()))
    return "\n".join([*lines, f"{len(cells)} cells: " + ", ".join(f"{n} {state}" for state, n in counts.items())])
