"""Settings that all trainings of encoders share, their checks, and the training loop run by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import optax
from jaxtyping import Array

from amortgap._internal.checks import check_choice, check_count, check_positive, check_trainable, is_concrete
from amortgap.inference.training.certificate import TOLERANCE, encoder_certificate
from amortgap.inference.training.loop import ADAM, LBFGS, fit
from amortgap.inference.training.per_datum import DatumObjective, MeanOverDraws, Params, PerDatum
from amortgap.inference.training.records import AmortizedFit
from amortgap.protocols import Data, Encoder, Model

LEARNING_RATE = 3e-3


@dataclass(frozen=True)
class Settings:
    """Settings of a training, as `amortized_vi` explains them; checked here."""

    num_steps: int
    batch_size: int
    learning_rate: float | Array | None = None
    optimizer: str | optax.GradientTransformation = "adam"
    num_evaluations: int = 20
    eval_samples: int = 8
    tolerance: float = TOLERANCE
    devices: Sequence[Any] | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        """Refuse values that no training can have."""
        check_count("num_evaluations", self.num_evaluations, minimum=2)
        check_count("num_steps", self.num_steps)
        check_count("batch_size", self.batch_size)
        check_count("eval_samples", self.eval_samples)
        if isinstance(self.optimizer, str):
            check_choice("optimizer", self.optimizer, ("adam", "lbfgs"))
        elif not isinstance(self.optimizer, optax.GradientTransformation):
            raise ValueError(
                "optimizer must be 'adam', 'lbfgs' or an optax.GradientTransformation, "
                f"got {type(self.optimizer).__name__}"
            )
        elif self.learning_rate is not None:
            raise ValueError(
                "learning_rate must be None where optimizer is an optax transformation, which has a rate of its own, "
                f"got {self.learning_rate}"
            )
        if self.learning_rate is not None and is_concrete(self.learning_rate):
            check_positive("learning_rate", float(self.learning_rate))
        check_positive("tolerance", self.tolerance)
        if self.optimizer == "lbfgs" and self.devices is not None:
            raise ValueError(f"devices must be None with optimizer 'lbfgs', which computes on one, got {self.devices}")


def train(
    key: jax.Array,
    xs: Data,
    objective: DatumObjective,
    *,
    encoder: Encoder,
    model: Model | None,
    train_model: bool = False,
    evaluation: DatumObjective | None = None,
    validation: Data = None,
    direction: optax.GradientTransformation | None = None,
    settings: Settings,
) -> AmortizedFit:
    """Raise the mean of an objective over the weights of an encoder, and over those of the model if asked to.

    Args:
      key, xs, encoder, model, validation: as in `amortized_vi`, checked.
      objective: DatumObjective of `Params`.
      train_model: train the model too; the objective then reads it from its params.
      evaluation: DatumObjective that chooses the best weights; None for the mean of `objective` over draws.
      direction: transformation of the gradient in place of Adam's, on the tree of `Params`; Adam's rates stay.
      settings: Settings.
    """
    if not train_model:
        check_trainable(encoder)
    named, rate = isinstance(settings.optimizer, str), settings.learning_rate
    if settings.optimizer == "lbfgs":
        optimizer, rate = LBFGS, None
    elif isinstance(settings.optimizer, str):
        optimizer, rate = direction or ADAM, LEARNING_RATE if rate is None else rate
    else:
        optimizer = settings.optimizer
    if evaluation is None:
        evaluation = MeanOverDraws(objective, settings.eval_samples)
    result = fit(
        key,
        Params(encoder, model if train_model else None),
        PerDatum(objective, evaluation),
        xs,
        optimizer=optimizer,
        learning_rate=rate,
        validation=validation,
        num_steps=settings.num_steps,
        num_evaluations=min(settings.num_evaluations, settings.num_steps),
        batch_size=None if settings.optimizer == "lbfgs" else settings.batch_size,
        flat=named and direction is None,
        devices=settings.devices,
        progress=settings.progress,
    )
    certificate = encoder_certificate(
        result.change, result.change_standard_error, result.finite, tolerance=settings.tolerance
    )
    return AmortizedFit(
        encoder=result.params.encoder,
        model=result.params.model if train_model else model,
        trace=result.trace,
        change=result.change,
        change_standard_error=result.change_standard_error,
        finite=result.finite,
        num_steps=result.num_steps,
        converged=certificate.converged,
        suboptimality=certificate.suboptimality,
        suboptimality_standard_error=certificate.standard_error,
    )
