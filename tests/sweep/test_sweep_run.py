"""Running cells in this process: resume, failures, groups, logs, the manifest."""

import dataclasses
import datetime
import errno
import json
import logging
import math
import os
import platform
import sys
import threading
import time
import warnings
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor

import numpy as np
import pytest

from amortgap.sweep import (
    CellResult,
    Column,
    Schema,
    build_table,
    grid,
    list_cells,
    make_cells,
    open_store,
    run_cells,
)
from amortgap.sweep import provenance as provenance_module
from amortgap.sweep.provenance import read_manifest
from amortgap.sweep.run import Summary, unfinished
from amortgap.sweep.table import csv_text


@dataclasses.dataclass(frozen=True)
class Config:
    width: int = 1
    seed: int = 0


CELLS = make_cells(grid(Config(), {"width": [1, 2, 3], "seed": range(4)}), schema_version=1, data_sha256="ab")


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "out")


class Counting:
    """A computation that remembers what it was called with and fails where it is told to."""

    def __init__(self, fails=lambda config: False, error=None):
        self.calls, self.fails, self.error = [], fails, error or RuntimeError("no luck")

    def __call__(self, config):
        self.calls.append(config)
        if self.fails(config):
            raise self.error
        return CellResult([{"value": 10 * config.width + config.seed}])


class CountingGroups(Counting):
    def __call__(self, configs):
        self.calls.append(list(configs))
        if any(map(self.fails, configs)):
            raise self.error
        return [CellResult([{"value": 10 * config.width + config.seed}]) for config in configs]


def values(store):
    return [record.rows[0]["value"] for record in store.records(CELLS)]


EXPECTED = [10 * width + seed for width in (1, 2, 3) for seed in range(4)]


def test_every_cell_is_computed_once_in_order_and_never_again(store):
    compute = Counting()
    assert run_cells(CELLS, compute, store) == Summary(12, 0, 0, 0, 0, False)
    assert compute.calls == [cell.config for cell in CELLS] and values(store) == EXPECTED
    assert run_cells(CELLS, compute, store) == Summary(0, 12, 0, 0, 0, False)
    assert len(compute.calls) == 12


def test_only_new_cells_of_a_larger_grid_are_computed(store):
    run_cells(CELLS[:5], Counting(), store)
    compute = Counting()
    assert run_cells(CELLS, compute, store) == Summary(7, 5, 0, 0, 0, False)
    assert compute.calls == [cell.config for cell in CELLS[5:]] and values(store) == EXPECTED


def test_a_record_says_what_was_computed_where_and_how(store):
    run_cells(CELLS[:1], Counting(), store)
    record = store.load(CELLS[0].key)
    assert record.config == {"_type": "Config", "width": 1, "seed": 0}
    assert (record.status, record.attempt, record.error, record.arrays) == ("ok", 1, "", None)
    assert (record.schema_version, record.semantics_version, record.data_sha256) == (1, 1, "ab")
    assert record.wall_time >= 0 and record.host and record.device
    assert record.versions["python"] == platform.python_version() and "numpy" in record.versions


@pytest.mark.parametrize("error", [RuntimeError("no luck"), SystemExit(3), MemoryError(), AssertionError()])
def test_a_cell_that_raises_is_recorded_and_the_rest_go_on(store, error, caplog):
    compute = Counting(lambda config: config.seed == 2, error)
    summary = run_cells(CELLS, compute, store)
    assert summary == Summary(9, 0, 3, 0, 0, False) and summary.exit_status == 1
    record = store.load(CELLS[2].key)
    assert record.status == "failed" and record.rows == []
    assert record.error.startswith(repr(error)) and "Traceback" in record.error
    assert CELLS[2].key[:12] in caplog.text and repr(error) in caplog.text


