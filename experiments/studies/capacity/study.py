"""What the capacity sweep varies and what its table holds."""

from __future__ import annotations

import dataclasses
from typing import Literal

from tyro.conf import Suppress

from amortgap.sweep import Column, Schema

QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)

SCHEMA = Schema(
    version=1,
    columns=(
        Column("model", str, "factor_analysis (exact ladder) or vae (deep model)", key=True),
        Column("decoder", str, "shared: one frozen decoder for all; joint: trained with each encoder", key=True),
        Column("family", str, "variational family", key=True),
        Column("encoder", str, "constant, linear (capacity = rank) or mlp (capacity = width)", key=True),
        Column("depth", int, "hidden layers of the encoder", key=True),
        Column("capacity", int, "rank of a linear encoder, width of an mlp, 0 of the constant encoder", key=True),
        Column("seed", int, "seed of the encoder's initial weights and of its training noise", key=True),
        Column("split", str, "train (the encoder was fitted to these data) or test (held out)", key=True),
        Column("num_data", int, "number of data"),
        Column("encoder_parameters", int, "trained scalars of the encoder"),
        Column("kl_local", float, "mean over data of log p(x) - ELBO(phi*), the KL of local VI, nats"),
        Column("kl_local_se", float, "its standard error over data"),
        Column("kl_local_mc_se", float, "its standard error over Monte Carlo draws, evidence included"),
        Column("kl_local_sum", float, "the same KL summed over data, nats"),
        Column("kl_amortized", float, "mean over data of log p(x) - ELBO(encoder(x)), nats"),
        Column("kl_amortized_se", float, "its standard error over data"),
        Column("kl_amortized_mc_se", float, "its standard error over Monte Carlo draws, evidence included"),
        Column("kl_amortized_sum", float, "the same KL summed over data, nats"),
        Column("amortization_gap", float, "mean over data of ELBO(phi*) - ELBO(encoder(x)), shared draws, nats"),
        Column("amortization_gap_se", float, "its standard error over data"),
        Column("amortization_gap_mc_se", float, "its standard error over Monte Carlo draws"),
        Column("amortization_gap_sum", float, "the same gap summed over data, nats"),
        Column("exact_amortization_gap", float, "closed form of the gap of the best encoder of this rank, nats"),
        Column("exact_approximation_gap", float, "closed form of kl_local, nats"),
        Column("elbo_local", float, "mean ELBO of local VI on fresh draws, nats"),
        Column("elbo_amortized", float, "mean ELBO of the encoder on the same draws: the amortized objective, nats"),
        Column("log_evidence", float, "mean of log p(x), nats"),
        Column("log_evidence_mc_se", float, "its standard error over Monte Carlo draws"),
        Column("evidence_method", str, "how log p(x) was obtained"),
        Column("evidence_bias", str, "direction in which log p(x) is off in expectation"),
        Column("local_converged", float, "share of data whose local optimum met its tolerance"),
        Column("local_suboptimality", float, "mean estimate of what local VI still misses, nats"),
        Column("training_steps", int, "optimiser steps of the encoder"),
        Column("training_change", float, "gain of the training objective over the second half of training, nats"),
        Column("training_change_se", float, "its standard error over data, on shared noise"),
        Column("converged", bool, "training_change is at most the tolerance and everything is finite"),
        *(Column(f"gap_q{round(100 * q):03d}", float, f"quantile {q:g} over data of the gap, nats") for q in QUANTILES),
    ),
)


@dataclasses.dataclass(frozen=True)
class Study:
    """Everything that determines one cell of the sweep."""

    # The sweep sets these five; `--help` leaves them out.
    model: Suppress[Literal["vae", "factor_analysis"]] = "vae"
    """The deep model or the exact ladder."""
    family: Suppress[Literal["mean_field", "full_rank"]] = "mean_field"
    """Variational family."""
    width: Suppress[int] = 0
    """Rank or width of the encoder; 0 is the constant encoder."""
    depth: Suppress[int] = 1
    """Hidden layers of the encoder."""
    seed: Suppress[int] = 0
    """Seed of the initial weights and of the training noise of the encoder."""
    decoder: Literal["shared", "joint"] = "shared"
    """shared: one frozen decoder isolates capacity; joint: a decoder is trained with each encoder, as VAE users do."""
    latent_dim: int = 8
    """Dimension of the latent of both models."""
    binarisation: Literal["threshold", "fixed"] = "threshold"
    """How the digits are made binary for the deep model."""
    data_seed: int = 0
    """Seed of the split and of the fixed binarisation."""
    subset: int = 0
    """Use only the first images of each split; 0 for all."""
    decoder_width: int = 64
    """Units of the decoder's two hidden layers."""
    decoder_steps: int = 4000
    """Training steps of the VAE whose decoder is frozen."""
    encoder_steps: int = 1500
    """Training steps of each encoder."""
    ladder_steps: int = 240
    """Training steps (L-BFGS, all data at once) of each linear encoder of the ladder."""
    batch_size: int = 100
    """Images per training step of the deep model."""
    learning_rate: float = 0.04
    """Peak rate of Adam up to width 32; wider encoders use rate * sqrt(32 / width), full rank normals half of it."""
    convergence_tolerance: float = 0.02
    """Nats over the second half of training above which an encoder is trained longer, then marked."""
    extensions: int = 0
    """How many times an encoder that still moves is trained for as many steps again, at a third of the rate."""
    num_samples: int = 50
    """Draws per datum on which both ELBOs of the deep model are compared."""
    ladder_samples: int = 500
    """Draws per datum on which both ELBOs of the ladder are compared, with its closed form as the judge."""
    evidence_samples: int = 1000
    """Draws per datum of importance sampling for log p(x)."""
