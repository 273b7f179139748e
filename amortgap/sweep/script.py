"""What every sweep script shares: its flags, its logging, and the way from cells to table and exit status.

@dataclasses.dataclass(frozen=True)
class Args:
    model: Config = Config()
    sweep: Flat = SweepOptions()

def cells(args: Args) -> list[Cell]:
    return make_cells(grid(args.model, AXES), schema_version=SCHEMA.version)

args = parse_study(Args, {"default": Args(), "smoke": ...}, name="my_study", description=__doc__)
finished = run_study(args, cells, compute, schema=SCHEMA, derive=draw_figures)
raise SystemExit(finished.exit_status)
"""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal, TypeVar

import tyro

from amortgap.sweep.cells import NOT_HASHED, Cell, canonical
from amortgap.sweep.committed import RESULTS, RUNS, check_promotion, compare, is_committed, promote
from amortgap.sweep.config import parse_args
from amortgap.sweep.execute import ClusterError, GpuError, require_gpu
from amortgap.sweep.provenance import described, write_sidecar
from amortgap.sweep.records import Store, open_store
from amortgap.sweep.run import Summary, list_cells, run_cells, unfinished
from amortgap.sweep.table import Schema, build_table, read_csv, write_table

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepOptions:
    """Flags of every sweep script; none of them can change a result, so none is part of a cell's hash."""

    out: pathlib.Path = field(default=RUNS / "sweep", metadata=NOT_HASHED)
    """Folder of the sweep; running again with the same folder resumes."""
    committed: tyro.conf.Suppress[pathlib.Path | None] = field(default=None, metadata=NOT_HASHED)
    """Folder of the committed results of the same preset, if there are any."""
    promote: bool = field(default=False, metadata=NOT_HASHED)
    """Copy the finished results of an unchanged preset to the folder of committed results (for maintainers)."""
    cluster: str | None = field(default=None, metadata=NOT_HASHED)
    """Where cells run: local:N, tcp://host:port or file:PATH (a Dask scheduler file). Default: in this process."""
    threads: int = field(default=1, metadata=NOT_HASHED)
    """Without --cluster: cells (or groups of cells) computed at a time in this process."""
    dry_run: bool = field(default=False, metadata=NOT_HASHED)
    """List the cells and what is already done, and stop."""
    retry_failed: bool = field(default=False, metadata=NOT_HASHED)
    """Compute cells that failed earlier again."""
    gpus: bool = field(default=False, metadata=NOT_HASHED)
    """Compute on GPUs or not at all; with --cluster each cell takes one, workers of local:N are pinned to one each."""
    memory_limit: str = field(default="auto", metadata=NOT_HASHED)
    """With --cluster local:N: memory of each worker, e.g. 4GB; beyond it the worker is restarted."""
    patience: float = field(default=60.0, metadata=NOT_HASHED)
    """With --cluster: seconds to wait for a scheduler or a worker, also when all workers are gone."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = field(default="INFO", metadata=NOT_HASHED)
    """Least severe message that is kept, on the terminal and in the log of each cell."""


Flat = Annotated[SweepOptions, tyro.conf.OmitArgPrefixes]
"""Annotation for a field of type SweepOptions whose flags are --out, --cluster, ... without a prefix."""


A = TypeVar("A")
"""Dataclass of a study's flags, with a field `sweep` of type SweepOptions."""


def parse_study(
    cls: type[A],
    presets: Mapping[str, A],
    *,
    name: str,
    description: str | None = None,
    preset_flags: Sequence[str] = ("--preset",),
    args: Sequence[str] | None = None,
) -> A:
    """Return the flags of the study `name`, whose presets write to `results/runs/NAME-PRESET` unless --out is given.

    Args:
      cls: dataclass of the flags, with a field `sweep` of type SweepOptions.
      presets: by name; the first is the default, and all but "smoke" may be promoted to committed results.
      name: of the study and of the folder of its committed results.
      description, preset_flags, args: as in `parse_args`.

    Returns:
      Instance of `cls`.

    Raises:
      SystemExit: 2 for a wrong flag, key or value, and for a promotion of anything but an unchanged preset.
    """
    placed: dict[str, Any] = {}
    of_any_kind: Mapping[str, Any] = presets
    for preset, value in of_any_kind.items():
        folder = RESULTS / (f"{name}_{preset}" if placed else name)
        sweep = replace(value.sweep, out=RUNS / f"{name}-{preset}", committed=None if preset == "smoke" else folder)
        placed[preset] = replace(value, sweep=sweep)
    found: Any = parse_args(cls, args, presets=placed, description=description, preset_flags=preset_flags)
    if found.sweep.promote and canonical(found) not in map(canonical, placed.values()):
        print("error: --promote: flags that change a preset make results that are not committed", file=sys.stderr)
        raise SystemExit(2)
    return found


def setup_logging(level: str) -> None:
    """Show messages of the package from `level` on at stderr; called by scripts, never on import."""
    package = logging.getLogger("amortgap")
    package.setLevel(level)
    if not package.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        package.addHandler(handler)


