"""The figure of `local_vi.py`: nats below the best mean ELBO against gradients and against time, all methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from figures_table import WITHIN
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from amortgap.figures import CYCLE, PALETTE, save, style
from amortgap.sweep import Column, Schema
from amortgap.sweep.table import read_columns

SCHEMA = Schema(
    version=1,
    columns=(
        Column("part", str, "start-up, rate, tolerance, published, encoder sweep or GPU", key=True),
        Column("method", str, "what was measured", key=True),
        Column("steps", int, "optimiser steps of a run to tolerance, else zero", key=True),
        Column("quantity", str, "what the value is, with its unit; shares and ratios have none", key=True),
        Column("value", float, "the value; empty if it was not reached or not measured"),
        Column("standard_error", float, "of the value over Monte Carlo draws, where it has one"),
        *WITHIN,
    ),
)

# The package's own fit has the colour of local VI; all others are told apart by colour and marker.
NO_RERUNS, DEFAULTS = "fit_local", "fit_local, defaults, reruns included"
LOOKS = {
    "natural gradient": CYCLE[0],
    NO_RERUNS: (PALETTE["local"], "p"),
    "tuned Adam": CYCLE[1],
    "plain Adam": CYCLE[2],
    "NumPyro plate": CYCLE[3],
    "Python loop": CYCLE[4],
    "NumPyro SVI.run": CYCLE[5],
}
NAMES = {NO_RERUNS: "fit_local, no reruns"}
GOALS = (0.05, 0.01)
GAP = "gap to the best, nats"


def derive(folder: Path, out: Path) -> list[Path]:
    """Write everything that follows from the table in `folder` into `out`; return the paths."""
    return save(local_vi_figure(read_columns(folder / "local_vi.csv", SCHEMA.columns).rows), out, "local_vi")


@style()
def local_vi_figure(rows: list[dict[str, Any]]) -> Figure:
    """Return the figure of a table's rows; a method that was not measured leaves no line.

    The best run itself, whose gap is zero, has no place on a logarithmic axis: the line of a method ends before it. The
    default `fit_local` is one run, with the reruns of what had not converged, and is drawn as one marker: on the lower
    edge with an arrow where it is the best one.
    """
    values = {
        (row["method"], row["steps"], row["quantity"]): row["value"] for row in rows if row["part"] == "tolerance"
    }
    figure, axes = plt.subplots(1, 2, figsize=(6.75, 3.9), layout="constrained", sharey=True)
    for ax, quantity in zip(axes, ("gradients per point", "milliseconds per point"), strict=True):
        for method, (colour, marker) in LOOKS.items():
            steps = sorted(step for name, step, what in values if name == method and what == GAP)
            points = [(values[method, step, quantity], values[method, step, GAP]) for step in steps]
            points = [point for point in points if point[0] and point[1] and point[1] > 0]
            if points:
                ax.plot(*zip(*points, strict=True), color=colour, marker=marker, label=NAMES.get(method, method))
        _defaults(ax, values.get((DEFAULTS, 0, quantity)), values.get((DEFAULTS, 0, GAP)))
        for goal in GOALS:
            ax.axhline(goal, color=PALETTE["guide"], linewidth=0.8, linestyle=":", zorder=1)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel(quantity)
    for goal in GOALS:
        axes[1].annotate(
            f"goal: {goal:g} nats",
            (1.0, goal),
            xycoords=("axes fraction", "data"),
            xytext=(0, -2),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=7,
            color=PALETTE["guide"],
        )
    axes[0].set_ylabel("mean ELBO below the best (nats)")
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def _defaults(ax: Axes, cost: float | None, gap: float | None) -> None:
    """Draw the default run, which no choice of steps was made for."""
    if not cost or gap is None:
        return
    look: dict[str, Any] = {"color": PALETTE["local"], "marker": "*", "markersize": 10, "linestyle": "none"}
    if gap > 0:
        ax.plot(cost, gap, label="fit_local, defaults", **look)
        return
    height = 0.07
    ax.plot(cost, height, label="fit_local, defaults: the best", transform=ax.get_xaxis_transform(), **look)
    ax.annotate(
        "",
        (cost, 0.0),
        (cost, height),
        xycoords=ax.get_xaxis_transform(),
        arrowprops={"arrowstyle": "->", "color": PALETTE["local"]},
    )
