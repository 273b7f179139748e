"""What training an encoder returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Bool, Float, Int


class Trace(NamedTuple):
    """What training looked like, one entry per evaluation.

    Attributes:
      step: optimiser steps done.
      batch_elbo: mean ELBO of the minibatches since the last entry, nats per datum.
      elbo: ELBO on the evaluation data with fixed fresh noise, nats per datum.
    """

    step: Int[Array, " evaluations"]
    batch_elbo: Float[Array, " evaluations"]
    elbo: Float[Array, " evaluations"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AmortizedFit:
    """A trained encoder and how it got there.

    Attributes:
      encoder: the best encoder by `trace.elbo`; call it on one datum.
      model: the model it was trained against (trained as well in `train_vae`).
      trace: Trace.
      change: gain of the evaluation ELBO over the second half of training, nats per datum, on shared noise.
      change_standard_error: standard error over data of that paired difference.
      finite: False if training met a value that is not finite; the encoder is then the best one before it.
    """

    encoder: Any
    model: Any
    trace: Trace
    change: Float[Array, "*seeds"]
    change_standard_error: Float[Array, "*seeds"]
    finite: Bool[Array, "*seeds"]
