"""Generalised least squares in double precision on the host: the best encoder that is linear in fixed features."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class GeneralisedLeastSquares(NamedTuple):
    """Result of `generalised_least_squares`.

    Attributes:
      coefficients: B, [p, targets].
      residual: `M B - T` times the root of the precision, [n, targets]; half the sum of its squares is the minimum.
    """

    coefficients: Float[np.ndarray, "p targets"]
    residual: Float[np.ndarray, "n targets"]


def generalised_least_squares(
    design: Float[np.ndarray, "n p"],
    targets: Float[np.ndarray, "n targets"],
    *,
    whiten: Callable[[np.ndarray], np.ndarray] = lambda columns: columns,
) -> GeneralisedLeastSquares:
    """Minimise the quadratic form of a precision over linear combinations of columns.

    Formula: `min_B 1/2 tr (M B - T)' Lambda (M B - T)`, solved as `min |R' M B - R' T|` with `Lambda = R R'`: the
    normal equations `M' Lambda M` would square the condition number.

    Args:
      design: M, [n, p].
      targets: T, [n, targets].
      whiten: multiplies columns, [n, any], by R'; by default the identity.

    Returns:
      GeneralisedLeastSquares, with the B of least norm where several are best.

    Source: Aitken, "On least squares and linear combination of observations" (1935).
    """
    left, right = whiten(design), whiten(targets)
    coefficients = np.linalg.lstsq(left, right, rcond=None)[0]
    return GeneralisedLeastSquares(coefficients, left @ coefficients - right)
