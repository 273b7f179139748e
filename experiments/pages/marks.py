"""Numbers in README and docs: each that a committed table implies stands in a mark that says how.

    The gap is <!--=mean(wide.amortization_gap):.2f-->0.31<!----> nats.

A mark opens with an expression (`pages.tables`) and, after a colon, Python's format of its value; a tuple is a value
and its standard error, written with ±. It ends at `<!---->`. Neither GitHub nor the site shows comments of HTML, but in
code they are text, and at the start of a line they end the paragraph. A page may name parts of its expressions:

    <!--:
    wide = table('capacity_sweep_long/table.csv', encoder='mlp', capacity=256)
    -->
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pages.tables import evaluate, tables

MARK = re.compile(r"<!--=(?P<expression>.*?)(?::(?P<format>[^:'\"]*?))?-->(?P<text>.*?)<!---->", re.DOTALL)
NAMES = re.compile(r"<!--:\n(?P<names>.*?)-->", re.DOTALL)
OPENS_LINE = re.compile(r"[ >]*(?:[-*+] +|[0-9]+[.)] +)?<!--=")
FAULTS = (LookupError, ValueError, TypeError, ArithmeticError, SyntaxError, OSError)


@dataclasses.dataclass(frozen=True)
class Mark:
    """A marked text of a page, and the text that the tables imply in its place, or why they imply none."""

    line: int
    start: int
    end: int
    text: str
    implied: str | None
    fault: str

    @property
    def holds(self) -> bool:
        """Whether the page says what the tables imply; white space does not matter."""
        return self.implied is not None and self.text.split() == self.implied.split()


def marks(page: str, results: Path) -> list[Mark]:
    """Return the marks of a page; raises ValueError naming the line of a name that cannot be defined."""
    names, found = tables(results), []
    for block in NAMES.finditer(page):
        line, above = 0, page.count("\n", 0, block.start("names"))
        try:
            for statement in ast.parse(block["names"]).body:
                line = statement.lineno
                match statement:
                    case ast.Assign(targets=[ast.Name(id=name)], value=value):
                        names[name] = evaluate(value, names)
                    case _:
                        raise ValueError(f"{ast.unparse(statement)!r} does not name an expression")
        except FAULTS as error:
            raise ValueError(f"{above + (getattr(error, 'lineno', 0) or line)}: {error}") from error
    for match in MARK.finditer(page):
        implied, fault = None, ""
        try:
            expression = ast.parse(match["expression"].strip(), mode="eval").body
            implied = written(evaluate(expression, names), match["format"] or "")
        except FAULTS as error:
            fault = str(error)
        line = page.count("\n", 0, match.start()) + 1
        found.append(Mark(line, *match.span("text"), match["text"], implied, fault))
    return found


def written(value: object, form: str) -> str:
    """Return a value as a page writes it."""
    if isinstance(value, tuple):
        return " ± ".join(written(each, form) for each in value)
    if isinstance(value, np.ndarray):
        if value.size != 1:
            raise ValueError(f"{value.size} rows where a page has room for the number of one")
        value = value.item()
    if not isinstance(value, str | int | float) or value != value:
        raise ValueError(f"{value!r} is neither a number nor text")
    return re.sub(r"e([+-])0", r"e\1", format(value, form))


def faults(path: Path, results: Path) -> Iterator[str]:
    """Yield each difference between a page and the tables, with its line."""
    page = path.read_text()
    if len(MARK.findall(page)) != page.count("<!--="):
        yield f"{path}: a mark has no end"
    for number, line in enumerate(page.splitlines(), start=1):
        if OPENS_LINE.match(line):
            yield f"{path}, line {number}: a mark opens the line, which Markdown then takes for HTML"
    try:
        found = marks(page, results)
    except ValueError as error:
        yield f"{path}, line {error}"
        return
    for mark in found:
        if mark.fault:
            yield f"{path}, line {mark.line}: {mark.fault}"
        elif not mark.holds:
            yield f"{path}, line {mark.line}: the page says {mark.text!r}, the tables {mark.implied!r}"


def renew(path: Path, results: Path) -> None:
    """Write into a page what the tables imply; marks and names with faults stay for `faults` to report."""
    page = path.read_text()
    try:
        found = marks(page, results)
    except ValueError:
        return
    for mark in reversed(found):
        if mark.implied is not None and not mark.holds:
            page = page[: mark.start] + mark.implied + page[mark.end :]
    path.write_text(page)
