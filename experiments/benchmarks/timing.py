"""Timing alternatives side by side in one run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax


def turns(
    calls: dict[str, Callable[[], Any]], number: int, *, once: frozenset[str] = frozenset()
) -> dict[str, list[float]]:
    """Return the seconds of every call in every turn, the first calls left out; slow ones take part in one turn."""
    for name, call in calls.items():
        if name not in once:
            jax.block_until_ready(call())
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(number):
        for name, call in calls.items():
            if turn and name in once:
                continue
            began = time.perf_counter()
            jax.block_until_ready(call())
            taken[name].append(time.perf_counter() - began)
    return taken
