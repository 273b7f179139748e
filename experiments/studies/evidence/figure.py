"""The figure of `evidence_check.py`: bias by method, width of the sandwich against temperatures, and coverage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from amortgap.figures import CYCLE, PALETTE, save, style, zero_line
from amortgap.sweep import read_csv
from studies.evidence.study import SCHEMA

GAPS = ("approximation", "amortization", "inference")

Row = dict[str, Any]


def derive(folder: Path, out: Path) -> list[Path]:
    """Write everything that follows from the table in `folder` into `out`; return the paths."""
    return save(evidence_figure(read_csv(folder / "table.csv", SCHEMA).rows), out, "evidence_check")


@style()
def evidence_figure(rows: list[Row]) -> Figure:
    """Return the figure of a table's rows; parts that were not measured leave their panel empty."""
    figure = plt.figure(figsize=(6.75, 6.8), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.25, 1.0)).flat
    bias = above.subplots()
    width, cover = below.subplots(1, 2)
    _bias(bias, _select(rows, "methods", "mean minus exact, nats"))
    _width(width, _select(rows, "sandwich", "mean width, nats"))
    _coverage(cover, [row for row in rows if row["part"] == "coverage" and row["low"] is not None])
    titles = ("(a) bias of log p(x); bars: 2 SE", "(b) width of the sandwich", "(c) coverage of intervals")
    for axes, title in zip((bias, width, cover), titles, strict=True):
        axes.set_title(title)
    return figure


def _select(rows: list[Row], part: str, quantity: str) -> list[Row]:
    return [row for row in rows if row["part"] == part and row["quantity"] == quantity]


def _bias(axes: Axes, found: list[Row]) -> None:
    """One line a method, one marker a model: nats on a scale that is linear within a hundredth."""
    names = list(dict.fromkeys(row["method"] for row in found))
    models = list(dict.fromkeys(row["model"] for row in found))
    for number, (model, (color, marker)) in enumerate(zip(models, CYCLE, strict=False)):
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
    zero_line(axes, upright=True)
    axes.set_xscale("symlog", linthresh=0.01)
    axes.set_xticks(
        [-10, -1, -0.1, -0.01, 0, 0.01, 0.1, 1, 10], ["−10", "−1", "−0.1", "−0.01", "0", "0.01", "0.1", "1", "10"]
    )
    if found:
        ends = [abs(row["value"]) + 2 * (row["standard_error"] or 0) for row in found]
        axes.set_xlim(-2 * max(ends), 2 * max(ends))
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.legend(loc="upper left", bbox_to_anchor=(-0.3, -0.16), ncols=3)
    axes.set_xlabel("estimate minus exact log p(x), mean over data (nats)")
    axes.grid(axis="y", visible=False)


def _width(axes: Axes, steps: list[Row]) -> None:
    steps = sorted(steps, key=_temperatures)
    counts = [_temperatures(row) for row in steps]
    values = [row["value"] for row in steps]
    axes.set_xlabel("temperatures")
    axes.set_ylabel("upper minus lower bound (nats)")
    if not steps:
        return
    axes.errorbar(
        counts, values, [2 * row["standard_error"] for row in steps], fmt="o-", color=PALETTE["ink"], markersize=3.5
    )
    reference = [values[-1] * counts[-1] / count for count in counts]
    axes.plot(counts, reference, "--", color=PALETTE["guide"], label="proportional to 1 / temperatures", zorder=1)
    axes.set(xscale="log", yscale="log")
    axes.xaxis.set_major_locator(FixedLocator(counts))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.legend(loc="lower left")


def _temperatures(row: Row) -> int:
    return int(row["method"].split()[0])


def _coverage(axes: Axes, shares: list[Row]) -> None:
    """Two markers a gap: intervals for the population, and for the mean over exactly the data at hand."""
    axes.axvspan(0.93, 0.97, color=PALETTE["band"], zorder=0)
    axes.axvline(0.95, color=PALETTE["ink"], linewidth=0.7, zorder=1)
    groups = [(model, gap) for model in dict.fromkeys(row["model"] for row in shares) for gap in GAPS]
    kinds = (
        ("interval over data", *CYCLE[0][::-1], "population mean"),
        ("interval over draws", *CYCLE[1][::-1], "mean of the data"),
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
    axes.set_xlabel("coverage (nominal 0.95)")
    axes.grid(axis="y", visible=False)
    if shares:
        axes.set_yticks(range(len(groups)), [f"{model.split(',')[0]}\n{gap}" for model, gap in groups])
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.legend(loc="upper center", bbox_to_anchor=(0.2, -0.2), ncols=2, columnspacing=1.0)
