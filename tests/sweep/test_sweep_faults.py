"""Faults of program and machine, tried on the driver script with the serial executor: killed, stopped, disk full."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from amortgap.sweep import Store, open_store

DRIVER = Path(__file__).with_name("driver.py")


@pytest.mark.slow
def test_a_driver_killed_half_way_resumes_without_computing_finished_cells_again(drive):
    reference = drive("reference", "--cells", "20")
    reference.run()
    sweep = drive("killed", "--cells", "20", "--cell.seconds", "0.05")
    process = sweep.start()
    sweep.wait_computing(8)
    process.send_signal(signal.SIGKILL)
    sweep.finish(process, -signal.SIGKILL)
    finished = set(sweep.rows())
    assert 7 <= len(finished) < 20
    sweep.run()
    started = sweep.computed()
    assert {number for number, times in started.items() if times == 2} <= set(range(20)) - finished
    assert sum(started.values()) <= 21
    assert sweep.rows() == reference.rows()
    assert (sweep.out / "table.csv").read_bytes() == (reference.out / "table.csv").read_bytes()


@pytest.mark.slow
def test_killed_at_random_moments_again_and_again(drive):
    """No record is lost, doubled or damaged, whatever the driver was doing when it was killed."""
    moments = random.Random(0)
    sweep = drive("killed", "--cells", "300", "--cell.seconds", "0.005")
    for _ in range(10):
        process = sweep.start()
        sweep.wait_computing(sum(sweep.computed().values()) + 1)
        time.sleep(moments.uniform(0, 0.2))
        process.kill()
        process.communicate()
    sweep.run()
    assert sorted(sweep.rows()) == list(range(300))
    assert not (sweep.out / "damaged").exists()
    assert sum(sweep.computed().values()) <= 310
    assert not [path for folder in ("cells", "logs", ".") for path in (sweep.out / folder).glob(".*")]


def test_one_interrupt_lets_all_running_threads_finish(drive, interrupt):
    sweep = drive("stopped", "--cell.seconds", "0.5", "--threads", "2")
    process = sweep.start()
    sweep.wait_computing(2)
    interrupt(process)
    sweep.finish(process, 130)
    assert sorted(sweep.rows()) == [0, 1] == sorted(sweep.computed())


def test_one_interrupt_finishes_the_running_cell_and_says_how_to_resume(drive, interrupt, assert_no_process_left):
    sweep = drive("stopped", "--cell.seconds", "0.5")
    process = sweep.start()
    sweep.wait_computing(2)
    interrupt(process)
    errors = sweep.finish(process, 130)
    assert "once more to stop now" in errors and "run the same command again to resume" in errors
    assert sorted(sweep.rows()) == [0, 1] and sweep.computed() == {0: 1, 1: 1}
    assert_no_process_left(process)
    sweep.args = ()
    sweep.run()
    assert set(sweep.computed().values()) == {1} and sorted(sweep.rows()) == list(range(8))


@pytest.mark.parametrize("threads", [1, 2])
def test_two_interrupts_stop_now(drive, interrupt, assert_no_process_left, threads):
    sweep = drive("stopped", "--cell.seconds", "60", "--threads", str(threads))
    process = sweep.start()
    sweep.wait_computing(1)
    interrupt(process)
    assert "stopping" in process.stderr.readline() + process.stderr.readline() + process.stderr.readline()
    interrupt(process)
    sweep.finish(process, 130)
    assert sweep.rows() == {}
    assert_no_process_left(process)


@pytest.mark.slow
def test_a_termination_request_stops_like_an_interrupt(drive):
    """What a batch system sends before it kills."""
    sweep = drive("stopped", "--cell.seconds", "0.3")
    process = sweep.start()
    sweep.wait_computing(1)
    process.terminate()
    sweep.finish(process, 130)
    assert sorted(sweep.rows()) == [0]


@pytest.mark.slow
def test_two_sweeps_in_one_folder_both_succeed(drive):
    sweep = drive("shared", "--cells", "30", "--cell.seconds", "0.02")
    other = drive("shared", "--cells", "40", "--cell.seconds", "0.02")
    processes = [sweep.start(), other.start()]
    for process in processes:
        sweep.finish(process, 0)
    assert sorted(sweep.rows()) == list(range(40))
    assert len(open_store(sweep.out).records()) == 40 and not (sweep.out / "damaged").exists()
    reference = drive("reference", "--cells", "40")
    reference.run()
    sweep.run("--cells", "40")
    assert (sweep.out / "table.csv").read_bytes() == (reference.out / "table.csv").read_bytes()
    assert sweep.rows() == reference.rows()


def test_a_full_disk_stops_the_sweep_without_half_a_record_and_it_resumes(drive, small_disk):
    sweep = drive("disk", "--cells", "100")
    errors = sweep.run(status=1)
    assert "disk full: cannot write" in errors and f"bytes free in {sweep.out}" in errors
    assert "Traceback" not in errors
    kept = Store(sweep.out).records()
    assert 0 < len(kept) < 100 and not (sweep.out / "damaged").exists()
    assert all(record.status == "ok" for record in kept)
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    sweep.run()
    assert sorted(sweep.rows()) == list(range(100))


def test_a_failing_cell_gives_status_1_and_the_others_finish(drive):
    sweep = drive("failing", "--cell.raise-at", "3")
    errors = sweep.run(status=1)
    assert "RuntimeError" in errors and "--retry-failed" not in errors
    assert [row["status"] for _, row in sorted(sweep.rows().items())] == ["ok"] * 3 + ["failed"] + ["ok"] * 4
    assert "--retry-failed" in sweep.run(status=1)
    sweep.args = ()
    sweep.run("--retry-failed")
    assert sweep.computed()[3] == 2 and {row["status"] for row in sweep.rows().values()} == {"ok"}


def test_a_dry_run_lists_and_computes_nothing(drive):
    sweep = drive("listed", "--cells", "3")
    process = sweep.start("--dry-run")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and out.splitlines()[-1] == "3 cells: 3 to do"
    assert not sweep.computed() and not (sweep.out / "manifest.json").exists()


@pytest.mark.parametrize("out", ["/dev/null/out", "taken"])
def test_a_folder_that_cannot_be_made_ends_the_script_before_the_first_cell(drive, out):
    sweep = drive("refused")
    (sweep.folder / "taken").write_text("")
    errors = sweep.run("--out", out, status=1)
    assert f"error: out: cannot write to folder {out}" in errors and "Traceback" not in errors
    assert not sweep.computed()


@pytest.mark.parametrize("cluster", [[], ["--cluster", "local:2"]], ids=["serial", "cluster"])
def test_a_second_invocation_computes_nothing_and_loads_neither_jax_nor_dask(drive, cluster):
    sweep = drive("finished", "--cells", "5")
    sweep.run()
    arguments = ["driver", "--out", str(sweep.out), "--cells", "5", *cluster]
    program = f"import sys, runpy; sys.argv = {arguments!r}; sys.path.insert(0, {str(DRIVER.parent)!r})\n"
    program += "import atexit; atexit.register(lambda: print('jax' in sys.modules, 'distributed' in sys.modules))\n"
    program += f"runpy.run_path({str(DRIVER)!r}, run_name='__main__')"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=sweep.folder)
    assert out.stdout.split() == ["False", "False"]
    assert set(sweep.computed().values()) == {1}
