"""The record of a local fit, the settings behind it, and the choice between two fits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from amortgap._internal.checks import check_choice, check_count, check_positive
from amortgap.inference.local.acceptance import Acceptance
from amortgap.protocols import Datum, Family, Model, Normal, is_diagonal

METHODS = ("auto", "natural_gradient", "newton", "adam")
# Gradients in the first round of Newton steps; every further round doubles them.
_NEWTON_GRADIENTS = 250
# Adam steps before the steps of a normal family. An encoder's output is near the optimum and needs none; the first
# curvatures around the prior are far off and mislead.
_COLD_WARMUP_STEPS = 125


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LocalFit:
    """Local optimum of one datum, or of many with a leading axis on every field.

    Attributes:
      phi: variational parameters, [size].
      elbo: ELBO at phi on fresh samples, in nats.
      standard_error: Monte Carlo standard error of `elbo`.
      start_elbo: ELBO of the start, on the same fresh samples, in nats.
      suboptimality: estimate of the nats still to be gained by more optimisation; infinite where none is known.
      suboptimality_standard_error: Monte Carlo standard error of `suboptimality`.
      horizon_gain: nats gained between the two horizons of the last run, the check of `suboptimality`.
      num_steps: optimiser steps taken.
      num_gradients: gradients of the log joint they took; the certificate's are not counted.
      converged: whether `suboptimality` is below the tolerance and known to three times that, the horizons agree, and
        everything is finite.
    """

    phi: Float[Array, "*data size"]
    elbo: Float[Array, "*data"]
    standard_error: Float[Array, "*data"]
    start_elbo: Float[Array, "*data"]
    suboptimality: Float[Array, "*data"]
    suboptimality_standard_error: Float[Array, "*data"]
    horizon_gain: Float[Array, "*data"]
    num_steps: Int[Array, "*data"]
    num_gradients: Int[Array, "*data"]
    converged: Bool[Array, "*data"]


class FitState(NamedTuple):
    """A fit and the start that it is compared with."""

    fit: LocalFit
    start: Float[Array, "*data size"]


@dataclass(frozen=True)
class LaterReruns:
    """Settings of the reruns after the first, for rough posteriors such as those of decoders of rectifiers.

    There few draws estimate an indefinite Hessian, which gives no bound, and single Newton steps follow noise. On such
    a decoder `tests/inference/local/test_local_defaults.py` holds nine fits in ten to convergence with these settings.

    Attributes:
      draws: factor on the number of draws behind the certificate.
      adam_steps: Adam steps before Newton's, times the number of the rerun.
      adam_rate: their rate.
      newton_steps: factor on the Newton steps.
      prior_frames: earlier frames as which the first covariance counts in the average of curvatures.
    """

    draws: int = 8
    adam_steps: int = 1000
    adam_rate: float = 0.03
    newton_steps: int = 4
    prior_frames: int = 4


@dataclass(frozen=True)
class Settings:
    """Checked settings of local VI, static under `jit`; see `local_vi`.

    Attributes:
      method: "natural_gradient", "newton" or "adam".
      num_steps: steps of the first run.
      warmup_steps: Adam steps before those; None to let the start decide.
      num_samples: fresh samples for the ELBO and its suboptimality, an even number.
      max_reruns: reruns of a fit that misses the tolerance.
      acceptance: thresholds of convergence.
      standard: whether the family's standard member competes with the starts that are offered.
      later_reruns: settings of the reruns after the first.
    """

    method: str
    num_steps: int
    warmup_steps: int | None
    num_samples: int
    max_reruns: int
    acceptance: Acceptance
    standard: bool = True
    later_reruns: LaterReruns = LaterReruns()

    def warmup_from(self, *, cold: bool) -> int:
        """Return the Adam steps before the first run, from a cold start or from one that was offered."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return _COLD_WARMUP_STEPS if cold and self.method != "adam" else 0


