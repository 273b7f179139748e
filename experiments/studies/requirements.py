"""What values must reach: one record, the columns that tables keep of it, and what scripts say of the whole table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from amortgap.sweep import Column

MET = Column("met", bool, "whether the requirement is met, empty without a requirement or a value")
WITHIN = (
    Column("low", float, "least value that meets the requirement, empty for none"),
    Column("high", float, "largest value that meets the requirement, empty for none"),
    MET,
)
NEAR = (
    Column("target", float, "exact or required value"),
    Column("tolerance", float, "largest distance from the target that meets it, or largest value without a target"),
    MET,
)


@dataclasses.dataclass(frozen=True)
class Requirement:
    """The least and the largest value that are allowed, None for no such bound."""

    low: float | None = None
    high: float | None = None

    def met(self, value: float | None) -> bool | None:
        """Return whether a value lies within the bounds, None without a bound; what is not finite does not."""
        if self.low is None and self.high is None:
            return None
        if value is None or not math.isfinite(value):
            return False
        return bool((self.low is None or value >= self.low) and (self.high is None or value <= self.high))

    def __str__(self) -> str:
        """Return the bounds in signs."""
        bounds = ((">=", self.low), ("<=", self.high))
        return " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)


def near(target: float, tolerance: float) -> Requirement:
    """Return the requirement of a value that may be so far from a target."""
    return Requirement(target - tolerance, target + tolerance)


def tally(rows: Sequence[Mapping[str, object]]) -> dict[str, int]:
    """Return how many rows have a requirement and how many of them miss it, for the sidecar."""
    return {
        "checked": sum(row["met"] is not None for row in rows),
        "missed": sum(row["met"] is False for row in rows),
    }


def say_missed(rows: Sequence[Mapping[str, object]], kind: str) -> int:
    """Print the rows that miss their requirement and a line that counts them; return their number."""
    found = tally(rows)
    for row in rows:
        if row["met"] is False:
            print(f"missed: {row}")
    print(f"{found['checked'] - found['missed']} of {found['checked']} {kind} met")
    return found["missed"]
