"""The figures and the claims of `when_and_why.py`, from its table alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from amortgap.figures import CYCLE, PALETTE, save, style, zero_line
from amortgap.sweep import read_csv, write_atomic
from amortgap.sweep.table import Table, csv_text
from studies.when_and_why.claims import CLAIMS, claims
from studies.when_and_why.study import SCHEMA

COLOURS = {"A-VI, default": PALETTE["encoder"], "A-VI, published": PALETTE["published"]}
NAMES = {"A-VI, default": "tanh, Adam and L-BFGS", "A-VI, published": "ReLU, constant Adam"}
REFERENCES = {"F-VI": PALETTE["local"], "Const": PALETTE["constant"]}
COSTS = {"seconds": "seconds", "visits": "bounds of single data, with gradient"}
PARTS = {
    "nonlinear": "nonlinear model",
    "saw, 1 input": "saw series, $x_n$",
    "saw, 2 inputs": "saw series, $x_{n-1}, x_n$",
}
STRUCTURES = {
    "joint diagonal": (PALETTE["mean_field"], "o"),
    "joint block": CYCLE[1],
    "branch": (PALETTE["local"], "^"),
    "amortized branch": (PALETTE["encoder"], "v"),
}


def derive(folder: Path, out: Path) -> list[Path]:
    """Write everything that follows from the table in `folder` into `out`; return the paths."""
    rows = read_csv(folder / "table.csv", SCHEMA).rows
    write_atomic(out / "claims.csv", csv_text(Table(CLAIMS, claims(rows))).encode())
    figures = {"when_and_why": results_figure(rows), "paths": paths_figure(rows)}
    return [out / "claims.csv", *(path for name, figure in figures.items() for path in save(figure, out, name))]


def _pick(rows: list[dict[str, Any]], **where: Any) -> list[dict[str, Any]]:
    return [row for row in rows if all(row[name] == value for name, value in where.items())]


@style()
def results_figure(rows: list[dict[str, Any]]) -> Figure:
    """Return final gap against width with the optimum as zero line, gap against window and N, and time to converge."""
    figure, axes = plt.subplots(2, 3, figsize=(6.75, 5.3), layout="constrained")
    for ax, (part, name) in zip(axes[0], PARTS.items(), strict=True):
        _gaps(ax, _pick(rows, part=part))
        ax.set_title(name)
    _seconds(axes[1, 0], _pick(rows, part="nonlinear", quantity="seconds to 1 %"))
    _windows(axes[1, 1], _pick(rows, part="hmm", quantity="gap, nats"))
    _structures(axes[1, 2], _pick(rows, part="regression"))
    marks = [Line2D([], [], color=COLOURS[m], marker="o", markersize=3, label=f"A-VI: {NAMES[m]}") for m in COLOURS]
    marks.append(
        Line2D([], [], color=PALETTE["guide"], marker="x", linestyle="none", markersize=4, label="dead or diverged")
    )
    figure.legend(handles=marks, loc="outside lower center", ncols=3)
    return figure


def _gaps(ax: Axes, rows: list[dict[str, Any]]) -> None:
    for index, (method, colour) in enumerate(COLOURS.items()):
        own = _pick(rows, method=method)
        dead = {(row["size"], row["seed"]) for row in _pick(own, quantity="dead or diverged") if row["value"]}
        shift = 1.06 if index else 1 / 1.06
        for row in _pick(own, quantity="gap, nats"):
            bad = (row["size"], row["seed"]) in dead
            # A diverged seed has no gap: it is drawn at the upper edge.
            height = row["value"] if row["value"] is not None else 1.0
            where = ax.transData if row["value"] is not None else ax.get_xaxis_transform()
            ax.plot(
                shift * row["size"],
                height,
                "x" if bad else "o",
                color=colour,
                alpha=0.6,
                markersize=4 if bad else 2.5,
                transform=where,
                clip_on=False,
                linestyle="none",
            )
        middle = sorted(
            (row["size"], row["value"]) for row in _pick(own, quantity="median gap, nats") if row["value"] is not None
        )
        if middle:
            ax.plot(*zip(*middle, strict=True), color=colour)
    zero_line(ax)
    ax.set_xscale("log", base=2)
    _gap_axis(ax)
    ax.set_xlabel("width of the encoder")


def _gap_axis(ax: Axes) -> None:
    ax.set_yscale("symlog", linthresh=0.1)
    # No more room below zero than the values need.
    heights = np.concatenate([np.zeros(1), *(np.asarray(line.get_ydata(), float) for line in ax.get_lines())])
    ax.set_ylim(bottom=min(-0.05, 1.5 * float(np.nanmin(heights))))
    ax.set_ylabel("gap to F-VI (nats)")


def _seconds(ax: Axes, rows: list[dict[str, Any]]) -> None:
    for index, (method, colour) in enumerate(COLOURS.items()):
        for row in _pick(rows, method=method):
            shift = 1.08 if index else 1 / 1.08
            if row["value"] is None:
                ax.plot(
                    shift * row["size"],
                    1.0,
                    "x",
                    color=colour,
                    alpha=0.5,
                    transform=ax.get_xaxis_transform(),
                    clip_on=False,
                )
            else:
                ax.plot(shift * row["size"], row["value"], "o", color=colour, alpha=0.5, markersize=2.5)
    free = _pick(rows, method="F-VI, Adam")
    if free and free[0]["value"] is not None:
        ax.axhline(free[0]["value"], color=REFERENCES["F-VI"], linewidth=1.2, label="F-VI by Adam")
        _legend_below(ax)
    ax.set_xscale("log", base=2)
    if any(row["value"] is not None for row in rows):
        ax.set_yscale("log")
    ax.set_xlabel("width of the encoder")
    ax.set_ylabel("time to 1 % (s)")
    ax.set_title("nonlinear model (x: never)")


def _legend_below(ax: Axes, ncols: int = 1) -> None:
    ax.legend(loc="upper center", bbox_to_anchor=(0.4, -0.24), ncols=ncols, columnspacing=1.0, handletextpad=0.4)


def _windows(ax: Axes, rows: list[dict[str, Any]]) -> None:
    for method, mark, colour in (("exact", "-", PALETTE["exact"]), ("trained", "o", PALETTE["encoder"])):
        points = sorted((row["size"], row["value"]) for row in _pick(rows, method=method))
        if points:
            ax.plot(*zip(*points, strict=True), mark, color=colour, markersize=3.5, label=method)
    ax.set_yscale("log")
    ax.set_xlabel("observations on either side")
    ax.set_ylabel("gap to F-VI (nats)")
    ax.set_title("hidden Markov series")
    if ax.get_lines():
        _legend_below(ax, 2)


def _structures(ax: Axes, rows: list[dict[str, Any]]) -> None:
    linear = 1e-4
    for method, (colour, marker) in STRUCTURES.items():
        for what, mark in (("exact gap to the evidence, nats", ""), ("gap to the evidence, nats", marker)):
            found = _pick(rows, method=method, quantity=what)
            points = sorted((row["num_data"], row["value"] / row["num_data"]) for row in found)
            if points:
                # Hollow, so that what lies on the same place is seen.
                size = 6 if method == "branch" else 4
                ax.plot(
                    *zip(*points, strict=True),
                    color=colour,
                    linestyle="none" if mark else "-",
                    marker=mark,
                    markersize=size,
                    markerfacecolor="none",
                    label=method if mark else None,
                )
    zero_line(ax)
    ax.set_xscale("log")
    ax.set_yscale("symlog", linthresh=linear)
    ax.minorticks_off()
    heights = [float(y) for line in ax.get_lines() for y in np.asarray(line.get_ydata(), float)]
    ax.set_ylim(min(-0.4 * linear, 1.5 * min(heights)), 2.5 * max([*heights, linear]))
    ax.set_xlabel("groups")
    ax.set_ylabel("gap (nats per group)")
    ax.set_title("regression (lines: exact)")
    if rows:
        _legend_below(ax, 2)


@style()
def paths_figure(rows: list[dict[str, Any]]) -> Figure:
    """Return the paths of the first seed, for every width and recipe, against seconds and against evaluations."""
    figure, axes = plt.subplots(4, 2, figsize=(6.75, 7.8), layout="constrained", sharey="row")
    for line, (part, name) in zip(axes[:3], PARTS.items(), strict=True):
        paths = _pick(rows, part=part, quantity="path, nats", seed=0)
        for ax, cost in zip(line, COSTS, strict=True):
            _paths(ax, paths, cost)
            _gap_axis(ax)
        line[0].set_title(name)
        line[1].set_ylabel("")
    paths = _pick(rows, part="image", quantity="path, nats", seed=0)
    for ax, cost in zip(axes[3], COSTS, strict=True):
        _paths(ax, paths, cost, unit=1e6)
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes[3, 0].set_ylabel("ELBO of all data ($10^6$ nats)")
    widths = ", ".join(str(width) for width in sorted({row["size"] for row in paths if row["size"] > 0}))
    axes[3, 0].set_title(f"images, encoders of width {widths} by Adam" if widths else "images")
    for ax, cost in zip(axes[3], COSTS.values(), strict=True):
        ax.set_xlabel(cost)
    lines = [Line2D([], [], color=COLOURS[m], label=f"A-VI: {NAMES[m]}; the wider, the darker") for m in COLOURS]
    lines += [Line2D([], [], color=colour, label=f"{name} by Adam") for name, colour in REFERENCES.items()]
    figure.legend(handles=lines, loc="outside lower center", ncols=2)
    return figure


def _paths(ax: Axes, rows: list[dict[str, Any]], cost: str, *, unit: float = 1.0) -> None:
    groups: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for row in rows:
        if row["value"] is not None and row[cost] is not None:
            groups.setdefault((row["method"], row["size"]), []).append((row[cost], row["value"] / unit))
    # What has no encoder has no width, and no shade.
    widths = sorted({size for _, size in groups if size > 0})
    for (method, size), points in groups.items():
        shade = 0.25 + 0.75 * (widths.index(size) + 1) / len(widths) if size > 0 else 1.0
        reference = REFERENCES.get(method.removesuffix(", Adam"))
        colour = COLOURS.get(method) or reference or PALETTE["encoder"]
        path = np.asarray(sorted(points))
        ax.plot(
            path[:, 0],
            path[:, 1],
            color=colour,
            alpha=shade,
            linewidth=1.3 if reference else 0.9,
            zorder=1.9 if reference else 2.0,
        )
    ax.set_xscale("log")
    ax.xaxis.set_minor_formatter(NullFormatter())
