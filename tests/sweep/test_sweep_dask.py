"""The Dask executor: the same records as in one process, whoever dies; clusters that do not fit are refused."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
import types
from unittest import mock

import pytest

pytest.importorskip("distributed")

import distributed

from amortgap.sweep import dask as dask_module
from amortgap.sweep import local_cluster as local_module
from amortgap.sweep import make_cells, open_store
from amortgap.sweep.dask import DaskExecutor, dask_executor
from amortgap.sweep.execute import ClusterError, GpuError, Job, Task
from amortgap.sweep.provenance import versions
from amortgap.sweep.records import CellResult

LOCAL = ("--cluster", "local:2")


@pytest.fixture
def reference(drive):
    """Rows of the same sweep computed in one process."""
    sweep = drive("reference")
    sweep.run()
    return sweep


def test_a_worker_killed_in_mid_cell_changes_no_record(drive, reference):
    sweep = drive("cluster", "--cell.kill-once-at", "3", *LOCAL)
    sweep.run()
    assert (sweep.folder / "trace.killed").exists(), "the kill did not happen"
    assert sweep.rows() == reference.rows()
    assert (sweep.out / "table.csv").read_bytes() == (reference.out / "table.csv").read_bytes()
    # Only cells at hand on the worker that died are started again.
    assert sweep.computed()[3] == 2 and sum(sweep.computed().values()) <= 10
    before = sweep.computed()
    sweep.run()
    assert sweep.computed() == before


@pytest.mark.slow
def test_a_group_whose_worker_is_killed_is_computed_elsewhere(drive, reference):
    sweep = drive("cluster", "--grouped", "--cell.kill-once-at", "3", *LOCAL)
    sweep.run()
    assert (sweep.folder / "trace.killed").exists() and sweep.rows() == reference.rows()


@pytest.mark.slow
@pytest.mark.parametrize("grouped", [(), ("--grouped",)], ids=["single", "grouped"])
def test_a_cell_that_always_kills_its_worker_fails_alone(drive, reference, grouped):
    sweep = drive("cluster", "--cell.kill-always-at", "3", *grouped, *LOCAL)
    sweep.run(status=1)
    rows = sweep.rows()
    assert rows.pop(3)["status"] == "failed"
    assert rows == {number: row for number, row in reference.rows().items() if number != 3}
    before = sweep.computed()
    assert "failed earlier" in sweep.run(status=1) and sweep.computed() == before


@pytest.mark.slow
def test_a_cell_that_raises_on_a_worker_is_recorded(drive):
    sweep = drive("cluster", "--cell.raise-at", "5", *LOCAL)
    sweep.run(status=1)
    assert {number for number, row in sweep.rows().items() if row["status"] == "failed"} == {5}
    assert sweep.computed() == dict.fromkeys(range(8), 1)


@pytest.mark.slow
def test_a_killed_driver_leaves_no_process_and_resumes(drive, reference, assert_no_process_left):
    sweep = drive("cluster", "--cell.seconds", "0.3", *LOCAL)
    process = sweep.start()
    sweep.wait_computing(5)
    process.kill()
    process.communicate()
    assert_no_process_left(process)
    finished = set(sweep.rows())
    assert 0 < len(finished) < 8
    sweep.run()
    assert all(sweep.computed()[number] == 1 for number in finished) and sweep.rows() == reference.rows()


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_interrupts_stop_a_cluster_and_leave_no_process(drive, interrupt, assert_no_process_left, times):
    sweep = drive("cluster", "--cell.seconds", "6" if times == 1 else "30", *LOCAL)
    process = sweep.start()
    sweep.wait_computing(2)
    for _ in range(times):
        interrupt(process)
        time.sleep(0.5)
    errors = sweep.finish(process, 130)
    assert_no_process_left(process)
    assert "stopping after the running cells" in errors and "run the same command again to resume" in errors
    if times == 1:
        assert set(sweep.rows()) == set(sweep.computed()) and len(sweep.rows()) == 2
    sweep.args = ("--cell.seconds", "0")
    sweep.run()
    assert sorted(sweep.rows()) == list(range(8))


@pytest.mark.slow
def test_a_disk_that_fills_up_under_a_worker_stops_the_sweep_and_it_resumes(drive, small_disk):
    sweep = drive("disk", "--cells", "100", *LOCAL)
    errors = sweep.run(status=1)
    assert "disk full: cannot write" in errors and "bytes free" in errors
    assert 0 < len(sweep.rows()) < 100
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    sweep.run()
    assert sorted(sweep.rows()) == list(range(100))


# --- a running cluster


@pytest.fixture
def started(tmp_path):
    """Start a Dask program as a process: `started("scheduler", ...)`; all are killed at the end."""
    with contextlib.ExitStack() as stack:

        def start(kind, *args):
            command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *args]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path)
            stack.callback(lambda: (process.kill(), process.wait()))
            return process

        yield start


LOOPBACK = ("--host", "127.0.0.1", "--no-dashboard")


@pytest.fixture
def running(started, tmp_path):
    """A scheduler with its file, and a function that starts workers without a nanny."""
    file = tmp_path / "scheduler.json"
    scheduler = started("scheduler", *LOOPBACK, "--port", "0", "--scheduler-file", str(file))
    deadline = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline, "the scheduler does not start"
        time.sleep(0.1)

    def worker(*args):
        return started("worker", "--scheduler-file", str(file), *LOOPBACK, "--no-nanny", *(args or ("--nthreads", "1")))

    return scheduler, worker, f"file:{file}"


@pytest.mark.slow
def test_workers_found_through_a_scheduler_file_and_one_of_them_dies(drive, reference, running):
    _, worker, where = running
    first, _ = worker(), worker()
    sweep = drive("cluster", "--cell.seconds", "0.3", "--cluster", where)
    process = sweep.start()
    sweep.wait_computing(4)
    first.kill()
    sweep.finish(process, 0)
    assert sweep.rows() == reference.rows()


@pytest.mark.slow
def test_a_lost_scheduler_is_a_clear_error_in_bounded_time_and_nothing_is_lost(drive, reference, running):
    scheduler, worker, where = running
    worker()
    sweep = drive("cluster", "--cell.seconds", "0.3", "--cluster", where)
    process = sweep.start()
    sweep.wait_computing(4)
    scheduler.kill()
    errors = sweep.finish(process, 1)
    assert "error: the scheduler was lost; finished cells are kept" in errors
    assert len(sweep.rows()) >= 3
    finished = set(sweep.rows())
    sweep.args = ()
    sweep.run()
    assert all(sweep.computed()[number] == 1 for number in finished) and sweep.rows() == reference.rows()


@pytest.mark.slow
def test_workers_that_all_die_are_a_clear_error_in_bounded_time(drive, running):
    _, worker, where = running
    only = worker()
    # How long a worker takes to start is no part of the patience that is tested.
    with distributed.Client(scheduler_file=where.removeprefix("file:")) as client:
        client.wait_for_workers(1, timeout=60)
    sweep = drive("cluster", "--cell.kill-always-at", "3", "--cluster", where, "--patience", "3")
    assert "error: no worker for 3 s; finished cells are kept" in sweep.run(status=1)
    assert only.wait(timeout=10) == -signal.SIGKILL


@pytest.mark.slow
def test_workers_with_several_threads_are_refused(running):
    _, worker, where = running
    worker("--nthreads", "2")
    with pytest.raises(ClusterError, match="have several threads; start them with --nthreads 1"):  # noqa: SIM117
        with dask_executor(where, patience=20.0):
            pass


@pytest.mark.slow
def test_a_scheduler_without_workers_is_refused_in_bounded_time(running):
    with pytest.raises(ClusterError, match="no worker after 2 s"):  # noqa: SIM117
        with dask_executor(running[2], patience=2.0):
            pass


# --- what does not fit is refused


@dataclasses.dataclass(frozen=True)
class Config:
    number: int = 0


@pytest.mark.parametrize("cluster", ["", "local", "local:", "local:0", "local:-1", "local:two", "slurm:3", "8786"])
def test_another_form_of_cluster_is_refused(cluster):
    with pytest.raises(ValueError, match="cluster: "):  # noqa: SIM117
        with dask_executor(cluster):
            pass


def test_an_absent_scheduler_is_refused_in_bounded_time(tmp_path):
    for cluster, message in (
        (f"file:{tmp_path}/no.json", "no scheduler file .*no.json after 0.2 s"),
        ("tcp://127.0.0.1:1", "no scheduler at tcp://127.0.0.1:1"),
    ):
        with pytest.raises(ClusterError, match=message):  # noqa: SIM117
            with dask_executor(cluster, patience=0.2):
                pass


def cluster(versions, sees=True, resources=()):
    """Make a connected client whose worker answers with `versions` and sees the store or not."""
    client = mock.Mock(spec=distributed.Client)
    worker = {"resources": dict(resources), "nthreads": 1}
    client.scheduler_info = lambda n_workers: {"workers": {"tcp://there:1": worker}}
    client.run = lambda function, *args, on_error: {"tcp://there:1": sees if args else versions}
    return client


HERE = {"python": "3.11.7", "jax": "0.10.2", "amortgap": "0.1"}


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ({**HERE, "jax": "0.10.1"}, "tcp://there:1: jax is 0.10.1 there and 0.10.2 here"),
        ({**HERE, "amortgap": "0.2"}, "amortgap is 0.2 there and 0.1 here"),
        ({"python": "3.11.7", "amortgap": "0.1"}, "jax is None there and 0.10.2 here"),
        ({**HERE, "python": "3.12.1"}, "python is 3.12 there and 3.11 here"),
    ],
)
def test_a_worker_with_other_versions_is_refused_at_connect_and_when_it_joins_later(
    monkeypatch, tmp_path, there, message
):
    monkeypatch.setattr(dask_module, "versions", lambda: HERE)
    dask_module._check_cluster(cluster({**HERE, "python": "3.11.9"}), 1.0)
    with pytest.raises(ClusterError, match=message):
        dask_module._check_cluster(cluster(there), 1.0)
    task = Task(open_store(tmp_path), lambda config: CellResult(), False, None, 20)
    expected = dask_module.comparable(HERE)
    monkeypatch.setattr(dask_module, "versions", lambda: there)
    with pytest.raises(ClusterError, match=message.split(": ")[-1]):
        dask_module._on_worker(task, (), expected=expected, gpus=False)


def test_a_store_that_workers_do_not_see_is_refused(tmp_path):
    store = open_store(tmp_path / "out")
    task = Task(store, lambda config: CellResult(), False, None, 20)
    executor = DaskExecutor(cluster(HERE, sees=False))
    with pytest.raises(ClusterError, match=rf"folder {store.path} is not shared with the workers .*there:1"):
        executor.submit(task, ())
    executor.close()
    assert not list(store.path.glob(".seen*"))


def test_a_unit_run_again_finds_its_records_and_computes_nothing(tmp_path):
    """Dask runs a finished unit again when the worker that held its result dies."""
    calls = []
    task = Task(open_store(tmp_path), lambda config: (calls.append(config), CellResult())[1], False, None, 20)
    cells = make_cells([Config(0), Config(1)], schema_version=1)
    unit = tuple(Job(cell, 1) for cell in cells)
    outcomes = [(cell.key, "ok") for cell in cells]
    assert task(unit) == task(unit) == outcomes and len(calls) == 2


def test_a_failed_attempt_run_again_is_not_repeated_and_a_new_attempt_is(tmp_path):
    calls = []

    def compute(config):
        calls.append(config)
        raise RuntimeError

    task = Task(open_store(tmp_path), compute, False, None, 20)
    (cell,) = make_cells([Config()], schema_version=1)
    for attempt in (1, 1, 2, 2, 1):
        assert task((Job(cell, attempt),)) == [(cell.key, "failed")]
    assert len(calls) == 2 and task.store.load(cell.key).attempt == 2


# --- devices and caches


def test_workers_are_pinned_to_one_gpu_each_in_turn(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    visible = local_module._visible_gpus()
    two = [local_module._pinned(visible, i, 2) for i in range(2)]
    assert two == [{"CUDA_VISIBLE_DEVICES": "4"}, {"CUDA_VISIBLE_DEVICES": "7"}]
    three = [local_module._pinned(visible, i, 3) for i in range(3)]
    assert [pin["CUDA_VISIBLE_DEVICES"] for pin in three] == ["4", "7", "4"]
    assert {pin["XLA_PYTHON_CLIENT_MEM_FRACTION"] for pin in three} == {"0.375"}


@pytest.mark.parametrize("visible", ["", None])
def test_gpus_that_are_not_there_are_refused(monkeypatch, visible):
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setenv("PATH", "")
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(ValueError, match=r"gpus: no GPU .* without --gpus"):  # noqa: SIM117
        with dask_executor("local:1", gpus=True):
            pass


def test_a_sweep_that_asks_for_gpus_on_a_machine_without_says_what_to_do(drive):
    sweep = drive("gpus")
    errors = sweep.run("--gpus", status=1)
    assert "has no GPU that JAX can use (backend cpu)" in errors and "Traceback" not in errors
    assert "install amortgap[cuda]" in errors and "without --gpus cells run on the CPU" in errors
    assert not sweep.computed()


def test_a_gpu_whose_memory_is_taken_is_named_before_the_cell_runs(monkeypatch, tmp_path):
    def taken(shape):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 4096 bytes.\nmore")

    numpy = types.SimpleNamespace(zeros=taken)
    jax = types.SimpleNamespace(default_backend=lambda: "gpu", numpy=numpy, block_until_ready=lambda array: array)
    monkeypatch.setitem(sys.modules, "jax", jax)
    task = Task(open_store(tmp_path), lambda config: pytest.fail("computed"), False, None, 20)
    unit = (Job(make_cells([Config()], schema_version=1)[0], 1),)
    message = r"cannot use its GPU \(RESOURCE_EXHAUSTED: Out of memory .*4096 bytes\.\): nvidia-smi"
    monkeypatch.setattr(dask_module, "_use_compile_cache", lambda folder: None)
    with pytest.raises(GpuError, match=message):
        dask_module._on_worker(task, unit, expected=dask_module.comparable(versions()), gpus=True)


def test_workers_that_offer_no_gpu_are_refused_instead_of_waiting_for_ever(monkeypatch):
    monkeypatch.setattr(dask_module, "versions", lambda: HERE)
    with pytest.raises(ClusterError, match="no worker offers one; start them with --resources GPU=1"):
        dask_module._check_cluster(cluster(HERE), 1.0, gpus=True)
    dask_module._check_cluster(cluster(HERE, resources={"GPU": 1.0}), 1.0, gpus=True)


def test_workers_share_a_compile_cache_unless_the_user_has_one(monkeypatch, tmp_path):
    set_in_jax = {}
    jax = types.SimpleNamespace(config=types.SimpleNamespace(update=set_in_jax.__setitem__))
    monkeypatch.setitem(sys.modules, "jax", jax)
    # Set first, so that monkeypatch removes what the function adds.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
    dask_module._use_compile_cache(tmp_path)
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "mine" and not set_in_jax
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    dask_module._use_compile_cache(tmp_path)
    assert os.environ["JAX_COMPILATION_CACHE_DIR"].startswith(f"{tmp_path}/")
    assert set_in_jax == {"jax_compilation_cache_dir": os.environ["JAX_COMPILATION_CACHE_DIR"]}
