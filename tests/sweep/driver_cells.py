"""What the cells of the driver script do. A module of its own, as in an experiment: workers must be able to import it.

Every computation appends the number of its cell to `trace`, so that a test can count what was computed.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from pathlib import Path

from amortgap.sweep import NOT_HASHED, CellResult, Column, Schema

SCHEMA = Schema(
    version=1,
    columns=(Column("number", int, "number of the cell", key=True), Column("root", float, "its square root")),
)


@dataclasses.dataclass(frozen=True)
class Config:
    number: int = 0
    trace: Path = dataclasses.field(default=Path("trace"), metadata=NOT_HASHED)
    seconds: float = dataclasses.field(default=0.0, metadata=NOT_HASHED)
    raise_at: int = dataclasses.field(default=-1, metadata=NOT_HASHED)
    kill_once_at: int = dataclasses.field(default=-1, metadata=NOT_HASHED)
    kill_always_at: int = dataclasses.field(default=-1, metadata=NOT_HASHED)


def compute(config: Config) -> CellResult:
    with config.trace.open("a") as file:
        file.write(f"{config.number}\n")
    time.sleep(config.seconds)
    if config.number == config.raise_at:
        raise RuntimeError(f"cell {config.number} <b>fails</b>")
    marker = config.trace.with_suffix(".killed")
    if config.number == config.kill_once_at and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if config.number == config.kill_always_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return CellResult([{"number": config.number, "root": config.number**0.5}])


def compute_group(configs: list[Config]) -> list[CellResult]:
    return [compute(config) for config in configs]
