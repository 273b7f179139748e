"""Warnings of data whose log p(x) cannot be relied on."""

from __future__ import annotations

import warnings

import numpy as np

from amortgap._internal.checks import is_concrete
from amortgap.evidence.pareto import reliable_below
from amortgap.evidence.records import Evidence, EvidenceBounds

# Numerical error of quadrature, in nats, above which log p(x) is not known well enough for any gap.
COARSE = 0.1


class UnreliableEvidence(RuntimeWarning):
    """Some estimates of log p(x) cannot be relied on; the message names the data."""


def too_coarse(standard_error: np.ndarray, bias: str) -> np.ndarray:
    """Return where quadrature does not know log p(x) well enough, by the error and the bias that `Evidence` states."""
    return (standard_error > COARSE) & (bias == "numerical")


def warn_unreliable(evidence: Evidence) -> None:
    """Warn of data whose log p(x) is not finite, whose k-hat is too large, or whose quadrature grid is too coarse.

    Args:
      evidence: of one datum, or of many with a leading axis N; an estimate that is still being traced is passed over.

    Returns:
      Nothing; each warning is an `UnreliableEvidence` and names the data.
    """
    if not is_concrete((evidence.log_evidence, evidence.pareto_k)):
        return
    value, shape = np.atleast_1d(evidence.log_evidence), np.atleast_1d(evidence.pareto_k)
    finite, threshold = np.isfinite(value), reliable_below(evidence.num_draws)
    coarse = too_coarse(np.atleast_1d(evidence.standard_error), evidence.bias)
    _warn_of_rows(np.isneginf(value), "log p(x) is -inf, every weight is zero")
    _warn_of_rows(
        np.isnan(value) | np.isposinf(value), "log p(x) is not a number or infinite: the log joint is, at some draw"
    )
    _warn_of_rows(
        finite & (shape > threshold), f"Pareto k-hat above {threshold:.2g}, the proposal misses posterior mass"
    )
    _warn_of_rows(
        finite & coarse,
        f"the numerical error exceeds {COARSE} nats, more nodes or another method may resolve the posterior",
    )


def warn_unreliable_bounds(bounds: EvidenceBounds) -> None:
    """Warn of data whose bounds on log p(x) are not finite, as `warn_unreliable` does."""
    if not is_concrete((bounds.lower, bounds.upper)):
        return
    lower, upper = np.asarray(bounds.lower), np.asarray(bounds.upper)
    _warn_of_rows(np.isneginf(lower), "the lower bound is -inf, every weight is zero")
    _warn_of_rows(np.isnan(lower) | np.isposinf(lower), "the lower bound is not a number or infinite")
    _warn_of_rows(~np.isfinite(upper), "the upper bound is not finite")


def _warn_of_rows(bad: np.ndarray, problem: str) -> None:
    if bad.any():
        rows = np.flatnonzero(bad)
        shown = ", ".join(map(str, rows[:10])) + (", ..." if rows.size > 10 else "")
        # The level of the user's own call of the function over data.
        warnings.warn(f"{problem}: {rows.size} of {bad.size} data, [{shown}]", UnreliableEvidence, stacklevel=4)
