"""Estimates of the log evidence log p(x), each with its error and the direction of its bias.

`exact` and `quadrature` are references; `importance` and `ais` are lower bounds in expectation; `bidirectional` adds
the upper bound. `log_evidence` chooses among the first four. Functions that end in `_of_data` map over data.
"""

from amortgap.evidence.ais import ais
from amortgap.evidence.bidirectional import bidirectional, bidirectional_of_data, evidence_bounds
from amortgap.evidence.importance import importance
from amortgap.evidence.methods import evidence_of_data, log_evidence
from amortgap.evidence.pareto import pareto_k, reliable_below
from amortgap.evidence.quadrature import exact, quadrature
from amortgap.evidence.records import Bound, Evidence, EvidenceBounds
from amortgap.evidence.reliability import UnreliableEvidence, warn_unreliable
from amortgap.evidence.settings import METHODS
from amortgap.evidence.suboptimality import suboptimality_bound, suboptimality_bound_of_data
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
    "reliable_below",
    "sigmoid_temperatures",
    "suboptimality_bound",
    "suboptimality_bound_of_data",
    "warn_unreliable",
]
