"""Figures of a diagnosis, drawn from its record alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from amortgap.figures import PALETTE, SPLITS, style, zero_line

if TYPE_CHECKING:
    from amortgap.diagnosis.record import Diagnosis

_GAPS = ("approximation", "amortization")
_NAMES = {"train": "training data", "test": "held-out data"}


def distribution(diagnosis: Diagnosis) -> Figure:
    """Return the share of data whose gap is below a value, for both gaps on both parts of the data."""
    with style():
        figure, axes = plt.subplots(1, 2, figsize=(6.75, 2.4), layout="constrained")
        for ax, name in zip(axes, _GAPS, strict=True):
            for part, line in SPLITS.items():
                values = np.sort(np.asarray(getattr(getattr(diagnosis, part).gaps, name), float))
                values = values[np.isfinite(values)]
                if not values.size:
                    continue
                shares = np.arange(1, len(values) + 1) / len(values)
                ax.step(values, shares, where="post", color=PALETTE[name], linestyle=line, label=_NAMES[part])
                mean = values.mean()
                face = PALETTE[name] if part == "train" else PALETTE["paper"]
                ax.plot(mean, np.mean(values <= mean), "o", color=PALETTE[name], markerfacecolor=face)
            zero_line(ax, upright=True)
            ax.set_xlabel(f"{name} gap of a datum (nats)")
            ax.set_ylim(0, 1.02)
        axes[0].set_ylabel("share of data below")
        axes[1].legend(loc="lower right", title="circles: means")
    return figure


def quality(diagnosis: Diagnosis) -> Figure:
    """Return the calibration of the encoder's q beside what each latent tells of the data."""
    with style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(6.75, 2.4), layout="constrained")
        left.plot([0, 1], [0, 1], color=PALETTE["ink"], linewidth=0.7)
        if diagnosis.coverage is None:
            left.text(0.5, 0.5, "not measured", ha="center", transform=left.transAxes)
        else:
            levels, share, error = diagnosis.coverage
            left.errorbar(levels, share, yerr=2 * error, color=PALETTE["encoder"], marker="o", capsize=2)
        left.set(xlabel="nominal mass of the region of q", ylabel="posterior mass inside", xlim=(0, 1), ylim=(0, 1.02))
        order = np.argsort(-diagnosis.latents.local)
        places = np.arange(len(order))
        right.bar(places, diagnosis.latents.local[order], color=PALETTE["local"], alpha=0.45, label="local optima")
        right.plot(
            places,
            diagnosis.latents.encoder[order],
            color=PALETTE["encoder"],
            marker="o",
            linestyle="none",
            label="encoder",
        )
        right.set(xlabel="latent, by activity", ylabel="share told by the datum", ylim=(0, 1.3))
        if len(order) <= 20:
            right.set_xticks(places, [str(i) for i in order])
        else:
            right.set_xticks([])
        right.grid(axis="x", visible=False)
        right.set_yticks([0, 0.25, 0.5, 0.75, 1])
        right.legend(loc="upper right", ncols=2)
    return figure


def remedies(diagnosis: Diagnosis) -> Figure:
    """Return the nats that each remedy removed, with 95 % intervals; limits are hollow."""
    ordered = diagnosis.remedies[::-1]
    with style():
        figure, ax = plt.subplots(figsize=(6.75, 0.6 + 0.26 * len(ordered)), layout="constrained")
        gains = np.array([float(one.gain.mean) for one in ordered])
        ends = [one.gain.interval() for one in ordered]
        halves = [(high - low) / 2 for low, high in ends]
        # A remedy that failed must not hide the others.
        finite = gains[np.isfinite(gains)]
        top = max(float(np.max(finite, initial=0.0)), 0.05)
        low = -1.2 * top
        for place, (one, gain, half) in enumerate(zip(ordered, gains, halves, strict=True)):
            shown = max(gain, low) if np.isfinite(gain) else low
            fill = "none" if one.limit else PALETTE["constant" if gain < 0 else "amortization"]
            ax.barh(place, shown, color=fill, edgecolor=PALETTE["guide"] if one.limit else fill, height=0.65)
            if shown == gain:
                ax.errorbar(gain, place, xerr=half, color=PALETTE["ink"], linewidth=0.9, capsize=2)
            else:
                ax.text(low, place, f" {gain:.3g}", va="center", color=PALETTE["paper"], fontsize=7)
        ax.set_yticks(range(len(ordered)), [f"limit: {one.name}" if one.limit else one.name for one in ordered])
        zero_line(ax, upright=True)
        ax.set_xlim(left=max(low * 1.02, min(-0.02 * top, float(np.min(finite, initial=0.0)) * 1.3)))
        ax.grid(axis="y", visible=False)
        ax.set_xlabel("nats removed from the inference gap of held-out data")
    return figure


def worst_images(diagnosis: Diagnosis) -> Figure | None:
    """Return the data with the largest gaps as images, None if data are none."""
    if diagnosis.image_shape is None:
        return None
    import jax

    images = np.asarray(jax.tree.leaves(diagnosis.worst_inputs)[0])
    with style():
        figure, axes = plt.subplots(1, len(images), figsize=(6.75, 1.25), layout="constrained", squeeze=False)
        for ax, image, i in zip(axes[0], images, diagnosis.worst, strict=True):
            shown = image.reshape(diagnosis.image_shape).squeeze()
            span = float(np.ptp(shown)) or 1.0
            # Colours need [0, 1]; greys are scaled alike.
            ax.imshow((shown - shown.min()) / span, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
            ax.set_title(f"{float(diagnosis.test.gaps.inference[i]):.1f} nats", loc="center")
            ax.set_xlabel(str(int(diagnosis.test.rows[i])))
            ax.set(xticks=[], yticks=[])
            ax.grid(visible=False)
    return figure
