"""Figures of a diagnosis, drawn from its record alone."""

from __future__ import annotations

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from amortgap.diagnosis.records import Coverage, DiagnosisRecord, Latents
from amortgap.figures import PALETTE, SPLITS, style, zero_line

_NAMES = {"train": "training data", "test": "held-out data"}


@style()
def distribution(diagnosis: DiagnosisRecord) -> Figure:
    """Return the share of data whose gap is below a value, for both gaps on both parts of the data."""
    figure, axes = plt.subplots(1, 2, figsize=(6.75, 2.4), layout="constrained")
    parts = {"train": diagnosis.train.gaps, "test": diagnosis.test.gaps}
    for ax, name in zip(axes, ("approximation", "amortization"), strict=True):
        for part, gaps in parts.items():
            values = np.sort(np.asarray(getattr(gaps, name), float))
            values = values[np.isfinite(values)]
            if not values.size:
                continue
            shares = np.arange(1, len(values) + 1) / len(values)
            ax.step(values, shares, where="post", color=PALETTE[name], linestyle=SPLITS[part], label=_NAMES[part])
            mean = values.mean()
            face = PALETTE[name] if part == "train" else PALETTE["paper"]
            ax.plot(mean, np.mean(values <= mean), "o", color=PALETTE[name], markerfacecolor=face)
        zero_line(ax, upright=True)
        ax.set(xlabel=f"{name} gap of a datum (nats)", ylim=(0, 1.02))
    axes[0].set_ylabel("share of data below")
    axes[1].legend(loc="lower right", title="circles: means")
    return figure


@style()
def quality(diagnosis: DiagnosisRecord) -> Figure:
    """Return the calibration of the encoder's q beside the activity of each latent."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(6.75, 2.4), layout="constrained")
    _calibration(left, diagnosis.coverage)
    _activity(right, diagnosis.latents)
    return figure


def _calibration(ax: Axes, coverage: Coverage | None) -> None:
    ax.plot([0, 1], [0, 1], color=PALETTE["ink"], linewidth=0.7)
    if coverage is None:
        ax.text(0.5, 0.5, "not measured", ha="center", transform=ax.transAxes)
    else:
        error = 2 * coverage.standard_error
        ax.errorbar(coverage.levels, coverage.share, yerr=error, color=PALETTE["encoder"], marker="o", capsize=2)
    ax.set(xlabel="nominal mass of the region of q", ylabel="posterior mass inside", xlim=(0, 1), ylim=(0, 1.02))


def _activity(ax: Axes, latents: Latents) -> None:
    order = np.argsort(-latents.local)
    places = np.arange(len(order))
    ax.bar(places, latents.local[order], color=PALETTE["local"], alpha=0.45, label="local optima")
    ax.plot(places, latents.encoder[order], "o", color=PALETTE["encoder"], label="encoder")
    ax.set(xlabel="latent, by activity", ylabel="share told by the datum", ylim=(0, 1.3))
    if len(order) <= 20:
        ax.set_xticks(places, [str(i) for i in order])
    else:
        ax.set_xticks([])
    ax.grid(axis="x", visible=False)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1])
    ax.legend(loc="upper right", ncols=2)


@style()
def remedies(diagnosis: DiagnosisRecord) -> Figure:
    """Return the nats that each remedy removed, with 95 % intervals; limits are hollow."""
    ordered = diagnosis.remedies[::-1]
    figure, ax = plt.subplots(figsize=(6.75, 0.6 + 0.26 * len(ordered)), layout="constrained")
    gains = np.array([float(remedy.gain.mean) for remedy in ordered])
    # The axis spans the finite gains: bars of remedies that failed are cut, so that the others stay visible.
    finite = gains[np.isfinite(gains)]
    top = max(float(np.max(finite, initial=0.0)), 0.05)
    cut = -1.2 * top
    for place, (remedy, gain) in enumerate(zip(ordered, gains, strict=True)):
        shown = max(gain, cut) if np.isfinite(gain) else cut
        fill = "none" if remedy.limit else PALETTE["constant" if gain < 0 else "amortization"]
        ax.barh(place, shown, color=fill, edgecolor=PALETTE["guide"] if remedy.limit else fill, height=0.65)
        if shown == gain:
            low, high = remedy.gain.interval()
            ax.errorbar(gain, place, xerr=(high - low) / 2, color=PALETTE["ink"], linewidth=0.9, capsize=2)
        else:
            ax.text(cut, place, f" {gain:.3g}", va="center", color=PALETTE["paper"], fontsize=7)
    labels = [f"limit: {remedy.name}" if remedy.limit else remedy.name for remedy in ordered]
    ax.set_yticks(range(len(ordered)), labels)
    zero_line(ax, upright=True)
    ax.set_xlim(left=max(1.02 * cut, min(-0.02 * top, 1.3 * float(np.min(finite, initial=0.0)))))
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("nats removed from the inference gap of held-out data")
    return figure


@style()
def worst_images(diagnosis: DiagnosisRecord) -> Figure | None:
    """Return the data with the largest gaps as images, None if data are no images."""
    if diagnosis.image_shape is None:
        return None
    images = np.asarray(jax.tree.leaves(diagnosis.worst_inputs)[0])
    figure, axes = plt.subplots(1, len(images), figsize=(6.75, 1.25), layout="constrained", squeeze=False)
    for ax, image, i in zip(axes[0], images, diagnosis.worst, strict=True):
        pixels = image.reshape(diagnosis.image_shape).squeeze()
        span = float(np.ptp(pixels)) or 1.0
        # Matplotlib wants colours in [0, 1]; greys are scaled in the same way.
        ax.imshow((pixels - pixels.min()) / span, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        ax.set_title(f"{float(diagnosis.test.gaps.inference[i]):.1f} nats", loc="center")
        ax.set(xlabel=str(int(diagnosis.test.rows[i])), xticks=[], yticks=[])
        ax.grid(visible=False)
    return figure
