"""The requirements and the figure of `certificate_check.py`, from its table alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import SymmetricalLogLocator

from amortgap.figures import save, style
from amortgap.sweep import Column, Schema, read_csv

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
        share = sum(hits) / max(len(hits), 1)
        found[f"share of certificates within their error, {model}"] = {"value": share, "met": share >= 0.9}
    worst = max((row["true"] for row in rows if row["converged"]), default=0.0)
    found["largest loss of a fit called converged, nats"] = {"value": worst, "met": worst <= 3 * TOLERANCE}
    return found


def certificate_figure(rows: list[dict[str, Any]]) -> Figure:
    """Return estimated against true nats, one panel a model, logarithmic beyond a thousandth; the bar is two errors."""
    names = sorted({row["model"] for row in rows})
    with style():
        figure, axes = plt.subplots(
            1, max(len(names), 1), figsize=(2.7 * max(len(names), 1), 2.9), layout="constrained", squeeze=False
        )
        for ax, name in zip(axes[0], names, strict=False):
            part = [row for row in rows if row["model"] == name and row["estimated"] is not None]
            true, estimated, error = (
                np.array([row[column] for row in part]) for column in ("true", "estimated", "standard_error")
            )
            ax.errorbar(
                true, estimated, 2 * error, fmt="o", markersize=2.5, elinewidth=0.6, color="#0072B2", linestyle="none"
            )
            ends = np.array([0.0, max(true.max(initial=0.0), 2 * TOLERANCE) * 1.5])
            ax.plot(ends, ends, color="#000000", linewidth=0.7)
            for place in (ax.axhline, ax.axvline):
                place(TOLERANCE, color="#777777", linewidth=0.7, linestyle=":")
            for scale, axis in ((ax.set_xscale, ax.xaxis), (ax.set_yscale, ax.yaxis)):
                scale("symlog", linthresh=1e-3)
                axis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=1e-3))
                axis.get_major_locator().set_params(numticks=6)
            ax.set_xlim(-5e-4, 1.2 * ends[1])
            ax.set_ylim(-2e-2, 1.2 * max(ends[1], estimated.max(initial=0.0)))
            ax.set_title(name, fontsize=7)
            ax.set_xlabel("nats missed")
        axes[0][0].set_ylabel("nats missed, estimated")
    return figure
