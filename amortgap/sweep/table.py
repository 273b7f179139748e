"""The table of a sweep: a declared schema, filled from records alone, so that it can be rebuilt at any time.

    SCHEMA = Schema(version=1, columns=(Column("width", int, "hidden units", key=True), Column("gap", float, "nats")))
    write_table(folder / "table.csv", build_table(store.records(cells), SCHEMA))

The key columns say what a row is about. Rows are ordered by them, so the table does not depend on the order in which
cells ran, and two rows with the same key are refused: they come from cells that differ in something the table hides.
`cell` (the hash) and `status` are put before the declared columns. Floats have six significant digits; the records keep
all of them.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from amortgap._internal.files import write_atomic
from amortgap.sweep.config import nearest
from amortgap.sweep.records import Record

Scalar = bool | int | float | str | None
_TYPES = (bool, int, float, str)


@dataclasses.dataclass(frozen=True)
class Column:
    """One column: name, type (bool, int, float or str), one line on its meaning with its unit, part of the key or not.

    An empty (None) value is always allowed outside the key: not applicable, or not finite.

    Attributes:
      name: of the column.
      type: bool, int, float or str.
      meaning: one line, with the unit.
      key: whether it is part of what a row is about.
    """

    name: str
    type: type
    meaning: str
    key: bool = False


OWN = (
    Column("cell", str, "hash of the cell the row comes from"),
    Column("status", str, "ok, or nonfinite: some number was NaN or infinite"),
)
"""The first columns of every table."""


@dataclasses.dataclass(frozen=True)
class Schema:
    """Ordered columns of a table and the version of their meaning, raised when a column changes.

    Attributes:
      version: of the columns' meaning.
      columns: in the order of the table, without `cell` and `status`.

    Raises:
      ValueError: a repeated or reserved name, a type that is not a scalar, or a missing meaning.
    """

    version: int
    columns: tuple[Column, ...]

    def __post_init__(self) -> None:
        seen = {column.name for column in OWN}
        for column in self.columns:
            if column.name in seen:
                raise ValueError(f"columns: {column.name!r} occurs twice or is reserved")
            if column.type not in _TYPES:
                raise ValueError(f"columns: {column.name!r} has type {column.type!r}, expected one of {_TYPES}")
            if not column.meaning.strip():
                raise ValueError(f"columns: {column.name!r} has no meaning")
            seen.add(column.name)

    @property
    def names(self) -> tuple[str, ...]:
        """Declared column names, in order."""
        return tuple(column.name for column in self.columns)


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows in declared order of columns, `cell` and `status` first; what `write_table` writes and figures read.

    Attributes:
      columns: all of them, in order.
      rows: column name -> value, one dict for each row.
    """

    columns: tuple[Column, ...]
    rows: list[dict[str, Any]]


