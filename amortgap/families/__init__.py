"""Variational families `q(z; phi)`: a size and a fused sample-and-log-prob from one unconstrained vector."""

from amortgap.families.branch import Branch
from amortgap.families.normal import FullRankNormal, LowRankNormal, MeanFieldNormal

__all__ = ["Branch", "FullRankNormal", "LowRankNormal", "MeanFieldNormal"]
