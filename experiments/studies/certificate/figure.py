"""The requirements and the figure of `certificate_check.py`, from its table alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from amortgap.figures import PALETTE, save, style
from amortgap.sweep import Column, Schema, read_csv
from studies.requirements import Requirement

SCHEMA = Schema(
    version=1,
    columns=(
        Column("model", str, "model and family", key=True),
        Column("steps", int, "optimiser steps after the warm-up, reruns left out", key=True),
        Column("datum", int, "number of the datum", key=True),
        Column("true", float, "nats below the best ELBO of the family, in closed form"),
        Column("estimated", float, "LocalFit.suboptimality, nats; empty where there is no certificate"),
        Column("standard_error", float, "its stated standard error"),
        Column("converged", bool, "LocalFit.converged"),
    ),
)
TOLERANCE = 0.01
# Its families are fitted by Adam, whose gain between two horizons is shown and claims nothing.
BY_ADAM = "factor analysis, d = 5, full rank by Adam"


def derive(folder: Path, out: Path) -> list[Path]:
    """Write everything that follows from the table in `folder` into `out`; return the paths."""
    return save(certificate_figure(read_csv(folder / "table.csv", SCHEMA).rows), out, "certificate_check")


def verdicts(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return what is required of the table, with values and whether they are met."""
    found = {}
    for model in sorted({row["model"] for row in rows} - {BY_ADAM}):
        near = [row for row in rows if row["model"] == model and row["true"] < 1 and row["estimated"] is not None]
        # The last term is the rounding of a mean of log densities in 32 bits.
        hits = [
            abs(row["estimated"] - row["true"]) <= 2 * row["standard_error"] + 0.1 * row["true"] + 1e-4 for row in near
        ]
        share, required = sum(hits) / max(len(hits), 1), Requirement(low=0.9)
        found[f"share of certificates within their error, {model}"] = {"value": share, "met": required.met(share)}
    worst = max((row["true"] for row in rows if row["converged"]), default=0.0)
    required = Requirement(high=3 * TOLERANCE)
    found["largest loss of a fit called converged, nats"] = {"value": worst, "met": required.met(worst)}
    return found


@style()
def certificate_figure(rows: list[dict[str, Any]]) -> Figure:
    """Return estimated against true nats, one panel a model, logarithmic beyond a thousandth; the bar is two errors."""
    names = sorted({row["model"] for row in rows})
    lines = max(-(-len(names) // 2), 1)
    figure, axes = plt.subplots(lines, 2, figsize=(6.75, 2.9 * lines), layout="constrained", squeeze=False)
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    for ax, name in zip(axes.flat, names, strict=False):
        part = [row for row in rows if row["model"] == name and row["estimated"] is not None]
        true, estimated, error = (
            np.array([row[column] for row in part]) for column in ("true", "estimated", "standard_error")
        )
        ax.errorbar(
            true, estimated, 2 * error, fmt="o", markersize=2.5, elinewidth=0.6, color=PALETTE["local"], alpha=0.7
        )
        end = 1.5 * max(true.max(initial=0.0), 2 * TOLERANCE)
        ax.plot([0, end], [0, end], color=PALETTE["ink"], linewidth=0.7, zorder=3)
        for place in (ax.axhline, ax.axvline):
            place(TOLERANCE, color=PALETTE["guide"], linewidth=0.8, linestyle=":")
        _scales(ax, end, max(end, (estimated + 2 * error).max(initial=0.0)), (estimated - 2 * error).min(initial=0.0))
        ax.set_title(re.sub(r"10\^(\d+)", r"$10^{\1}$", name))
    for ax in axes[-1]:
        ax.set_xlabel("missed (nats)")
    for ax in axes[:, 0]:
        ax.set_ylabel("missed, estimated (nats)")
    axes[0][0].annotate(
        "tolerance",
        (1.0, TOLERANCE),
        xycoords=("axes fraction", "data"),
        xytext=(0, 2),
        textcoords="offset points",
        ha="right",
        fontsize=7,
        color=PALETTE["guide"],
    )
    return figure


def _scales(ax: Axes, right: float, top: float, low: float) -> None:
    """Scale both axes alike, linear within a thousandth, with a label at every decade that leaves room for it."""
    linear = 1e-3
    decades = np.log10(max(right, top) / linear)
    powers = range(-3, int(np.floor(np.log10(max(right, top)))) + 1, 1 if decades <= 4 else 2)
    above = [10.0**power for power in powers]
    for scale, axis in ((ax.set_xscale, ax.xaxis), (ax.set_yscale, ax.yaxis)):
        scale("symlog", linthresh=linear)
        below = [-value for value in above if value <= -low] if axis is ax.yaxis else []
        axis.set_ticks([*below, 0.0, *above])
        axis.set_minor_locator(NullLocator())
    ax.set_xlim(-3e-4, 1.2 * right)
    ax.set_ylim(min(1.2 * low, -3e-4), 1.2 * top)