def test_failed_cells_are_retried_only_when_asked_and_attempts_are_counted(store):
    run_cells(CELLS, Counting(lambda config: config.seed == 2), store)
    again = Counting()
    summary = run_cells(CELLS, again, store)
    assert summary == Summary(0, 9, 3, 0, 0, False) and summary.exit_status == 1 and again.calls == []
    assert [cell.config.seed for cell in unfinished(CELLS, store, retry_failed=True)] == [2, 2, 2]
    still = Counting(lambda config: config.width == 2)
    assert run_cells(CELLS, still, store, retry_failed=True) == Summary(2, 9, 1, 0, 0, False)
    assert [store.load(CELLS[i].key).attempt for i in (0, 2, 6)] == [1, 2, 2]
    assert run_cells(CELLS, Counting(), store, retry_failed=True).exit_status == 0
    assert store.load(CELLS[6].key).attempt == 3 and values(store) == EXPECTED


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, np.float32("nan"), np.array(np.nan)])
def test_a_number_that_is_not_finite_is_null_and_the_cell_nonfinite_and_finished(store, bad):
    result = CellResult([{"good": 1.5}, {"bad": bad, "good": np.float32(0.5)}], message="diverged at step 7")
    summary = run_cells(CELLS[:1], lambda config: result, store)
    assert summary == Summary(1, 0, 0, 1, 0, False) and summary.exit_status == 0
    text = store.record_path(CELLS[0].key).read_text()
    assert json.loads(text, parse_constant=pytest.fail)["rows"] == [{"good": 1.5}, {"bad": None, "good": 0.5}]
    record = store.load(CELLS[0].key)
    assert (record.status, record.error) == ("nonfinite", "diverged at step 7")
    assert run_cells(CELLS[:1], Counting(), store).skipped == 1
    run_cells(CELLS[1:2], lambda config: CellResult(result.rows), store)
    assert store.load(CELLS[1].key).error == "not finite: bad"


@pytest.mark.parametrize("result", [None, {"value": 1}, [CellResult()]])
def test_a_computation_that_returns_something_else_fails_its_cell(store, result):
    assert run_cells(CELLS[:1], lambda config: result, store).failed == 1
    assert "compute must return CellResult" in store.load(CELLS[0].key).error


def test_a_full_disk_met_by_the_computation_itself_stops_the_sweep(store):
    full = OSError(errno.ENOSPC, "No space left on device", "scratch.bin")
    with pytest.raises(OSError, match=rf"disk full: cannot write scratch.bin \(\d+ bytes free in {store.path}\)"):
        run_cells(CELLS, Counting(lambda config: config.seed == 2, full), store)
    assert [record.status for record in store.records()] == ["ok", "ok"]
    assert run_cells(CELLS, Counting(), store).exit_status == 0


def test_a_disk_that_stays_full_is_reported_by_the_first_file_it_stopped(store, monkeypatch):
    def fill_disk(config):
        def full(descriptor):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        return CellResult()

    with pytest.raises(OSError, match=f"disk full: cannot write .*{CELLS[0].key}.json"):
        run_cells(CELLS, fill_disk, store)


# --- threads


def test_threads_compute_at_the_same_time_and_give_the_records_of_one(store, tmp_path):
    together = threading.Barrier(3, timeout=30)

    def compute(config):
        together.wait()
        return CellResult([{"value": 10 * config.width + config.seed}])

    assert run_cells(CELLS, compute, store, executor=ThreadPoolExecutor(3)) == Summary(12, 0, 0, 0, 0, False)
    alone = open_store(tmp_path / "alone")
    run_cells(CELLS, Counting(), alone)
    assert [record.rows for record in store.records(CELLS)] == [record.rows for record in alone.records(CELLS)]


def test_each_thread_writes_the_log_of_its_own_cell(store):
    together = threading.Barrier(2, timeout=30)

    def compute(config):
        together.wait()
        logging.getLogger("amortgap.test").warning("working on seed %d", config.seed)
        warnings.warn(f"beware of seed {config.seed}", stacklevel=1)
        together.wait()
        return CellResult()

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        run_cells(CELLS[:4], compute, store, executor=ThreadPoolExecutor(2))
    for seed, cell in enumerate(CELLS[:4]):
        text = store.log_path(cell.key).read_text()
        assert text.count("working on seed") == text.count(f"working on seed {seed}") == 1
        assert text.count("UserWarning") == text.count(f"UserWarning: beware of seed {seed}") == 1


