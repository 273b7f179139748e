"""Estimates of the log evidence log p(x), each with its direction of bias."""

from amortgap.evidence.estimators import Evidence, log_evidence

__all__ = ["Evidence", "log_evidence"]
