"""The records of a diagnosis: its problem and budget, what was measured, what was found, what each remedy gained."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float

from amortgap.gaps import Estimate, Gaps
from amortgap.protocols import Data, Encoder, Family, Model

# Activity below which a latent is called collapsed: the usual threshold on the variance of posterior means.
COLLAPSED = 0.01


class Problem(NamedTuple):
    """A model, a family and an encoder with the data on which the encoder is diagnosed.

    Attributes:
      model, family, encoder: as in `inference_gaps`.
      xs_train, xs_test: the data that the encoder was trained on, and data it has not seen.
    """

    model: Model
    family: Family
    encoder: Encoder
    xs_train: Data
    xs_test: Data


class Budget:
    """Counts down a number of seconds from the moment it is made; `now` is the clock it reads."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self._now, self._start = seconds, now, now()

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return self._now() - self._start


class Measured(NamedTuple):
    """The measurements on one part of the data.

    Attributes:
      rows: indices of the measured data in the part, [n].
      gaps: the gaps of these data.
      encoder_k: Pareto k-hat of the encoder's q, [n].
      evidence_k: Pareto k-hat behind log p(x), [n]; -inf where log p(x) is exact.
      encoded, local: variational parameters of encoder and local optimum, [n, size].
      richer_elbo, richer_standard_error: ELBO of the best full-rank normal where the family is a smaller normal, [n].
      proposal: the best approximation of the posterior, whose draws are weighted: the full-rank normal if there is one,
        else `local`.
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
    """The activity of each latent dimension: the share of its variance that the data explain.

    Formula: `Var_x(E_q[z_j]) / (Var_x(E_q[z_j]) + E_x[Var_q(z_j)])`, zero for a latent that ignores the data.

    Attributes:
      encoder, local: with q of the encoder and of the local optima, [d].

    Source: the activity of Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders" (2016), as a share.
    """

    encoder: np.ndarray
    local: np.ndarray


class Coverage(NamedTuple):
    """Posterior mass in the highest-density regions of the encoder's q, mean over held-out data.

    Attributes:
      levels: nominal mass, [L].
      share: posterior mass inside, [L]; below the level where q is too narrow or in the wrong place.
      standard_error: of the mean over data, [L].
    """

    levels: np.ndarray
    share: np.ndarray
    standard_error: np.ndarray


class TriedRemedy(NamedTuple):
    """A remedy that was tried, and the nats it removed from the inference gap of the held-out data.

    Attributes:
      name: one of `REMEDIES`, or the name of a limit.
      gain: nats per datum, paired with the encoder as it is.
      parameters: number of trained weights.
      seconds: time the trial took, compilation included.
      gradients: gradients of the log joint per datum at test time, besides one call of the encoder.
      note: settings of the trial, in words.
      limit: whether this is an upper limit on remedies of a kind, and not a trial.
    """

    name: str
    gain: Estimate
    parameters: int
    seconds: float
    gradients: int
    note: str
    limit: bool = False


class Finding(NamedTuple):
    """One conclusion from the measurements.

    Attributes:
      name: "amortization", "approximation", "generalization", "collapse", "local optima", "evidence", "healthy" or
        "not resolved".
      text: the conclusion, with its numbers.
      status: "proven" (up to the noise of draws), "estimated" or "not resolved".
    """

    name: str
    text: str
    status: str


@dataclass(frozen=True, kw_only=True)
class DiagnosisRecord:
    """The results of a diagnosis.

    Attributes as in `Diagnosis`, which adds the ways to read them.
    """

    findings: tuple[Finding, ...]
    train: Measured
    test: Measured
    generalization: Estimate
    latents: Latents
    coverage: Coverage | None
    remedies: tuple[TriedRemedy, ...]
    skipped: tuple[tuple[str, str], ...]
    worst: np.ndarray
    worst_inputs: Data
    settings: dict[str, Any]
    image_shape: tuple[int, ...] | None

    @property
    def verdict(self) -> Finding:
        """The finding that matters most."""
        return self.findings[0]
