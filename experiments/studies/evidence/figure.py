"""The figure of `evidence_check.py`: bias by method, width of the sandwich against temperatures, and coverage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from amortgap.figures import save, style
from amortgap.sweep import read_csv
from studies.evidence.study import SCHEMA

# Okabe and Ito's colours with a marker each, so that the models stay apart without colour.
LOOKS = (("#0072B2", "o"), ("#56B4E9", "v"), ("#009E73", "^"), ("#D55E00", "s"), ("#CC79A7", "D"), ("#000000", "P"))
GAPS = ("approximation", "amortization", "inference")

Row = dict[str, Any]


def derive(folder: Path, out: Path) -> list[Path]:
    """Write everything that follows from the table in `folder` into `out`; return the paths."""
    return save(evidence_figure(read_csv(folder / "table.csv", SCHEMA).rows), out, "evidence_check")


def evidence_figure(rows: list[Row]) -> Figure:
    """Return the figure of a table's rows; parts that were not measured leave their panel empty."""
    with style():
        figure, (bias, width, cover) = plt.subplots(
            1, 3, figsize=(10.5, 3.9), layout="constrained", width_ratios=(1.25, 0.9, 0.85)
        )
        _bias(bias, _select(rows, "methods", "mean minus exact, nats"))
        _width(width, _select(rows, "sandwich", "mean width, nats"))
        _coverage(cover, [row for row in rows if row["part"] == "coverage" and row["low"] is not None])
        for axes, letter in zip((bias, width, cover), "abc", strict=True):
            axes.set_title(f"({letter})", loc="left", fontsize=9)
    return figure


def _select(rows: list[Row], part: str, quantity: str) -> list[Row]:
    return [row for row in rows if row["part"] == part and row["quantity"] == quantity]


def _bias(axes: Axes, found: list[Row]) -> None:
    """One line a method, one marker a model: nats on a scale that is linear within a hundredth."""
    names = list(dict.fromkeys(row["method"] for row in found))
    models = list(dict.fromkeys(row["model"] for row in found))
    for number, (model, (color, marker)) in enumerate(zip(models, LOOKS, strict=False)):
        points = [row for row in found if row["model"] == model]
        axes.errorbar(
            [row["value"] for row in points],
            [names.index(row["method"]) + 0.12 * (number - (len(models) - 1) / 2) for row in points],
            xerr=[2 * (row["standard_error"] or 0) for row in points],
            fmt=marker,
            color=color,
            markersize=3.5,
            elinewidth=1,
            label=model,
        )
    axes.axvline(0.0, color="#000000", linewidth=0.7, zorder=1)
    axes.set_xscale("symlog", linthresh=0.01)
    axes.set_xticks(
        [-10, -1, -0.1, -0.01, 0, 0.01, 0.1, 1, 10], ["-10", "-1", "-.1", "-.01", "0", ".01", ".1", "1", "10"]
    )
    if found:
        ends = [abs(row["value"]) + 2 * (row["standard_error"] or 0) for row in found]
        axes.set_xlim(-2 * max(ends), 2 * max(ends))
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.3, -0.17), frameon=False)
    axes.set_xlabel("estimate minus exact log p(x), mean over data (nats)", fontsize=8)
    axes.grid(axis="y", visible=False)


def _width(axes: Axes, steps: list[Row]) -> None:
    steps = sorted(steps, key=_temperatures)
    counts = [_temperatures(row) for row in steps]
    values = [row["value"] for row in steps]
    axes.set_xlabel("temperatures", fontsize=8)
    axes.set_ylabel("upper minus lower bound (nats)", fontsize=8)
    if not steps:
        return
    axes.errorbar(
        counts, values, [2 * row["standard_error"] for row in steps], fmt="o-", color="#0072B2", markersize=3.5
    )
    reference = [values[-1] * counts[-1] / count for count in counts]
    axes.plot(counts, reference, "--", color="#777777", label="proportional to 1 / temperatures", zorder=1)
    axes.set(xscale="log", yscale="log")
    axes.xaxis.set_major_locator(FixedLocator(counts))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.legend(fontsize=7, frameon=False, loc="lower left")


def _temperatures(row: Row) -> int:
    return int(row["method"].split()[0])


def _coverage(axes: Axes, shares: list[Row]) -> None:
    """Two markers a gap: intervals for the population, and for the mean over exactly the data at hand."""
    axes.axvspan(0.93, 0.97, color="#E4E4E4", zorder=0)
    axes.axvline(0.95, color="#000000", linewidth=0.7, zorder=1)
    groups = [(model, gap) for model in dict.fromkeys(row["model"] for row in shares) for gap in GAPS]
    kinds = (
        ("interval over data", "o", "#0072B2", "population mean"),
        ("interval over draws", "s", "#D55E00", "mean of the data"),
    )
    for offset, (kind, marker, color, label) in zip((-0.13, 0.13), kinds, strict=True):
        points = [row for row in shares if row["method"] == kind]
        axes.errorbar(
            [row["value"] for row in points],
            [groups.index((row["model"], row["quantity"])) + offset for row in points],
            xerr=[2 * row["standard_error"] for row in points],
            fmt=marker,
            color=color,
            markersize=3.5,
            elinewidth=1,
            label=label,
        )
    axes.set_xlabel("coverage (nominal 0.95)", fontsize=8)
    axes.grid(axis="y", visible=False)
    if shares:
        axes.set_yticks(range(len(groups)), [f"{model.split(',')[0]}\n{gap}" for model, gap in groups], fontsize=7)
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.3, -0.17), frameon=False)
