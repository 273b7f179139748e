"""Compiling a function of models, families and data once for all later calls."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import jax
import numpy as np

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_ARRAYS = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)


def compiled_once(*static: str) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Return a decorator that compiles a function and keeps the program for later calls.

    The arguments named in `static` are keyword-only, hashable and part of the program. All others are pytrees; other
    arrays of the same shapes reuse the program. If a leaf is not an array, such as a model of a class that is not
    registered as a pytree, the function runs uncompiled, since a compiled one would miss changes of that leaf.
    """

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        program = jax.jit(function, static_argnames=static)

        @wraps(function)
        def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            traced = [args, {name: value for name, value in kwargs.items() if name not in static}]
            compilable = all(isinstance(leaf, _ARRAYS) for leaf in jax.tree.leaves(traced))
            return program(*args, **kwargs) if compilable else function(*args, **kwargs)

        return call

    return decorate
