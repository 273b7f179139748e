"""The figure of the comparison of remedies, drawn from its table alone."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator

from amortgap.figures import CYCLE, PALETTE, save, style, zero_line
from amortgap.sweep import read_csv
from studies.remedies.study import SCHEMA

# One colour and one marker for each kind of remedy; what has a role in all figures has its colour here.
KINDS = {
    "baseline": (PALETTE["ink"], "*"),
    "encoder": (PALETTE["encoder"], "o"),
    "family": CYCLE[1],
    "objective": CYCLE[2],
    "method": CYCLE[3],
    "bound": CYCLE[4],
    "limit": (PALETTE["local"], "v"),
}
COSTS = {
    "parameters": "parameters",
    "training_evaluations": "decoder evaluations in training",
    "test_evaluations": "decoder evaluations per image at test time",
}


def derive(folder: Path, out: Path) -> list[Path]:
    """Write everything that follows from the table in `folder` into `out`; return the paths."""
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


@style()
def remedies_figure(rows: list[dict[str, Any]]) -> Figure:
    """Return the figure: the split of every gap, and gap against those costs in which remedies differ."""
    rows = averaged(rows)
    found = sorted((row for row in rows if row["split"] == "test"), key=lambda row: -row["inference_gap"])
    test = [row for row in found if np.isfinite(row["inference_gap"])]
    # What has no finite gap keeps a row below all others.
    diverged = [row for row in found if not np.isfinite(row["inference_gap"])]
    train = {name_of(row): row for row in rows if row["split"] == "train"}
    best = front(test)
    most = _FURTHEST * next(row["inference_gap"] for row in test if row["kind"] == "baseline")
    # Two values are no axis.
    costs = [cost for cost in COSTS if _levels([row[cost] for row in test]) > 2] or list(COSTS)[:1]
    figure = plt.figure(figsize=(6.75, 7.6), layout="constrained")
    grid = figure.add_gridspec(len(costs), 2, width_ratios=(1.15, 1))
    _bars(figure.add_subplot(grid[:, 0]), diverged, test, train, best, most)
    for index, cost in enumerate(costs):
        _against(figure.add_subplot(grid[index, 1]), test, cost, best, most)
    _legends(figure, {row["kind"] for row in found}, any(row["kind"] == "bound" for row in test))
    return figure


def _levels(costs: list[float]) -> int:
    """Return how many costs there are, equal ones counted once."""
    ordered = sorted(costs)
    return 1 + sum(high > _EQUAL * low for low, high in pairwise(ordered))


def _bars(
    ax: Axes,
    diverged: list[dict[str, Any]],
    rows: list[dict[str, Any]],
    train: dict[str, dict[str, Any]],
    best: set[str],
    most: float,
) -> None:
    places = np.arange(len(rows))
    gaps = np.array([row["inference_gap"] for row in rows])
    # A bound that is not the ELBO of one distribution has no split.
    approximation = np.nan_to_num([row["approximation_gap"] for row in rows])
    colours = [PALETTE["unsplit" if row["kind"] == "bound" else "amortization"] for row in rows]
    ax.barh(places, approximation, color=PALETTE["approximation"])
    ax.barh(places, gaps - approximation, left=approximation, color=colours)
    ax.errorbar(
        gaps, places, xerr=[2 * row["removed_se"] for row in rows], fmt="none", ecolor=PALETTE["ink"], elinewidth=0.7
    )
    known = [train[name_of(row)]["inference_gap"] if name_of(row) in train else np.nan for row in rows]
    ax.plot(known, places, "d", color=PALETTE["ink"], markersize=2.8)
    right = min(most, 1.1 * float(np.nanmax(gaps)))
    ax.set_xlim(min(0.0, float(np.nanmin(gaps)) - 0.02 * right), right)
    for place, gap in enumerate(gaps):
        if gap > most:
            # Beyond the axis: the number instead of the end of the bar.
            number = f"{gap:,.3g}" if gap < 1000 else f"{gap:,.0f}"
            ax.text(right, place, f"{number} →", ha="right", va="center", fontsize=7)
    below = -1 - np.arange(len(diverged))
    for place in below:
        ax.text(0.0, float(place), " diverged: no finite gap", va="center", fontsize=7, style="italic")
    for place, row in zip([*places, *below], [*rows, *diverged], strict=True):
        colour, marker = KINDS[row["kind"]]
        ax.plot(-0.035, place, marker, color=colour, markersize=4.5, transform=ax.get_yaxis_transform(), clip_on=False)
    budget = next(row["training_evaluations"] for row in rows if row["kind"] == "baseline")
    names = [_label(row, best, row["training_evaluations"] / budget) for row in [*rows, *diverged]]
    ax.set_yticks([*places, *below], names, fontsize=7)
    ax.set_ylim(-len(diverged) - 0.7, len(rows) - 0.3)
    ax.tick_params(axis="y", length=0, pad=12)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("inference gap (nats per held-out image)")
    ax.set_title("gap of every remedy")


def _label(row: dict[str, Any], best: set[str], budget: float) -> str:
    dear = f" ({budget:.0f} x)" if budget > 1.5 else ""
    return f"{name_of(row)}{dear}{' *' if name_of(row) in best else ''}"


def _against(ax: Axes, rows: list[dict[str, Any]], cost: str, best: set[str], most: float) -> None:
    beyond = [row for row in rows if row["inference_gap"] > most]
    for row in (row for row in rows if row["inference_gap"] <= most):
        colour, marker = KINDS[row["kind"]]
        ax.errorbar(
            row[cost],
            row["inference_gap"],
            yerr=2 * row["removed_se"],
            fmt=marker,
            color=colour,
            markerfacecolor=colour if name_of(row) in best else PALETTE["paper"],
            markersize=6 if row["kind"] == "baseline" else 4,
            elinewidth=0.5,
            zorder=3 if row["kind"] in ("baseline", "limit") else 2,
        )
    if beyond and cost == "parameters":
        ax.set_title("beyond the axis: " + ", ".join(name_of(row) for row in beyond), fontsize=7.5)
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
    ax.set_xlabel(COSTS[cost])
    ax.set_ylabel("inference gap (nats)")


def _legends(figure: Figure, kinds: set[str], unsplit: bool) -> None:
    """Draw both legends below all panels, where no data are."""
    bars = [("approximation", "approximation gap"), ("amortization", "amortization gap")]
    bars += [("unsplit", "bound: not split")] if unsplit else []
    handles: list[Any] = [Rectangle((0, 0), 1, 1, color=PALETTE[name], label=label) for name, label in bars]
    look: dict[str, Any] = {"color": PALETTE["ink"], "linestyle": ""}
    handles += [
        Line2D([], [], marker="d", markersize=2.8, label="training images", **look),
        Line2D([], [], color=PALETTE["ink"], linewidth=0.7, label="2 SE against baseline"),
        Line2D([], [], marker="o", markersize=4, label="filled, *: on the Pareto front", **look),
        Line2D([], [], marker="o", markersize=4, markerfacecolor="none", label="hollow: behind it", **look),
    ]
    handles += [
        Line2D([], [], color=colour, marker=marker, linestyle="", markersize=4.5, label=kind)
        for kind, (colour, marker) in KINDS.items()
        if kind in kinds
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