def test_a_full_disk_met_by_a_thread_stops_the_sweep(store):
    full = OSError(errno.ENOSPC, "No space left on device", "scratch.bin")
    with pytest.raises(OSError, match="disk full"):
        run_cells(CELLS, Counting(lambda config: config.seed == 2, full), store, executor=ThreadPoolExecutor(2))
    assert {record.status for record in store.records()} <= {"ok"}


class Dying(ThreadPoolExecutor):
    """An executor whose worker dies of certain cells, and takes their whole unit with it."""

    def submit(self, task, unit):
        if not any(job.cell.config.seed == 2 for job in unit):
            return super().submit(task, unit)
        future = Future()
        future.set_exception(BrokenExecutor("the worker died"))
        return future


def test_only_the_cells_that_kill_their_worker_fail(store):
    with Dying(2) as executor:
        summary = run_cells(CELLS, CountingGroups(), store, group_by=lambda config: config.width, executor=executor)
    assert summary == Summary(9, 0, 3, 0, 0, False)
    assert {record.config["seed"] for record in store.records() if record.status == "failed"} == {2}
    assert "BrokenExecutor: the worker died" in store.load(CELLS[2].key).error


# --- groups


def by_width(config):
    return config.width


def test_a_group_is_computed_in_one_call_and_each_cell_has_its_record(store, tmp_path):
    compute = CountingGroups()
    assert run_cells(CELLS, compute, store, group_by=by_width) == Summary(12, 0, 0, 0, 0, False)
    assert compute.calls == [[cell.config for cell in CELLS[i : i + 4]] for i in (0, 4, 8)]
    alone = open_store(tmp_path / "alone")
    run_cells(CELLS, Counting(), alone)
    assert [r.rows for r in store.records(CELLS)] == [r.rows for r in alone.records(CELLS)]


def test_only_what_is_missing_of_a_group_is_computed(store):
    run_cells([CELLS[1], CELLS[2], CELLS[4]], Counting(), store)
    compute = CountingGroups()
    run_cells(CELLS, compute, store, group_by=by_width)
    assert [[config.seed for config in call] for call in compute.calls] == [[0, 3], [1, 2, 3], [0, 1, 2, 3]]
    assert values(store) == EXPECTED


def test_one_bad_cell_does_not_take_its_group_with_it(store):
    compute = CountingGroups(lambda config: (config.width, config.seed) == (2, 1))
    assert run_cells(CELLS, compute, store, group_by=by_width) == Summary(11, 0, 1, 0, 0, False)
    assert [len(call) for call in compute.calls] == [4, 4, 1, 1, 1, 1, 4]
    assert store.load(CELLS[5].key).status == "failed"


def test_a_group_with_the_wrong_number_of_results_fails(store):
    run_cells(CELLS[:4], lambda configs: [CellResult()] * 3, store, group_by=by_width)
    assert "compute returned 3 results for 1 cells" in store.load(CELLS[0].key).error


# --- what the user sees


def test_the_listing_shows_state_and_varying_fields(store):
    run_cells(CELLS[:3], Counting(lambda config: config.seed == 1), store)
    lines = list_cells(CELLS[:4], store).splitlines()
    states = ["done", "failed", "done", "to do"]
    assert lines[:4] == [f"{s:<9} {c.key[:12]}  seed={i}" for i, (s, c) in enumerate(zip(states, CELLS, strict=False))]
    assert lines[4] == "4 cells: 2 done, 1 failed, 1 to do"


