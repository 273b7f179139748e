"""Configuration at the edge: dataclass defaults (or a preset), then a TOML or JSON file, then command-line flags.

    args = parse_args(Args, description=__doc__)          # Args: a frozen dataclass, nested ones allowed
    python script.py --config base.toml --preset smoke --model.latent-dim 4

An unknown key or preset is an error with the nearest valid name, and a value of the wrong type names its key.
A configuration file is data (`tomllib`, `json`); nothing in it is imported or run.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import tyro

from amortgap.sweep.fields import from_mapping, nearest

T = TypeVar("T")


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
