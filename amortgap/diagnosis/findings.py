"""What the measured numbers say, in words: rules, the costliest cause first."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from amortgap.diagnosis.parts import COLLAPSED, Finding, Latents, Measured
from amortgap.evidence.data_sets import too_coarse
from amortgap.evidence.pareto import UNRELIABLE
from amortgap.gaps import Estimate


class _Cause(NamedTuple):
    name: str
    cost: float
    error: float
    text: str
    status: str


def _pm(mean: float, error: float) -> str:
    return f"{mean:.2f} ± {error:.2f} nats"


def _of(name: str, measured: Measured) -> tuple[float, float]:
    """Return the mean of a gap over its data and twice the larger of its standard errors."""
    found = measured.gaps.estimates()[name]
    error = max(float(found.data_standard_error), float(found.monte_carlo_standard_error))
    return float(found.mean), 2 * error


def _causes(train: Measured, test: Measured, more: Estimate) -> list[_Cause]:
    amortization, error = _of("amortization", test)
    on_train, train_error = _of("amortization", train)
    overfit, overfit_error = float(more.mean), 2 * float(more.data_standard_error)
    approximation, approximation_error = _of("approximation", test)
    # What the encoder lacks shows on both parts; one that is not finite must not hide behind the other.
    costs = [(amortization, error), (on_train, train_error)]
    if not (math.isfinite(amortization) and math.isfinite(on_train)):
        costs = [cost for cost in costs if not math.isfinite(cost[0])]
    exact = test.gaps.evidence_bias == "none"
    end = ", or more: log p(x) is a lower bound." if test.gaps.evidence_bias == "lower bound" else "."
    return [
        _Cause(
            "amortization", min(costs)[0], min(costs)[1],
            f"The encoder, not the variational family, loses {_pm(on_train, train_error)} per datum already on the "
            f"data it was trained on ({_pm(amortization, error)} on held-out data): it is too small, or not trained to "
            "the end.",
            "proven",
        ),
        _Cause(
            "generalization", overfit, overfit_error,
            f"The encoder is overfitted: on held-out data it loses {_pm(overfit, overfit_error)} per datum more than "
            f"on the data it was trained on ({_pm(amortization, error)} against {_pm(on_train, train_error)}).",
            "estimated",
        ),
        _Cause(
            "approximation", approximation, approximation_error,
            f"The variational family cannot follow the posterior: even its best member for every datum loses "
            f"{_pm(approximation, approximation_error)}{end}",
            "proven" if exact and bool(np.all(test.gaps.converged)) else "estimated",
        ),
    ]  # fmt: skip


def findings(
    train: Measured, test: Measured, more: Estimate, latents: Latents, tolerance: float
) -> tuple[Finding, ...]:
    """Return what was found; the first is the verdict.

    A cause counts if its mean stands above the tolerance by two standard errors, and is unresolved if the tolerance
    lies within two standard errors of it.
    """
    causes = sorted(_causes(train, test, more), key=lambda cause: -np.nan_to_num(cause.cost, nan=np.inf))
    found, open_ends = [], []
    for cause in causes:
        if not math.isfinite(cause.cost):
            open_ends.append(
                Finding(cause.name, f"The {cause.name} gap is {cause.cost}: see the data below.", "not resolved")
            )
        elif cause.cost - cause.error > tolerance:
            found.append(Finding(cause.name, cause.text, cause.status))
        elif cause.cost + cause.error > tolerance:
            text = f"The {cause.name} gap, {_pm(cause.cost, cause.error)}, may or may not exceed {tolerance:g} nats."
            open_ends.append(Finding(cause.name, text + " More data would tell.", "not resolved"))
    if not found:
        inference, error = _of("inference", test)
        if not open_ends:
            text = f"Nothing costs more than {tolerance:g} nats: in all {_pm(inference, error)} on held-out data."
            found.append(Finding("healthy", text, "estimated"))
        else:
            text = (
                f"No cause is above {tolerance:g} nats beyond doubt; in all {_pm(inference, error)} on held-out data."
            )
            found.append(Finding("not resolved", text, "not resolved"))
    return (*found, *open_ends, *_reliability(train, test), *_collapse(latents))


def _reliability(train: Measured, test: Measured) -> list[Finding]:
    found = []
    converged = np.concatenate([train.gaps.converged, test.gaps.converged])
    if not converged.all():
        text = (
            f"{int((~converged).sum())} of {converged.size} local optima are not certified: there the amortization gap "
            "is a lower bound, and the approximation gap an upper one."
        )
        found.append(Finding("local optima", text, "not resolved"))
    coarse = np.concatenate([
        too_coarse(np.asarray(gaps.log_evidence_standard_error), gaps.evidence_bias) for gaps in (train.gaps, test.gaps)
    ])  # fmt: skip
    if coarse.any():
        text = (
            f"The quadrature behind log p(x) does not resolve the posterior of {int(coarse.sum())} of {coarse.size} "
            "data, which may have several modes: there log p(x) and the approximation gap are not known."
        )
        found.append(Finding("evidence", text, "not resolved"))
    shapes = np.concatenate([train.evidence_k, test.evidence_k])
    bad = shapes > UNRELIABLE
    if bad.any():
        text = (
            f"Behind log p(x) Pareto k-hat exceeds {UNRELIABLE} for {int(bad.sum())} of {bad.size} data: there it is a "
            "lower bound that may be nats low, and the approximation gap with it."
        )
        found.append(Finding("evidence", text, "not resolved"))
    return found


def _collapse(latents: Latents) -> list[Finding]:
    dead = latents.local < COLLAPSED
    lost = (latents.encoder < COLLAPSED) & ~dead
    found = []
    if lost.any():
        text = f"The encoder ignores latents {np.flatnonzero(lost).tolist()}, which the local optima use."
        found.append(Finding("collapse", text, "estimated"))
    if dead.any():
        text = (
            f"Latents {np.flatnonzero(dead).tolist()} tell nothing of the data even at the local optima: the model "
            "does not use them, and no encoder can change that."
        )
        found.append(Finding("collapse", text, "estimated"))
    return found
