"""Inference: per-datum and amortized maximisation of the same ELBO."""

from amortgap.inference.hierarchical.ascent import GlobalLocalTrace
from amortgap.inference.hierarchical.elbo import hierarchical_elbo, whole_elbo
from amortgap.inference.hierarchical.exact import FactorizedOptimum, factorized_optimum
from amortgap.inference.hierarchical.factors import LocalFactors, amortized_factors, constant_factors, free_factors
from amortgap.inference.hierarchical.fit import GlobalLocalFit, global_local_vi
from amortgap.inference.hierarchical.newton import LocalOptima, local_optima
from amortgap.inference.local.local_vi import LocalFit, fit_local, local_vi
from amortgap.inference.local.restarts import local_vi_from_starts
from amortgap.inference.refinement.buffered import buffered_bound
from amortgap.inference.refinement.iterative import IterativeEncoder, iterative_amortized_vi, iterative_encoder
from amortgap.inference.refinement.recursive_mixture import MixtureEncoder, recursive_mixture
from amortgap.inference.refinement.refine import Refinement, refine
from amortgap.inference.refinement.semi_amortized import semi_amortized_vi
from amortgap.inference.training.amortized import amortized_vi, train_vae
from amortgap.inference.training.encoder import train_encoder, train_vae_aggressively
from amortgap.inference.training.objectives import (
    denoising_objective,
    elbo_objective,
    iwae_objective,
    reverse_half_asleep_objective,
    sleep_objective,
)
from amortgap.inference.training.records import AmortizedFit, EncoderFit, Trace

__all__ = [
    "AmortizedFit",
    "EncoderFit",
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
    "hierarchical_elbo",
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
