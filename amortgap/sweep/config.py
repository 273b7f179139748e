"""Configuration at the edge: dataclass defaults (or a preset), then a TOML or JSON file, then command-line flags.

    args = parse_args(Args, description=__doc__)          # Args: a frozen dataclass, nested ones allowed
    python script.py --config base.toml --preset smoke --model.latent-dim 4

An unknown key or preset is an error with the nearest valid name, and a value of the wrong type names its key.
A configuration file is data (`tomllib`, `json`); nothing in it is imported or run.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import functools
import json
import pathlib
import sys
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def nearest(name: str, options: Iterable[str]) -> str:
    """Hint to append to an error about an unknown name: the nearest option, or all of them."""
    options = sorted(options)
    close = difflib.get_close_matches(name, options, n=1)
    return f"did you mean {close[0]!r}?" if close else f"expected one of {options}"


@functools.cache
def _fields(cls: type) -> dict[str, Any]:
    """Name and resolved annotation of every field that can be given to the constructor of dataclass `cls`."""
    if not dataclasses.is_dataclass(cls):
        raise ValueError(f"config: expected a dataclass, got {cls.__name__}")
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def plain_scalar(value: object) -> object:
    """A scalar of NumPy or JAX as a Python number, anything else as it is."""
    return typing.cast(Any, value).item() if getattr(value, "ndim", None) == 0 else value


def convert(value: object, hint: Any, where: str) -> Any:
    """`value` as the type `hint`, where that loses nothing.

    A list becomes a tuple, a whole number a float, a string a path, and a mapping a dataclass.
    Raises ValueError naming `where`, the expected type and the value.
    """
    value = plain_scalar(value)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    kind: Any = origin or hint
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_mapping(typing.cast(type, hint), value, where=where)
    if origin is typing.Literal:
        if any(value == option and type(value) is type(option) for option in args):
            return value
        raise ValueError(f"{where}: got {value!r}, {nearest(str(value), map(str, args))}")
    if origin in (typing.Union, types.UnionType):
        # An exact type first, so that 1 stays an int in `int | float` whatever the order.
        for option in sorted(args, key=lambda option: option is not type(value)):
            with contextlib.suppress(ValueError):
                return convert(value, option, where)
    elif origin in (tuple, list) and isinstance(value, list | tuple):
        hints = args if origin is tuple and args[-1] is not ... else args[:1] * len(value)
        if len(hints) == len(value):
            return origin(convert(item, hints[i], f"{where}[{i}]") for i, item in enumerate(value))
    elif hint is float and type(value) is int:
        return float(value)
    elif hint is pathlib.Path and isinstance(value, str):
        return pathlib.Path(value)
    # A truth value is an int to Python, and a mistake to the user.
    elif isinstance(value, kind) and (hint is bool or not isinstance(value, bool)):
        return value
    named = hint.__name__ if isinstance(hint, type) and not args else hint
    raise ValueError(f"{where}: expected {named}, got {value!r} ({type(value).__name__})")


def from_mapping(cls: type[T], values: Mapping[str, Any], *, base: T | None = None, where: str = "") -> T:
    """Dataclass `cls` from a nested mapping; fields not in the mapping keep those of `base`, or the defaults.

    A key `_type` must be the name of the class; it tells apart dataclasses with equal fields.
    Raises ValueError for an unknown key (naming the nearest field), a wrong type and a missing required field.
    """
    hints = _fields(cls)
    given: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{where}.{key}" if where else key
        current = getattr(base, key, None)
        if key == "_type":
            convert(value, typing.Literal[cls.__name__], path)
        elif key not in hints:
            raise ValueError(f"{path!r} is not a field of {cls.__name__}: {nearest(key, hints)}")
        elif isinstance(value, Mapping) and dataclasses.is_dataclass(current) and "_type" not in value:
            given[key] = from_mapping(type(current), value, base=current, where=path)
        else:
            given[key] = convert(value, hints[key], path)
    try:
        return cls(**given) if base is None else dataclasses.replace(typing.cast(Any, base), **given)
    except TypeError as error:
        raise ValueError(f"{where or cls.__name__}: {error}") from error


def read_config(path: str | pathlib.Path) -> dict[str, Any]:
    """Content of a TOML or JSON file as a mapping; ValueError naming the file if it is neither."""
    path = pathlib.Path(path)
    if path.suffix not in (".toml", ".json"):
        raise ValueError(f"--config {path}: expected a .toml or .json file")
    try:
        text = path.read_text()
        values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        raise ValueError(f"--config {path}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"--config {path}: expected a table of fields, got a JSON {type(values).__name__}")
    return values


def load_config(cls: type[T], path: str | pathlib.Path, base: T | None = None) -> T:
    """Dataclass `cls` from a TOML or JSON file over `base` (or the defaults of `cls`).

    Raises ValueError naming the file and the key: unknown (with the nearest field), of the wrong type, or missing.
    """
    values = read_config(path)
    try:
        return from_mapping(cls, values, base=base)
    except ValueError as error:
        raise ValueError(f"--config {path}: {error}") from error


def parse_args(
    cls: type[T],
    args: Sequence[str] | None = None,
    *,
    presets: Mapping[str, T] | None = None,
    description: str | None = None,
    preset_flags: Sequence[str] = ("--preset",),
) -> T:
    """Instance of dataclass `cls` from the command line (`sys.argv` if `args` is None).

    `--preset NAME` (and its other spellings, if `preset_flags` has some) picks one of `presets` (the first is the
    default), `--config FILE` overrides it and flags override both. A wrong flag, key or value ends the program with
    status 2 and a message with the nearest valid name.
    """
    # Only a program needs it.
    import tyro

    presets = dict(presets or {})
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    first.add_argument(*preset_flags, dest="preset", default=next(iter(presets), None))
    chosen, rest = first.parse_known_args(sys.argv[1:] if args is None else list(args))
    try:
        if chosen.preset is not None and chosen.preset not in presets:
            raise ValueError(f"{preset_flags[0]} {chosen.preset}: {nearest(chosen.preset, presets)}")
        base = None if chosen.preset is None else presets[chosen.preset]
        if chosen.config is not None:
            base = load_config(cls, chosen.config, base)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    notes = ["--config FILE: a TOML or JSON file whose keys replace the defaults below"]
    if presets:
        notes.append(f"{', '.join(preset_flags)} NAME: one of {', '.join(presets)} (default: {next(iter(presets))})")
    text = "\n\n".join([description or "", *notes]).strip()
    if base is None:
        return tyro.cli(cls, args=rest, description=text)
    return tyro.cli(cls, args=rest, default=base, description=text)
