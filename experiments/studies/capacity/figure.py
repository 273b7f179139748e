"""The figure of the capacity sweep, drawn from its table alone."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from amortgap.figures import LABELS, MARKERS, PALETTE, save, style, zero_line
from amortgap.sweep import read_csv
from studies.capacity.study import QUANTILES, SCHEMA

_LINES = {"train": "-", "test": "--"}


def derive(folder: Path, out: Path) -> list[Path]:
    """Write everything that follows from the table in `folder` into `out`; return the paths."""
    with style():
        return save(capacity_figure(read_csv(folder / "table.csv", SCHEMA).rows), out, "capacity_sweep")


def capacity_figure(rows: list[dict[str, Any]]) -> Figure:
    """Return the figure: KL against width for each family, the exact ladder, and the gaps of single data."""
    families = sorted({row["family"] for row in rows}, key=list(LABELS).index)
    figure, axes = plt.subplots(2, 2, figsize=(6.75, 5.4), layout="constrained")
    for ax, family in zip(axes[0], families, strict=False):
        _capacity(ax, [row for row in rows if row["model"] == "vae" and row["family"] == family], family)
    if len(families) == 1:
        axes[0, 1].set_visible(False)
    else:
        for ax in axes[0]:
            ax.set_ylim(-0.15, max(2.2 * max(row["kl_amortized"] for row in rows if row["model"] == "vae"), 1.0))
    _ladder(axes[1, 0], [row for row in rows if row["model"] == "factor_analysis"], families)
    _spread(axes[1, 1], [row for row in rows if row["model"] == "vae" and row["encoder"] == "mlp"], families)
    return figure


def _capacity(ax: Axes, rows: list[dict[str, Any]], family: str) -> None:
    colour = PALETTE[family]
    mlps = [row for row in rows if row["encoder"] == "mlp"]
    depths = sorted({row["depth"] for row in mlps})
    for split, line in _LINES.items():
        for depth in depths:
            of_depth = [row for row in mlps if row["split"] == split and row["depth"] == depth]
            widths = sorted({row["capacity"] for row in of_depth})
            groups = [[row["kl_amortized"] for row in of_depth if row["capacity"] == width] for width in widths]
            shade = 1.0 if depth == depths[-1] else 0.45
            ax.plot(widths, [median(g) for g in groups], line, color=colour, alpha=shade, label=_name(split, depth))
            for row in of_depth:
                full = row["converged"]
                ax.plot(
                    row["capacity"],
                    row["kl_amortized"],
                    MARKERS[family],
                    color=colour,
                    markerfacecolor=colour if full else "white",
                    markersize=2.6,
                    markeredgewidth=0.5,
                    alpha=0.6 * shade,
                )
    for split, line in _LINES.items():
        local = next((row["kl_local"] for row in rows if row["split"] == split), None)
        constant = next((r["kl_amortized"] for r in rows if r["split"] == split and r["encoder"] == "constant"), None)
        if local is not None:
            ax.axhline(local, color=PALETTE["local"], linestyle=line, linewidth=1.0)
        if constant is not None:
            ax.axhline(constant, color=PALETTE["constant"], linestyle=line, linewidth=1.0)
        if split == "train" and local is not None:
            ax.annotate("local VI", (1, local), xytext=(0, 2.5), textcoords="offset points", fontsize=7)
        if split == "train" and constant is not None:
            ax.annotate("constant encoder", (1, constant), xytext=(0, 2.5), textcoords="offset points", fontsize=7)
    zero_line(ax)
    ax.set_xscale("log", base=2)
    ax.set_yscale("symlog", linthresh=1.0, linscale=1.0)
    widths = sorted({row["capacity"] for row in mlps})
    ax.set_xticks(widths, [str(width) for width in widths])
    ax.set_yticks([0, 0.5, 1, 2, 5, 10], ["0", "0.5", "1", "2", "5", "10"])
    ax.minorticks_off()
    ax.set_xlabel("encoder width")
    ax.set_ylabel("mean KL (nats per image)")
    ax.set_title(f"VAE on digits, {LABELS[family]}")
    hollow = Line2D([], [], marker=MARKERS[family], color=colour, linestyle="", markersize=2.6, markerfacecolor="white")
    lines, names = ax.get_legend_handles_labels()
    ax.legend([*lines, hollow], [*names, "hollow: still moving"], loc="upper right", bbox_to_anchor=(1.0, 0.9))


def _name(split: str, depth: int) -> str:
    return f"{split}, {depth} hidden layer{'s' if depth > 1 else ''}"


def _ladder(ax: Axes, rows: list[dict[str, Any]], families: list[str]) -> None:
    train = sorted((row for row in rows if row["split"] == "train"), key=lambda row: row["capacity"])
    for split, line in _LINES.items():
        exact = {row["capacity"]: row["exact_amortization_gap"] for row in rows if row["split"] == split}
        ax.plot(sorted(exact), [exact[r] for r in sorted(exact)], line, color=PALETTE["exact"], label=f"exact, {split}")
    for offset, family in zip((-0.08, 0.08), families, strict=False):
        for split in _LINES:
            points = [row for row in rows if row["family"] == family and row["split"] == split]
            ax.errorbar(
                [row["capacity"] + offset for row in points],
                [row["amortization_gap"] for row in points],
                yerr=[3 * row["amortization_gap_mc_se"] for row in points],
                fmt=MARKERS[family],
                color=PALETTE[family],
                markerfacecolor=PALETTE[family] if split == "train" else "white",
                markersize=3.5,
                label=f"{LABELS[family]}, {split}",
            )
    zero_line(ax)
    ax.set_xticks(sorted({row["capacity"] for row in train}))
    ax.set_xlabel("rank of the linear encoder")
    ax.set_ylabel("amortization gap (nats per image)")
    ax.set_title("Factor analysis on digits: exact ladder")
    ax.legend(loc="upper right")


def _spread(ax: Axes, rows: list[dict[str, Any]], families: list[str]) -> None:
    if not rows:
        return
    widest, depth = max(row["capacity"] for row in rows), max(row["depth"] for row in rows)
    for family in families:
        for split, line in _LINES.items():
            chosen = [
                row
                for row in rows
                if (row["family"], row["split"], row["capacity"], row["depth"]) == (family, split, widest, depth)
            ]
            if not chosen:
                continue
            row = min(chosen, key=lambda row: row["seed"])
            gaps = [row[f"gap_q{round(100 * q):03d}"] for q in QUANTILES]
            ax.plot(gaps, QUANTILES, line, color=PALETTE[family], label=f"{LABELS[family]}, {split}")
    ax.axvline(0.0, color="#000000", linewidth=0.7)
    ax.set_xscale("symlog", linthresh=0.5, linscale=1.5)
    ax.set_xticks([0, 0.25, 0.5, 1, 2, 5], ["0", "0.25", "0.5", "1", "2", "5"])
    ax.minorticks_off()
    ax.set_xlabel("amortization gap of one image (nats)")
    ax.set_ylabel("share of images below")
    ax.set_title(f"Single images, width {widest}, {depth} layers, first seed")
    ax.legend(loc="lower right")
