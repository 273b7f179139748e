"""The record of a diagnosis: its parts, and the ways to read it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from amortgap.diagnosis.parts import Coverage, Finding, Latents, Measured, TriedRemedy
from amortgap.diagnosis.text import summary
from amortgap.gaps import Estimate


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """How many nats an encoder loses, where, how sure that is, and what buys most; made by `diagnose`.

    Attributes:
      findings: the first is the verdict, what costs most or that nothing costs much.
      train, test: what was measured on both parts of the data.
      generalization: how much larger the amortization gap is on held-out data.
      latents: how much each latent tells of the data.
      coverage: calibration of the encoder's q, None where it cannot be measured.
      remedies: those that were tried, the largest gain first; bounds on gains come last.
      skipped: remedies that were not tried, each with the reason.
      worst: positions in `test.rows` of the largest inference gaps.
      worst_inputs: these data.
      settings: what the run was given: tolerance, budget, seconds, sizes.
      image_shape: shape of a datum as an image, None if it is none.
    """

    findings: tuple[Finding, ...]
    train: Measured
    test: Measured
    generalization: Estimate
    latents: Latents
    coverage: Coverage | None
    remedies: tuple[TriedRemedy, ...]
    skipped: tuple[tuple[str, str], ...]
    worst: np.ndarray
    worst_inputs: Any
    settings: dict[str, Any]
    image_shape: tuple[int, ...] | None

    @property
    def verdict(self) -> Finding:
        """The finding that matters most."""
        return self.findings[0]

    def summary(self) -> str:
        """Return the diagnosis as plain text; every number is in nats per datum."""
        return summary(self)

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Write one self-contained HTML file and return its path.

        Raises:
          OSError: the file cannot be written.
        """
        # Drawing libraries load when something is drawn.
        from amortgap.diagnosis.html import write_diagnosis

        return write_diagnosis(self, path)
