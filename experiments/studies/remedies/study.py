"""What the comparison of remedies varies and what its table holds."""

from __future__ import annotations

import dataclasses
from typing import Literal

from amortgap.sweep import Column, Schema

SCHEMA = Schema(
    version=1,
    columns=(
        Column("data", str, "data set", key=True),
        Column("remedy", str, "what was done about the gap", key=True),
        Column("steps", int, "refinement steps or iterations at test time, 0 for one pass of the encoder", key=True),
        Column("seed", int, "seed of the encoder's initial weights and of its training noise", key=True),
        Column("split", str, "train (the encoder was fitted to these data) or test (held out)", key=True),
        Column(
            "kind",
            str,
            "baseline, family, encoder, objective, method, limit, or bound (several weights: its gap has no split)",
        ),
        Column("family", str, "variational family"),
        Column("num_data", int, "number of data evaluated"),
        Column("parameters", int, "trained scalars of the encoder, shared flow weights included"),
        Column("training_evaluations", int, "evaluations of the decoder in training (with or without gradient)"),
        Column("test_evaluations", int, "evaluations of the decoder per datum at test time, before any bound is taken"),
        Column("inference_gap", float, "mean over data of log p(x) - bound, nats"),
        Column("inference_gap_se", float, "its standard error over data"),
        Column("inference_gap_mc_se", float, "its standard error over Monte Carlo draws"),
        Column("removed", float, "inference gap of the baseline less this one, same data and draws, nats"),
        Column("removed_se", float, "its standard error over data"),
        Column("approximation_gap", float, "mean of log p(x) - ELBO at the local optimum of the family, nats"),
        Column("approximation_gap_se", float, "its standard error over data"),
        Column("amortization_gap", float, "mean of ELBO at the local optimum - bound, nats"),
        Column("amortization_gap_se", float, "its standard error over data"),
        Column("local_converged", float, "share of data whose local optimum met its tolerance"),
        Column("local_suboptimality", float, "mean estimate of what local VI still misses, nats"),
        Column("log_evidence", float, "mean of log p(x) by importance sampling, nats"),
        Column("log_evidence_mc_se", float, "its standard error over Monte Carlo draws"),
        Column("finite", bool, "no training step was skipped for a value that is not finite"),
    ),
)


@dataclasses.dataclass(frozen=True)
class Study:
    """Everything that determines one cell."""

    remedy: str = "baseline"
    """Set by the sweep."""
    steps: int = 0
    """Set by the sweep: refinement steps or iterations at test time."""
    seed: int = 0
    """Set by the sweep."""
    data: Literal["digits", "mnist", "fashion_mnist"] = "digits"
    """Data set; `make data` fetches all but digits."""
    latent_dim: int = 8
    """Dimension of the latent."""
    decoder_width: int = 64
    """Units of the decoder's two hidden layers."""
    decoder_steps: int = 4000
    """Training steps of the VAE whose decoder is frozen."""
    training_evaluations: int = 200_000
    """Decoder evaluations that every remedy may spend on training; those with more a step take fewer steps."""
    batch_size: int = 100
    """Images per training step."""
    learning_rate: float = 0.01
    """Peak rate of Adam."""
    width: int = 32
    """Hidden units of the baseline's encoder (one layer) and of every remedy that keeps it."""
    num_train: int = 200
    """Training images on which gaps are evaluated."""
    num_test: int = 200
    """Held-out images on which gaps are evaluated."""
    num_samples: int = 200
    """Draws per datum of every bound."""
    evidence_samples: int = 2000
    """Draws per datum of importance sampling for log p(x)."""
    local_steps: int = 400
    """Adam steps of local VI for families without a faster method, from the encoder's output."""
    subset: int = 0
    """Train on the first images only; 0 for all."""
