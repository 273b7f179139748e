"""A diagnosis as plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from amortgap.diagnosis.parts import COLLAPSED, Measured, TriedRemedy
from amortgap.evidence.pareto import UNRELIABLE
from amortgap.gaps import Estimate
from amortgap.inference.local.ascent import TOLERANCE

if TYPE_CHECKING:
    from amortgap.diagnosis.record import Diagnosis

NAMES = {
    "log_evidence": "log p(x)",
    "elbo_local": "ELBO of the local optimum",
    "elbo_amortized": "ELBO of the encoder",
    "approximation": "approximation gap",
    "amortization": "amortization gap",
    "inference": "inference gap",
}


def gap_rows(diagnosis: Diagnosis) -> list[tuple[str, Estimate, Estimate]]:
    """Return every quantity, as it is called, with its estimate on training and on held-out data."""
    train, test = diagnosis.train.gaps.estimates(), diagnosis.test.gaps.estimates()
    return [(called, train[name], test[name]) for name, called in NAMES.items()]


def ends(estimate: Estimate) -> str:
    """Return a mean with half of its 95 % interval over data."""
    low, high = estimate.interval()
    return f"{float(estimate.mean):.3f} ± {(high - low) / 2:.3f}"


def cost(remedy: TriedRemedy) -> str:
    """Return what a remedy costs, in words."""
    if remedy.limit:
        return remedy.note
    parts = [f"{remedy.parameters:,} weights"] if remedy.parameters else []
    if remedy.gradients:
        parts.append(f"{remedy.gradients} gradients per datum at test time")
    return f"{'; '.join([*parts, remedy.note])}; {remedy.seconds:.0f} s"


def certificates(measured: Measured) -> str:
    """Return how sure the local optima and log p(x) of one part of the data are."""
    gaps = measured.gaps
    n = len(measured.rows)
    short = float(np.mean(np.maximum(gaps.suboptimality, 0)))
    shares = [float(np.mean(np.asarray(k) > UNRELIABLE)) for k in (measured.encoder_k, measured.evidence_k)]
    return (
        f"{int(np.sum(gaps.converged))} of {n} local optima certified to {TOLERANCE:g} nats (estimated shortfall "
        f"{short:.4f} on average); log p(x) by {gaps.evidence_method} (bias: "
        f"{gaps.evidence_bias}), k-hat above {UNRELIABLE} for {100 * shares[1]:.0f} %; of the encoder's q for "
        f"{100 * shares[0]:.0f} %"
    )


def best(diagnosis: Diagnosis) -> TriedRemedy | None:
    """Return the remedy that gained most, None if none gained more than two standard errors."""
    for remedy in diagnosis.remedies:
        error = 2 * float(remedy.gain.data_standard_error)
        if not remedy.limit and float(remedy.gain.mean) > error:
            return remedy
    return None


def summary(diagnosis: Diagnosis) -> str:
    """Return the diagnosis as plain text."""
    settings = diagnosis.settings
    lines = [f"verdict: {diagnosis.verdict.name}"]
    lines += [f"  [{finding.status}] {finding.text}" for finding in diagnosis.findings]
    counts = (len(diagnosis.train.rows), len(diagnosis.test.rows))
    lines += ["", f"{'nats per datum (± half of a 95 % interval)':<46}{'train':>22}{'held out':>22}"]
    for name, train, test in gap_rows(diagnosis):
        lines.append(f"{name:<46}{ends(train):>22}{ends(test):>22}")
    lines.append(f"{'data measured':<46}{counts[0]:>22}{counts[1]:>22}")
    lines += ["", f"train: {certificates(diagnosis.train)}", f"held out: {certificates(diagnosis.test)}"]
    lines += [
        "",
        "remedies, as tried here: nats removed from the gap of the held-out data (± half of a 95 % interval)",
    ]
    for remedy in diagnosis.remedies:
        mark = "limit: " if remedy.limit else ""
        lines.append(f"  {ends(remedy.gain):>18}  {mark}{remedy.name} ({cost(remedy)})")
    lines += [f"  {'not tried':>18}  {name}: {why}" for name, why in diagnosis.skipped]
    first = best(diagnosis)
    lines.append(f"best buy: {first.name}" if first else "best buy: none of those tried gains beyond its error")
    dead = np.flatnonzero(diagnosis.latents.encoder < COLLAPSED).tolist()
    lines += ["", f"latents that tell nothing of the data, by the encoder: {dead or 'none'}"]
    if diagnosis.coverage is None:
        lines.append("calibration: not measured (the family has no density, or log p(x) is not reliable)")
    else:
        pairs = zip(diagnosis.coverage.levels, diagnosis.coverage.share, strict=True)
        inside = ", ".join(f"{100 * level:g} %: {100 * share:.0f} %" for level, share in pairs)
        lines.append(f"posterior mass in the encoder's highest-density regions: {inside}")
    worst = ", ".join(
        f"{int(diagnosis.test.rows[i])} ({float(diagnosis.test.gaps.inference[i]):.2f})" for i in diagnosis.worst
    )
    lines += [f"worst held-out data, by index (inference gap): {worst}"]
    lines.append(
        f"{settings['seconds']:.0f} s of {settings['budget']:g} s used; tolerance {settings['tolerance']:g} nats"
    )
    return "\n".join(lines)
