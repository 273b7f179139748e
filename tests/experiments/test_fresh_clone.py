"""The benchmark of the two commands: what it calls time and memory, and what a command may not see."""

import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what pages processes share")
BENCHMARKS = Path(__file__).parents[2] / "experiments" / "benchmarks"


@pytest.fixture
def fresh_clone(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import fresh_clone

    return fresh_clone


def test_time_and_memory_are_those_of_all_processes_and_shared_pages_count_once(fresh_clone, tmp_path):
    # The child shares the block that its parent holds, and has one of its own.
    block = "bytearray(b'x') * (200 << 20)"
    shared = f"import os, time; held = {block}; own = {block} if os.fork() == 0 else None; time.sleep(3)"
    seconds, peak, _ = fresh_clone.run(
        [sys.executable, "-c", f"{shared}; os.wait() if own is None else 0"], tmp_path, tmp_path
    )
    assert 3 < seconds < 60
    assert 0.4 < peak < 0.55


def test_a_command_sees_an_empty_home_and_no_caches(fresh_clone, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "somewhere")
    asked = "import os; print(os.environ['HOME'], 'JAX_COMPILATION_CACHE_DIR' in os.environ, os.getcwd())"
    home, folder = tmp_path / "home", tmp_path / "folder"
    folder.mkdir()
    said = fresh_clone.run([sys.executable, "-c", asked], folder, home)[2]
    assert said.split() == [str(home), "False", str(folder)]


def test_a_command_that_fails_is_no_measurement_and_says_why(fresh_clone, tmp_path):
    with pytest.raises(SystemExit, match=r"no measurement: .* ended with 3\nbroken"):
        fresh_clone.run([sys.executable, "-c", "print('broken'); raise SystemExit(3)"], tmp_path, tmp_path)


def test_an_interpreter_that_does_not_exist_is_refused(fresh_clone, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fresh_clone.py", "--pythons", "python9.9"])
    with pytest.raises(SystemExit, match=r"--pythons must name interpreters, got python9.9"):
        fresh_clone.main()


def test_without_the_repository_there_is_nothing_to_measure(fresh_clone, monkeypatch, tmp_path):
    monkeypatch.setattr(fresh_clone, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["fresh_clone.py", "--pythons", sys.executable])
    with pytest.raises(SystemExit, match=r"is no clone of the repository"):
        fresh_clone.main()
