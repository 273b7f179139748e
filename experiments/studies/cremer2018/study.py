"""What the reproduction of Cremer, Li and Duvenaud (2018) varies, and what its tables hold."""

from __future__ import annotations

import dataclasses
from typing import Literal

from amortgap.sweep import Column, Schema

DATA = ("mnist", "fashion_mnist", "kmnist", "cifar10", "digits")
IWAE, AIS, ENCODER, FFG = "log p(x) IWAE", "log p(x) AIS", "L[q]", "L[q*_FFG]"
PER_IMAGE = {
    IWAE: "importance-weighted bound from the local optimum, nats",
    AIS: "annealed importance sampling from the local normal, nats",
    ENCODER: "ELBO of the encoder, nats",
    FFG: "ELBO of the local diagonal normal, nats",
    "L[q*_AF]": "ELBO of the local auxiliary flow, nats",
    "L[q*_Flow]": "ELBO of the local coupling flow, nats",
}
PICTURED = ("true posterior", "amortized FFG", "optimal FFG", "optimal flow")
Estimator = Literal["certified", "independent-copies", "adam-1e-3"]

SCHEMA = Schema(
    version=1,
    columns=(
        Column("experiment", str, "sub-experiment", key=True),
        Column("data", str, "data set", key=True),
        Column("model", str, "family the model was trained with: FFG, AF or Flow", key=True),
        Column("variant", str, "what sets the model apart within its experiment", key=True),
        Column("step", int, "training steps done", key=True),
        Column("split", str, "train, test or simulated", key=True),
        Column("quantity", str, "bound, estimate of log p(x), or gap", key=True),
        Column("mean", float, "mean over images, nats"),
        Column("standard_error", float, "of the mean, over images; of a gap, of the paired difference"),
        Column("median", float, "median over images, nats"),
        Column("trimmed_mean", float, "mean without the largest and smallest twentieth of the images, nats"),
        Column("num_images", int, "images"),
    ),
)

IMAGES = (
    Column("experiment", str, "sub-experiment", key=True),
    Column("data", str, "data set", key=True),
    Column("model", str, "family the model was trained with", key=True),
    Column("variant", str, "what sets the model apart within its experiment", key=True),
    Column("step", int, "training steps done", key=True),
    Column("split", str, "train, test or simulated", key=True),
    Column("image", int, "index within the split", key=True),
    *(Column(quantity, float, meaning) for quantity, meaning in PER_IMAGE.items()),
)
PICTURE = (
    Column("image", int, "index among the training images", key=True),
    Column("z1", float, "first latent", key=True),
    Column("z2", float, "second latent", key=True),
    *(Column(method, float, "log density") for method in PICTURED),
)


@dataclasses.dataclass(frozen=True)
class Study:
    """Sizes of the reproduction."""

    seed: int = 0
    """Seed of everything random."""
    train_count: int = 60_000
    """Training images used, at most."""
    num_train: int = 1000
    """Training images on which gaps are measured."""
    num_test: int = 250
    """Held-out images on which gaps are measured."""
    latent_dim: int = 50
    """Dimension of the latent."""
    width: int = 200
    """Units of both hidden layers of encoder and decoder."""
    large_width: int = 500
    """Units of the larger encoder."""
    train_steps: int = 4000
    """Training steps of a model on minibatches of 100 (1,968,000 published: 3280 epochs)."""
    warmup_share: float = 0.122
    """Share of the steps in which the weight of the entropy rises to one (400 of 3280 epochs published)."""
    learning_rate: float = 2e-3
    """Peak rate of Adam."""
    flow_layers: int = 2
    """Coupling layers of the flows."""
    flow_width: int = 50
    """Hidden units of their conditioners and reverse model."""
    flow_context: int = 10
    """Numbers that the conditioners of an amortized flow read from the encoder."""
    bound_samples: int = 100
    """Draws of an image on which bounds are compared."""
    local_estimator: Estimator = "certified"
    """How L[q*] of FFG is found: certified local optima, or as either official code did it (see `estimators`)."""
    local_tolerance: float = 0.05
    """Nats that a certified local optimum may miss."""
    local_samples: int = 128
    """Draws of an image on which its local optimum is judged."""
    local_flow_steps: int = 100
    """Adam steps on what the encoder of a flow computes for an image, on models trained with that flow."""
    evidence_samples: int = 500
    """Draws of an image of the importance-weighted bound, from the local flow (5000 published, from the encoder)."""
    ais_images: int = 100
    """Images of each split on which annealed importance sampling is run."""
    ais_temperatures: int = 100
    """Temperatures from the local normal to the posterior (10,000 from the prior published)."""
    ais_chains: int = 4
    """Chains of it (100 published)."""
    ais_leapfrog: int = 5
    """Leapfrog steps of a transition (10 published)."""
    decoder_depths: tuple[int, ...] = (0, 4)
    """Hidden layers of the decoders compared with the main one of two."""
    frozen_images: int = 300
    """Images on which encoders without hidden layer are compared on a frozen decoder (500 published)."""
    frozen_steps: int = 2000
    """Training steps of these encoders."""
    series_latents: int = 20
    """Dimension of the latent in gaps over training."""
    series_count: int = 5000
    """Training images of gaps over training (50,000 published)."""
    series_checkpoints: int = 4
    """Checkpoints of gaps over training, each after `series_steps` steps."""
    series_steps: int = 1000
    """Steps between checkpoints."""
    series_images: int = 100
    """Training and as many held-out images at every checkpoint (101 published)."""
    picture_steps: int = 3000
    """Training steps of the model with two latents whose posteriors are drawn."""
    picture_grid: int = 41
    """Points along either side of a picture."""
    simulated: int = 100
    """Simulated images of the check by bidirectional Monte Carlo (1000 published)."""
    simulated_temperatures: int = 500
    """Temperatures of it, from the prior (10,000 published)."""
    simulated_chains: int = 4
    """Chains of it each way (100 published)."""
    compared_images: int = 4
    """Images on which the published estimators of L[q*] are run to their own end."""
    copies: int = 100
    """Independent copies of an image's parameters in the first of them."""
    window: int = 100
    """Steps of its windows, of which more than ten without progress end it."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell of the sweep: a model of an experiment."""

    study: Study
    experiment: str
    data: str
    model: str = "FFG"
    variant: str = ""


@dataclasses.dataclass(frozen=True)
class Training:
    """Everything that determines a trained model."""

    data: str
    family: str
    seed: int
    count: int
    steps: int
    latent_dim: int
    learning_rate: float
    encoder_width: int
    encoder_depth: int
    decoder_width: int
    decoder_depth: int
    warmup_steps: int
    flow: tuple[int, int, int]
    """Layers, width and context of the flow."""
    segments: int = 1
    """How often these steps are made, each time from where the last ended."""
