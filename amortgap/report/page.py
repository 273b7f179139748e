"""Fills a template and writes one HTML file: every string is escaped, figures are inlined."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping
from pathlib import Path

import jinja2
import matplotlib
import matplotlib.pyplot as plt
from markupsafe import Markup
from matplotlib.figure import Figure

import amortgap
from amortgap._internal.files import write_atomic
from amortgap.figures import style

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("amortgap.report"),
    # In every template: data may hold anything.
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def inline_png(data: bytes) -> Markup:
    """Return the bytes of a PNG as the address of an image."""
    return Markup("data:image/png;base64,") + base64.b64encode(data).decode()


def inline_figure(figure: Figure) -> Markup:
    """Return a figure as the address of an image, and close it."""
    drawn = io.BytesIO()
    with style():
        figure.savefig(drawn, format="png", metadata={"Software": f"matplotlib {matplotlib.__version__}"})
    plt.close(figure)
    return inline_png(drawn.getvalue())


def write_page(path: str | os.PathLike[str], template: str, values: Mapping[str, object]) -> Path:
    """Write a template filled with values at `path`, atomically, and return the path.

    Raises:
      OSError: the file cannot be written.
    """
    path = Path(path)
    text = _ENVIRONMENT.get_template(template).render(values, version=amortgap.__version__)
    write_atomic(path, text.encode())
    return path
