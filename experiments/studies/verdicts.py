"""Which claims have a verdict.

A claim about trainings has one only if the trainings had converged, if each of two that are compared has three seeds or
more, and if the test of the claim withstands a correction for the number of tests.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

# A claim holds, does not hold, or is not resolved.
HOLDS, FAILS, UNRESOLVED = "holds", "does not hold", "not resolved"
# A comparison of two trainings needs so many seeds of each.
LEAST_SEEDS = 3
# Chance that any claim of a table has a verdict by accident, at most.
LEVEL = 0.05


@dataclasses.dataclass(frozen=True)
class Trainings:
    """The trainings that a claim rests on."""

    converged: bool
    """Whether all of them had converged; where a table does not say so, they had not."""
    seeds: int | None = None
    """Seeds of the training that has the fewest, None where the claim does not compare two trainings."""


def settled(holds: bool | None, trainings: Trainings, reason: str) -> tuple[str, str]:
    """Return the verdict on a claim about trainings, with the reason: that given, or why there is no verdict."""
    lacking = []
    if not trainings.converged:
        lacking.append("training had not converged")
    if trainings.seeds is not None and trainings.seeds < LEAST_SEEDS:
        plural = "" if trainings.seeds == 1 else "s"
        lacking.append(f"{trainings.seeds} seed{plural} of a training that is compared, {LEAST_SEEDS} are needed")
    if lacking:
        return UNRESOLVED, "; ".join(lacking)
    return {True: HOLDS, False: FAILS, None: UNRESOLVED}[holds], reason


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values corrected for their number by the method of Holm; None stays, and does not count."""
    order = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        corrected[index] = largest
    return corrected
