"""Normalizing flows as families: affine coupling, autoregressive and auxiliary flows, and shared flow weights."""

from amortgap.families.flows.affine import AutoregressiveFlow, CouplingFlow
from amortgap.families.flows.auxiliary import AuxiliaryFlow
from amortgap.families.flows.fixed_weights import FixedWeights, FixedWeightsWithDensity
from amortgap.families.flows.head import FlowHead

__all__ = ["AutoregressiveFlow", "AuxiliaryFlow", "CouplingFlow", "FixedWeights", "FixedWeightsWithDensity", "FlowHead"]
