"""The posterior of one global and many local latents of a normal model: its precision has the shape of an arrow.

Everything here is closed form in double precision on the host, whatever the precision of jax: it is what trained and
optimised families are compared with.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from amortgap._internal.checks import check_choice

STRUCTURES = ("dense", "block", "diagonal")


class ArrowPosterior(NamedTuple):
    """A normal over theta and z_1 to z_N in which any two z are independent given theta.

    Formula: precision `[[P, C'], [C, diag(L_1..L_N)]]`, C the stacked C_i.

    Attributes:
      global_mean: [K].
      local_mean: [N, d].
      global_precision: P, [K, K].
      cross: C_i, [N, d, K].
      local_precision: L_i, [N, d, d].
    """

    global_mean: Float[np.ndarray, " K"]
    local_mean: Float[np.ndarray, "N d"]
    global_precision: Float[np.ndarray, "K K"]
    cross: Float[np.ndarray, "N d K"]
    local_precision: Float[np.ndarray, "N d d"]

    def schur(self) -> Float[np.ndarray, "K K"]:
        """Return `P - sum_i C_i' L_i^-1 C_i`, the precision of theta's marginal."""
        return _schur(self.global_precision, self.cross, self.local_precision)

    def log_det(self) -> float:
        """Return the log determinant of the whole precision."""
        return float(np.linalg.slogdet(self.schur())[1] + np.linalg.slogdet(self.local_precision)[1].sum())

    def normaliser(self) -> float:
        """Return `log integral exp(-1/2 (u - m)' Lambda (u - m)) du`; added to the log joint at the mean, log p(x)."""
        dim = self.global_mean.size + self.local_mean.size
        return 0.5 * (dim * math.log(2 * math.pi) - self.log_det())

    def kl(self, structure: str) -> float:
        """Return the least `KL(q || p)` in nats of a normal q whose covariance has the given structure.

        Formula: `1/2 [log |D| - log |Lambda|]`, D the block diagonal ("block": theta and every z_i one block each) or
        the diagonal ("diagonal") of the precision; zero for "dense".

        Raises:
          ValueError: an unknown structure.
        """
        check_choice("structure", structure, STRUCTURES)
        if structure == "dense":
            return 0.0
        if structure == "block":
            blocks = np.linalg.slogdet(self.global_precision)[1] + np.linalg.slogdet(self.local_precision)[1].sum()
        else:
            local = np.diagonal(self.local_precision, axis1=1, axis2=2)
            blocks = np.log(np.diag(self.global_precision)).sum() + np.log(local).sum()
        return float(0.5 * (blocks - self.log_det()))

    def mean_gap(self, global_mean: np.ndarray, local_mean: np.ndarray) -> float:
        """Return `1/2 (f - m)' Lambda (f - m)` in nats: what a factorized normal with means f loses by them."""
        off, offs = global_mean - self.global_mean, local_mean - self.local_mean
        value = off @ self.global_precision @ off + 2 * np.einsum("nd,ndk,k->", offs, self.cross, off)
        return float(0.5 * (value + np.einsum("nd,nde,ne->", offs, self.local_precision, offs)))

    def linear_gap(self, features: Float[np.ndarray, "N p"]) -> float:
        """Return the amortization gap in nats of the best encoder whose means are linear in fixed features.

        Formula: with all means `M beta`, `beta = (M' Lambda M)^-1 M' Lambda m` (generalised least squares) and
        `gap = 1/2 (M beta - m)' Lambda (M beta - m)`; theta's mean is free. The variances lose nothing only where all
        L_i have the same diagonal, and then the number is the whole gap.

        Args:
          features: one row for each datum, with a column of ones for an intercept.

        Raises:
          ValueError: features without one row for each datum.
        """
        n, d = self.local_mean.shape
        if features.ndim != 2 or features.shape[0] != n:
            raise ValueError(f"features must have one row for each of {n} data, got shape {features.shape}")
        # Orthogonal columns: powers of the data are nearly dependent.
        basis, k = np.linalg.qr(features)[0], self.global_mean.size
        p = basis.shape[1]
        cross = np.einsum("np,ndk->pdk", basis, self.cross).reshape(p * d, k)
        inner = np.einsum("np,nde,nq->pdqe", basis, self.local_precision, basis).reshape(p * d, p * d)
        linear = np.einsum("ndk,k->nd", self.cross, self.global_mean)
        linear += np.einsum("nde,ne->nd", self.local_precision, self.local_mean)
        whole = np.block([[self.global_precision, cross.T], [cross, inner]])
        right = self.global_precision @ self.global_mean + np.einsum("ndk,nd->k", self.cross, self.local_mean)
        found = np.linalg.solve(whole, np.concatenate([right, np.einsum("np,nd->pd", basis, linear).ravel()]))
        return self.mean_gap(found[:k], basis @ found[k:].reshape(p, d))


def arrow_posterior(
    *,
    global_precision: np.ndarray,
    cross: np.ndarray,
    local_precision: np.ndarray,
    global_linear: np.ndarray,
    local_linear: np.ndarray,
) -> ArrowPosterior:
    """Return the normal with density proportional to `exp(-1/2 u' Lambda u + b' u)`, b the linear terms."""
    solved = np.linalg.solve(local_precision, np.concatenate([cross, local_linear[:, :, None]], axis=2))
    schur = _schur(global_precision, cross, local_precision)
    mean = np.linalg.solve(schur, global_linear - np.einsum("ndk,nd->k", cross, solved[:, :, -1]))
    local_mean = solved[:, :, -1] - solved[:, :, :-1] @ mean
    return ArrowPosterior(mean, local_mean, global_precision, cross, local_precision)


def _schur(global_precision: np.ndarray, cross: np.ndarray, local_precision: np.ndarray) -> np.ndarray:
    return global_precision - np.einsum("ndk,ndl->kl", cross, np.linalg.solve(local_precision, cross))
