"""The nats that a local optimum still misses, estimated with a standard error from fresh draws."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from amortgap.inference.local.newton import CurvatureSample, curvature_change, num_finite

# Keeps a ratio of two vanishing variances finite.
_TINY = 1e-30
# Floor on the curvature of a log scale after profiling out the mean; below it the estimate is noise.
_FLOOR = 0.02


class Certificate(NamedTuple):
    """Estimate of the nats between the ELBO of a normal and its local maximum.

    Attributes:
      nats: Newton decrement; infinite where the curvature is not positive definite, so that no bound is known.
      standard_error: Monte Carlo standard error of `nats`.
      coupling: the largest share of the curvature of the log scales that is lost when the mean follows them; zero for
        a normal posterior, and one where the ELBO is flat to second order.
    """

    nats: Float[Array, ""]
    standard_error: Float[Array, ""]
    coupling: Float[Array, ""]


def certify(sample: CurvatureSample, *, mean_field: bool) -> Certificate:
    """Return the Newton decrement of the ELBO at the normal around which `sample` was drawn.

    Formula: `1/2 E[g]' C^-1 E[g] + 1/2 sum_j (l_j - 1 - log l_j)`, g and C the whitened gradient and expected Hessian
    of `-log p(x, z)`; l_j are the diagonal entries of C in mean field and its eigenvalues in full rank. The first term
    is what the mean misses, with the curvature across all dimensions; the second is what the precision misses. Both
    are exact for a normal posterior. Off one, the log scales of a mean field are coupled to the mean and to each other
    (a funnel's scales must grow together with the latent that sets them), and the decrement is that of the joint
    Hessian: with M and S from `couplings` and `D = diag(l)`, the second term's square `1/4 sum_j (l_j - 1)^2 / l_j`
    becomes `1/2 r' (2 D + S - M' C^-1 M)^-1 r`, `r = l - 1 - M' C^-1 E[g]`. Squares of noisy means are corrected by
    their variance, so the estimate may be slightly negative.

    Args:
      sample: at least two frames around the normal, from draws that no fit has seen.
      mean_field: whether the family is mean field; full rank otherwise.
    """
    d = sample.slopes.shape[1]
    count = num_finite(sample)
    keep = sample.finite[:, None]
    identity = jnp.eye(d, dtype=sample.slopes.dtype)
    curvature = identity + curvature_change(sample, identity)
    lower = jnp.linalg.cholesky(curvature)

    # Whitened by the curvature, the decrement of the mean is half a squared norm.
    slopes = solve_triangular(lower, sample.slopes.T, lower=True).T
    slope = jnp.sum(slopes, axis=0) / count
    centred = jnp.where(keep, slopes - slope[None, :], 0)
    covariance = centred.T @ centred / count**2
    covariance = covariance * (_noise_of_mean(centred, d) / (jnp.trace(covariance) + _TINY))
    in_mean = 0.5 * (jnp.sum(slope**2) - jnp.trace(covariance))
    noise = 0.5 * jnp.sum(covariance**2)
    variance = jnp.maximum(slope @ covariance @ slope - noise, noise)

    residual = jnp.where(keep, sample.differences - sample.noises @ curvature, 0)
    if mean_field:
        entries = jnp.diag(curvature)
        # Gradient and curvature of the log scales in units of sqrt(2 C_jj), once the best mean for them is put in.
        unit = jnp.sqrt(2 * entries)
        with_mean, of_scales = couplings(sample, curvature)
        reach = solve_triangular(lower, with_mean, lower=True) / unit[None, :]
        bending = identity + of_scales / jnp.outer(unit, unit) - reach.T @ reach
        size, vectors = jnp.linalg.eigh(jnp.where(jnp.isfinite(bending), bending, 0))
        turn = vectors / jnp.sqrt(jnp.maximum(size, _FLOOR))[None, :]
        pulls = (residual * sample.noises / unit[None, :] - centred @ reach) @ turn
        pull = ((entries - 1) / unit - slope @ reach) @ turn
        spread = pulls.T @ pulls / count**2
        spread = spread * (_noise_of_mean(pulls, d) / (jnp.trace(spread) + _TINY))
        beyond_quadratic = entries - 1 - jnp.log(entries) - (entries - 1) ** 2 / (2 * entries)
        in_precision = 0.5 * (jnp.sum(pull**2) - jnp.trace(spread)) + 0.5 * jnp.sum(beyond_quadratic)
        coupling = 1 - size[0]
        noise = 0.5 * jnp.sum(spread**2)
        variance += jnp.maximum(pull @ spread @ pull - noise, noise)
    else:
        coupling = jnp.zeros_like(in_mean)
        outer = residual.reshape(-1, d, d).swapaxes(1, 2) @ sample.noises.reshape(-1, d, d) / d
        outer = 0.5 * (outer + outer.swapaxes(1, 2))
        total = _noise_of_mean(outer.reshape(outer.shape[0], d * d), 1)
        half_log_det = jnp.sum(jnp.log(jnp.diag(lower)))
        in_precision = 0.5 * (jnp.trace(curvature) - d) - half_log_det - 0.25 * total
        # As if the noise were spread evenly over the d (d + 1) / 2 entries.
        surplus = jnp.sum((curvature - identity) ** 2)
        variance += (0.5 * surplus * total + 0.25 * total**2) / d**2
    nats = in_mean + in_precision
    known = jnp.isfinite(nats) & (2 * count > sample.finite.size)
    error = jnp.sqrt(variance)
    return Certificate(jnp.where(known, nats, jnp.inf), jnp.where(known, error, jnp.inf), coupling)


def couplings(
    sample: CurvatureSample, curvature: Float[Array, "d d"]
) -> tuple[Float[Array, "d d"], Float[Array, "d d"]]:
    """Return how the log scales of a mean field normal are coupled to its mean, and to each other beyond `2 C_jj`.

    Formula: `M_ij = E[dg_i/dz_j e_j] = E[g_i (e_j^2 - 1)] = E[g_j (e_i e_j - 1{i=j})]` and, off the diagonal,
    `S_ij = E[H_ij e_i e_j] = E[g_i e_i (e_j^2 - 1)]`, by Stein's identity; on it `E[g_j (e_j^3 - e_j)] - 2 C_jj`. Only
    what a quadratic does not explain enters, so that both vanish without noise for a normal posterior, and each is
    shrunk by its share of noise, so that they vanish for one that shows no coupling.

    Returns:
      The mixed second derivatives of minus the ELBO, [mean, log scale], and those of the log scales less
      `2 diag(curvature)`, both whitened.
    """
    d = curvature.shape[0]
    keep = sample.finite[:, None]
    noises = jnp.where(keep, sample.noises, 0)
    # Each pair's gradient is its even part plus or minus its odd part; M is made of the one and S of the other.
    even = jnp.where(keep, sample.slopes - (jnp.sum(sample.slopes, axis=0) / num_finite(sample))[None, :], 0)
    odd = jnp.where(keep, sample.differences - noises @ curvature, 0)
    squares = jnp.where(keep, noises**2 - 1, 0)

    def of_group(even: Array, odd: Array, noises: Array, squares: Array) -> tuple[Array, Array]:
        with_mean = 0.5 * (even.T @ squares + noises.T @ (even * noises) - jnp.diag(jnp.sum(even, axis=0)))
        pulled = odd * noises
        # Zero on average, since C has been taken out of `odd`; without its noise the diagonal has less.
        own = 2 * jnp.diag(jnp.sum(pulled, axis=0))
        return with_mean / d, (0.5 * (pulled.T @ squares + squares.T @ pulled) - own) / d

    with_mean, of_scales = jax.vmap(of_group)(*(part.reshape(-1, d, d) for part in (even, odd, noises, squares)))
    return _shrunk(with_mean), _shrunk(of_scales)


def _shrunk(groups: Float[Array, "groups d d"]) -> Float[Array, "d d"]:
    """Return the mean of the groups times the share of its squared size that is not noise."""
    mean, number = jnp.mean(groups, axis=0), groups.shape[0]
    noise = jnp.sum(jnp.var(groups, axis=0, ddof=1)) / number
    return mean * jnp.maximum(0, 1 - noise / (jnp.sum(mean**2) + _TINY))


def _noise_of_mean(rows: Float[Array, "rows d"], group: int) -> Float[Array, ""]:
    """Return the summed variance of the mean of all rows, from the spread of the means of groups of rows.

    Orthogonal noises within a frame cancel much of the noise, which the spread of single pairs would overstate.
    """
    means = jnp.mean(rows.reshape(-1, group, rows.shape[1]), axis=1)
    number = means.shape[0]
    return jnp.sum(jnp.var(means, axis=0, ddof=1)) / number
