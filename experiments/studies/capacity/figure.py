"""The figure of the capacity sweep, drawn from its table alone."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from amortgap.figures import LABELS, MARKERS, PALETTE, SPLITS, save, style, zero_line
from amortgap.sweep import read_csv
from studies.capacity.study import QUANTILES, SCHEMA


def derive(folder: Path, out: Path) -> list[Path]:
    """Write everything that follows from the table in `folder` into `out`; return the paths."""
    return save(capacity_figure(read_csv(folder / "table.csv", SCHEMA).rows), out, "capacity_sweep")


@style()
def capacity_figure(rows: list[dict[str, Any]]) -> Figure:
    """Return the figure: KL against width for each family, the exact ladder, and the gaps of single data."""
    families = sorted({row["family"] for row in rows}, key=list(LABELS).index)
    figure = plt.figure(figsize=(6.75, 6.2), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1, 1.05)).flat
    panels = above.subplots(1, 2, sharey=True)
    vae = [row for row in rows if row["model"] == "vae"]
    for ax, family in zip(panels, families, strict=False):
        _capacity(ax, [row for row in vae if row["family"] == family], family)
    panels[0].set_ylabel("mean KL (nats per image)")
    panels[1].set_visible(len(families) > 1)
    _kl_axis(panels[0], [row[column] for row in vae for column in ("kl_local", "kl_amortized")])
    above.legend(handles=_keys(vae), loc="outside lower center", ncols=3)
    grid = below.add_gridspec(2, 2, height_ratios=(2.1, 1))
    ladder = below.add_subplot(grid[0, 0])
    exact = [row for row in rows if row["model"] == "factor_analysis"]
    _ladder(ladder, exact, families)
    _distances(below.add_subplot(grid[1, 0], sharex=ladder), exact, families)
    _spread(below.add_subplot(grid[:, 1]), [row for row in vae if row["encoder"] == "mlp"], families)
    return figure


def _shades(rows: list[dict[str, Any]]) -> dict[int, float]:
    """Return how opaque each depth is, the deepest fully."""
    depths = sorted({row["depth"] for row in rows if row["encoder"] == "mlp"})
    return {depth: 1.0 - 0.55 * place / max(len(depths) - 1, 1) for place, depth in enumerate(reversed(depths))}


def _capacity(ax: Axes, rows: list[dict[str, Any]], family: str) -> None:
    colour = PALETTE[family]
    mlps = [row for row in rows if row["encoder"] == "mlp"]
    for split, line in SPLITS.items():
        for depth, shade in _shades(rows).items():
            of_depth = [row for row in mlps if row["split"] == split and row["depth"] == depth]
            widths = sorted({row["capacity"] for row in of_depth})
            groups = [[row["kl_amortized"] for row in of_depth if row["capacity"] == width] for width in widths]
            ax.plot(widths, [median(g) for g in groups], line, color=colour, alpha=shade)
            for row in of_depth:
                ax.plot(
                    row["capacity"],
                    row["kl_amortized"],
                    MARKERS[family],
                    color=colour,
                    markerfacecolor=colour if row["converged"] else PALETTE["paper"],
                    markersize=2.8,
                    markeredgewidth=0.6,
                    alpha=0.3 + 0.5 * shade,
                )
        local = next((row["kl_local"] for row in rows if row["split"] == split), None)
        constant = next((r["kl_amortized"] for r in rows if r["split"] == split and r["encoder"] == "constant"), None)
        for height, role, name in ((local, "local", "local VI"), (constant, "constant", "constant encoder")):
            if height is None:
                continue
            ax.axhline(height, color=PALETTE[role], linestyle=line, linewidth=1.2)
            if split == "train":
                place = {"xy": (0.03, height), "xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
                ax.annotate(name, xytext=(0, 2.5), fontsize=7.5, color=PALETTE[role], **place)
    zero_line(ax)
    ax.set_xscale("log", base=2)
    widths = sorted({row["capacity"] for row in mlps})
    ax.set_xticks(widths, [str(width) for width in widths])
    ax.set_xlabel("encoder width")
    ax.set_title(f"VAE on digits, {LABELS[family]}")


def _kl_axis(ax: Axes, heights: list[float]) -> None:
    top = max(1.8 * max(heights), 1.0)
    ax.set_yscale("symlog", linthresh=1.0, linscale=1.0)
    ticks = [tick for tick in (0, 0.5, 1, 2, 5, 10, 20, 50, 100) if tick < top]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_ylim(min(-0.15, 1.2 * min(heights)), top)
    ax.minorticks_off()


def _keys(rows: list[dict[str, Any]]) -> list[Line2D]:
    """Return what line, shade and marker say in the panels of all families."""
    ink = PALETTE["ink"]
    names = {"train": "training images", "test": "held-out images"}
    keys = [Line2D([], [], color=ink, ls=SPLITS[split], label=label) for split, label in names.items()]
    for depth, shade in reversed(_shades(rows).items()):
        label = f"{depth} hidden layer{'s' if depth > 1 else ''}"
        keys.append(Line2D([], [], color=ink, alpha=shade, linewidth=2.5, label=label))
    for face, label in ((ink, "one encoder, converged"), (PALETTE["paper"], "one encoder, still moving")):
        keys.append(Line2D([], [], color=ink, marker="o", linestyle="", markerfacecolor=face, label=label))
    return keys


def _ladder(ax: Axes, rows: list[dict[str, Any]], families: list[str]) -> None:
    for split, line in SPLITS.items():
        exact = {row["capacity"]: row["exact_amortization_gap"] for row in rows if row["split"] == split}
        ax.plot(sorted(exact), [exact[r] for r in sorted(exact)], line, color=PALETTE["exact"], label=f"exact, {split}")
    # Hollow and of two sizes: all lie on the exact line, and the panel below tells them apart.
    for family, size in zip(families, (6.5, 3.5), strict=False):
        points = [row for row in rows if row["family"] == family]
        ax.plot(
            [row["capacity"] for row in points],
            [row["amortization_gap"] for row in points],
            MARKERS[family],
            color=PALETTE[family],
            markerfacecolor="none",
            markersize=size,
            label=f"measured, {LABELS[family]}",
        )
    zero_line(ax)
    ax.tick_params(labelbottom=False)
    ax.set_ylabel("gap (nats per image)")
    ax.set_title("factor analysis on digits: amortization gap")
    ax.legend(loc="upper right")


def _distances(ax: Axes, rows: list[dict[str, Any]], families: list[str]) -> None:
    """Draw how far measured gaps are from exact ones, in standard errors over draws."""
    ax.axhspan(-3, 3, color=PALETTE["band"], zorder=0)
    ax.grid(visible=False)
    groups = [(family, split) for family in families for split in SPLITS]
    heights = []
    for number, (family, split) in enumerate(groups):
        points = [
            row
            for row in rows
            if (row["family"], row["split"]) == (family, split) and (row["amortization_gap_mc_se"] or 0) > 0
        ]
        distances = [
            (row["amortization_gap"] - row["exact_amortization_gap"]) / row["amortization_gap_mc_se"] for row in points
        ]
        heights += distances
        ax.plot(
            [row["capacity"] + 0.15 * (number - (len(groups) - 1) / 2) for row in points],
            distances,
            MARKERS[family],
            color=PALETTE[family],
            markerfacecolor=PALETTE[family] if split == "train" else PALETTE["paper"],
            markersize=3,
        )
    zero_line(ax)
    ax.set_ylim(min(-4, 1.1 * min(heights, default=0)), max(4, 1.1 * max(heights, default=0)))
    ax.set_yticks([-3, 0, 3])
    ax.set_xticks(sorted({row["capacity"] for row in rows}))
    ax.set_xlabel("rank of the linear encoder (filled: train, hollow: test)")
    ax.set_ylabel("(measured −\nexact) / SE")


def _spread(ax: Axes, rows: list[dict[str, Any]], families: list[str]) -> None:
    if not rows:
        return
    widest, depth = max(row["capacity"] for row in rows), max(row["depth"] for row in rows)
    for family in families:
        for split, line in SPLITS.items():
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
    zero_line(ax, upright=True)
    ax.set_xscale("symlog", linthresh=0.5, linscale=1.5)
    ax.set_xticks([0, 0.25, 0.5, 1, 2, 5], ["0", "0.25", "0.5", "1", "2", "5"])
    ax.minorticks_off()
    ax.set_xlabel("amortization gap of one image (nats)")
    ax.set_ylabel("share of images below")
    ax.set_title(f"single images, width {widest}, {depth} layers, first seed")
    ax.legend(loc="lower right")