def check_row(row: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    """A row of plain values (`plain_row`) in declared order; an int in a float column becomes a float.

    Raises ValueError naming the column that is unknown (with the nearest name), missing or of the wrong type.
    """
    for name in row:
        if name not in schema.names:
            raise ValueError(f"row: unknown column {name!r}, {nearest(name, schema.names)}")
    if missing := [name for name in schema.names if name not in row]:
        raise ValueError(f"row: missing columns {missing}")
    return {column.name: _typed(row[column.name], column) for column in schema.columns}


def _typed(value: Scalar, column: Column) -> Scalar:
    if value is None and not column.key:
        return None
    if column.type is float and type(value) is int:
        return float(value)
    if type(value) is not column.type:
        raise ValueError(
            f"row: column {column.name!r} expects {column.type.__name__}, got {value!r} ({type(value).__name__})"
        )
    return value


def build_table(records: Iterable[Record], schema: Schema, *, mixed: bool = False) -> Table:
    """Table of the finished records, ordered by the key columns; failed cells have no row.

    Args:
      records: such as `store.records(cells)`.
      schema: the declared columns.
      mixed: allow records of several versions and rows of the same key.

    Returns:
      Table with the columns `cell`, `status` and those of the schema.

    Raises:
      ValueError: records made under different schema or semantics versions or another schema version, or two rows of
        the same key, unless `mixed` is true; rows that do not fit the schema.
    """
    records = [record for record in records if record.finished]
    if not mixed:
        _refuse_mixture(records, schema)
    keys = [column.name for column in schema.columns if column.key]
    rows: list[dict[str, Any]] = []
    owner: dict[tuple[Any, ...], str] = {}
    for record in records:
        for raw in record.rows:
            checked = {name: six_digits(value) for name, value in check_row(raw, schema).items()}
            row = {"cell": record.hash, "status": record.status, **checked}
            about = tuple(row[name] for name in keys)
            if keys and not mixed and about in owner:
                raise ValueError(
                    f"cells {owner[about][:12]} and {record.hash[:12]} both have a row for "
                    f"{dict(zip(keys, about, strict=True))}: they differ in a field that is no key column; "
                    "take the records of one sweep only (store.records(cells)) or pass mixed=True"
                )
            owner[about] = record.hash
            rows.append(row)
    rows.sort(key=lambda row: (*(row[name] for name in keys), row["cell"]))
    return Table(OWN + schema.columns, rows)


def _refuse_mixture(records: Sequence[Record], schema: Schema) -> None:
    found = {(record.schema_version, record.semantics_version) for record in records}
    if len(found) > 1 or any(version != schema.version for version, _ in found):
        raise ValueError(
            f"records of (schema, semantics) versions {sorted(found)} do not make one table of schema version "
            f"{schema.version}: take the records of one sweep only (store.records(cells)) or pass mixed=True"
        )


def six_digits(value: Scalar) -> Scalar:
    """A float to six significant digits, which another processor's rounding leaves alone; anything else as it is."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def csv_text(table: Table) -> str:
    """The table as CSV: a header, then one line per row; None is empty, floats have six significant digits."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [column.name for column in table.columns], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: six_digits(value) for name, value in row.items()} for row in table.rows)
    return out.getvalue()


def write_table(path: str | pathlib.Path, table: Table) -> list[pathlib.Path]:
    """Write the table atomically as CSV at `path`, and beside it as Parquet if pyarrow is installed.

    Args:
      path: of the CSV file, in an existing folder.
      table: what to write.

    Returns:
      The paths written, first the CSV file.

    Raises:
      OSError: a file cannot be written; the message names it.
    """
    path = pathlib.Path(path)
    write_atomic(path, csv_text(table).encode())
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return [path]
    arrow = {bool: pyarrow.bool_(), int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string()}
    schema = pyarrow.schema(
        [pyarrow.field(c.name, arrow[c.type], metadata={"meaning": c.meaning}) for c in table.columns]
    )
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table.rows, schema=schema), sink)
    parquet = path.with_suffix(".parquet")
    write_atomic(parquet, sink.getvalue().to_pybytes())
    return [path, parquet]


def read_csv(path: str | pathlib.Path, schema: Schema) -> Table:
    """The table in a CSV file written by `write_table`, with declared types.

    Args:
      path: of the CSV file.
      schema: the declared columns.

    Returns:
      Table with the columns `cell`, `status` and those of the schema.

    Raises:
      ValueError: a header that is not that of the schema, or a number that does not parse; the message names the file.
      OSError: the file cannot be read.
    """
    return read_columns(path, OWN + schema.columns)


def read_columns(path: str | pathlib.Path, columns: Sequence[Column]) -> Table:
    """The table in a CSV file with exactly these columns, such as `csv_text` writes, with declared types.

    Raises ValueError naming file, line and column if its header is another, a line has too few or too many values, or
    one does not parse.
    """
    columns = tuple(columns)
    with pathlib.Path(path).open(newline="") as file:
        reader = csv.DictReader(file)
        declared = [column.name for column in columns]
        if reader.fieldnames != declared:
            raise ValueError(f"{path}: columns {reader.fieldnames} are not those of the schema, {declared}")
        rows = []
        for line in reader:
            # DictReader gathers what is too much under the name None, and gives None for what is missing.
            if None in line or None in line.values():
                raise ValueError(f"{path}, line {reader.line_num}: not {len(columns)} values")
            try:
                rows.append({column.name: _parsed(line[column.name], column) for column in columns})
            except ValueError as error:
                raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
    return Table(columns, rows)


_READ: dict[type, Callable[[str], Scalar]] = {
    bool: {"True": True, "False": False}.__getitem__,
    int: int,
    float: float,
    str: str,
}


def _parsed(text: str, column: Column) -> Scalar:
    if text == "" and not column.key:
        return None
    try:
        return _READ[column.type](text)
    except (KeyError, ValueError) as error:
        raise ValueError(f"column {column.name} holds {column.type.__name__}, got {text!r}") from error
