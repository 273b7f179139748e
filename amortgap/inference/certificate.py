"""How many nats a local optimum still misses, estimated with a standard error from fresh draws."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from amortgap.inference.curvature import Sweep, curvature_change, num_finite

# Keeps a ratio of two vanishing variances finite.
_TINY = 1e-30


class Certificate(NamedTuple):
    """Estimate of the nats between the ELBO of a normal and its local maximum.

    Attributes:
      nats: Newton decrement; infinite where the curvature is not positive definite, so that no bound is known.
      standard_error: Monte Carlo standard error of `nats`.
    """

    nats: Float[Array, ""]
    standard_error: Float[Array, ""]


def certify(sweep: Sweep, *, mean_field: bool) -> Certificate:
    """Return the Newton decrement of the ELBO at the normal around which `sweep` was drawn.

    Formula: `1/2 E[g]' C^-1 E[g] + 1/2 sum_j (l_j - 1 - log l_j)`, g and C the whitened gradient and expected Hessian
    of `-log p(x, z)`; l_j are the diagonal entries of C in mean field and its eigenvalues in full rank. The first term
    is what the mean misses, with the curvature across all dimensions; the second is what the precision misses. Both
    are exact for a normal posterior. Squares of noisy means are corrected by their variance, so the estimate may be
    slightly negative.

    Args:
      sweep: at least two sweeps around the normal, from draws that no fit has seen.
      mean_field: whether the family is mean field; full rank otherwise.
    """
    d = sweep.slopes.shape[1]
    count = num_finite(sweep)
    keep = sweep.finite[:, None]
    believed = jnp.eye(d, dtype=sweep.slopes.dtype)
    curvature = believed + curvature_change(sweep, believed)
    lower = jnp.linalg.cholesky(curvature)

    # Whitened by the curvature, the decrement of the mean is half a squared norm.
    slopes = solve_triangular(lower, sweep.slopes.T, lower=True).T
    slope = jnp.sum(slopes, axis=0) / count
    centred = jnp.where(keep, slopes - slope, 0)
    covariance = centred.T @ centred / count**2
    covariance = covariance * (_noise_of_mean(centred, d) / (jnp.trace(covariance) + _TINY))
    in_mean = 0.5 * (jnp.sum(slope**2) - jnp.trace(covariance))
    noise = 0.5 * jnp.sum(covariance**2)
    variance = jnp.maximum(slope @ covariance @ slope - noise, noise)

    residual = jnp.where(keep, sweep.differences - sweep.noises @ curvature, 0)
    if mean_field:
        entries = jnp.diag(curvature)
        relative = residual * sweep.noises / entries
        spread = jnp.sum(relative**2, axis=0) / count**2
        spread = spread * (_noise_of_mean(relative, d) / (jnp.sum(spread) + _TINY))
        in_precision = 0.5 * jnp.sum(entries - 1 - jnp.log(entries)) - 0.25 * jnp.sum(spread)
        variance += jnp.sum((0.5 * (entries - 1)) ** 2 * spread + 0.125 * spread**2)
    else:
        outer = residual.reshape(-1, d, d).swapaxes(1, 2) @ sweep.noises.reshape(-1, d, d) / d
        outer = 0.5 * (outer + outer.swapaxes(1, 2))
        total = _noise_of_mean(outer.reshape(outer.shape[0], d * d), 1)
        half_log_det = jnp.sum(jnp.log(jnp.diag(lower)))
        in_precision = 0.5 * (jnp.trace(curvature) - d) - half_log_det - 0.25 * total
        # As if the noise were spread evenly over the d (d + 1) / 2 entries.
        surplus = jnp.sum((curvature - believed) ** 2)
        variance += (0.5 * surplus * total + 0.25 * total**2) / d**2
    nats = in_mean + in_precision
    known = jnp.isfinite(nats) & (2 * count > sweep.finite.size)
    return Certificate(jnp.where(known, nats, jnp.inf), jnp.where(known, jnp.sqrt(variance), jnp.inf))


def _noise_of_mean(rows: Float[Array, "rows d"], group: int) -> Float[Array, ""]:
    """Return the summed variance of the mean of all rows, from the spread of the means of groups of rows.

    Orthogonal noises within a sweep cancel much of the noise, which the spread of single pairs would overstate.
    """
    means = jnp.mean(rows.reshape(-1, group, rows.shape[1]), axis=1)
    number = means.shape[0]
    return jnp.sum(jnp.var(means, axis=0, ddof=1)) / number
