"""Variational families `q(z; phi)`: a size and a fused sample-and-log-prob from one unconstrained vector."""

from amortgap.families.branch import Branch
from amortgap.families.categorical import Categorical
from amortgap.families.constrained import ConstrainedNormal
from amortgap.families.flows import AutoregressiveFlow, AuxiliaryFlow, CouplingFlow, FlowHead
from amortgap.families.mixture import MixtureOfNormals
from amortgap.families.normal import FullRankNormal, LowRankNormal, MeanFieldNormal

__all__ = [
    "AutoregressiveFlow",
    "AuxiliaryFlow",
    "Branch",
    "Categorical",
    "ConstrainedNormal",
    "CouplingFlow",
    "FlowHead",
    "FullRankNormal",
    "LowRankNormal",
    "MeanFieldNormal",
    "MixtureOfNormals",
]
