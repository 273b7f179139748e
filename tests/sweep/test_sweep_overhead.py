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
    sizes = ["--cells", "40", "--kills", "2", "--long-cells", "2", "--work", "100000"]
    subprocess.run([*command, *sizes], check=True, cwd=tmp_path, capture_output=True)
    with (tmp_path / "sweep_overhead.csv").open() as file:
        rows = list(csv.DictReader(file))
    exact = {row["bound"]: float(row["value"]) for row in rows if row["bound"] in ("40", "1")}
    assert exact == {"40": 40.0, "1": 1.0}
    assert {float(row["value"]) for row in rows if row["bound"] == "0"} == {0.0}
    assert json.loads((tmp_path / "sweep_overhead.json").read_text())["config"]["kills"] == 2
