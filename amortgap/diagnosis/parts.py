"""The parts of a diagnosis: what was measured, what was found, and what each remedy bought when it was tried."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float

from amortgap.gaps import Estimate, Gaps

# A latent below this share tells nothing: one hundredth is the usual threshold on the variance of posterior means.
COLLAPSED = 0.01


class Problem(NamedTuple):
    """What is diagnosed.

    Attributes:
      model, family, encoder: as in `inference_gaps`.
      xs_train, xs_test: the data that the encoder was trained on, and data it has not seen.
    """

    model: Any
    family: Any
    encoder: Any
    xs_train: Any
    xs_test: Any


class Measured(NamedTuple):
    """What was measured on one part of the data.

    Attributes:
      rows: which of the data given, [n].
      gaps: of these, per datum.
      encoder_k: Pareto k-hat of the encoder's q, [n].
      evidence_k: Pareto k-hat behind log p(x), [n]; -inf where it is exact.
      encoded, local: variational parameters of encoder and local optimum, [n, size].
      richer_elbo, richer_standard_error: ELBO of the best full-rank normal where the family is a smaller one, [n].
      proposal: the best approximation of the posterior, whose draws are weighted: of the full-rank normal if there is
        one, else `local`.
    """

    rows: np.ndarray
    gaps: Gaps
    encoder_k: Float[Array, " n"]
    evidence_k: Float[Array, " n"]
    encoded: Float[Array, "n size"]
    local: Float[Array, "n size"]
    richer_elbo: Float[Array, " n"] | None
    richer_standard_error: Float[Array, " n"] | None
    proposal: Float[Array, "n other"]


class Latents(NamedTuple):
    """How much each latent dimension tells of the data.

    Formula: `Var_x(E_q[z_j]) / (Var_x(E_q[z_j]) + E_x[Var_q(z_j)])`, zero for a latent that ignores the data.

    Attributes:
      encoder, local: with q of the encoder and of the local optima, [d].

    Source: the activity of Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders" (2016), as a share.
    """

    encoder: np.ndarray
    local: np.ndarray


class Coverage(NamedTuple):
    """How much posterior mass the highest-density regions of the encoder's q hold, mean over held-out data.

    Attributes:
      levels: nominal mass, [L].
      share: posterior mass inside, [L]; below the level where q is too narrow or off.
      standard_error: of the mean over data, [L].
    """

    levels: np.ndarray
    share: np.ndarray
    standard_error: np.ndarray


class TriedRemedy(NamedTuple):
    """A remedy that was tried, and what it removed from the inference gap of the held-out data.

    Attributes:
      name: what was changed.
      gain: nats per datum, paired with the encoder as it is.
      parameters: trained weights.
      seconds: spent on it here, compilation included.
      gradients: of the log joint for every datum at test time, besides one call of the encoder.
      note: how it was run.
      limit: whether this is what a remedy can buy at best, and not a run of it.
    """

    name: str
    gain: Estimate
    parameters: int
    seconds: float
    gradients: int
    note: str
    limit: bool = False


class Finding(NamedTuple):
    """One thing that was found.

    Attributes:
      name: "amortization", "approximation", "generalization", "collapse", "local optima", "evidence", "healthy" or
        "not resolved".
      text: what was found, with its numbers.
      status: "proven" (up to the noise of draws), "estimated" or "not resolved".
    """

    name: str
    text: str
    status: str
