"""The seam between a sweep and where its cells run, and the executors of this process; `remote` has the one for Dask.

An executor is a function of (task, units, stop) that yields, in any order, each unit with the outcomes the task
returned for it, or with the exception that kept it from running; it hands out no new unit once `stop.requested`.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from amortgap.sweep.execute import Outcome, Task, Unit


class Stop:
    """Whether the user asked to stop."""

    requested: bool = False


@runtime_checkable
class Executor(Protocol):
    """Applies `task` to every unit, somewhere; `slots` is how many it runs at a time."""

    @property
    def slots(self) -> int: ...

    def __call__(
        self, task: Task, units: Sequence[Unit], stop: Stop
    ) -> Iterator[tuple[Unit, list[Outcome] | Exception]]: ...


class _Serial:
    slots = 1

    def __call__(self, task: Task, units: Sequence[Unit], stop: Stop) -> Iterator[tuple[Unit, list[Outcome]]]:
        for unit in units:
            if stop.requested:
                return
            yield unit, task(unit)


serial: Executor = _Serial()
"""Executor that computes one unit after the other in this process."""


@dataclasses.dataclass(frozen=True)
class Threads:
    """Executor that computes `slots` units at a time in threads of this process.

    For cells that spend their time outside the interpreter lock, as compiled code does: one thread compiles while
    another computes.

    Attributes:
      slots: units computed at a time.

    Raises:
      ValueError: `slots` is not positive.
    """

    slots: int

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ValueError(f"threads: expected at least 1, got {self.slots}")

    def __call__(self, task: Task, units: Sequence[Unit], stop: Stop) -> Iterator[tuple[Unit, list[Outcome]]]:
        done: queue.SimpleQueue[tuple[Unit, list[Outcome] | BaseException]] = queue.SimpleQueue()

        def work(unit: Unit) -> None:
            try:
                done.put((unit, task(unit)))
            except BaseException as error:
                done.put((unit, error))

        waiting, running = iter(units), 0
        while True:
            while running < self.slots and not stop.requested and (unit := next(waiting, None)) is not None:
                # A daemon: when the user stops now, the program must not wait for it.
                threading.Thread(target=work, args=(unit,), daemon=True).start()
                running += 1
            if not running:
                return
            try:
                # The timeout lets the main thread look at signals while the cells run.
                unit, result = done.get(timeout=0.5)
            except queue.Empty:
                continue
            running -= 1
            if isinstance(result, BaseException):
                raise result
            yield unit, result
