"""Running a script of experiments as a user does, and reading the table it writes."""

import csv
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"


def run(script: str, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `experiments/SCRIPT` with its flags, and variables of the environment besides those that are set."""
    command = [sys.executable, str(EXPERIMENTS / script), *args]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=1800, env=os.environ | environment, check=False
    )


def rows_of(table: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with table.open(newline="") as file:
        return list(csv.DictReader(file))
