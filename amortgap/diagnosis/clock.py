"""What is left of a budget of seconds."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Counts down a budget from the moment it is made."""

    def __init__(self, budget: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._began, self.budget = now, now(), budget

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return self._now() - self._began

    @property
    def left(self) -> float:
        """Seconds of the budget that are left; negative once it is overdrawn."""
        return self.budget - self.spent
