"""Gaps: their measurement, the record that holds them, and the arithmetic of their errors."""

from amortgap.evidence import Bound
from amortgap.gaps.bounds import EvaluatedBounds, evaluate_bounds
from amortgap.gaps.estimates import Estimate, estimate, generalization, paired_difference
from amortgap.gaps.measure import compare_encoders, inference_gaps
from amortgap.gaps.record import Gaps
from amortgap.models.normal_posterior import conditioning_gap

__all__ = [
    "Bound",
    "Estimate",
    "EvaluatedBounds",
    "Gaps",
    "compare_encoders",
    "conditioning_gap",
    "estimate",
    "evaluate_bounds",
    "generalization",
    "inference_gaps",
    "paired_difference",
]
