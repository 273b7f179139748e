"""What the sweep layer costs, and that killing it loses nothing.

    python experiments/benchmarks/sweep_overhead.py                    # preset default: 71 s on two cores
    python experiments/benchmarks/sweep_overhead.py --preset smoke     # half a minute

Needs the extra [dask]. Writes sweep_overhead.csv and its JSON sidecar to OUT.
Numbers to expect: a few milliseconds a cell in one process, under 50 with Dask, the second invocation of a finished
sweep of 200 cells under 2 s, no record lost, doubled or damaged in ten kills, and nearly twice the rate on two workers.
"""

from __future__ import annotations

import dataclasses
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import trivial_sweep
from figures_table import Output, row, write

from amortgap.sweep import grid, make_cells, open_store, run_cells
from amortgap.sweep.config import parse_args
from amortgap.sweep.dask import dask_executor, on_living_workers


@dataclasses.dataclass(frozen=True)
class Args(Output):
    """Sizes of the measurements."""

    cells: int = 1000
    """Trivial cells for the overheads and for the kills."""
    kills: int = 10
    """Times the sweep is killed and started again."""
    long_cells: int = 8
    """Cells of some seconds, to compare one worker with two."""
    work: int = 50_000_000
    """Arithmetic in each of those cells; 50 million additions take about 2 s."""


PRESETS = {"default": Args(), "smoke": Args(cells=40, kills=2, long_cells=2, work=100_000)}


def command(out: Path, cells: int, *more: str) -> list[str]:
    """Command line of the trivial sweep."""
    script = Path(__file__).with_name("trivial_sweep.py")
    return [sys.executable, str(script), "--out", str(out), "--cells", str(cells), "--log-level", "ERROR", *more]


def trivial_cells(count: int, work: int = 0):
    """Cells of the trivial sweep."""
    return make_cells(grid(trivial_sweep.Config(work=work), {"number": range(count)}), schema_version=1)


def run_all(*args, **settings) -> None:
    """Run cells to the end; what an interrupt cuts short is no measurement."""
    summary = run_cells(*args, **settings)
    if summary.exit_status:
        raise SystemExit(f"no measurement: {summary}")


def serial_overhead(folder: Path, count: int) -> list[dict]:
    """Milliseconds a cell in this process, beyond the computation, and bytes a cell on disk."""
    store = open_store(folder)
    cells = trivial_cells(count)
    start, processor = time.perf_counter(), time.process_time()
    run_all(cells, trivial_sweep.compute, store, schema=trivial_sweep.SCHEMA)
    milliseconds = 1e3 * (time.perf_counter() - start) / count
    busy = 1e3 * (time.process_time() - processor) / count
    start = time.perf_counter()
    records = store.records(cells)
    reading = 1e3 * (time.perf_counter() - start) / count
    size = sum(store.record_path(record.hash).stat().st_size for record in records) / count
    return [
        row("overhead of a cell, serial", milliseconds, "ms", high=5),
        row("processor time in it, whatever else runs", busy, "ms"),
        row("reading one record", reading, "ms"),
        row("size of one record", size, "bytes"),
    ]


def dask_overhead(folder: Path, count: int) -> list[dict]:
    """Milliseconds a cell on two local workers, start of the cluster not counted; memory of driver and scheduler."""
    start = time.perf_counter()
    seconds, peak = {}, {}
    with dask_executor("local:2") as executor:
        up = time.perf_counter() - start
        # Twice, so that what memory grows by is due to cells and not to starting.
        for cells in (trivial_cells(count), trivial_cells(5 * count)[count:]):
            store, start = open_store(folder), time.perf_counter()
            run_all(cells, trivial_sweep.compute, store, schema=trivial_sweep.SCHEMA, executor=executor)
            seconds[len(cells)] = time.perf_counter() - start
            peak[len(cells)] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return [
        row("overhead of a cell, Dask, 2 workers", 1e3 * seconds[4 * count] / (4 * count), "ms", high=50),
        row("start of a local cluster of 2", up, "s"),
        row("memory of driver and scheduler per cell", (peak[4 * count] - peak[count]) / (3 * count), "kB"),
    ]


