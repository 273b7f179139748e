"""Frozen dataclasses as pytrees whose arguments are checked where a record is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar

import jax

Record = TypeVar("Record")


def checked_record(cls: type[Record]) -> type[Record]:
    """Register a frozen dataclass as a pytree whose arguments are checked where it is made, not where jax rebuilds it.

    A gradient or a pytree of shapes has the type of the record and is no valid record: a gradient of a variance may be
    negative. `jax.tree_util.register_dataclass` would send it through `__init__` and its checks.
    """
    if hasattr(cls, "__post_init__"):
        # `__post_init__` converts array-likes and raises ValueErrors, so a run-time type checker must not come first.
        setattr(cls, "__no_type_check__", True)  # noqa: B010
    fields = dataclasses.fields(cls)  # pyright: ignore[reportArgumentType]
    static = [field.name for field in fields if field.metadata.get("static")]
    data = [field.name for field in fields if not field.metadata.get("static")]

    def flatten_with_keys(record: Record) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        children = [(jax.tree_util.GetAttrKey(name), getattr(record, name)) for name in data]
        return children, tuple(getattr(record, name) for name in static)

    def flatten(record: Record) -> tuple[list[Any], tuple[Any, ...]]:
        return [getattr(record, name) for name in data], tuple(getattr(record, name) for name in static)

    def unflatten(constants: tuple[Any, ...], children: Iterable[object]) -> Record:
        record = object.__new__(cls)
        for name, value in zip([*data, *static], [*children, *constants], strict=True):
            object.__setattr__(record, name, value)
        return record

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
