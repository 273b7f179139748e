"""Data, models and encoders of the reproduction; trained once, kept as checked weights, read by every cell."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import amortgap as ag
from amortgap.sweep import locked
from studies.cremer2018.study import Study, Training
from studies.shared import broken_at, purpose_key

logger = logging.getLogger("amortgap.cremer2018")
BATCH_SIZE = 100


class Trained(NamedTuple):
    """A model, its encoder and their family; `finite` says whether training went through."""

    model: Any
    encoder: Any
    family: Any
    finite: bool


@functools.cache
def data_set(name: str, seed: int) -> ag.data.DataSet:
    """Return a data set, binary: MNIST and digits drawn once from their grey values, all others by a threshold."""
    # As in the paper: MNIST in a fixed binarisation, Fashion-MNIST and the channels of CIFAR-10 at one half.
    binarisation = "fixed" if name in ("mnist", "digits") else "threshold"
    return getattr(ag.data, f"load_{name}")(binarisation=binarisation, seed=seed)


_PURPOSES = ("decoder", "encoder", "training", "amortized", "local", "evidence", "annealing", "simulation", "copies")
key_of = functools.partial(purpose_key, 2018, _PURPOSES)


def main_training(study: Study, data: str, family: str, **changes: Any) -> Training:
    """Return the training of the main experiment, with changes."""
    base = Training(
        data=data,
        family=family,
        seed=study.seed,
        count=study.train_count,
        steps=study.train_steps,
        latent_dim=study.latent_dim,
        learning_rate=study.learning_rate,
        encoder_width=study.width,
        encoder_depth=2,
        decoder_width=study.width,
        decoder_depth=2,
        warmup_steps=round(study.warmup_share * study.train_steps),
        flow=(study.flow_layers, study.flow_width, study.flow_context),
    )
    return dataclasses.replace(base, **changes)


def make_family(name: str, latent_dim: int, flow: tuple[int, int, int]) -> Any:
    """Return a variational family: FFG (diagonal normal), AF (auxiliary flow) or Flow (coupling of two halves)."""
    layers, width, context = flow
    if name == "FFG":
        return ag.families.MeanFieldNormal(latent_dim)
    if name == "Flow":
        return ag.families.CouplingFlow(latent_dim, num_layers=layers, width=width, context_dim=context)
    return ag.families.AuxiliaryFlow(latent_dim, latent_dim, num_layers=layers, width=width, context_dim=context)


def make_encoder(key: jax.Array, shape: tuple[int, ...], family: Any, *, width: int, depth: int) -> Any:
    """Return an encoder of images: fully connected, convolutional where they have three channels."""

    def head(family: Any) -> Any:
        if len(shape) == 3:
            return ag.encoders.conv(key, (shape[0], shape[1], shape[2]), family, channels=(64, 128, 256))
        return ag.encoders.mlp(key, int(np.prod(shape)), family, width=width, depth=depth)

    return ag.encoders.shared_flow(head(family.head), family) if hasattr(family, "head") else head(family)


def untrained(training: Training) -> tuple[Any, Any, Any]:
    """Return the model and the encoder before training, and their family."""
    pixels = data_set(training.data, training.seed).train.shape[1]
    family = make_family(training.family, training.latent_dim, training.flow)
    model = ag.models.deep_latent_gaussian(
        key_of("decoder", training.seed),
        latent_dim=training.latent_dim,
        data_dim=pixels,
        width=training.decoder_width,
        depth=training.decoder_depth,
    )
    shape = (32, 32, 3) if training.data == "cifar10" else (pixels,)
    key = key_of("encoder", training.seed)
    encoder = make_encoder(key, shape, family, width=training.encoder_width, depth=training.encoder_depth)
    return model, encoder, family


def trained(training: Training, folder: Path) -> Trained:
    """Return a trained model, from `folder` if it was trained before.

    Raises:
      ValueError: weights in the folder that are damaged or of another architecture.
    """
    name = hashlib.sha256(repr(training).encode()).hexdigest()[:16]
    path = folder / f"{name}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    before = dataclasses.replace(training, segments=training.segments - 1)
    # What a later checkpoint starts from is made outside of its lock.
    start = trained(before, folder) if training.segments > 1 else None
    with locked(path.with_suffix(".lock")):
        if path.exists():
            template = jax.eval_shape(lambda: _weights(*untrained(training)[:2], True))
            kept = ag.weights.load_weights(path, template, config=training)
            family = make_family(training.family, training.latent_dim, training.flow)
            return Trained(kept["model"], kept["encoder"], family, bool(kept["finite"]))
        found = _train(training, start)
        ag.weights.save_weights(path, _weights(found.model, found.encoder, found.finite), config=training)
        return found


def _weights(model: Any, encoder: Any, finite: bool) -> dict[str, Any]:
    return {"model": model, "encoder": encoder, "finite": jnp.asarray(finite)}


def _train(training: Training, start: Trained | None) -> Trained:
    data = data_set(training.data, training.seed)
    xs = data.train[: training.count]
    model, encoder, family = (start.model, start.encoder, start.family) if start else untrained(training)
    fit = ag.train_vae(
        key_of("training", training.segments),
        xs,
        model=model,
        family=family,
        encoder=encoder,
        # The published protocol keeps the last weights; here the best of few looks at training images.
        validation=xs[:1000],
        num_steps=training.steps,
        num_evaluations=min(4, training.steps),
        batch_size=min(BATCH_SIZE, len(xs)),
        learning_rate=training.learning_rate,
        entropy_warmup=training.warmup_steps if start is None else 0,
        progress=True,
    )
    finite = bool(fit.finite) and (start is None or start.finite)
    if not finite:
        logger.warning(
            "training diverged by step %d, seed %d; the best weights are kept: %s",
            broken_at(fit.trace),
            training.seed,
            training,
        )
    return Trained(fit.model, fit.encoder, family, finite)
