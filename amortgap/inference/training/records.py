"""The record of a training: the encoder, the model, how they got there, and how much is estimated to be left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Bool, Float, Int


class Trace(NamedTuple):
    """The course of training, one entry per evaluation.

    Attributes:
      step: optimiser steps done so far.
      batch_elbo: mean objective of the minibatches since the last entry, nats per datum; the objective is the ELBO
        except in trainings on another one.
      elbo: objective on the evaluation data with fixed fresh noise, nats per datum.
      num_skipped: steps since the last entry that were left out because a value was not finite.
      num_bad: steps of refinement, and bounds after them, that were not finite since the last entry; zero for all but
        `semi_amortized_vi`.
      data_visits: gradients of one datum's objective since the last entry, line searches included.
    """

    step: Int[Array, "*seeds evaluations"]
    batch_elbo: Float[Array, "*seeds evaluations"]
    elbo: Float[Array, "*seeds evaluations"]
    num_skipped: Int[Array, "*seeds evaluations"]
    num_bad: Int[Array, "*seeds evaluations"]
    data_visits: Int[Array, "*seeds evaluations"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AmortizedFit:
    """A trained encoder and how it got there; all functions that train an encoder return it.

    Attributes:
      encoder: the best encoder by `trace.elbo`; call it on one datum.
      model: the model it was trained against, or trained with.
      trace: Trace.
      change: gain of the evaluation over the second half of training, nats per datum, on shared noise.
      change_standard_error: standard error over data of that paired difference.
      finite: False if training met a value that is not finite. Such steps are left out, and the encoder is the best one
        whose evaluation was finite.
      num_steps: optimiser steps done.
      converged: whether training is finite and what is left, two standard errors included, is within the tolerance.
      suboptimality: estimate of the nats per datum that training could still gain on the evaluation data, as
        `encoder_certificate` defines it.
      suboptimality_standard_error: its standard error over data.
    """

    encoder: Any
    model: Any
    trace: Trace
    change: Float[Array, "*seeds"]
    change_standard_error: Float[Array, "*seeds"]
    finite: Bool[Array, "*seeds"]
    num_steps: Int[Array, "*seeds"]
    converged: Bool[Array, "*seeds"]
    suboptimality: Float[Array, "*seeds"]
    suboptimality_standard_error: Float[Array, "*seeds"]


# The name by which fits on other objectives are known.
EncoderFit = AmortizedFit
