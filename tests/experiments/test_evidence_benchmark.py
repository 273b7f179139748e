"""The benchmark of evidence in small, its goals, and what it says where blackjax is missing."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "benchmarks"


def run(*command):
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, cwd=FOLDER)


@pytest.mark.slow
def test_the_benchmark_measures_what_its_table_says(tmp_path):
    pytest.importorskip("blackjax")
    done = run("evidence.py", "--preset", "smoke", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    with (tmp_path / "evidence.csv").open(newline="") as file:
        rows = {row["figure"]: row for row in csv.DictReader(file)}
    memory = rows["temporary memory of IWAE, 1000 points"]
    # All 1000 x 100 draws at once would take 300 MiB.
    assert 1 < float(memory["value"]) < 150 and memory["high"] == "150" and memory["met"] == "True"
    assert rows["AIS gradients a temperature over leapfrog steps"]["value"] == "1.0"
    assert rows["IWAE rate"]["met"] == "" and float(rows["IWAE rate"]["value"]) > 0


def test_without_blackjax_the_extra_is_named():
    done = run("-c", "import sys; sys.modules['blackjax'] = None; import evidence")
    assert done.returncode == 1 and done.stderr.strip().endswith("pip install 'amortgap[bench]'")


def test_goals_compare_with_both_ends(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(FOLDER))
    from figures_table import SCHEMA, row

    assert row("rate", 2, "nats")["met"] is None
    assert row("rate", 2, "nats", low=2)["met"] is True and row("rate", 2, "nats", high=1.9)["met"] is False
    assert row("count", 0, "cells", low=0, high=0)["met"] is True
    assert row("rate", float("nan"), "nats", low=0)["met"] is False
    assert set(row("rate", 1, "nats")) == {column.name for column in SCHEMA.columns}
    assert ">= 2" in capsys.readouterr().err
