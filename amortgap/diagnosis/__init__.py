"""What one's own encoder loses, why, how sure that is, and what to do about it: `diagnose`."""

from amortgap.diagnosis.diagnose import MINIMUM_BUDGET, diagnose
from amortgap.diagnosis.parts import Coverage, Finding, Latents, Measured, Problem, TriedRemedy
from amortgap.diagnosis.record import Diagnosis
from amortgap.diagnosis.trials import REMEDIES

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
