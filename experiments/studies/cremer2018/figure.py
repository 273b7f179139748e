"""Everything of the reproduction that follows from its tables: the paper's layout, the claims, the figures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from amortgap.figures import PALETTE, save, style, zero_line
from amortgap.sweep import read_csv, write_atomic
from amortgap.sweep.table import Table, csv_text, read_columns
from studies.cremer2018.claims import CLAIMS, PAPER, claims, paper_tables
from studies.cremer2018.parts import PARTS, TABLES
from studies.cremer2018.study import ENCODER, IMAGES, PICTURE, PICTURED, SCHEMA

Rows = list[dict[str, Any]]
COLOURS = {"approximation gap": PALETTE["approximation"], "amortization gap": PALETTE["amortization"]}
LINES = {"log p(x)": PALETTE["exact"], "local": PALETTE["local"], ENCODER: PALETTE["encoder"]}
MARKS = {"log p(x)": "o", "local": "^", ENCODER: "s"}
# From white to the colour of whoever infers: the posterior itself, the encoder, one fit for every image.
SHADES = dict(zip(PICTURED, ("exact", "encoder", "local", "local"), strict=True))
PUBLISHED: dict[str, dict[str, Any]] = {
    "_": {"markersize": 10, "markeredgewidth": 1.8},
    "D": {"markersize": 4.5, "markeredgewidth": 1.2, "markerfacecolor": PALETTE["paper"]},
}
NAMES = {
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "kmnist": "KMNIST",
    "cifar10": "CIFAR-10",
    "digits": "digits",
}


def images_file(experiment: str) -> str:
    """Return the name of the file with the values of every image of a sub-experiment."""
    return f"images_{experiment.replace('-', '_')}.csv"


def derive(folder: Path, out: Path) -> list[Path]:
    """Write everything that follows from the tables in `folder` into `out`; return the paths.

    Those tables are table.csv, images_*.csv and posteriors.csv, each where its sub-experiment was run.
    """
    rows = read_csv(folder / "table.csv", SCHEMA).rows
    tables = paper_tables(rows)
    files = [folder / images_file(name) for name in PARTS]
    every = [row for file in files if file.exists() for row in read_columns(file, IMAGES).rows]
    written = {"tables.csv": (PAPER, tables), "claims.csv": (CLAIMS, claims(every) if every else [])}
    for name, table in written.items():
        write_atomic(out / name, csv_text(Table(*table)).encode())
    done = {row["experiment"] for row in rows}
    figures = {}
    if done & set(TABLES):
        figures["gaps"] = gaps_figure(tables)
    if done & {"decoder-size", "frozen-decoder"}:
        figures["decoders"] = decoders_figure(rows)
    if "over-training" in done:
        figures["training"] = training_figure(rows)
    if (folder / "posteriors.csv").exists():
        figures["posteriors"] = posteriors_figure(read_columns(folder / "posteriors.csv", PICTURE).rows)
    return [out / name for name in written] + [
        path for name, figure in figures.items() for path in save(figure, out, name)
    ]


def _pick(rows: Rows, **where: Any) -> Rows:
    return [row for row in rows if all(row[name] == value for name, value in where.items())]


def _legend(figure: Figure, more: list[Any]) -> None:
    handles = [Patch(color=colour, label=gap) for gap, colour in COLOURS.items()]
    figure.legend(handles=[*handles, *more], loc="outside lower center", ncols=2)


def _stack(ax: Axes, x: float, rows: Rows, *, pale: bool) -> None:
    """Draw both gaps on top of each other, with the interval of each at its upper edge."""
    bottom = 0.0
    for gap, colour in COLOURS.items():
        found = _pick(rows, quantity=gap)
        if not found or found[0]["ours"] is None:
            continue
        row = found[0]
        ax.bar(x, row["ours"], 0.8, bottom=bottom, color=colour, alpha=0.5 if pale else 1.0)
        bottom += row["ours"]
        half = 0.5 * (row["high"] - row["low"])
        if math.isfinite(half):
            ax.errorbar(x, bottom, half, color=PALETTE["ink"], linewidth=0.8, capsize=2)
    published = [_pick(rows, quantity=gap)[0]["published_recalled"] for gap in ("approximation gap", "inference gap")]
    for value, mark in zip(published, PUBLISHED, strict=True):
        if value is not None:
            ax.plot(x, value, mark, color=PALETTE["published"], **PUBLISHED[mark])


@style()
def gaps_figure(tables: Rows) -> Figure:
    """Return approximation and amortization gap of every model of the three tables, published ones beside them."""
    data = sorted({row["data"] for row in tables}, key=list(NAMES).index)
    lines = max(len(data), 1)
    figure, axes = plt.subplots(
        lines, 3, figsize=(6.75, 2.3 * lines + 0.5), layout="constrained", sharey="row", squeeze=False
    )
    for line, name in zip(axes, data, strict=False):
        for ax, experiment in zip(line, TABLES, strict=True):
            found = _pick(tables, data=name, table=experiment)
            models = [(model, split) for model in ("FFG", "AF") for split in ("train", "test")]
            for x, (model, split) in enumerate(models):
                rows = _pick(found, model=model, split=split)
                if rows:
                    _stack(ax, x, rows, pale=split == "test")
            ax.set_xticks(range(4), [f"{model}\n{split}" for model, split in models])
            ax.grid(axis="x", visible=False)
            ax.set_title(f"{NAMES[name]}: {experiment.replace('-', ' ')}")
            zero_line(ax)
        line[0].set_ylabel("gap (nats)")
    labels = ("published approximation gap (recalled)", "published inference gap (recalled)")
    _legend(
        figure,
        [
            Line2D([], [], color=PALETTE["published"], marker=mark, linestyle="none", label=label, **PUBLISHED[mark])
            for mark, label in zip(PUBLISHED, labels, strict=True)
        ],
    )
    return figure


@style()
def decoders_figure(table: Rows) -> Figure:
    """Return gaps against the decoder's depth, and of encoders without hidden layer on a frozen decoder."""
    figure, axes = plt.subplots(1, 2, figsize=(6.75, 2.8), layout="constrained")
    sized = _pick(table, experiment="decoder-size", split="train")
    data = sized[0]["data"] if sized else ""
    middle = _pick(table, experiment="inference-gaps", data=data, model="FFG", split="train")
    depths = sorted({int(row["variant"].split()[0]) for row in sized} | ({2} if middle else set()))
    for x, depth in enumerate(depths):
        rows = _pick(sized, variant=f"{depth} hidden layers")
        _stack(axes[0], x, [_plain(row) for row in rows or middle], pale=False)
    axes[0].set_xticks(range(len(depths)), [str(depth) for depth in depths])
    axes[0].set_xlabel("hidden layers of the decoder")
    axes[0].set_title(f"{NAMES.get(data, data)}: decoder size, FFG")
    frozen = _pick(table, experiment="frozen-decoder", split="train")
    order = {"FFG": 0, "AF": 1, "Flow": 2}
    families = sorted({row["variant"] for row in frozen}, key=lambda family: (order.get(family, 3), family))
    for x, family in enumerate(families):
        _stack(axes[1], x, [_plain(row) for row in _pick(frozen, variant=family)], pale=False)
    axes[1].set_xticks(range(len(families)), families)
    axes[1].set_xlabel("family of the encoder without hidden layer")
    axes[1].set_title(f"{NAMES[frozen[0]['data']] if frozen else ''}: frozen decoder")
    for ax in axes:
        ax.set_ylabel("gap (nats)")
        ax.grid(axis="x", visible=False)
        zero_line(ax)
    _legend(figure, [])
    return figure


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    mean, error = row["mean"], row["standard_error"]
    half = 1.959964 * error if error is not None else math.nan
    low, high = (None, None) if mean is None else (mean - half, mean + half)
    return {"quantity": row["quantity"], "ours": mean, "low": low, "high": high, "published_recalled": None}


