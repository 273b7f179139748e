"""The figure of the comparison of remedies, drawn from its table alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator

from amortgap.figures import save, style, zero_line
from amortgap.sweep import read_csv
from studies.remedies.study import SCHEMA

# Okabe and Ito's palette, as in all figures; one colour for each kind of remedy.
KINDS = {
    "baseline": "#000000",
    "family": "#D55E00",
    "encoder": "#0072B2",
    "objective": "#009E73",
    "method": "#CC79A7",
    "bound": "#E69F00",
    "limit": "#777777",
}
COSTS = {
    "parameters": "parameters",
    "training_evaluations": "decoder evaluations in training",
    "test_evaluations": "decoder evaluations per image at test time",
}


def derive(folder: Path, out: Path) -> list[Path]:
    """Write everything that follows from the table in `folder` into `out`; return the paths."""
    with style():
        return save(remedies_figure(read_csv(folder / "table.csv", SCHEMA).rows), out, "remedies")


def name_of(row: dict[str, Any]) -> str:
    """Return how a remedy is called in the figure."""
    return f"{row['remedy']} {row['steps']}" if row["steps"] else row["remedy"]


def averaged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each remedy and split, gaps averaged over seeds."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["remedy"], row["steps"], row["split"]), []).append(row)
    numbers = [column.name for column in SCHEMA.columns if column.type is float]
    return [
        {**members[0], **{name: _mean([member[name] for member in members]) for name in numbers}}
        for members in groups.values()
    ]


def _mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else float("nan")


# Gaps more than so many times the baseline's are cut off: one diverged encoder would hide all others.
_FURTHEST = 2.2
# Costs closer than this share are equal: whole numbers of steps do not spend a budget to the last evaluation.
_EQUAL = 1.05


def front(rows: list[dict[str, Any]]) -> set[str]:
    """Return the names on the Pareto front: no other remedy has a smaller gap at costs none of which is larger."""

    def beaten(row: dict[str, Any], other: dict[str, Any]) -> bool:
        if any(other[cost] > _EQUAL * row[cost] for cost in COSTS) or other["inference_gap"] > row["inference_gap"]:
            return False
        if other["kind"] == "bound":
            # The gap of a bound with several weights is not that of a distribution, and always smaller.
            return False
        cheaper = any(_EQUAL * other[cost] < row[cost] for cost in COSTS)
        return cheaper or other["inference_gap"] < row["inference_gap"]

    return {name_of(row) for row in rows if row["kind"] != "bound" and not any(beaten(row, other) for other in rows)}


def remedies_figure(rows: list[dict[str, Any]]) -> Figure:
    """Return the figure: the split of every gap, and gap against the three costs."""
    # Without a finite gap there is nothing to draw; the table keeps the row.
    rows = [row for row in averaged(rows) if np.isfinite(row["inference_gap"])]
    test = sorted((row for row in rows if row["split"] == "test"), key=lambda row: -row["inference_gap"])
    train = {name_of(row): row for row in rows if row["split"] == "train"}
    best = front(test)
    most = _FURTHEST * next(row["inference_gap"] for row in test if row["kind"] == "baseline")
    figure = plt.figure(figsize=(6.75, 7.2), layout="constrained")
    grid = figure.add_gridspec(3, 2, width_ratios=(1.25, 1))
    _bars(figure.add_subplot(grid[:, 0]), test, train, best, most)
    for index, (cost, label) in enumerate(COSTS.items()):
        _against(figure.add_subplot(grid[index, 1]), test, cost, label, best, most)
    return figure


def _bars(ax: Axes, rows: list[dict[str, Any]], train: dict[str, dict[str, Any]], best: set[str], most: float) -> None:
    places = np.arange(len(rows))
    gaps = np.array([row["inference_gap"] for row in rows])
    # A bound that is not the ELBO of one distribution has no split.
    approximation = np.nan_to_num([row["approximation_gap"] for row in rows])
    colours = [KINDS[row["kind"]] for row in rows]
    ax.barh(places, approximation, color=colours, alpha=0.35)
    ax.barh(places, gaps - approximation, left=approximation, color=colours)
    ax.errorbar(
        gaps, places, xerr=[2 * row["removed_se"] for row in rows], fmt="none", ecolor="#000000", elinewidth=0.6
    )
    ax.plot([train[name_of(row)]["inference_gap"] for row in rows], places, "d", color="#000000", markersize=2.6)
    names = [f"{name_of(row)} *" if name_of(row) in best else name_of(row) for row in rows]
    ax.set_yticks(places, names)
    ax.set_xlabel("inference gap (nats per held-out image)")
    ax.set_title("Gap of every remedy; * on the Pareto front")
    ax.legend(
        handles=[
            Rectangle((0, 0), 1, 1, color="#555555", alpha=0.35, label="approximation"),
            Rectangle((0, 0), 1, 1, color="#555555", label="amortization"),
            Line2D([], [], marker="d", color="#000000", linestyle="", markersize=2.6, label="training images"),
            Line2D([], [], color="#000000", linewidth=0.6, label="2 SE against baseline"),
        ],
        loc="upper right",
    )
    ax.set_xlim(min(0.0, float(np.nanmin(gaps)) - 0.05), min(most, 1.1 * float(np.nanmax(gaps))))
    for place, gap in enumerate(gaps):
        if gap > most:
            # Beyond the axis: the number instead of the end of the bar.
            ax.text(0.98 * most, place, f"{gap:.3g}", ha="right", va="center", color="#FFFFFF", fontsize=6)


def _against(ax: Axes, rows: list[dict[str, Any]], cost: str, label: str, best: set[str], most: float) -> None:
    for row in (row for row in rows if row["inference_gap"] <= most):
        on_front = name_of(row) in best
        ax.errorbar(
            row[cost],
            row["inference_gap"],
            yerr=2 * row["removed_se"],
            fmt="o",
            color=KINDS[row["kind"]],
            markerfacecolor=KINDS[row["kind"]] if on_front else "white",
            markersize=3.6,
            elinewidth=0.5,
        )
    zero_line(ax)
    if cost == "test_evaluations":
        ax.set_xscale("symlog", linthresh=1.0)
        ax.set_xlim(-0.3, 3 * max(row[cost] for row in rows) + 1)
    else:
        ax.set_xscale("log")
        low, high = (pick(row[cost] for row in rows) for pick in (min, max))
        ax.set_xlim(low / 1.5, high * 1.5)
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.minorticks_off()
    ax.set_xlabel(label)
    ax.set_ylabel("inference gap (nats)")
    if cost == "parameters":
        present = [kind for kind in KINDS if any(row["kind"] == kind for row in rows)]
        handles = [Line2D([], [], marker="o", color=KINDS[kind], linestyle="", markersize=3.6) for kind in present]
        ax.legend(handles, present, ncols=2, fontsize=6)
