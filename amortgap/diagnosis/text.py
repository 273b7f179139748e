"""A diagnosis as plain text."""

from __future__ import annotations

import numpy as np

from amortgap.diagnosis.measure import DRAWS, EVIDENCE_DRAWS
from amortgap.diagnosis.records import COLLAPSED, DiagnosisRecord, Measured, TriedRemedy
from amortgap.evidence import reliable_below
from amortgap.gaps import Estimate
from amortgap.inference.local.acceptance import TOLERANCE

LABELS = {
    "log_evidence": "log p(x)",
    "elbo_local": "ELBO of the local optimum",
    "elbo_amortized": "ELBO of the encoder",
    "approximation": "approximation gap",
    "amortization": "amortization gap",
    "inference": "inference gap",
}


def gap_rows(diagnosis: DiagnosisRecord) -> list[tuple[str, str, str]]:
    """Return the label of every quantity with its mean and interval on training and on held-out data."""
    train, test = diagnosis.train.gaps.estimates(), diagnosis.test.gaps.estimates()
    return [(label, with_interval(train[name]), with_interval(test[name])) for name, label in LABELS.items()]


def with_interval(estimate: Estimate) -> str:
    """Return a mean with half of its 95 % interval over data."""
    low, high = estimate.interval()
    return f"{float(estimate.mean):.3f} ± {(high - low) / 2:.3f}"


def cost(remedy: TriedRemedy) -> str:
    """Return the cost of a remedy in words."""
    if remedy.limit:
        return remedy.note
    parts = [f"{remedy.parameters:,} weights"] if remedy.parameters else []
    if remedy.gradients:
        parts.append(f"{remedy.gradients} gradients per datum at test time")
    return "; ".join([*parts, remedy.note, f"{remedy.seconds:.0f} s"])


def certificates(measured: Measured) -> str:
    """Return how sure the local optima and log p(x) of one part of the data are."""
    gaps = measured.gaps
    shortfall = float(np.mean(np.maximum(gaps.suboptimality, 0)))
    heavy, heavy_encoder = (
        f"k-hat above {limit:.2g} for {100 * float(np.mean(np.asarray(k) > limit)):.0f} %"
        for k, limit in (
            (measured.evidence_k, reliable_below(EVIDENCE_DRAWS)),
            (measured.encoder_k, reliable_below(DRAWS)),
        )
    )
    certified = f"{int(np.sum(gaps.converged))} of {len(measured.rows)} local optima certified to {TOLERANCE:g} nats"
    return (
        f"{certified} (estimated shortfall {shortfall:.4f} on average); log p(x) by {gaps.evidence_method} (bias: "
        f"{gaps.evidence_bias}), {heavy}; of the encoder's q {heavy_encoder}"
    )


def best(diagnosis: DiagnosisRecord) -> TriedRemedy | None:
    """Return the remedy that gained most, None if none gained more than two standard errors."""
    for remedy in diagnosis.remedies:
        if not remedy.limit and float(remedy.gain.mean) > 2 * float(remedy.gain.data_standard_error):
            return remedy
    return None


def summary(diagnosis: DiagnosisRecord) -> str:
    """Return the diagnosis as plain text."""
    train, test, settings = diagnosis.train, diagnosis.test, diagnosis.settings

    def row(label: str, *values: object) -> str:
        return f"{label:<46}" + "".join(f"{value!s:>22}" for value in values)

    buy = best(diagnosis)
    collapsed = np.flatnonzero(diagnosis.latents.encoder < COLLAPSED).tolist()
    calibration = "calibration: not measured (the family has no density, or log p(x) is not reliable)"
    if diagnosis.coverage is not None:
        pairs = zip(diagnosis.coverage.levels, diagnosis.coverage.share, strict=True)
        inside = ", ".join(f"{100 * level:g} %: {100 * share:.0f} %" for level, share in pairs)
        calibration = f"posterior mass in the encoder's highest-density regions: {inside}"
    worst = ", ".join(f"{int(test.rows[i])} ({float(test.gaps.inference[i]):.2f})" for i in diagnosis.worst)
    return "\n".join(
        [
            f"verdict: {diagnosis.verdict.name}",
            *(f"  [{finding.status}] {finding.text}" for finding in diagnosis.findings),
            "",
            row("nats per datum (± half of a 95 % interval)", "train", "held out"),
            *(row(*quantity) for quantity in gap_rows(diagnosis)),
            row("data measured", len(train.rows), len(test.rows)),
            "",
            f"train: {certificates(train)}",
            f"held out: {certificates(test)}",
            "",
            "remedies, as tried here: nats removed from the gap of the held-out data (± half of a 95 % interval)",
            *(
                f"  {with_interval(remedy.gain):>18}  {'limit: ' if remedy.limit else ''}{remedy.name} ({cost(remedy)})"
                for remedy in diagnosis.remedies
            ),
            *(f"  {'not tried':>18}  {name}: {reason}" for name, reason in diagnosis.skipped),
            f"best buy: {buy.name if buy else 'none of those tried gains beyond its error'}",
            "",
            f"latents that tell nothing of the data, by the encoder: {collapsed or 'none'}",
            calibration,
            f"worst held-out data, by index (inference gap): {worst}",
            f"{settings['seconds']:.0f} s of {settings['budget']:g} s used; tolerance {settings['tolerance']:g} nats",
        ]
    )
