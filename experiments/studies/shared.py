"""What several studies share: a key for every purpose, things made once in a process, and how training broke down."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np


def purpose_key(root: int, purposes: tuple[str, ...], purpose: str, number: int = 0) -> jax.Array:
    """Return the key of one of the purposes of a study, the same in every cell; `number` tells apart those of one."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(root), purposes.index(purpose)), number)


class Kept:
    """Things made once in a process, whichever thread asks first; the others wait for it."""

    def __init__(self) -> None:
        self._locks: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()
        self._kept: dict[Hashable, Any] = {}

    def once(self, name: Hashable, make: Callable[[], Any]) -> Any:
        """Return the thing of this name, made by `make` if it is not there yet."""
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            if name not in self._kept:
                self._kept[name] = make()
            return self._kept[name]


def release_memory() -> None:
    """Give back to the system what dropped programs and arrays took: the allocator of Linux keeps it otherwise."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def broken_at(trace: Any) -> int:
    """Return the step of a training's trace by which it met a value that is not finite, 0 if it met none."""
    good = np.isfinite(trace.batch_elbo) & np.isfinite(trace.elbo)
    return 0 if good.all() else int(np.asarray(trace.step)[np.argmin(good)])
