"""Variational families `q(z; phi)`: a size and a fused sample-and-log-prob from one unconstrained vector."""

from amortgap.families.auxiliary_flow import AuxiliaryFlow
from amortgap.families.branch import Branch
from amortgap.families.categorical import Categorical
from amortgap.families.constrained import ConstrainedNormal
from amortgap.families.fixed_weights import FixedWeights
from amortgap.families.flow_head import FlowHead
from amortgap.families.flows import AutoregressiveFlow, CouplingFlow
from amortgap.families.mixture import MixtureOfNormals
from amortgap.families.normal import FullRankNormal, LowRankNormal, MeanFieldNormal

__all__ = [
    "AutoregressiveFlow",
    "AuxiliaryFlow",
    "Branch",
    "Categorical",
    "ConstrainedNormal",
    "CouplingFlow",
    "FixedWeights",
    "FlowHead",
    "FullRankNormal",
    "LowRankNormal",
    "MeanFieldNormal",
    "MixtureOfNormals",
]