def second_invocation(folder: Path) -> list[dict]:
    """Seconds of a whole process that finds a sweep of 200 cells finished, and the cells it computed."""
    subprocess.run(command(folder, 200), check=True)
    written = {path: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}
    start = time.perf_counter()
    subprocess.run(command(folder, 200), check=True)
    seconds = time.perf_counter() - start
    again = sum(written.get(path) != path.stat().st_mtime_ns for path in (folder / "cells").iterdir())
    return [
        row("second invocation of a finished sweep of 200 cells", seconds, "s", high=2),
        row("cells it computed again", again, "cells", low=0, high=0),
    ]


def killed_and_restarted(folder: Path, count: int, kills: int) -> list[dict]:
    """A sweep killed (SIGKILL) at random moments and started again each time, then left to finish."""
    moments = random.Random(0)
    landed = 0
    for _ in range(kills):
        process = subprocess.Popen(command(folder, count))
        # Moments between the start of the program and the time by which a tenth of the cells is done.
        time.sleep(moments.uniform(0.2, 0.8 + 0.002 * count / kills))
        landed += process.poll() is None
        process.kill()
        process.wait()
    subprocess.run(command(folder, count), check=True)
    store = open_store(folder)
    cells = trivial_cells(count)
    present = [record.config["number"] for record in store.records() if record.status == "ok"]
    damaged = list((folder / "damaged").glob("*"))
    return [
        row(
            f"cells of {count} present once after {kills} kills ({landed} in mid-run)",
            sum(present.count(i) == 1 for i in range(len(cells))),
            "cells",
            low=count,
            high=count,
        ),
        row("files found damaged", len(damaged), "files", low=0, high=0),
    ]


def killed_worker(folder: Path) -> list[dict]:
    """Records of a sweep on two workers, one of which is killed, against those of one process."""
    rows = {}
    for name in ("serial", "dask"):
        store = open_store(folder / name)
        cells = trivial_cells(20, work=2_000_000)
        if name == "serial":
            run_all(cells, trivial_sweep.compute, store)
        else:
            with dask_executor("local:2") as executor:
                pids = on_living_workers(executor.client, os.getpid)
                killer = subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {next(iter(pids.values()))}"])
                run_all(cells, trivial_sweep.compute, store, executor=executor)
                killer.wait()
                replaced = set(on_living_workers(executor.client, os.getpid).values()) != set(pids.values())
        rows[name] = [(record.hash, record.status, record.rows) for record in store.records(cells)]
    equal = rows["serial"] == rows["dask"] and replaced and len(rows["dask"]) == 20
    return [row("records of 2 workers, one killed, equal to serial", float(equal), "1 = equal", low=1, high=1)]


def scaling(folder: Path, count: int, work: int) -> list[dict]:
    """Rate of two workers over that of one, for cells of some seconds; Dask gives numerical libraries one thread."""
    seconds = {}
    for workers in (1, 2):
        with dask_executor(f"local:{workers}") as executor:
            cells = trivial_cells(count, work)
            start = time.perf_counter()
            run_all(cells, trivial_sweep.compute, open_store(folder / str(workers)), executor=executor)
            seconds[workers] = time.perf_counter() - start
    return [
        row("one cell, one worker", seconds[1] / count, "s"),
        row("speed of 2 workers over 1", seconds[1] / seconds[2], "times"),
    ]


def main() -> None:
    """Measure everything in a temporary folder and write the table."""
    args = parse_args(Args, presets=PRESETS, description=__doc__)
    folder = Path(tempfile.mkdtemp())
    start, load = time.time(), os.getloadavg()
    try:
        rows = [
            *serial_overhead(folder / "serial", args.cells),
            *second_invocation(folder / "second"),
            *killed_and_restarted(folder / "killed", args.cells, args.kills),
            *dask_overhead(folder / "dask", args.cells),
            *killed_worker(folder / "worker"),
            *scaling(folder / "scaling", args.long_cells, args.work),
        ]
    finally:
        shutil.rmtree(folder)
    # What else ran meanwhile: on a busy machine two workers are no faster than one.
    busy = {"before": load, "after": os.getloadavg()}
    write(args.out, "sweep_overhead", rows, config=args, seconds=round(time.time() - start, 1), load_average=busy)


if __name__ == "__main__":
    main()
