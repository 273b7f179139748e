"""The figure of `local_vi.py`: nats below the best mean ELBO against gradients and against time, all methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from amortgap.figures import save, style
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
        Column("low", float, "least value that meets the goal, empty for none"),
        Column("high", float, "largest value that meets the goal, empty for none"),
        Column("met", bool, "whether it is met, empty without a goal or a value"),
    ),
)

# Okabe and Ito's colours with a marker each, so that the methods stay apart without colour.
LOOKS = {
    "natural gradient": ("#0072B2", "o"),
    "fit_local": ("#000000", "P"),
    "tuned Adam": ("#D55E00", "s"),
    "plain Adam": ("#E69F00", "^"),
    "NumPyro plate": ("#009E73", "v"),
    "Python loop": ("#CC79A7", "D"),
    "NumPyro SVI.run": ("#56B4E9", "X"),
}
GAP = "gap to the best, nats"


def derive(folder: Path, out: Path) -> list[Path]:
    """Write everything that follows from the table in `folder` into `out`; return the paths."""
    return save(local_vi_figure(read_columns(folder / "local_vi.csv", SCHEMA.columns).rows), out, "local_vi")


def local_vi_figure(rows: list[dict[str, Any]]) -> Figure:
    """Return the figure of a table's rows; a method that was not measured leaves no line.

    The best run itself, whose gap is zero, has no place on a logarithmic axis and is left out.
    """
    values = {
        (row["method"], row["steps"], row["quantity"]): row["value"] for row in rows if row["part"] == "tolerance"
    }
    with style():
        figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.6), layout="constrained", sharey=True)
        for ax, quantity in zip(axes, ("gradients per point", "milliseconds per point"), strict=True):
            for method, (colour, marker) in LOOKS.items():
                steps = sorted(step for name, step, what in values if name == method and what == GAP)
                points = [(values[method, step, quantity], values[method, step, GAP]) for step in steps]
                points = [point for point in points if point[0] and point[1] and point[1] > 0]
                if points:
                    ax.plot(*zip(*points, strict=True), color=colour, marker=marker, label=method)
            for tolerance in (0.05, 0.01):
                ax.axhline(tolerance, color="#777777", linewidth=0.7, linestyle=":", zorder=1)
            ax.set_xscale("log")
            ax.set_yscale("log")
            ax.set_xlabel(quantity)
        axes[0].set_ylabel("mean ELBO below the best, nats")
        handles, labels = axes[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside right center")
    return figure
