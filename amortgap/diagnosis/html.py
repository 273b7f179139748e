"""A diagnosis as one HTML file."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import numpy as np

from amortgap.diagnosis import figures, text
from amortgap.diagnosis.records import DiagnosisRecord
from amortgap.protocols import Data
from amortgap.report.page import inline_figure, write_page

# Numbers of a datum shown in the table of the worst data, where data are no images.
_SHOWN = 12


def write_diagnosis(diagnosis: DiagnosisRecord, path: str | os.PathLike[str]) -> Path:
    """Write the report of a diagnosis as one HTML file and return its path.

    Raises:
      OSError: the file cannot be written.
    """
    images = figures.worst_images(diagnosis)
    values = {
        "title": f"Diagnosis: {diagnosis.verdict.name}",
        "machine": f"{diagnosis.settings['seconds']:.0f} s on {jax.devices()[0].platform}",
        "diagnosis": diagnosis,
        "text": text,
        "distribution": inline_figure(figures.distribution(diagnosis)),
        "quality": inline_figure(figures.quality(diagnosis)),
        "remedies": inline_figure(figures.remedies(diagnosis)),
        "images": None if images is None else inline_figure(images),
        "worst": [_worst_row(diagnosis, number) for number in range(len(diagnosis.worst))],
    }
    return write_page(path, "diagnosis.html", values)


def _worst_row(diagnosis: DiagnosisRecord, number: int) -> dict[str, object]:
    test, i = diagnosis.test, diagnosis.worst[number]
    gaps = (test.gaps.inference, test.gaps.approximation, test.gaps.amortization)
    return {
        "index": int(test.rows[i]),
        "numbers": [f"{float(values[i]):.2f}" for values in (*gaps, test.encoder_k)],
        "converged": bool(test.gaps.converged[i]),
        "datum": _datum(diagnosis.worst_inputs, number),
    }


def _datum(inputs: Data, number: int) -> str:
    """Return the first numbers of a datum, by name where it has several parts."""
    parts = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(inputs):
        values = np.asarray(leaf)[number].ravel()
        more = ", ..." if values.size > _SHOWN else ""
        parts.append(f"{jax.tree_util.keystr(path)} {', '.join(f'{v:.4g}' for v in values[:_SHOWN])}{more}".strip())
    return "; ".join(parts)
