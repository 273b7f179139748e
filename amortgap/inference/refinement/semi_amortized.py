"""Semi-amortized VI: an encoder starts, refinement steps finish, and training may look through them."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from amortgap._internal.checks import check_count, check_data, check_encoder, check_key, first_row
from amortgap._internal.records import checked_record
from amortgap.inference.refinement.refine import Refinement, check_steps, refine
from amortgap.inference.training.certificate import TOLERANCE
from amortgap.inference.training.per_datum import Params
from amortgap.inference.training.records import AmortizedFit
from amortgap.inference.training.run import Settings, train
from amortgap.objectives import elbo
from amortgap.protocols import Data, Datum, Encoder, Family, Model


def semi_amortized_vi(
    key: jax.Array,
    xs: Data,
    *,
    model: Model,
    family: Family,
    encoder: Encoder,
    refine_steps: int,
    differentiate_steps: bool = True,
    refine_rate: float = 0.1,
    refine_samples: int = 2,
    refine_optimizer: str = "sgd",
    train_model: bool = False,
    num_steps: int = 2000,
    batch_size: int = 100,
    num_samples: int = 1,
    learning_rate: float | Array = 3e-3,
    tolerance: float = TOLERANCE,
) -> AmortizedFit:
    """Train an encoder whose output is refined by K gradient steps before it is used.

    Formula: `max_w (1/N) sum_i ELBO(refine_K(encoder_w(x_i)); x_i)` with the gradient through all K steps. Without it
    the encoder is trained on its own ELBO and only the model, if trained, on the ELBO of the refined parameters.

    Args:
      key: typed key.
      xs: data.
      model, family, encoder: as in `amortized_vi`.
      refine_steps: K.
      differentiate_steps: differentiate through the refinement (Kim et al. 2018) or not (Krishnan et al. 2018).
      refine_rate, refine_samples, refine_optimizer: as in `refine`.
      train_model: train the model too.
      num_steps, batch_size, num_samples, learning_rate, tolerance: as in `amortized_vi`, with Adam.

    Returns:
      AmortizedFit; apply `refine` to `fit.encoder(x)` with the same settings. With `differentiate_steps` a datum whose
      inner steps are not finite falls back to the ELBO of the encoder's output; `fit.trace.num_bad` counts those steps.
      Without it, and with the model trained, the objective is the sum of both ELBOs, the encoder's and the refined one.

    Raises:
      ValueError: bad key, data, sizes or settings, such as K < 0.

    Source: Kim et al., "Semi-amortized variational autoencoders" (2018), algorithm 1; Krishnan, Liang and Hoffman, "On
    the challenges of learning with inference networks" (2018), algorithm 1.
    """
    check_key(key)
    check_steps(
        model, family, steps=refine_steps, rate=refine_rate, draws=refine_samples, optimizer=refine_optimizer,
        names=("refine_steps", "refine_rate", "refine_samples", "refine_optimizer"),
    )  # fmt: skip
    check_count("num_samples", num_samples)
    xs = check_data("xs", xs, model)
    encoder = check_encoder(encoder, family, first_row(xs))

    objective = _Refined(
        None if train_model else model,
        family,
        refine_rate,
        refine_steps,
        refine_samples,
        refine_optimizer,
        differentiate_steps,
        num_samples,
    )
    return train(
        key,
        xs,
        objective,
        encoder=encoder,
        model=model,
        train_model=train_model,
        settings=Settings(num_steps=num_steps, batch_size=batch_size, learning_rate=learning_rate, tolerance=tolerance),
    )


@checked_record
@dataclass(frozen=True)
class _Refined:
    """The ELBO of a datum after refinement, as a DatumObjective; `model` is None where it is trained."""

    model: Model | None
    family: Family
    rate: float = field(metadata={"static": True})
    steps: int = field(metadata={"static": True})
    refine_samples: int = field(metadata={"static": True})
    optimizer: str = field(metadata={"static": True})
    differentiate_steps: bool = field(metadata={"static": True})
    num_samples: int = field(metadata={"static": True})

    def __call__(self, key: jax.Array, params: Params, x: Datum, step: Int[Array, ""]) -> tuple[Array, Array]:
        model = params.model if self.model is None else self.model
        key_refine, key_bound = jax.random.split(key)
        phi = params.encoder(x)
        fixed_phi, fixed_model = jax.lax.stop_gradient((phi, model))
        # Without gradients first: where a step is not finite, the gradient through it would be NaN for all weights.
        trial = self._refine(key_refine, fixed_phi, x, fixed_model)
        if not self.differentiate_steps:
            direct = self._bound(key_bound, phi, x, fixed_model)
            if self.model is not None:
                return direct, trial.num_bad
            return direct + self._bound(key_bound, jax.lax.stop_gradient(trial.phi), x, model), trial.num_bad
        bad = trial.num_bad + ~jnp.isfinite(self._bound(key_bound, trial.phi, x, fixed_model))
        start, used_model = jax.tree.map(
            lambda frozen, free: jnp.where(bad > 0, frozen, free), (fixed_phi, fixed_model), (phi, model)
        )
        reached = self._refine(key_refine, start, x, used_model)
        direct = self._bound(key_bound, phi, x, model)
        return jnp.where(bad > 0, direct, self._bound(key_bound, reached.phi, x, used_model)), bad

    def _bound(self, key: jax.Array, phi: Array, x: Datum, model: Model) -> Float[Array, ""]:
        return elbo(key, phi, x, model=model, family=self.family, num_samples=self.num_samples)

    def _refine(self, key: jax.Array, phi: Array, x: Datum, model: Model) -> Refinement:
        return refine(
            key,
            phi,
            x,
            model=model,
            family=self.family,
            num_steps=self.steps,
            learning_rate=self.rate,
            num_samples=self.refine_samples,
            optimizer=self.optimizer,
        )
