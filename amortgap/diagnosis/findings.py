"""Conclusions from the measured numbers, in words, the costliest cause first."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from amortgap.diagnosis.measure import EVIDENCE_DRAWS
from amortgap.diagnosis.records import COLLAPSED, Finding, Latents, Measured
from amortgap.evidence import reliable_below
from amortgap.evidence.reliability import too_coarse
from amortgap.gaps import Estimate


class _Cause(NamedTuple):
    """A possible cause of the loss: its cost in nats, two standard errors of it, and the finding if it counts."""

    name: str
    cost: float
    error: float
    text: str
    status: str


def _nats(mean: float, error: float) -> str:
    return f"{mean:.2f} ± {error:.2f} nats"


def _gap(name: str, measured: Measured) -> tuple[float, float]:
    """Return the mean of a gap over its data and twice the larger of its standard errors."""
    estimate = measured.gaps.estimates()[name]
    error = max(float(estimate.data_standard_error), float(estimate.monte_carlo_standard_error))
    return float(estimate.mean), 2 * error


def _causes(train: Measured, test: Measured, growth: Estimate) -> list[_Cause]:
    on_test, on_train = _gap("amortization", test), _gap("amortization", train)
    # An encoder that lacks capacity or training loses on both parts, so the smaller gap counts. A gap that is not
    # finite must not hide behind the other.
    broken = [gap for gap in (on_test, on_train) if not math.isfinite(gap[0])]
    amortization = min(broken or (on_test, on_train))
    overfit = float(growth.mean), 2 * float(growth.data_standard_error)
    approximation = _gap("approximation", test)
    proven = test.gaps.evidence_bias == "none" and bool(np.all(test.gaps.converged))
    end = ", or more: log p(x) is a lower bound." if test.gaps.evidence_bias == "lower bound" else "."
    return [
        _Cause(
            "amortization",
            *amortization,
            f"The encoder, not the variational family, loses {_nats(*on_train)} per datum already on the data it was "
            f"trained on ({_nats(*on_test)} on held-out data): it is too small, or not trained to the end.",
            "proven",
        ),
        _Cause(
            "generalization",
            *overfit,
            f"The encoder is overfitted: on held-out data it loses {_nats(*overfit)} per datum more than on the data "
            f"it was trained on ({_nats(*on_test)} against {_nats(*on_train)}).",
            "estimated",
        ),
        _Cause(
            "approximation",
            *approximation,
            "The variational family cannot follow the posterior: even its best member for every datum loses "
            f"{_nats(*approximation)}{end}",
            "proven" if proven else "estimated",
        ),
    ]


def findings(
    train: Measured, test: Measured, growth: Estimate, latents: Latents, tolerance: float
) -> tuple[Finding, ...]:
    """Return the findings; the first is the verdict.

    A cause counts if its mean stands above the tolerance by two standard errors, and is unresolved if the tolerance
    lies within two standard errors of it. `growth` is how much larger the amortization gap is on held-out data.
    """
    causes = sorted(_causes(train, test, growth), key=lambda cause: -np.nan_to_num(cause.cost, nan=np.inf))
    resolved, unresolved = [], []
    for cause in causes:
        if not math.isfinite(cause.cost):
            text = f"The {cause.name} gap is {cause.cost}: see the data below."
            unresolved.append(Finding(cause.name, text, "not resolved"))
        elif cause.cost - cause.error > tolerance:
            resolved.append(Finding(cause.name, cause.text, cause.status))
        elif cause.cost + cause.error > tolerance:
            gap = f"The {cause.name} gap, {_nats(cause.cost, cause.error)}"
            text = f"{gap}, may or may not exceed {tolerance:g} nats. More data would tell."
            unresolved.append(Finding(cause.name, text, "not resolved"))
    if not resolved:
        loss = f"in all {_nats(*_gap('inference', test))} on held-out data."
        if unresolved:
            text = f"No cause is above {tolerance:g} nats beyond doubt; {loss}"
            resolved.append(Finding("not resolved", text, "not resolved"))
        else:
            resolved.append(Finding("healthy", f"Nothing costs more than {tolerance:g} nats: {loss}", "estimated"))
    return (*resolved, *unresolved, *_reliability(train, test), *_collapse(latents))


def _reliability(train: Measured, test: Measured) -> list[Finding]:
    """Return a finding for each kind of data whose local optimum or log p(x) is not certified."""
    both = (train, test)
    missed = ~np.concatenate([part.gaps.converged for part in both])
    coarse = np.concatenate(
        [too_coarse(np.asarray(part.gaps.log_evidence_standard_error), part.gaps.evidence_bias) for part in both]
    )
    threshold = reliable_below(EVIDENCE_DRAWS)
    heavy = np.concatenate([part.evidence_k for part in both]) > threshold
    texts = [
        (
            "local optima",
            missed,
            "{} local optima are not certified: there the amortization gap is a lower bound, and the approximation gap "
            "an upper one.",
        ),
        (
            "evidence",
            coarse,
            "The quadrature behind log p(x) does not resolve the posterior of {} data, which may have several modes: "
            "there log p(x) and the approximation gap are not known.",
        ),
        (
            "evidence",
            heavy,
            f"Behind log p(x) Pareto k-hat exceeds {threshold:.2g} for {{}} data: there it is a lower bound that may "
            "be nats low, and the approximation gap with it.",
        ),
    ]
    return [
        Finding(name, text.format(f"{int(data.sum())} of {data.size}"), "not resolved")
        for name, data, text in texts
        if data.any()
    ]


def _collapse(latents: Latents) -> list[Finding]:
    dead = latents.local < COLLAPSED
    ignored = (latents.encoder < COLLAPSED) & ~dead
    found = []
    if ignored.any():
        text = f"The encoder ignores latents {np.flatnonzero(ignored).tolist()}, which the local optima use."
        found.append(Finding("collapse", text, "estimated"))
    if dead.any():
        text = (
            f"Latents {np.flatnonzero(dead).tolist()} tell nothing of the data even at the local optima: the model "
            "does not use them, and no encoder can change that."
        )
        found.append(Finding("collapse", text, "estimated"))
    return found
