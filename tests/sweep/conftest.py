"""Fixtures of the sweep tests: the driver script as a program, and counting what it computed."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

DRIVER = Path(__file__).with_name("driver.py")


@dataclasses.dataclass
class Driver:
    """One sweep of the driver script in `folder`, to be run, interrupted and run again."""

    folder: Path
    args: tuple[str, ...]

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def start(self, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(DRIVER), "--out", str(self.out), "--cell.trace", str(self.folder / "trace")]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        # A session of its own: an interrupt can be sent to the whole group, as a terminal does.
        return subprocess.Popen([*command, *self.args, *more], start_new_session=True, cwd=self.folder, **pipes)

    def run(self, *more: str, status: int = 0) -> str:
        """Run to the end, expect exit `status`, and return what was written to stderr."""
        return self.finish(self.start(*more), status)

    def finish(self, process: subprocess.Popen[str], status: int) -> str:
        try:
            _, errors = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        assert process.returncode == status, errors
        return errors

    def computed(self) -> Counter[int]:
        """How often the computation of each cell was started."""
        path = self.folder / "trace"
        return Counter(map(int, path.read_text().split())) if path.exists() else Counter()

    def wait_computing(self, cells: int) -> None:
        """Return once `cells` computations have started."""
        deadline = time.monotonic() + 60
        while sum(self.computed().values()) < cells:
            assert time.monotonic() < deadline, "the driver computes nothing"
            time.sleep(0.01)

    def rows(self) -> dict[int, Any]:
        """Number of the cell -> what of its record must not depend on where or how often it ran."""
        records = [json.loads(path.read_text()) for path in (self.out / "cells").glob("*.json")]
        kept = ("hash", "config", "status", "rows", "schema_version", "semantics_version", "data_sha256")
        return {record["config"]["number"]: {name: record[name] for name in kept} for record in records}


@pytest.fixture
def drive(tmp_path):
    """Make a Driver in a folder of its own: `drive("name", "--cells", "20")`."""
    return lambda name, *args: Driver(_made(tmp_path / name), args)


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def living(group: int) -> list[int]:
    """Processes of process group `group` that are alive (a zombie is not)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, pgrp = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(pgrp) == group and state not in "ZX":
                found.append(int(entry.name))
    return found


@pytest.fixture
def assert_no_process_left():
    """Check that all processes of a driver's group end within some seconds."""

    def check(process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + 15
        while living(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert living(process.pid) == []

    return check


@pytest.fixture
def interrupt():
    """Send SIGINT to the whole process group of a driver, as Ctrl-C in a terminal does."""
    return lambda process: os.killpg(process.pid, signal.SIGINT)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 512 kB, where the tests may mount one."""
    folder = tmp_path / "disk" / "out"
    folder.mkdir(parents=True)
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)], capture_output=True
    )
    if mounted is None or mounted.returncode != 0:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