class Problem(NamedTuple):
    """One datum to be fitted.

    Attributes:
      x, model, family: as in `elbo`.
      settings: of the fit.
      pairs_at_once: antithetic pairs evaluated together, at most.
    """

    x: Datum
    model: Model
    family: Family
    settings: Settings
    # A caller who maps over data holds the pairs of all of them in memory at once; few pairs keep that bounded.
    pairs_at_once: int = 64

    @property
    def method(self) -> str:
        """Method of the first run."""
        return self.settings.method

    @property
    def normal(self) -> Normal:
        """The family where it is normal, as the methods other than Adam require."""
        assert isinstance(self.family, Normal)
        return self.family

    def log_joint(self, z: Array) -> Array:
        """Return `log p(x, z)` in nats."""
        return self.model.log_joint(z, self.x)


def settings_for(
    family: Family,
    *,
    method: str,
    num_steps: int | None,
    warmup_steps: int | None,
    num_samples: int,
    tolerance: float,
    max_reruns: int,
) -> Settings:
    """Return checked settings with defaults filled in; raises ValueError as `local_vi` documents."""
    check_choice("method", method, METHODS)
    mean_field, normal = is_diagonal(family), isinstance(family, Normal)
    if method in ("natural_gradient", "newton") and not normal:
        raise ValueError(f"method {method!r} needs a mean field or full rank normal, got {type(family).__name__}")
    if method == "auto" or (method == "natural_gradient" and not mean_field):
        # For a full precision, the natural-gradient step with all curvature at once is the Newton step.
        method = "natural_gradient" if mean_field else "newton" if normal else "adam"
    if num_steps is None:
        num_steps = {"natural_gradient": 200, "adam": 1500}.get(method) or 2 * newton_steps(family)
    check_count("num_steps", num_steps)
    if warmup_steps is not None:
        check_count("warmup_steps", warmup_steps, minimum=0)
    check_count("num_samples", num_samples, minimum=2)
    check_positive("tolerance", tolerance)
    check_count("max_reruns", max_reruns, minimum=0)
    return Settings(
        method=method,
        num_steps=int(num_steps),
        warmup_steps=None if warmup_steps is None else int(warmup_steps),
        num_samples=num_samples + num_samples % 2,
        max_reruns=max_reruns,
        acceptance=Acceptance(float(tolerance)),
    )


def frames_per_step(latent_dim: int) -> int:
    """Return the frames of d antithetic pairs before a Newton step; fewer than eight pairs are mostly noise."""
    return -(-8 // latent_dim)


def gradients_per_step(family: Family, method: str) -> int:
    """Return the gradients of the log joint in one step."""
    return 2 * frames_per_step(family.latent_dim) * family.latent_dim if method == "newton" else 2


def newton_steps(family: Family) -> int:
    """Return the Newton steps of the first rerun, and half of those of a first run."""
    return max(3, -(-_NEWTON_GRADIENTS // gradients_per_step(family, "newton")))


def pairs_per_datum(family: Family, num_samples: int) -> int:
    """Return the antithetic pairs that certify a normal family's optimum: whole frames of d, at least two."""
    return max(2, -(-num_samples // (2 * family.latent_dim))) * family.latent_dim


def keep_better(first: LocalFit, second: LocalFit, tolerance: float) -> LocalFit:
    """Return the first fit of every datum, or the second where that is better by more than the noise of both.

    Taking the larger of two noisy values would favour noise, and two fits of one optimum differ by less than the
    tolerance. A second fit that converged also replaces a first that did not and whose ELBO is lower. Steps are counted
    of both.
    """
    gain = second.elbo - first.elbo
    margin = jnp.maximum(tolerance, 3 * jnp.hypot(first.standard_error, second.standard_error))
    only = jnp.isfinite(second.elbo) & ~jnp.isfinite(first.elbo)
    take = only | (gain > margin) | (second.converged & ~first.converged & (gain > 0))
    kept = jax.tree.map(lambda a, b: jnp.where(take[..., None] if a.ndim > take.ndim else take, b, a), first, second)
    return replace(
        kept,
        num_steps=first.num_steps + second.num_steps,
        num_gradients=first.num_gradients + second.num_gradients,
    )
