"""Inference: per-datum and amortized maximisation of the same ELBO."""

from amortgap.inference.aggressive import train_vae_aggressively
from amortgap.inference.amortized import AmortizedFit, Trace, amortized_vi, train_vae
from amortgap.inference.buffered import buffered_bound
from amortgap.inference.encoder_objectives import (
    denoising_objective,
    elbo_objective,
    iwae_objective,
    reverse_half_asleep_objective,
    sleep_objective,
)
from amortgap.inference.encoder_training import EncoderFit, EncoderTrace, train_encoder
from amortgap.inference.factorized import FactorizedOptimum, LocalOptima, factorized_optimum, local_optima
from amortgap.inference.factors import LocalFactors, amortized_factors, constant_factors, free_factors
from amortgap.inference.global_local import GlobalLocalFit, GlobalLocalTrace, global_local_vi
from amortgap.inference.iterative import IterativeEncoder, iterative_amortized_vi, iterative_encoder
from amortgap.inference.local import LocalFit, fit_local, local_vi
from amortgap.inference.recursive_mixture import MixtureEncoder, recursive_mixture
from amortgap.inference.refine import Refinement, refine
from amortgap.inference.semi_amortized import semi_amortized_vi
from amortgap.inference.starts import local_vi_from_starts
from amortgap.inference.whole import whole_elbo

__all__ = [
    "AmortizedFit",
    "EncoderFit",
    "EncoderTrace",
    "FactorizedOptimum",
    "GlobalLocalFit",
    "GlobalLocalTrace",
    "IterativeEncoder",
    "LocalFactors",
    "LocalFit",
    "LocalOptima",
    "MixtureEncoder",
    "Refinement",
    "Trace",
    "amortized_factors",
    "amortized_vi",
    "buffered_bound",
    "constant_factors",
    "denoising_objective",
    "elbo_objective",
    "factorized_optimum",
    "fit_local",
    "free_factors",
    "global_local_vi",
    "iterative_amortized_vi",
    "iterative_encoder",
    "iwae_objective",
    "local_optima",
    "local_vi",
    "local_vi_from_starts",
    "recursive_mixture",
    "refine",
    "reverse_half_asleep_objective",
    "semi_amortized_vi",
    "sleep_objective",
    "train_encoder",
    "train_vae",
    "train_vae_aggressively",
    "whole_elbo",
]
