"""What `local_vi.py` measures on: a trained 50-200-200-784 Bernoulli decoder, its encoder, and 28 x 28 images."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import amortgap as ag


@dataclasses.dataclass(frozen=True)
class Study:
    """Sizes of the measurements."""

    data: Literal["auto", "fashion_mnist", "mnist", "digits"] = "auto"
    """Images; auto takes the first whose files are here (`make data` fetches them), digits enlarged to 28 x 28 else."""
    seed: int = 0
    """Seed of everything random."""
    latent_dim: int = 50
    """Latent dimension of the decoder."""
    width: int = 200
    """Units of both hidden layers, of decoder and encoder."""
    points: int = 1000
    """Data of all rows but the slow ones."""
    train_steps: int = 3000
    """Steps that train the decoder and its encoder together."""
    slow_points: int = 3
    """Data of the rows that fit one point after the other; their rates are per point."""
    turns: int = 5
    """Times every rate is measured, in turns with the others; those that take seconds once."""
    rate_steps: int = 20
    """Optimiser steps of every timed call."""
    tolerance_turns: int = 2
    """Times the natural gradient and the tuned Adam run to every horizon; the least time counts."""
    natural_horizons: tuple[int, ...] = (15, 30, 60, 125, 250, 500, 1000)
    """Natural-gradient steps of the runs to tolerance, each with a schedule of its own."""
    fit_horizons: tuple[int, ...] = (60, 200)
    """Steps of `fit_local` with its certificate; 200 is its default."""
    adam_horizons: tuple[int, ...] = (30, 60, 125, 250, 500, 1000, 2000)
    """Steps of the tuned Adam."""
    plain_horizons: tuple[int, ...] = (500, 1000, 2000)
    """Steps of the plain Adam rows."""
    loop_horizons: tuple[int, ...] = (500, 2000)
    """Steps of the rows that fit one point after the other."""
    reference_steps: int = 1000
    """Natural-gradient steps of the reference fit."""
    eval_samples: int = 256
    """Draws a datum on which all fits are compared."""
    published_points: int = 20
    """Data of the procedure in the manner of the published one, which takes 19 s a point."""
    published_samples: int = 100
    """Its draws a step."""
    published_window: int = 100
    """Its steps between two stop tests."""
    published_patience: int = 10
    """Its stop tests without progress that it lets pass."""
    widths: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256, 512)
    """Widths of the encoder sweep."""
    padded_to: int = 128
    """Widths up to this one share a compiled program."""
    seeds: int = 5
    """Seeds of the encoder sweep."""
    sweep_steps: int = 150
    """Its training steps."""
    gpu_points: int = 10_000
    """Data of the GPU row."""


class Workload(NamedTuple):
    """Data, model, and the start of every method that does not begin at the prior.

    Attributes:
      name: of the data.
      xs: binary images, [points, 784].
      init: the encoder's output, [points, 100].
    """

    name: str
    xs: jax.Array
    model: Any
    family: Any
    init: jax.Array


def images(data: str, seed: int) -> ag.data.DataSet:
    """Return images of 28 x 28 pixels, every pixel drawn once as Bernoulli of its intensity.

    Raises:
      ValueError: a named set whose files are not on this machine.
    """
    if data == "auto":
        data = next(name for name in ("fashion_mnist", "mnist", "digits") if ag.data.is_available(name))
    if data == "digits":
        return _enlarged_digits(seed)
    return getattr(ag.data, f"load_{data}")(binarisation="fixed", seed=seed)


def _enlarged_digits(seed: int) -> ag.data.DataSet:
    digits = ag.data.load_digits(binarisation="none", seed=seed)
    rng = np.random.default_rng(seed)

    def enlarge(rows: np.ndarray) -> np.ndarray:
        grey = jax.image.resize(rows.reshape(-1, 8, 8) / 16, (len(rows), 28, 28), "linear")
        return (rng.random((len(rows), 784)) < np.asarray(grey).reshape(-1, 784)).astype(np.float32)

    train, test = enlarge(digits.train), enlarge(digits.test)
    return digits._replace(name="digits enlarged to 28 x 28, fixed binarisation", train=train, test=test)


def make_workload(study: Study) -> Workload:
    """Train the decoder with its encoder, and encode the first data."""
    data = images(study.data, study.seed)
    key_model, key_encoder, key_train = jax.random.split(jax.random.key(study.seed), 3)
    pixels = data.train.shape[1]
    family = ag.families.MeanFieldNormal(study.latent_dim)
    model = ag.models.deep_latent_gaussian(
        key_model, latent_dim=study.latent_dim, data_dim=pixels, width=study.width, depth=2
    )
    encoder = ag.encoders.mlp(key_encoder, pixels, family, width=study.width, depth=2)
    fit = ag.train_vae(
        key_train,
        data.train,
        model=model,
        family=family,
        encoder=encoder,
        validation=data.test,
        num_steps=study.train_steps,
        num_evaluations=4,
    )
    xs = jnp.asarray(data.train[: study.points])
    return Workload(data.name, xs, fit.model, family, jax.jit(jax.vmap(fit.encoder))(xs))
