"""What all figures share: the style sheet, one colour per method, byte-stable files."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from amortgap.sweep.files import write_atomic

# Okabe and Ito's palette, told apart by colour-blind readers; a method keeps its colour in every figure.
PALETTE = {
    "mean_field": "#0072B2",
    "full_rank": "#D55E00",
    "low_rank": "#009E73",
    "local": "#000000",
    "exact": "#000000",
    "constant": "#777777",
    "train": "#0072B2",
    "test": "#CC79A7",
}
MARKERS = {"mean_field": "o", "full_rank": "s", "low_rank": "^"}
LABELS = {"mean_field": "mean field", "full_rank": "full rank", "low_rank": "low rank"}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Apply the package's style sheet to figures made inside the `with` block.

    Yields:
      Nothing.
    """
    with as_file(files("amortgap") / "amortgap.mplstyle") as sheet, plt.style.context(str(sheet)):
        yield


def zero_line(ax: Axes) -> None:
    """Draw the line on which inference loses nothing; negative gaps below it are noise and stay visible.

    Args:
      ax: axes whose vertical axis is a gap in nats.

    Returns:
      Nothing; the line is added to `ax`.
    """
    ax.axhline(0.0, color="#000000", linewidth=0.7, zorder=1)


def save(figure: Figure, folder: str | os.PathLike[str], name: str) -> list[Path]:
    """Write `folder/name.pdf` and `.png` without time stamps, so that equal tables give equal bytes; return the paths.

    Args:
      figure: what to write; it is closed.
      folder: where, an existing folder.
      name: of both files, without a suffix.

    Returns:
      The paths written, first the PDF.

    Raises:
      OSError: the folder cannot be written; the message names the file, and the free space if the disk is full.
    """
    paths = [Path(folder) / f"{name}.{kind}" for kind in ("pdf", "png")]
    metadata = ({"CreationDate": None}, {"Software": f"matplotlib {matplotlib.__version__}"})
    for path, facts in zip(paths, metadata, strict=True):
        drawn = io.BytesIO()
        figure.savefig(drawn, format=path.suffix[1:], metadata=facts)
        write_atomic(path, drawn.getvalue())
    plt.close(figure)
    return paths
