"""Generalised least squares: the best means of an encoder that is linear in its weights, for normal posteriors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from amortgap._internal.checks import as_data
from amortgap._internal.least_squares import generalised_least_squares


class LeastSquares(NamedTuple):
    """The best weights of an encoder that is linear in them, for normal posteriors.

    Attributes:
      weights: B, [d, features].
      mean_gap: the part of the amortization gap that the means cause, averaged over data, nats.
    """

    weights: np.ndarray
    mean_gap: float


def least_squares(features: ArrayLike, means: ArrayLike, precisions: ArrayLike) -> LeastSquares:
    """Return the linear map from features to means that loses least, and what it loses.

    Formula: `B = argmin 1/(2N) sum_i (B f_i - m_i)' Lambda_i (B f_i - m_i)`, generalised least squares. For normal
    families and posteriors N(m_i, Lambda_i^-1) this is the mean part of the amortization gap; with posterior precisions
    that are the same for all data it is all of it.

    Args:
      features: f_i, [N, features], the constant among them.
      means: m_i, [N, d].
      precisions: Lambda_i, [N, d, d], or one for all, [1, d, d].

    Returns:
      LeastSquares with B [d, features] and the mean gap in nats.

    Raises:
      ValueError: shapes that do not fit, or entries that are not finite.

    Source: Aitken, "On least squares and linear combination of observations" (1935).
    """
    # In double precision on the host.
    f, m = np.asarray(as_data("features", features), np.float64), np.asarray(as_data("means", means), np.float64)
    p = np.asarray(as_data("precisions", precisions), np.float64)
    n, d = m.shape
    if f.ndim != 2 or len(f) != n or p.shape not in ((n, d, d), (1, d, d)):
        raise ValueError(
            "features, means and precisions must be [N, features], [N, d] and [N or 1, d, d], "
            f"got {f.shape}, {m.shape} and {p.shape}"
        )
    root = np.linalg.cholesky(p).transpose(0, 2, 1)
    if len(root) == 1:
        # One precision for all data: the outputs separate.
        weights = generalised_least_squares(f, m).coefficients.T
    else:
        design = np.einsum("nk,ij->nikj", f, np.eye(d)).reshape(n * d, f.shape[1] * d)

        def whiten(columns: np.ndarray) -> np.ndarray:
            return (root @ columns.reshape(n, d, -1)).reshape(n * d, -1)

        weights = generalised_least_squares(design, m.reshape(n * d, 1), whiten=whiten).coefficients
        weights = weights.reshape(f.shape[1], d).T
    left = np.einsum("nij,nj->ni", np.broadcast_to(root, (n, d, d)), f @ weights.T - m)
    return LeastSquares(weights, float(0.5 * np.mean(np.sum(left**2, axis=1))))
