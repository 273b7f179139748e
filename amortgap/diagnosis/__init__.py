"""How many nats an encoder loses, why, how sure that is, and what to do about it: `diagnose`."""

from amortgap.diagnosis.diagnose import MINIMUM_BUDGET, Diagnosis, diagnose
from amortgap.diagnosis.records import Coverage, Finding, Latents, Measured, Problem, TriedRemedy
from amortgap.diagnosis.remedies import REMEDIES

__all__ = [
    "MINIMUM_BUDGET",
    "REMEDIES",
    "Coverage",
    "Diagnosis",
    "Finding",
    "Latents",
    "Measured",
    "Problem",
    "TriedRemedy",
    "diagnose",
]