def run_sweep(
    cells: Sequence[Cell],
    compute: Callable[..., Any],
    options: SweepOptions,
    *,
    schema: Schema,
    group_by: Callable[[Any], Hashable] | None = None,
) -> Summary:
    """Run or list the cells as the flags say, and write `table.csv` from the records; see `run_cells`.

    What keeps the sweep from running (a folder that cannot be written, a full disk, a lost cluster) ends the program
    with status 1 and its message; finished cells are kept.
    """
    setup_logging(options.log_level)
    try:
        if is_committed(options.out):
            raise ValueError(
                f"--out {options.out}: this folder holds committed results, which only --promote replaces; "
                f"choose another folder, or leave --out away"
            )
        if options.threads < 1:
            raise ValueError(f"--threads {options.threads}: expected at least 1")
        if options.promote:
            check_promotion(options.out, options.committed)
        if options.dry_run:
            # A dry run does not create the folder.
            print(list_cells(cells, Store(options.out.resolve())))
            return Summary(computed=0, skipped=0, failed=0, nonfinite=0, remaining=0, interrupted=False)
        store, retry_failed = open_store(options.out), options.retry_failed
        # Reading the records is quicker than starting a cluster for nothing.
        idle = not unfinished(cells, store, retry_failed=retry_failed)
        if options.gpus and options.cluster is None and not idle:
            require_gpu()
        with _executor(options, idle=idle) as executor:
            summary = run_cells(
                cells,
                compute,
                store,
                executor=executor,
                schema=schema,
                group_by=group_by,
                retry_failed=retry_failed,
            )
        written = write_table(store.path / "table.csv", build_table(store.records(cells), schema))
    except (OSError, ValueError, ImportError, ClusterError, GpuError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    logger.debug("table: %s", ", ".join(map(str, written)))
    if summary.interrupted and options.threads > 1:
        # Python itself would wait for the cells that threads still compute.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(summary.exit_status)
    return summary


@dataclass(frozen=True)
class Finished:
    """What a study has when its cells are done.

    Attributes:
      rows: of its table.
      files: table and everything derived from it.
      exit_status: 0 if every cell is finished, 1 if any failed.
    """

    rows: list[dict[str, Any]]
    files: list[pathlib.Path]
    exit_status: int


def run_study(
    args: Any,
    cells: Callable[[Any], Sequence[Cell]],
    compute: Callable[..., Any],
    *,
    schema: Schema,
    derive: Callable[[pathlib.Path, pathlib.Path], list[pathlib.Path]],
    group_by: Callable[[Any], Hashable] | None = None,
    facts: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None,
) -> Finished:
    """Run a script from its flags to table, derived files and sidecar: what every study does.

    Args:
      args: the parsed flags, a dataclass with a field `sweep` of type SweepOptions.
      cells: gives the cells of `args`; its ValueError is a wrong configuration.
      compute, schema, group_by: as in `run_sweep`.
      derive: writes what follows from the table in one folder into another, such as figures, and returns the paths.
      facts: gives what else the sidecar shall say, from the rows of the table.

    Returns:
      Finished; the paths are printed.

    Raises:
      SystemExit: 2 for a wrong configuration, 0 after a dry run, 130 after an interrupt, 1 as in `run_sweep`.
    """
    began = time.perf_counter()
    try:
        made = cells(args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    options: SweepOptions = args.sweep
    summary = run_sweep(made, compute, options, schema=schema, group_by=group_by)
    if options.dry_run or summary.exit_status == 130:
        raise SystemExit(summary.exit_status)
    table = options.out / "table.csv"
    rows = read_csv(table, schema).rows
    files = [table, *derive(options.out, options.out)]
    records = open_store(options.out).records(made)
    sidecar = write_sidecar(
        options.out / "table.json",
        config=args,
        files=files,
        schema=schema,
        computed=summary.computed > 0,
        devices=sorted({record.device for record in records}),
        facts={
            "seconds": round(time.perf_counter() - began, 1),
            # A resumed run states its own seconds; the cost of the table is that of all its cells, whenever they ran.
            "cell_seconds": round(sum(record.wall_time for record in records), 1),
            "data_sha256": sorted({record.data_sha256 for record in records if record.data_sha256}),
            "cells": asdict(summary),
            **(facts(rows) if facts else {}),
        },
    )
    for what, endings in (("table", (".csv",)), ("figure", (".png", ".pdf"))):
        named = [str(file) for file in files if file.suffix in endings]
        if named:
            print(f"{what + ':':<8}{', '.join(named)}")
    if options.committed is not None and (said := compare(options.committed, rows, schema, described(args))):
        print(f"this table {said}")
    if options.promote and summary.exit_status == 0:
        target = check_promotion(options.out, options.committed)
        promote([*files, sidecar], target)
        print(f"promoted: {target}; commit this folder and run experiments/verify_results.py")
    return Finished(rows, files, summary.exit_status)


@contextlib.contextmanager
def _executor(options: SweepOptions, *, idle: bool) -> Iterator[Executor | None]:
    if options.cluster is not None and not idle:
        from amortgap.sweep.dask import dask_executor

        with dask_executor(
            options.cluster, gpus=options.gpus, memory_limit=options.memory_limit, patience=options.patience
        ) as executor:
            yield executor
    elif options.threads == 1:
        yield None
    else:
        pool = ThreadPoolExecutor(options.threads)
        try:
            yield pool
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
