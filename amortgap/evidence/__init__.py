"""Estimates of the log evidence log p(x), each with its error and the direction of its bias.

`exact` and `quadrature` are references; `importance` and `ais` are lower bounds in expectation; `bidirectional` adds
the upper bound.
"""

from amortgap.evidence.ais import ais
from amortgap.evidence.bidirectional import bidirectional
from amortgap.evidence.data_sets import (
    UnreliableEvidence,
    bidirectional_of_data,
    evidence_bounds,
    evidence_of_data,
    suboptimality_bound_of_data,
    warn_unreliable,
)
from amortgap.evidence.exact import exact
from amortgap.evidence.importance import importance
from amortgap.evidence.methods import METHODS, log_evidence
from amortgap.evidence.pareto import pareto_k
from amortgap.evidence.quadrature import quadrature
from amortgap.evidence.records import Bound, Evidence, EvidenceBounds
from amortgap.evidence.suboptimality import suboptimality_bound
from amortgap.evidence.temperatures import SCHEDULES, linear_temperatures, sigmoid_temperatures

__all__ = [
    "METHODS",
    "SCHEDULES",
    "Bound",
    "Evidence",
    "EvidenceBounds",
    "UnreliableEvidence",
    "ais",
    "bidirectional",
    "bidirectional_of_data",
    "evidence_bounds",
    "evidence_of_data",
    "exact",
    "importance",
    "linear_temperatures",
    "log_evidence",
    "pareto_k",
    "quadrature",
    "sigmoid_temperatures",
    "suboptimality_bound",
    "suboptimality_bound_of_data",
    "warn_unreliable",
]
