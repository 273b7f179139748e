"""The overhead benchmark in small: it runs, and what must hold whatever the size holds."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_benchmark_measures_and_loses_nothing(tmp_path):
    pytest.importorskip("distributed")
    command = [sys.executable, str(ROOT / "experiments" / "benchmarks" / "sweep_overhead.py"), "--out", str(tmp_path)]
    subprocess.run([*command, "--preset", "smoke"], check=True, cwd=tmp_path, capture_output=True)
    with (tmp_path / "sweep_overhead.csv").open() as file:
        rows = list(csv.DictReader(file))
    # What has one exact value meets it however busy the machine is.
    exact = {row["figure"]: row for row in rows if row["low"] and row["low"] == row["high"]}
    assert len(exact) == 4
    for row in exact.values():
        assert float(row["value"]) == float(row["low"]) and row["met"] == "True", row
    assert json.loads((tmp_path / "sweep_overhead.json").read_text())["config"]["kills"] == 2
