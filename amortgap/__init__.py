"""amortgap: how many nats an encoder loses, why, and how sure we are.

Local VI and amortized VI maximise the same one-datum function `elbo(key, phi, x)`, over a free phi for every datum or
over the weights of one encoder; every gap is a difference of that function at two arguments.

Functions of one datum are yours to map, differentiate and compile; functions over data are compiled once.
"""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil

__version__ = "0.1.0"

# Batched factorisations in jaxlib wait inside the thread pool for other tasks of the same pool. As many of them at a
# time as the pool has threads, which is two on a small machine, would wait for ever. JAX reads the width of the pool
# when it first computes.
os.environ.setdefault("PJRT_NPROC", str(max(16, os.cpu_count() or 1)))


def _read_homes() -> dict[str, str]:
    """Return the module of every public name, from the stub `__init__.pyi`, which is the one table of names."""
    table = ast.parse(pkgutil.get_data(__name__, "__init__.pyi") or b"")
    imports = [node for node in table.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module or "" for node in imports for alias in node.names}


_HOMES = _read_homes()
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    # Load on first use: the sweep layer, which needs no jax, then starts in a fraction of a second.
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'amortgap' has no attribute {name!r}")
    if home == __name__:
        return importlib.import_module(f"{home}.{name}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
