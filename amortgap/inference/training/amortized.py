"""Amortized VI: one encoder for all data, `max_phi sum_i ELBO(encoder_phi(x_i); x_i)`; with a decoder, a VAE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import optax
from jaxtyping import Array

from amortgap._internal.checks import (
    check_choice,
    check_count,
    check_data,
    check_encoder,
    check_key,
    check_sizes,
    first_row,
)
from amortgap.expectations import ESTIMATORS
from amortgap.inference.training.certificate import TOLERANCE
from amortgap.inference.training.per_datum import ElboOfParams
from amortgap.inference.training.records import AmortizedFit
from amortgap.inference.training.run import Settings, train
from amortgap.protocols import Data, Encoder, Family, Model


def amortized_vi(
    key: jax.Array,
    xs: Data,
    *,
    model: Model,
    family: Family,
    encoder: Encoder,
    validation: Data = None,
    num_steps: int = 4000,
    batch_size: int = 100,
    num_samples: int = 1,
    learning_rate: float | Array | None = None,
    eval_samples: int = 8,
    num_evaluations: int = 20,
    estimator: str | None = None,
    antithetic: bool = False,
    optimizer: str | optax.GradientTransformation = "adam",
    tolerance: float = TOLERANCE,
    devices: Sequence[Any] | None = None,
    progress: bool = False,
) -> AmortizedFit:
    """Train an encoder on the sum of the one-datum ELBOs, the model held fixed.

    Formula: `max_w (1/N) sum_i ELBO(encoder_w(x_i); x_i)`, by Adam on minibatches drawn without replacement, or by
    L-BFGS on all data at once.

    Adam runs in two cycles of equal length, each with a rate that falls to zero by a cosine. Both ends are at
    rest, so the gain from the first to the second measures how far training is from its optimum (`change`); a single
    cosine would confuse that with the noise of its own high rates. L-BFGS needs no rate and a hundred times fewer steps
    on small encoders, but keeps the same draws throughout (a sample average approximation, which fits the noise unless
    draws are many); with the cubature rule and a log joint that is quadratic in z it maximises the exact ELBO.

    Args:
      key: typed key.
      xs: training data, an array [N, ...] or a pytree of such.
      model, family: as in `elbo`.
      encoder: callable pytree from one datum to phi; its weights are the start.
      validation: data that choose the best encoder; None for the training data themselves (with fresh noise), which
        is what the amortization gap on those data is about.
      num_steps: optimiser steps in all, rounded up to whole rounds, as many for each evaluation: `trace.step` has them.
      batch_size: data per step of Adam, cut to N.
      num_samples: draws per datum and step.
      learning_rate: Adam's rate at the start of the first cycle, None for 3e-3; the second starts at a third of it.
      eval_samples: draws per datum and evaluation.
      num_evaluations: number of evaluations, at least two, rounded up to an even number.
      estimator, antithetic: of the gradient, as in `elbo`; None for "sticking_the_landing" with Adam and "total" with
        L-BFGS, which also takes "cubature" (`cubature_elbo`, no draws at all) and cannot use sticking the landing,
        whose gradient is not that of its value.
      optimizer: "adam", "lbfgs" or an optax transformation, which minimises minus the ELBO on minibatches with its own
        rate and schedule. It is compiled by its identity: to train again without compiling, keep and pass the same one.
      tolerance: nats per datum that may be left for `fit.converged`.
      devices: devices to split data and minibatches over, weights on all of them; None for all local ones, but inside
        `jit` or `vmap` for the one the caller computes on. Results do not depend on them beyond rounding.
      progress: show a progress bar on standard error if that is a terminal.

    Returns:
      AmortizedFit. Under `vmap` over keys and stacked encoders every field gets a leading axis.

    Raises:
      ValueError: bad key, data, sizes or settings, before anything is compiled.

    Source: Kingma and Welling (2014); Gershman and Goodman, "Amortized inference in probabilistic reasoning" (2014).

    Example:
      The posterior mean is linear in the datum, so that a linear encoder of rank one loses nothing.

      >>> import jax, jax.numpy as jnp, amortgap as ag
      >>> model = ag.models.FactorAnalysis(loadings=jnp.ones((2, 1)), mean=jnp.zeros(2), noise_variance=jnp.ones(2))
      >>> _, xs = ag.diagnostics.simulate(jax.random.key(0), model=model, num_data=100)
      >>> given = {"model": model, "family": ag.families.MeanFieldNormal(1)}
      >>> encoder = ag.encoders.linear(jax.random.key(1), 2, given["family"], rank=1)
      >>> fit = ag.amortized_vi(
      ...     jax.random.key(2), xs, encoder=encoder, num_steps=50, optimizer="lbfgs", estimator="cubature", **given
      ... )
      >>> lost = model.log_evidence(xs[0]) - ag.cubature_elbo(fit.encoder(xs[0]), xs[0], **given)
      >>> print(f"{abs(lost):.3f} nats lost")
      0.000 nats lost
    """
    if estimator is None:
        estimator = "total" if optimizer == "lbfgs" else "sticking_the_landing"
    check_choice("estimator", estimator, (*ESTIMATORS[1:], "cubature") if optimizer == "lbfgs" else ESTIMATORS)
    bound = ElboOfParams(model, family, num_samples, estimator, antithetic)
    return _fit(
        key,
        xs,
        bound,
        model=model,
        encoder=encoder,
        validation=validation,
        train_model=False,
        settings=Settings(
            num_steps=num_steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            optimizer=optimizer,
            num_evaluations=num_evaluations,
            eval_samples=eval_samples,
            tolerance=tolerance,
            devices=devices,
            progress=progress,
        ),
    )


def train_vae(
    key: jax.Array,
    xs: Data,
    *,
    model: Model,
    family: Family,
    encoder: Encoder,
    validation: Data = None,
    num_steps: int = 4000,
    batch_size: int = 100,
    num_samples: int = 1,
    learning_rate: float | Array | None = None,
    eval_samples: int = 8,
    num_evaluations: int = 20,
    estimator: str = "sticking_the_landing",
    antithetic: bool = False,
    entropy_warmup: int = 0,
    optimizer: str | optax.GradientTransformation = "adam",
    tolerance: float = TOLERANCE,
    devices: Sequence[Any] | None = None,
    progress: bool = False,
) -> AmortizedFit:
    """Train decoder and encoder jointly, as a variational autoencoder.

    Formula: `max_{theta, w} (1/N) sum_i ELBO(encoder_w(x_i); x_i, theta)`.

    Args:
      key, xs, family, encoder, num_steps, batch_size, num_samples, learning_rate, eval_samples, num_evaluations: as in
        `amortized_vi`.
      model: as in `elbo`; a pytree whose weights are the start and are trained.
      validation: as in `amortized_vi`; give held-out data to stop at the model that generalises best.
      estimator, antithetic: of the gradient, as in `elbo`.
      entropy_warmup: steps over which the weight of `-log q` rises from zero to one, so that latents are used before
        the prior pulls on them; with weights below one the objective is no bound, and evaluations never use it.
      optimizer: "adam" or an optax transformation, as in `amortized_vi`; its tree is `(encoder, model)`.
      tolerance, devices, progress: as in `amortized_vi`.

    Returns:
      AmortizedFit; the trained model is `fit.model`.

    Raises:
      ValueError: as in `amortized_vi`, or an entropy_warmup outside [0, num_steps].

    Source: Kingma and Welling, "Auto-encoding variational Bayes" (2014); Cremer, Li and Duvenaud, "Inference
    suboptimality in variational autoencoders" (2018), section 5.2, for the warm-up.
    """
    check_choice("estimator", estimator, ESTIMATORS)
    if isinstance(optimizer, str):
        check_choice("optimizer", optimizer, ("adam",))
    bound = ElboOfParams(None, family, num_samples, estimator, antithetic, entropy_warmup)
    return _fit(
        key,
        xs,
        bound,
        model=model,
        encoder=encoder,
        validation=validation,
        train_model=True,
        settings=Settings(
            num_steps=num_steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            optimizer=optimizer,
            num_evaluations=num_evaluations,
            eval_samples=eval_samples,
            tolerance=tolerance,
            devices=devices,
            progress=progress,
        ),
    )


def _fit(
    key: jax.Array,
    xs: Data,
    bound: ElboOfParams,
    *,
    model: Model,
    encoder: Encoder,
    validation: Data,
    train_model: bool,
    settings: Settings,
) -> AmortizedFit:
    check_key(key)
    xs = check_data("xs", xs, model)
    check_sizes(model, bound.family)
    encoder = check_encoder(encoder, bound.family, first_row(xs))
    check_count("num_samples", bound.num_samples)
    check_count("num_steps", settings.num_steps, minimum=settings.num_evaluations)
    check_count("entropy_warmup", bound.entropy_warmup, minimum=0, maximum=settings.num_steps)
    return train(
        key,
        xs,
        bound,
        encoder=encoder,
        model=model,
        train_model=train_model,
        # Evaluations never weigh the entropy, and state the ELBO itself.
        evaluation=ElboOfParams(bound.model, bound.family, settings.eval_samples, "total"),
        validation=None if validation is None else check_data("validation", validation, model),
        settings=settings,
    )
