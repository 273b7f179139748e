"""When a local fit counts as converged: the thresholds with their evidence, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from amortgap.inference.local.certificate import Certificate

# Nats below which a fit counts as converged, unless the caller says otherwise.
TOLERANCE = 0.01


@dataclass(frozen=True)
class Acceptance:
    """Thresholds of the verdict `converged`, each with the evidence behind it.

    Attributes:
      tolerance: nats that the certificate may state. In `results/certificate_check` 949 of 2000 fits on models with
        known optima state less than the default of 0.01; they miss 0.028 nats at most, and one of them more than 0.02.
      max_error: largest standard error of the certificate, in tolerances; a noisier certificate carries no information.
        Of 100 data normal around z^2, whose posteriors have two modes, 68 fits are accepted and miss 0.033 nats at
        most; without this limit 74 are, of which 8 miss more than 0.05 and one 0.75.
      num_errors: standard errors below minus the tolerance at which a certificate is rejected. A Newton decrement is
        non-negative, so a clearly negative estimate rests on the wrong curvature. On the data above this rejects
        nothing that `max_error` accepts, and two of the fits that are accepted without it.
      horizon_share: share of the gain between two horizons that may still be missing. In `results/benchmarks` the
        natural gradient's shortfall halves whenever its steps double, from 0.12 nats at 15 steps to 0.002 at 1000. The
        second horizon has three times the steps of the first, so a shortfall that falls as one over the steps ends at
        half of the gain or less.
      horizon_errors: standard errors of that gain which are credited to noise.
      max_coupling: share of the log scales' curvature lost to the mean above which few draws certify nothing, because
        the coupling amplifies gradient noise and few draws may miss it entirely. Of 60 first fits of a funnel in five
        dimensions on 64 draws, 5 are accepted and miss 0.035 nats at most; without this limit 11 are, and miss 0.051.
    """

    tolerance: float = TOLERANCE
    max_error: float = 3.0
    num_errors: float = 3.0
    horizon_share: float = 0.5
    horizon_errors: float = 2.0
    max_coupling: float = 0.25


def accept(
    certificate: Certificate,
    elbo: Float[Array, ""],
    horizon_gain: Float[Array, ""],
    horizon_error: Float[Array, ""],
    acceptance: Acceptance,
    *,
    many_draws: bool,
) -> Bool[Array, ""]:
    """Return whether a fit has converged.

    Formula: with c the certificate's nats, e its standard error, t the tolerance, g the gain between the horizons and
    s its standard error: `c < t`, `c > -t - 3 e`, `e < 3 t`, `g / 2 - 2 s < t`, the coupling below 1/4 unless the
    certificate rests on many draws, and a finite ELBO.

    Args:
      certificate: of the fit.
      elbo: of the fit, in nats.
      horizon_gain, horizon_error: nats gained between the two horizons of the run, with their standard error.
      acceptance: thresholds.
      many_draws: whether the certificate rests on the many draws of later reruns.
    """
    nats, error, coupling = certificate
    tolerance = acceptance.tolerance
    trusted = many_draws | (coupling < acceptance.max_coupling)
    known = (error < acceptance.max_error * tolerance) & (nats > -tolerance - acceptance.num_errors * error)
    drift = acceptance.horizon_share * horizon_gain - acceptance.horizon_errors * horizon_error
    small = (nats < tolerance) & (drift < tolerance)
    return trusted & known & small & jnp.isfinite(elbo)
