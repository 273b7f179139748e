"""Progress bars on standard error, shown only where a person looks at a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def progress_bar(items: Iterable[Item], label: str, *, unit: str = "it", enabled: bool = True) -> Iterator[Item]:
    """Yield from `items` behind a progress bar, or silently if not `enabled` or standard error is no terminal."""
    return iter(tqdm(items, desc=label, unit=unit, disable=not (enabled and sys.stderr.isatty()), leave=False))
