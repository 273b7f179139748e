"""Estimates of the log evidence log p(x), each with its error and the direction of its bias.

`exact` and `quadrature` are references; `importance` and `ais` are lower bounds in expectation; `bidirectional` adds
the upper bound.
"""

from amortgap.evidence.ais import ais
from amortgap.evidence.bidirectional import bidirectional
from amortgap.evidence.data_sets import (
    UnreliableEvidence,
    evidence_bounds,
    evidence_of_data,
    optimum_excess_of_data,
    warn_unreliable,
)
from amortgap.evidence.exact import exact
from amortgap.evidence.importance import importance
from amortgap.evidence.methods import METHODS, log_evidence
from amortgap.evidence.optimum import excess_is_proven, optimum_excess
from amortgap.evidence.pareto import pareto_k
from amortgap.evidence.quadrature import quadrature
from amortgap.evidence.records import Evidence, Sandwich
from amortgap.evidence.temperatures import SCHEDULES, linear_temperatures, sigmoid_temperatures

__all__ = [
    "METHODS",
    "SCHEDULES",
    "Evidence",
    "Sandwich",
    "UnreliableEvidence",
    "ais",
    "bidirectional",
    "evidence_bounds",
    "evidence_of_data",
    "exact",
    "excess_is_proven",
    "importance",
    "linear_temperatures",
    "log_evidence",
    "optimum_excess",
    "optimum_excess_of_data",
    "pareto_k",
    "quadrature",
    "sigmoid_temperatures",
    "warn_unreliable",
]