def test_each_cell_has_a_log_of_all_its_attempts(store):
    def compute(config):
        logging.getLogger("amortgap.test").warning("working on seed %d", config.seed)
        warnings.warn("beware", stacklevel=1)
        if config.seed == 1:
            raise RuntimeError("no luck")
        return CellResult()

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        run_cells(CELLS[:2], compute, store)
        run_cells(CELLS[:2], compute, store, retry_failed=True)
    first, second = (store.log_path(cell.key).read_text() for cell in CELLS[:2])
    assert "working on seed 0" in first and "beware" in first and "seed 1" not in first
    assert second.count("working on seed 1") == 2 and second.count("RuntimeError: no luck") == 2
    assert [line.split(" on ")[0] for line in second.splitlines() if line.startswith("attempt")] == [
        "attempt 1",
        "attempt 2",
    ]
    assert not [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.FileHandler) and str(store.path) in handler.baseFilename
    ]


def test_a_quick_run_without_a_terminal_prints_nothing(store, capsys):
    run_cells(CELLS, Counting(), store)
    assert capsys.readouterr() == ("", "")


def test_a_long_run_without_a_terminal_prints_its_progress_now_and_then(store, capsys, monkeypatch):
    monkeypatch.setattr("amortgap.sweep.terminal.TELL_SECONDS", 0.05)

    def compute(config):
        if config.width == 3:
            # Until the line that counts the cells before this one is there.
            while "8 of 12 cells done, 2 failed, 0.0 minutes" not in (said := capsys.readouterr().err):
                assert "9 of 12" not in said
                time.sleep(0.01)
            raise KeyboardInterrupt
        if config.seed == 2:
            raise RuntimeError("no luck")
        return CellResult()

    assert run_cells(CELLS, compute, store).interrupted


def test_the_progress_line_on_a_terminal_counts_done_and_failed(store, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run_cells(CELLS, Counting(lambda config: config.seed == 2), store)
    last = capsys.readouterr().err.split("\r")[-1]
    assert "12/12" in last and "failed=3" in last


# --- the manifest


def test_the_manifest_lists_the_runs_that_computed_something(store, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sweep.py", "--out", "my results"])
    for cells in (CELLS[:3], CELLS[:3], CELLS):
        run_cells(cells, Counting(), store)
    first, second = read_manifest(store.path)
    assert first["command"] == "sweep.py --out 'my results'"
    assert (first["cells"], first["outcome"], second["outcome"]) == (3, {"ok": 3}, {"ok": 12})
    assert (first["schema_version"], first["semantics_version"], first["data_sha256"]) == ([1], [1], ["ab"])
    assert first["machine"]["cores"] >= 1 and first["versions"]["python"] and first["started"] <= first["ended"]


def test_a_damaged_manifest_is_moved_aside(store):
    (store.path / "manifest.json").write_text('{"runs": [')
    run_cells(CELLS, Counting(), store)
    assert len(read_manifest(store.path)) == 1
    assert [path.name for path in (store.path / "damaged").iterdir()] == ["manifest.json.0"]


def test_nothing_is_keyed_by_time(store, monkeypatch):
    """All runs and cells in one second, and a clock that goes back, change nothing but the times shown."""

    class Clock(datetime.datetime):
        years = iter((2030, 2030, 2020, 2020))

        @classmethod
        def now(cls, tz=None):
            return datetime.datetime(next(cls.years), 1, 1, tzinfo=tz)

    monkeypatch.setattr(provenance_module.datetime, "datetime", Clock)
    run_cells(CELLS[:6], Counting(), store)
    run_cells(CELLS, Counting(), store)
    assert values(store) == EXPECTED
    runs = read_manifest(store.path)
    assert [run["ended"][:4] for run in runs] == ["2030", "2020"] and runs[0]["run"] != runs[1]["run"]
    assert all(record.wall_time >= 0 for record in store.records())


def test_html_in_an_error_is_kept_as_it_is_and_only_as_data(store):
    def fails(config):
        raise RuntimeError("<script>alert('x')</script>")

    run_cells(CELLS[:1], fails, store)
    assert "<script>alert('x')</script>" in store.load(CELLS[0].key).error
    files = [path for path in store.path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".log"}, "a format in which markup would be shown"
    # A failed cell has no row: what it wrote reaches neither the listing nor the table.
    table = build_table(store.records(), Schema(1, (Column("value", float, "a value"),)))
    assert "script" not in list_cells(CELLS[:1], store) + csv_text(table)
