"""Variational families `q(z; phi)`: a size and a fused sample-and-log-prob from one unconstrained vector."""

from amortgap.families.categorical import Categorical
from amortgap.families.conditional import Branch
from amortgap.families.constrained import ConstrainedNormal
from amortgap.families.flows.affine import AutoregressiveFlow, CouplingFlow
from amortgap.families.flows.auxiliary import AuxiliaryFlow
from amortgap.families.flows.fixed_weights import FixedWeights, FixedWeightsWithDensity
from amortgap.families.flows.head import FlowHead
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
    "FixedWeightsWithDensity",
    "FlowHead",
    "FullRankNormal",
    "LowRankNormal",
    "MeanFieldNormal",
    "MixtureOfNormals",
]
