"""The figures and the claims of `when_and_why.py`, from its table alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from amortgap.figures import save, style, zero_line
from amortgap.sweep import read_csv
from amortgap.sweep.files import write_atomic
from amortgap.sweep.table import Table, csv_text
from studies.when_and_why.claims import CLAIMS, claims
from studies.when_and_why.study import SCHEMA

COLOURS = {"A-VI, default": "#0072B2", "A-VI, published": "#D55E00"}
NAMES = {"A-VI, default": "tanh, Adam and L-BFGS", "A-VI, published": "ReLU, constant Adam"}
REFERENCES = {"F-VI": "#000000", "Const": "#999999"}
PARTS = {
    "nonlinear": "nonlinear model",
    "saw, 1 input": "saw series, $x_n$",
    "saw, 2 inputs": "saw series, $x_{n-1}, x_n$",
}
STRUCTURES = {
    "joint diagonal": "#009E73",
    "joint block": "#CC79A7",
    "branch": "#000000",
    "amortized branch": "#0072B2",
}


def derive(folder: Path, out: Path) -> list[Path]:
    """Write everything that follows from the table in `folder` into `out`; return the paths."""
    rows = read_csv(folder / "table.csv", SCHEMA).rows
    write_atomic(out / "claims.csv", csv_text(Table(CLAIMS, claims(rows))).encode())
    figures = {"when_and_why": results_figure(rows), "paths": paths_figure(rows)}
    return [out / "claims.csv", *(path for name, figure in figures.items() for path in save(figure, out, name))]


def _pick(rows: list[dict[str, Any]], **where: Any) -> list[dict[str, Any]]:
    return [row for row in rows if all(row[name] == value for name, value in where.items())]


def results_figure(rows: list[dict[str, Any]]) -> Figure:
    """Return final gap against width with the optimum as zero line, gap against window and N, and time to converge."""
    with style():
        figure, axes = plt.subplots(2, 3, figsize=(7.6, 5.0), layout="constrained")
        for ax, (part, name) in zip(axes[0], PARTS.items(), strict=True):
            _gaps(ax, _pick(rows, part=part))
            ax.set_title(f"{name}: final gap")
        _seconds(axes[1, 0], _pick(rows, part="nonlinear", quantity="seconds to 1 %"))
        _windows(axes[1, 1], _pick(rows, part="hmm", quantity="gap, nats"))
        _structures(axes[1, 2], _pick(rows, part="regression"))
        marks = [Line2D([], [], color=COLOURS[m], marker="o", markersize=3, label=NAMES[m]) for m in COLOURS]
        marks.append(
            Line2D([], [], color="#777777", marker="x", linestyle="none", markersize=4, label="dead or diverged")
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
                shift * row["size"], height, "x" if bad else "o", color=colour, alpha=0.6, markersize=4 if bad else 2.5,
                transform=where, clip_on=False, linestyle="none",
            )  # fmt: skip
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
    ax.set_ylabel("gap to F-VI, nats")


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
        ax.axhline(free[0]["value"], color="#000000", linewidth=0.9, label="F-VI by Adam")
        ax.legend()
    ax.set_xscale("log", base=2)
    if any(row["value"] is not None for row in rows):
        ax.set_yscale("log")
    ax.set_xlabel("width of the encoder")
    ax.set_ylabel("seconds")
    ax.set_title("nonlinear model: time to 1 % (x: never)")


def _windows(ax: Axes, rows: list[dict[str, Any]]) -> None:
    for method, mark in (("exact", "-"), ("trained", "o")):
        points = sorted((row["size"], row["value"]) for row in _pick(rows, method=method))
        if points:
            ax.plot(
                *zip(*points, strict=True),
                mark,
                color="#000000" if mark == "-" else "#0072B2",
                markersize=3.5,
                label=method,
            )
    ax.set_yscale("log")
    ax.set_xlabel("observations on either side")
    ax.set_ylabel("gap, nats")
    ax.set_title("hidden Markov series")
    if ax.get_lines():
        ax.legend()


def _structures(ax: Axes, rows: list[dict[str, Any]]) -> None:
    for method, colour in STRUCTURES.items():
        for what, mark in (("exact gap to the evidence, nats", "-"), ("gap to the evidence, nats", "o")):
            found = _pick(rows, method=method, quantity=what)
            points = sorted((row["num_data"], row["value"] / row["num_data"]) for row in found)
            if points:
                label = method if mark == "o" else None
                ax.plot(*zip(*points, strict=True), mark, color=colour, markersize=3, label=label)
    zero_line(ax)
    ax.set_xscale("log")
    ax.set_yscale("symlog", linthresh=1e-4)
    ax.set_xlabel("groups")
    ax.set_ylabel("gap per group, nats")
    ax.set_title("regression: gap to the evidence")
    if rows:
        ax.legend()


def paths_figure(rows: list[dict[str, Any]]) -> Figure:
    """Return the paths of the first seed: gap against time, for every width and recipe, and the ELBO on images."""
    with style():
        figure, axes = plt.subplots(2, 4, figsize=(10.2, 4.8), layout="constrained")
        for column, (part, name) in enumerate(PARTS.items()):
            paths = _pick(rows, part=part, quantity="path, nats", seed=0)
            for ax, cost in zip(axes[:, column], ("seconds", "visits"), strict=True):
                _paths(ax, paths, cost)
                _gap_axis(ax)
                ax.set_title(name)
        for ax, cost in zip(axes[:, 3], ("seconds", "visits"), strict=True):
            _paths(ax, _pick(rows, part="image", quantity="path, nats", seed=0), cost, named=True)
            ax.set_ylabel("ELBO of all data, nats")
            ax.ticklabel_format(axis="y", style="plain")
            ax.set_title("images")
        lines = [Line2D([], [], color=COLOURS[m], label=f"{NAMES[m]}; the wider, the darker") for m in COLOURS]
        lines += [Line2D([], [], color=colour, label=f"{name} by Adam") for name, colour in REFERENCES.items()]
        figure.legend(handles=lines, loc="outside lower center", ncols=4)
    return figure


def _paths(ax: Axes, rows: list[dict[str, Any]], cost: str, *, named: bool = False) -> None:
    groups: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for row in rows:
        if row["value"] is not None and row[cost] is not None:
            groups.setdefault((row["method"], row["size"]), []).append((row[cost], row["value"]))
    widths = sorted({size for _, size in groups})
    for (method, size), points in groups.items():
        shade = 0.25 + 0.75 * (widths.index(size) + 1) / len(widths)
        colour = COLOURS.get(method) or REFERENCES.get(method.removesuffix(", Adam"), "#0072B2")
        label = f"{method}, k = {size}" if size > 0 else method
        path = np.asarray(sorted(points))
        ax.plot(path[:, 0], path[:, 1], color=colour, alpha=shade, linewidth=0.9, label=label if named else None)
    ax.set_xscale("log")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel({"seconds": "seconds", "visits": "bounds of single data, with gradient"}[cost])
    if named and groups:
        ax.legend(fontsize=5)