@style()
def training_figure(table: Rows) -> Figure:
    """Return log p(x), the local and the encoder's ELBO against training steps: 2 x 4 panels, train and held out."""
    rows = _pick(table, experiment="over-training")
    models = list(dict.fromkeys((row["model"], row["variant"]) for row in rows))
    columns = max(len(models), 1)
    figure, axes = plt.subplots(
        2, columns, figsize=(6.75, 4.2), layout="constrained", sharex=True, sharey="row", squeeze=False
    )
    for column, (model, variant) in zip(axes.T, models, strict=False):
        for ax, split in zip(column, ("train", "test"), strict=True):
            for name, quantity in (("log p(x)", "log p(x)"), ("local", f"L[q*_{model}]"), (ENCODER, ENCODER)):
                found = sorted(
                    (row["step"] / 1000, row["mean"], row["standard_error"] or 0.0)
                    for row in _pick(rows, model=model, variant=variant, split=split, quantity=quantity)
                    if row["mean"] is not None
                )
                if found:
                    steps, means, errors = map(np.array, zip(*found, strict=True))
                    # Images differ alike under all three: the band is that of the mean, not of their differences.
                    ax.fill_between(steps, means - errors, means + errors, color=LINES[name], alpha=0.12, linewidth=0)
                    ax.plot(steps, means, marker=MARKS[name], markersize=3, color=LINES[name])
            ax.set_title(f"{variant or model}, {'training' if split == 'train' else 'held out'}")
        column[1].set_xlabel("thousand training steps")
    for ax in axes[:, 0]:
        ax.set_ylabel("mean over images (nats)")
    if rows:
        figure.suptitle(NAMES[rows[0]["data"]], fontsize=9)
    labels = {"log p(x)": "log p(x)", "local": "L[q*], local", ENCODER: "L[q], encoder"}
    handles: list[Any] = [
        Line2D([], [], color=LINES[name], marker=MARKS[name], markersize=3, label=labels[name]) for name in LINES
    ]
    handles.append(Patch(color=PALETTE["guide"], alpha=0.25, linewidth=0, label="1 SE of the mean over images"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


@style()
def posteriors_figure(picture: Rows) -> Figure:
    """Return the posteriors of images with two latents: true, amortized normal, best normal, best flow."""
    images = sorted({row["image"] for row in picture})
    figure, axes = plt.subplots(
        4, max(len(images), 1), figsize=(6.75, 6.6), layout="constrained", squeeze=False, sharex="col", sharey="col"
    )
    for column, image in zip(axes.T, images, strict=False):
        rows = _pick(picture, image=image)
        first, second = (np.unique([row[axis] for row in rows]) for axis in ("z1", "z2"))
        top = max(row[PICTURED[0]] for row in rows)
        for ax, method in zip(column, PICTURED, strict=True):
            lowest = -1e30
            values = np.array([lowest if row[method] is None else row[method] for row in rows])
            grid = values.reshape(len(first), len(second))
            shades = LinearSegmentedColormap.from_list(method, [PALETTE["paper"], PALETTE[SHADES[method]]])
            # The same levels in every picture: densities, not shapes, are compared.
            ax.contourf(
                first, second, np.exp(grid - top).T, levels=np.linspace(0.05, 1.6, 12), cmap=shades, extend="max"
            )
            ax.locator_params(nbins=3)
        column[0].set_title(f"image {image}")
        column[-1].set_xlabel("$z_1$")
    for ax, method in zip(axes[:, 0], PICTURED, strict=True):
        ax.set_ylabel(f"{method}\n$z_2$")
    return figure
