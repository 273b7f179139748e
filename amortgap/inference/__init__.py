"""Inference: per-datum and amortized maximisation of the same ELBO."""

from amortgap.inference.amortized import AmortizedFit, Trace, amortized_vi, train_vae
from amortgap.inference.factorized import FactorizedOptimum, LocalOptima, factorized_optimum, local_optima
from amortgap.inference.factors import LocalFactors, amortized_factors, constant_factors, free_factors
from amortgap.inference.global_local import GlobalLocalFit, GlobalLocalTrace, global_local_vi
from amortgap.inference.local import LocalFit, fit_local, local_vi
from amortgap.inference.whole import whole_elbo

__all__ = [
    "AmortizedFit",
    "FactorizedOptimum",
    "GlobalLocalFit",
    "GlobalLocalTrace",
    "LocalFactors",
    "LocalFit",
    "LocalOptima",
    "Trace",
    "amortized_factors",
    "amortized_vi",
    "constant_factors",
    "factorized_optimum",
    "fit_local",
    "free_factors",
    "global_local_vi",
    "local_optima",
    "local_vi",
    "train_vae",
    "whole_elbo",
]
