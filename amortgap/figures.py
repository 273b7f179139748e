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

from amortgap._internal.files import write_atomic

# A role keeps its colour in every figure, and no two roles that meet in one share theirs. Most are Okabe and Ito's
# colours, told apart by colour-blind readers.
PALETTE = {
    # Who infers: the posterior itself, one fit for every datum, an encoder, one q for all data, a paper's recipe.
    "exact": "#000000",
    "local": "#009E73",
    "encoder": "#0072B2",
    "constant": "#777777",
    "published": "#882255",
    # What is lost.
    "approximation": "#E69F00",
    "amortization": "#56B4E9",
    "unsplit": "#BBBBBB",
    # Variational families, where they are compared.
    "mean_field": "#7B3294",
    "full_rank": "#D55E00",
    "low_rank": "#CC79A7",
    # What is no method: text, zero lines and error bars; goals and other lines to compare with; bands.
    "ink": "#000000",
    "guide": "#555555",
    "band": "#E4E4E4",
    "paper": "#FFFFFF",
}
# For anything that has no role, such as the models of a check: in this order, each with a marker of its own. From Tol's
# muted colours, none of which has a role.
CYCLE = (
    ("#332288", "o"),
    ("#CC6677", "s"),
    ("#999933", "^"),
    ("#AA4499", "D"),
    ("#661100", "P"),
    ("#88CCEE", "v"),
    ("#BBAA44", "X"),
)
MARKERS = {"mean_field": "o", "full_rank": "s", "low_rank": "^"}
LABELS = {"mean_field": "mean field", "full_rank": "full rank", "low_rank": "low rank"}
# Training data are drawn solid and filled, held-out data dashed and hollow.
SPLITS = {"train": "-", "test": "--"}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Apply the package's style sheet to figures made inside the `with` block, or in a function it decorates."""
    with as_file(files("amortgap") / "amortgap.mplstyle") as sheet, plt.style.context(str(sheet)):
        yield


def zero_line(ax: Axes, *, upright: bool = False) -> None:
    """Draw the line on which inference loses nothing; negative gaps beyond it are noise and stay visible.

    Args:
      ax: axes one of whose axes is a gap in nats.
      upright: whether that is the horizontal one.
    """
    (ax.axvline if upright else ax.axhline)(0.0, color=PALETTE["ink"], linewidth=0.7, zorder=1)


def save(figure: Figure, folder: str | os.PathLike[str], name: str) -> list[Path]:
    """Write `folder/name.pdf` and `.png` without time stamps, so that equal tables give equal bytes; return the paths.

    Resolution and fonts are those of the style sheet, whatever holds outside.

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
        with style():
            figure.savefig(drawn, format=path.suffix[1:], metadata=facts)
        write_atomic(path, drawn.getvalue())
    plt.close(figure)
    return paths
