"""The store of a sweep: one JSON record per cell in a folder; whatever else exists is derived from the records.

    <out>/cells/<hash>.json            the record: configuration, status, rows of the table, provenance
    <out>/arrays/<hash>.safetensors    per-datum arrays of the cell, if any; sha256 in the record, checked at load
    <out>/logs/<hash>.log              what the cell logged, attempt after attempt
    <out>/damaged/                     files that could not be believed, moved aside and computed again
    <out>/manifest.json                who ran what, when, where, with which versions

One file per cell needs no lock: two processes on one cell write equal content and the last rename wins.
A record is whole or absent (`_files.write_atomic`), carries a checksum of itself, and its name is the hash of the
identity inside it, so that a cut, empty, edited or misplaced record is noticed when it is read.
JSON has no NaN: a number that is not finite is stored as null and the record's status is `nonfinite`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import numbers
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from amortgap._internal.files import make_folder, move_aside, remove_leftovers, safe_child, write_atomic
from amortgap.sweep.cells import Cell, content_hash

logger = logging.getLogger(__name__)

Status = Literal["ok", "failed", "nonfinite"]
_KEY = re.compile(r"^[0-9a-f]{64}$")


@dataclasses.dataclass(frozen=True)
class CellResult:
    """What computing one cell gives.

    Attributes:
      rows: table rows (column name -> bool, int, float, str or None).
      arrays: name -> array, stored as safetensors.
      message: kept in the record, e.g. the step at which an optimiser diverged.
    """

    rows: Sequence[Mapping[str, Any]] = ()
    arrays: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    message: str = ""


@dataclasses.dataclass(frozen=True)
class Record:
    """One cell that was tried, as stored.

    Attributes:
      hash: key of the cell.
      config: canonical JSON of the configuration.
      schema_version, semantics_version, data_sha256: as given to `make_cells`.
      status: "ok", "failed", or "nonfinite" where some number was NaN or infinite.
      rows: rows of the table as plain data, numbers that are not finite as None.
      error: why the cell failed, or the message of its result; empty if there is none.
      attempt: how often the cell has been tried, from one on.
      wall_time: seconds, that of a group shared equally among its cells.
      host, device: where it ran.
      versions: package -> version.
      arrays: {"sha256", "bytes"} of the arrays file, or None.
    """

    hash: str
    config: dict[str, Any]
    schema_version: int
    semantics_version: int
    data_sha256: str | None
    status: Status
    rows: list[dict[str, Any]]
    error: str
    attempt: int
    wall_time: float
    host: str
    device: str
    versions: dict[str, Any]
    arrays: dict[str, Any] | None

    @property
    def finished(self) -> bool:
        """Whether the cell has a result; a failed one may be retried."""
        return self.status != "failed"


class DamagedRecord(ValueError):
    """A record or arrays file whose content cannot be believed."""


@dataclasses.dataclass(frozen=True)
class Store:
    """Folder of a sweep; make one with `open_store`.

    Attributes:
      path: the folder.
    """

    path: pathlib.Path

    def record_path(self, key: str) -> pathlib.Path:
        """Path of the record of cell `key`."""
        return self.path / "cells" / f"{_checked(key)}.json"

    def arrays_path(self, key: str) -> pathlib.Path:
        """Path of the arrays of cell `key`."""
        return self.path / "arrays" / f"{_checked(key)}.safetensors"

    def log_path(self, key: str) -> pathlib.Path:
        """Path of the log of cell `key`."""
        return self.path / "logs" / f"{_checked(key)}.log"

    def save(self, record: Record, arrays: bytes | None = None) -> None:
        """Write arrays, then the record, so that a record never points to arrays that are not there.

        Raises OSError naming the file, and the free space if the disk is full.
        """
        if arrays is not None:
            write_atomic(self.arrays_path(record.hash), arrays)
        document = dataclasses.asdict(record)
        document["checksum"] = content_hash(document)
        text = json.dumps(document, allow_nan=False, ensure_ascii=False, indent=1)
        write_atomic(self.record_path(record.hash), text.encode())

    def load(self, key: str) -> Record | None:
        """Record of cell `key`, or None; a damaged one is moved aside with a notice and counts as absent."""
        path = self.record_path(key)
        try:
            record = parse_record(path.read_bytes(), key)
            if record.arrays is not None and not self._arrays_complete(record):
                raise DamagedRecord("its arrays file is missing or has the wrong size")
        except FileNotFoundError:
            return None
        except DamagedRecord as error:
            move_aside(path, self.path / "damaged", str(error))
            return None
        return record

    def _arrays_complete(self, record: Record) -> bool:
        path = self.arrays_path(record.hash)
        return path.is_file() and path.stat().st_size == (record.arrays or {}).get("bytes")

    def records(self, cells: Iterable[Cell] | None = None) -> list[Record]:
        """Records of `cells` in their order (those that exist), or all records of the folder in order of hash."""
        if cells is None:
            paths = sorted((self.path / "cells").glob("*.json"))
            keys = [path.stem for path in paths if _KEY.match(path.stem)]
        else:
            keys = [cell.key for cell in cells]
        return [record for key in keys if (record := self.load(key)) is not None]

    def load_arrays(self, record: Record) -> dict[str, Any]:
        """NumPy arrays of a cell, checked against the sha256 in its record.

        Raises DamagedRecord naming the file after moving it and its record aside: the next run computes the cell again.
        """
        import safetensors.numpy

        if record.arrays is None:
            return {}
        path = self.arrays_path(record.hash)
        try:
            data = path.read_bytes()
            if (found := hashlib.sha256(data).hexdigest()) != record.arrays["sha256"]:
                raise DamagedRecord(f"sha256 is {found}, the record says {record.arrays['sha256']}")
            return safetensors.numpy.load(data)
        except (FileNotFoundError, DamagedRecord, safetensors.SafetensorError) as error:
            for damaged in (path, self.record_path(record.hash)):
                move_aside(damaged, self.path / "damaged", str(error))
            raise DamagedRecord(f"{path}: {error}; run the sweep again to compute this cell again") from error


def open_store(out: str | pathlib.Path, name: str | None = None) -> Store:
    """Store in folder `out`, or in its child `name`; created if needed, and proven to be writable.

    Args:
      out: the folder.
      name: of a folder directly below it; None for `out` itself.

    Returns:
      Store.

    Raises:
      ValueError: a folder that cannot be written (named), or a name that is not a plain folder name.
    """
    path = pathlib.Path(out)
    if name is not None:
        path = safe_child(path, name)
    for folder in (path, *(path / child for child in ("cells", "arrays", "logs"))):
        make_folder(folder)
        remove_leftovers(folder)
    return Store(path.resolve())


def parse_record(data: bytes, key: str) -> Record:
    """Record from the bytes of its file; DamagedRecord with the reason if it is not the whole record of cell `key`."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedRecord(f"not JSON: {error}" if data else "empty") from error
    if not isinstance(document, dict):
        raise DamagedRecord(f"not a record: a JSON {type(document).__name__}")
    checksum = document.pop("checksum", None)
    fields = {field.name for field in dataclasses.fields(Record)}
    if set(document) != fields:
        raise DamagedRecord(f"not a record: fields {sorted(set(document) ^ fields)} are missing or unknown")
    if content_hash(document) != checksum:
        raise DamagedRecord("its checksum does not fit its content")
    record = Record(**document)
    identity = {name: document[name] for name in ("config", "schema_version", "semantics_version", "data_sha256")}
    if record.hash != key or content_hash(identity) != key:
        raise DamagedRecord("its hash does not fit its configuration or its name")
    return record


def plain_row(row: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A row as JSON data, numbers that are not finite replaced by None, and the names of the columns of these.

    Raises ValueError naming the column for a value that is not a scalar.
    """
    plain: dict[str, Any] = {}
    not_finite: list[str] = []
    for name, value in row.items():
        if not isinstance(value, numbers.Number) and getattr(value, "size", None) == 1:
            value = value.item()
        if value is None or isinstance(value, bool | str):
            plain[name] = value
        elif isinstance(value, numbers.Integral):
            plain[name] = int(value)
        elif isinstance(value, numbers.Real):
            number = float(value)
            plain[name] = number if math.isfinite(number) else None
            not_finite += [name] if plain[name] is None else []
        else:
            raise ValueError(f"row column {name!r}: expected a number, a string or None, got {type(value).__name__}")
    return plain, not_finite


def _checked(key: str) -> str:
    if not _KEY.match(key):
        raise ValueError(f"key: {key!r} is not the hash of a cell")
    return key
