"""A normal posterior, and what an encoder that sees only part of the datum loses of it."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class NormalPosterior(NamedTuple):
    """The exact posterior `N(mean, covariance)` of one datum.

    Attributes:
      mean: posterior mean, [d].
      covariance: posterior covariance, [d, d].
      precision: its inverse, [d, d].
    """

    mean: Float[Array, " d"]
    covariance: Float[Array, "d d"]
    precision: Float[Array, "d d"]


def conditioning_gap(
    precision: Float[Array, "d d"],
    mean_covariance: Float[Array, "d d"],
    cross_covariance: Float[Array, "d s"],
    input_covariance: Float[Array, "s s"],
) -> Float[Array, ""]:
    """Return the gap of the best encoder that sees only part of the datum, however large it is, for normal posteriors.

    Formula: `1/2 tr(Lambda [V - C_ms C_ss^-1 C_sm])`, with V = Cov(m) of the posterior means m, C_ms their covariance
    with the part s that the encoder sees, and C_ss = Cov(s). It is the mean over data from the model, for normal
    families whose best scales do not depend on x. The best mean is `E[m | s]`, linear in s where all is jointly normal.

    Args:
      precision: Lambda, the posterior precision, the same for all data, [d, d].
      mean_covariance: V, [d, d].
      cross_covariance: C_ms, [d, s].
      input_covariance: C_ss, [s, s].

    Returns:
      A scalar in nats per datum.

    Raises:
      ValueError: shapes that do not fit.

    Source: Bayer et al., "Mind the gap when conditioning amortised inference in sequential latent-variable models"
    (2021), for the gap; the normal case by the law of total variance.
    """
    d, s = cross_covariance.shape
    if precision.shape != (d, d) or mean_covariance.shape != (d, d) or input_covariance.shape != (s, s):
        raise ValueError(
            "precision, mean_covariance, cross_covariance and input_covariance must be [d, d], [d, d], [d, s] and "
            f"[s, s], got {precision.shape}, {mean_covariance.shape}, {cross_covariance.shape} and "
            f"{input_covariance.shape}"
        )
    explained = cross_covariance @ jnp.linalg.solve(input_covariance, cross_covariance.T) if s else 0.0
    return 0.5 * jnp.trace(precision @ (mean_covariance - explained))
