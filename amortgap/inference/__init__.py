"""Inference: per-datum and amortized maximisation of the same ELBO."""

from amortgap.inference.amortized import AmortizedFit, Trace, amortized_vi, train_vae
from amortgap.inference.buffered import buffered_bound
from amortgap.inference.encoder_objectives import (
    WeightNormEncoder,
    denoising_objective,
    elbo_objective,
    iwae_objective,
    reverse_half_asleep_objective,
    sleep_objective,
)
from amortgap.inference.encoder_training import EncoderFit, EncoderTrace, train_encoder, train_vae_aggressively
from amortgap.inference.iterative import IterativeEncoder, iterative_amortized_vi, iterative_encoder
from amortgap.inference.local import LocalFit, fit_local, local_vi
from amortgap.inference.recursive_mixture import MixtureEncoder, recursive_mixture
from amortgap.inference.refine import Refinement, local_vi_from_starts, refine
from amortgap.inference.semi_amortized import semi_amortized_vi

__all__ = [
    "AmortizedFit",
    "EncoderFit",
    "EncoderTrace",
    "IterativeEncoder",
    "LocalFit",
    "MixtureEncoder",
    "Refinement",
    "Trace",
    "WeightNormEncoder",
    "amortized_vi",
    "buffered_bound",
    "denoising_objective",
    "elbo_objective",
    "fit_local",
    "iterative_amortized_vi",
    "iterative_encoder",
    "iwae_objective",
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
]
