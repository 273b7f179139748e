"""A diagnosis as one HTML file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

import amortgap
from amortgap.diagnosis.figures import distribution, quality, remedies, worst_images
from amortgap.diagnosis.text import best, certificates, cost, ends, gap_rows, summary
from amortgap.report.page import inline_figure, write_page

if TYPE_CHECKING:
    from amortgap.diagnosis.record import Diagnosis

# Numbers of a datum that is no image, shown in the table of the worst.
_SHOWN = 12


def write_diagnosis(diagnosis: Diagnosis, path: str | os.PathLike[str]) -> Path:
    """Write the report of a diagnosis as one HTML file and return its path.

    Raises:
      OSError: the file cannot be written.
    """
    first = best(diagnosis)
    gaps = diagnosis.test.gaps
    images = worst_images(diagnosis)
    return write_page(
        path,
        "diagnosis.html",
        title=f"Diagnosis: {diagnosis.verdict.name}",
        version=amortgap.__version__,
        machine=f"{diagnosis.settings['seconds']:.0f} s on {jax.devices()[0].platform}",
        settings=diagnosis.settings,
        verdict=diagnosis.verdict,
        findings=diagnosis.findings,
        best=None if first is None else {"name": first.name, "gain": ends(first.gain), "cost": cost(first)},
        gaps=[(name, ends(train), ends(test)) for name, train, test in gap_rows(diagnosis)],
        generalization=ends(diagnosis.generalization),
        counts=(len(diagnosis.train.rows), len(diagnosis.test.rows)),
        distribution=inline_figure(distribution(diagnosis)),
        certificates=[("train", certificates(diagnosis.train)), ("held out", certificates(diagnosis.test))],
        quality=inline_figure(quality(diagnosis)),
        remedies_figure=inline_figure(remedies(diagnosis)),
        remedies=[
            {"name": one.name, "gain": ends(one.gain), "cost": cost(one), "limit": one.limit}
            for one in diagnosis.remedies
        ],
        skipped=diagnosis.skipped,
        worst_figure=None if images is None else inline_figure(images),
        worst=[
            {
                "index": int(diagnosis.test.rows[i]),
                **{
                    name: f"{float(getattr(gaps, name)[i]):.2f}"
                    for name in ("inference", "approximation", "amortization")
                },
                "k": f"{float(diagnosis.test.encoder_k[i]):.2f}",
                "converged": bool(gaps.converged[i]),
                "datum": _datum(diagnosis.worst_inputs, number),
            }
            for number, i in enumerate(diagnosis.worst)
        ],
        summary=summary(diagnosis),
    )


def _datum(inputs: Any, number: int) -> str:
    """Return the first numbers of a datum, by name where it has several parts."""
    parts = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(inputs):
        values = np.asarray(leaf)[number].ravel()
        more = ", ..." if values.size > _SHOWN else ""
        parts.append(f"{jax.tree_util.keystr(path)} {', '.join(f'{v:.4g}' for v in values[:_SHOWN])}{more}".strip())
    return "; ".join(parts)
