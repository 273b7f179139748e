"""Committed tables and sidecars, and the expressions that pages write to take numbers from them."""

from __future__ import annotations

import ast
import csv
import dataclasses
import functools
import json
import operator
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of a CSV file. Calling them keeps the rows whose columns have the given values."""

    source: str
    columns: tuple[str, ...]
    rows: tuple[Mapping[str, str], ...]

    def __call__(self, **where: object) -> Rows:
        """Keep the rows whose columns have these values, as the file writes them; a tuple lists the values allowed."""
        for name in where:
            self._require(name)
        allowed = {name: {str(each) for each in _listed(value)} for name, value in where.items()}
        kept = tuple(row for row in self.rows if all(row[name] in values for name, values in allowed.items()))
        return dataclasses.replace(self, rows=kept)

    def keep(self, mask: np.ndarray) -> Rows:
        """Keep the rows for which a comparison is true."""
        return dataclasses.replace(self, rows=tuple(row for row, kept in zip(self.rows, mask, strict=True) if kept))

    def column(self, name: str) -> np.ndarray:
        """Return a column as numbers, an empty entry as nan, or as text if it holds any."""
        self._require(name)
        if not self.rows:
            raise LookupError(f"no row of {self.source} is left to take the column {name!r} from")
        entries = [row[name] for row in self.rows]
        try:
            return np.array([float(entry) if entry else np.nan for entry in entries])
        except ValueError:
            return np.array(entries)

    def _require(self, name: str) -> None:
        if name not in self.columns:
            raise LookupError(f"{self.source} has no column {name!r}, only {', '.join(self.columns)}")


@functools.cache
def _read(file: Path, source: str) -> Rows:
    with file.open(newline="") as lines:
        reader = csv.DictReader(lines)
        return Rows(source, tuple(reader.fieldnames or ()), tuple(reader))


def tables(folder: Path) -> dict[str, object]:
    """Return the functions that pages may use, reading below a folder of results."""

    def table(path: str, **where: object) -> Rows:
        return _read(folder / path, path)(**where)

    def run(path: str) -> Mapping[str, object]:
        return json.loads((folder / path).read_text())

    return {"table": table, "run": run, **FUNCTIONS}


def count(rows: Rows | np.ndarray) -> int:
    """Return the number of rows, or of the entries of a column that are not empty."""
    if isinstance(rows, Rows):
        return len(rows.rows)
    return int(np.sum(rows != "" if rows.dtype.kind == "U" else ~np.isnan(rows)))


def met(rows: Rows) -> str:
    """Return how many of the requirements of a table are met."""
    return f"{count(rows(met=True))} of {count(rows.column('met'))}"


def has(column: np.ndarray, part: str) -> np.ndarray:
    """Return which entries of a column of text hold a part."""
    return np.char.find(column, part) >= 0


def after(column: np.ndarray, words: str) -> str:
    """Return the word that follows some words in a text, without the punctuation behind it."""
    (text,) = column
    before, found, rest = str(text).partition(words)
    if not found:
        raise LookupError(f"{words!r} is not in {before!r}")
    return rest.split()[0].rstrip(",;:.)")


def minutes(time: float | np.ndarray) -> str:
    """Return a time that is given in seconds in minutes, with a tenth below ten."""
    seconds = float(np.squeeze(time))
    return f"{seconds / 60:.1f}" if seconds < 600 else f"{seconds / 60:.0f}"


def machine(run: dict) -> str:
    """Return the machine of a sidecar in words."""
    cores, name = run["machine"]["cores"], run["machine"]["cpu"].replace("(R)", "").removesuffix("Processor").strip()
    return f"{'one core' if cores == 1 else f'{cores} cores'} of an {name}"


def ran(run: dict) -> str:
    """Return where and how long the run of a sidecar was."""
    seconds = run["seconds"]
    return f"{machine(run)}, " + (f"{seconds:.0f} s" if seconds < 60 else f"{minutes(seconds)} minutes")


def estimate(rows: Rows, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a column and its standard error."""
    return rows.column(name), rows.column(f"{name}_se")


def interval(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Return the column `ours` and the standard error that its interval of 95 % from `low` to `high` implies."""
    return rows.column("ours"), (rows.column("high") - rows.column("low")) / 2 / 1.959964


def code(text: str) -> str:
    """Return a text as code."""
    return f"`{text}`"


def _reduce(function: Callable[[np.ndarray], np.floating]) -> Callable[..., float]:
    """Return a function of the entries of all its arguments, columns or numbers."""
    return lambda *columns: float(function(np.concatenate([np.atleast_1d(column) for column in columns])))


FUNCTIONS: Mapping[str, object] = MappingProxyType(
    {"count": count, "met": met, "has": has, "after": after, "minutes": minutes, "machine": machine, "ran": ran}
    | {"estimate": estimate, "interval": interval, "code": code, "abs": np.abs, "round": np.round}
    | {function.__name__: _reduce(function) for function in (np.mean, np.median, np.min, np.max)}
)
OPERATORS: Mapping[type, Callable[..., object]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
    ast.Invert: operator.invert,
    ast.Lt: operator.lt,
    ast.Gt: operator.gt,
}


def evaluate(node: ast.AST, names: Mapping[str, object]) -> object:
    """Return the value of an expression; nothing but these kinds of expressions is computed."""
    of = functools.partial(evaluate, names=names)
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.Attribute(value=whole, attr=name):
            return _part(of(whole), name)
        case ast.Subscript(value=whole, slice=index):
            return _part(of(whole), of(index))
        case ast.Call(func=function, args=positional, keywords=named):
            return _call(of(function), [of(each) for each in positional], {e.arg: of(e.value) for e in named if e.arg})
        case ast.Tuple(elts=elements):
            return tuple(map(of, elements))
        case ast.UnaryOp(op=sign, operand=operand):
            return OPERATORS[type(sign)](of(operand))
        case ast.BinOp(left=left, op=sign, right=right) | ast.Compare(left=left, ops=[sign], comparators=[right]):
            return OPERATORS[type(sign)](of(left), of(right))
    raise LookupError(f"{ast.unparse(node)!r} is neither a name defined on this page nor an expression of tables")


def _call(function: object, positional: list[object], named: dict[str, object]) -> object:
    if not callable(function):
        raise TypeError(f"{function!r} is no function")
    return function(*positional, **named)


def _part(whole: object, index: object) -> object:
    """Return a column or some rows of a table, or an entry of a sidecar."""
    match whole, index:
        case Rows(), str():
            return whole.column(index)
        case Rows(), np.ndarray():
            return whole.keep(index)
        case dict(), str() if index in whole:
            return whole[index]
        case list(), int():
            return whole[index]
    raise LookupError(f"there is no {index!r} in {list(whole) if isinstance(whole, dict) else whole!r}")


def _listed(value: object) -> Iterable[object]:
    return value if isinstance(value, tuple) else (value,)
