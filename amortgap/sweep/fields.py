"""Typed access to the fields of (nested) dataclasses by dotted name.

Shared by the grid (axes are dotted field names) and by the configuration file (keys are field names):
both must refuse a name that does not exist, with the nearest one that does, and a value of the wrong type.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import functools
import pathlib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def nearest(name: str, options: Iterable[str]) -> str:
    """Hint to append to an error about an unknown name: the nearest option, or all of them."""
    options = sorted(options)
    close = difflib.get_close_matches(name, options, n=1)
    return f"did you mean {close[0]!r}?" if close else f"expected one of {options}"


@functools.cache
def _field_types(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def field_types(cls: type) -> dict[str, Any]:
    """Name -> resolved annotation of every field that can be given to the constructor of dataclass `cls`."""
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise ValueError(f"config: expected a dataclass, got {cls!r}")
    return _field_types(cls)


def replace_field(config: Any, name: str, value: Any) -> Any:
    """Copy of dataclass `config` with the field at dotted `name` set to `value`.

    Raises ValueError, naming the nearest field, if there is no such field, and if the value has the wrong type.
    """
    return _replace(config, name, value, name)


def _replace(config: Any, name: str, value: Any, where: str) -> Any:
    head, _, rest = name.partition(".")
    hints = field_types(type(config))
    if head not in hints:
        raise ValueError(f"{head!r} (in {where!r}) is not a field of {type(config).__name__}: {nearest(head, hints)}")
    inner = _replace(getattr(config, head), rest, value, where) if rest else coerce(value, hints[head], where)
    return dataclasses.replace(config, **{head: inner})


def coerce(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint`, converting only what loses nothing (int -> float, list -> tuple, str -> Path).

    A mapping becomes a dataclass; for a union of dataclasses its key `_type` names the class.
    Raises ValueError naming `where`, the expected type and the value.
    """
    wrong = ValueError(f"{where}: expected {_name(hint)}, got {value!r} ({type(value).__name__})")
    if not isinstance(value, str | bytes) and hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if typing.get_origin(hint) is typing.Annotated:
        return coerce(value, typing.get_args(hint)[0], where)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is typing.Literal:
        if any(value == option and type(value) is type(option) for option in args):
            return value
        raise ValueError(f"{where}: got {value!r}, {nearest(str(value), map(str, args))}")
    if origin in (typing.Union, types.UnionType):
        return _coerce_union(value, args, where, wrong)
    if hint is None or hint is type(None):
        if value is None:
            return None
        raise wrong
    if origin in (tuple, list, Sequence) or hint in (tuple, list):
        return _coerce_sequence(value, origin or hint, args, where, wrong)
    if origin in (dict, Mapping) or hint is dict:
        if not isinstance(value, Mapping):
            raise wrong
        return {key: coerce(item, args[1] if args else Any, f"{where}.{key}") for key, item in value.items()}
    if isinstance(hint, type):
        return _coerce_plain(value, hint, where, wrong)
    return value


def _coerce_plain(value: Any, hint: type, where: str, wrong: ValueError) -> Any:
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            return value
        if isinstance(value, Mapping):
            return from_mapping(hint, value, where=where)
        raise wrong
    if issubclass(hint, enum.Enum):
        if isinstance(value, hint):
            return value
        names = {member.name: member for member in hint}
        if value in names:
            return names[value]
        raise ValueError(f"{where}: got {value!r}, {nearest(str(value), names)}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if issubclass(hint, pathlib.PurePath) and isinstance(value, str | pathlib.PurePath):
        return hint(value)
    if isinstance(value, hint) and (hint is bool or not isinstance(value, bool) or hint is object):
        return value
    raise wrong


def _coerce_union(value: Any, options: tuple[Any, ...], where: str, wrong: ValueError) -> Any:
    if isinstance(value, Mapping) and "_type" in value:
        named = {option.__name__: option for option in options if isinstance(option, type)}
        if value["_type"] not in named:
            raise ValueError(f"{where}._type: unknown {value['_type']!r}, {nearest(str(value['_type']), named)}")
        return coerce(value, named[value["_type"]], where)
    # An exact type first, so that 1 stays an int in `int | float` whatever the order.
    for option in sorted(options, key=lambda option: option is not type(value)):
        try:
            return coerce(value, option, where)
        except ValueError:
            continue
    raise wrong


def _coerce_sequence(value: Any, origin: Any, args: tuple[Any, ...], where: str, wrong: ValueError) -> Any:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise wrong
    fixed = origin is tuple and args and args[-1] is not Ellipsis
    if fixed and len(args) != len(value):
        raise wrong
    hints = args if fixed else [args[0] if args else Any] * len(value)
    items = [coerce(item, hint, f"{where}[{i}]") for i, (item, hint) in enumerate(zip(value, hints, strict=True))]
    return items if origin is list else tuple(items)


def from_mapping(cls: type, values: Mapping[str, Any], *, base: Any = None, where: str = "") -> Any:
    """Dataclass `cls` from a nested mapping; fields not in the mapping keep those of `base`, or the defaults.

    Raises ValueError for an unknown key (naming the nearest field), a wrong type and a missing required field.
    """
    hints = field_types(cls)
    given: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{where}.{key}" if where else key
        if key == "_type":
            if value != cls.__name__:
                raise ValueError(f"{path}: expected {cls.__name__!r}, got {value!r}")
            continue
        if key not in hints:
            raise ValueError(f"{path!r} is not a field of {cls.__name__}: {nearest(key, hints)}")
        current = getattr(base, key, None)
        if isinstance(value, Mapping) and dataclasses.is_dataclass(current) and "_type" not in value:
            given[key] = from_mapping(type(current), value, base=current, where=path)
        else:
            given[key] = coerce(value, hints[key], path)
    if base is not None:
        return dataclasses.replace(base, **given)
    try:
        return cls(**given)
    except TypeError as error:
        raise ValueError(f"{where or cls.__name__}: {error}") from error


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
