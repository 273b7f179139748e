"""Cells as data: a frozen base configuration and named axes give an ordered list of cells, each with a content hash.

    grid(base, {"family": [...], "width": [...]})  ->  configurations, the last axis fastest
    make_cells(configurations, schema_version=1)   ->  cells, duplicates removed with a notice

The hash says what a result *is*: sha256 of the canonical JSON of the configuration, the schema version of the table,
the sha256 of the data and a semantics version, which is raised by hand when a change of the code changes results.
The commit and the package versions are not in it (each commit would empty the store); they are in the manifest.
A field that cannot change a result is left out by `field(default=..., metadata=NOT_HASHED)`.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import itertools
import json
import logging
import math
import numbers
import pathlib
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from amortgap.sweep.config import from_mapping, plain_scalar

logger = logging.getLogger(__name__)

NOT_HASHED = types.MappingProxyType({"hash": False})
"""Metadata of a dataclass field that cannot change a result, such as an output folder."""


C = TypeVar("C")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One unit of a sweep: the configuration, and `identity`, the JSON document whose sha256 is `key`.

    Attributes:
      config: the configuration, a dataclass.
      key: sha256 of the canonical JSON of `identity`, 64 hexadecimal digits.
      identity: configuration, schema and semantics versions and sha256 of the data, as plain JSON data.
    """

    config: Any
    key: str
    identity: Mapping[str, Any] = dataclasses.field(repr=False, compare=False)


def canonical(value: object, where: str = "config") -> Any:
    """`value` as plain JSON data, the same for equal values: 1.0 becomes 1, a tuple a list, a path its POSIX form.

    A dataclass becomes an object of its hashed fields and `_type`, its class name.
    Raises ValueError naming `where` for a number that is not finite and for a type that has no canonical form.
    """
    value = plain_scalar(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hashed = [field.name for field in dataclasses.fields(value) if field.metadata.get("hash", True)]
        fields = {name: canonical(getattr(value, name), f"{where}.{name}") for name in hashed}
        return {"_type": type(value).__name__, **fields}
    if isinstance(value, enum.Enum):
        return value.name
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        if not math.isfinite(number):
            raise ValueError(f"{where}: {number} cannot be part of a cell's identity")
        return int(number) if number.is_integer() and abs(number) < 2**53 else number
    if isinstance(value, pathlib.PurePath):
        return value.as_posix()
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise ValueError(f"{where}: keys must be strings, got {list(value)}")
        return {key: canonical(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise ValueError(f"{where}: {value!r} ({type(value).__name__}) cannot be part of a cell's identity")


def canonical_json(document: object) -> str:
    """Canonical JSON text: sorted keys, no spaces, no NaN or infinity."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def content_hash(document: object) -> str:
    """Hex sha256 of the canonical JSON of `document`."""
    return hashlib.sha256(canonical_json(document).encode()).hexdigest()


def grid(base: C, axes: Mapping[str | tuple[str, ...], Sequence[Any]]) -> list[C]:
    """All configurations of the product of `axes` around `base`, in order, the last axis fastest.

    Args:
      base: configuration, a dataclass; nested ones are allowed.
      axes: by (dotted) field name its values, or by a tuple of names tuples of values that go together.

    Returns:
      Configurations of the type of `base`, as many as the product of the axes' lengths.

    Raises:
      ValueError: a base that is no dataclass, an unknown field (naming the nearest), a value of the wrong type, an
        empty axis, or a point that does not give one value to every name.

    Example:
      >>> import dataclasses
      >>> @dataclasses.dataclass(frozen=True)
      ... class Study:
      ...     width: int = 8
      ...     seed: int = 0
      >>> [(study.width, study.seed) for study in grid(Study(), {"width": [1, 2], "seed": [0, 1]})]
      [(1, 0), (1, 1), (2, 0), (2, 1)]
    """
    from_mapping(type(base), {}, base=base)
    settings: list[list[tuple[tuple[str, Any], ...]]] = []
    for names, values in axes.items():
        names = (names,) if isinstance(names, str) else tuple(names)
        if isinstance(values, str | bytes) or not list(values):
            raise ValueError(f"axes[{', '.join(names)!r}]: expected a list of values, got {values!r}")
        points = [(value,) if len(names) == 1 else tuple(value) for value in values]
        for point in points:
            if len(point) != len(names):
                raise ValueError(f"axes[{', '.join(names)!r}]: {point!r} does not give {len(names)} values")
        settings.append([tuple(zip(names, point, strict=True)) for point in points])
    configs = []
    for combination in itertools.product(*settings):
        config = base
        for name, value in itertools.chain.from_iterable(combination):
            for part in reversed(name.split(".")):
                value = {part: value}
            config = from_mapping(type(config), value, base=config)
        configs.append(config)
    return configs


def make_cells(
    configs: Iterable[Any],
    *,
    schema_version: int,
    semantics_version: int = 1,
    data_sha256: str | Callable[[Any], str | None] | None = None,
) -> tuple[Cell, ...]:
    """Cells of the configurations, in order; a configuration that occurs again is dropped with a notice.

    Args:
      configs: configurations, such as those of `grid`.
      schema_version: version of the table's schema, part of every hash.
      semantics_version: raised by hand when a change of the code changes results; part of every hash.
      data_sha256: hash of the data behind the results, or a function of the configuration when cells differ in data;
        None where there are no data.

    Returns:
      Distinct cells.

    Raises:
      ValueError: a configuration without a canonical form.
    """
    cells: dict[str, Cell] = {}
    repeated = 0
    for config in configs:
        data = data_sha256(config) if callable(data_sha256) else data_sha256
        identity = {
            "config": canonical(config),
            "schema_version": schema_version,
            "semantics_version": semantics_version,
            "data_sha256": data,
        }
        key = content_hash(identity)
        repeated += key in cells
        cells.setdefault(key, Cell(config, key, identity))
    if repeated:
        logger.warning("%d duplicate cells removed: %d distinct cells remain", repeated, len(cells))
    return tuple(cells.values())


def flat(config: object, prefix: str = "") -> dict[str, Any]:
    """Nested JSON document of a configuration as one level with dotted names."""
    if not isinstance(config, Mapping):
        return {prefix: config}
    parts = (flat(value, f"{prefix}.{key}" if prefix else key) for key, value in config.items())
    return {name: value for part in parts for name, value in part.items()}


def varying(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """For each cell the (dotted) configuration fields that differ somewhere in the sweep: what a listing shows."""
    flats = [flat(cell.identity["config"]) for cell in cells]
    names = list(dict.fromkeys(name for row in flats for name in row))
    shown = [name for name in names if len({canonical_json(row.get(name)) for row in flats}) > 1]
    return [{name: row.get(name) for name in shown} for row in flats]
