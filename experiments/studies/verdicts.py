"""What scripts say of tables whose rows have a requirement: `met` is True, False, or None where there is none."""

from __future__ import annotations

from typing import Any


def tally(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Return how many rows have a requirement and how many of them miss it, for the sidecar."""
    return {
        "checked": sum(row["met"] is not None for row in rows),
        "missed": sum(row["met"] is False for row in rows),
    }


def say_missed(rows: list[dict[str, Any]], what: str) -> int:
    """Print the rows that miss their requirement and a line that counts them; return their number."""
    found = tally(rows)
    for row in rows:
        if row["met"] is False:
            print(f"missed: {row}")
    print(f"{found['checked'] - found['missed']} of {found['checked']} {what} met")
    return found["missed"]
