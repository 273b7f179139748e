"""The posterior of one global and many local latents of a normal model, whose precision is an arrowhead matrix.

Everything here is in closed form and in double precision on the host, whatever the precision of jax, because trained
and optimised families are compared with it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from amortgap._internal.checks import check_choice
from amortgap._internal.least_squares import generalised_least_squares

STRUCTURES = ("dense", "block", "diagonal")


class ArrowheadPosterior(NamedTuple):
    """A normal over theta and z_1 to z_N in which any two z are independent given theta; see `arrowhead_posterior`.

    Formula: precision `Lambda = [[P, C'], [C, diag(L_1..L_N)]]`, C the stacked C_i.

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
        return self.global_precision - np.einsum("ndk,ndl->kl", self.cross, self._slopes())

    def log_det(self) -> float:
        """Return `log |Lambda|`."""
        return float(np.linalg.slogdet(self.schur())[1] + np.linalg.slogdet(self.local_precision)[1].sum())

    def log_normaliser(self) -> float:
        """Return `log integral exp(-1/2 (u - m)' Lambda (u - m)) du`; added to the log joint at the mean, log p(x)."""
        dim = self.global_mean.size + self.local_mean.size
        return 0.5 * (dim * math.log(2 * math.pi) - self.log_det())

    def approximation_gap(self, structure: str) -> float:
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

    def linear_gap(self, features: Float[np.ndarray, "N p"]) -> float:
        """Return the amortization gap in nats of the best encoder whose means are linear in fixed features.

        Formula: `min_beta 1/2 (M beta - m)' Lambda (M beta - m)`, M the features of the local means, with theta's mean
        free. The variances lose nothing only where all L_i have the same diagonal; the number is then the whole gap.

        Args:
          features: one row for each datum, with a column of ones for an intercept.

        Raises:
          ValueError: features without one row for each datum.
        """
        n, d, k = self.cross.shape
        if features.ndim != 2 or features.shape[0] != n:
            raise ValueError(f"features must have one row for each of {n} data, got shape {features.shape}")
        # Columns of unit length: powers of the data differ by orders of magnitude.
        lengths = np.linalg.norm(features, axis=0)
        local = np.kron(features / np.where(lengths > 0, lengths, 1), np.eye(d))
        design = np.block([[np.eye(k), np.zeros((k, local.shape[1]))], [np.zeros((n * d, k)), local]])
        mean = np.concatenate([self.global_mean, self.local_mean.ravel()])[:, None]
        residual = generalised_least_squares(design, mean, whiten=self._whiten).residual
        return float(0.5 * np.sum(residual**2))

    def _slopes(self) -> Float[np.ndarray, "N d K"]:
        """Return `L_i^-1 C_i`, minus the slopes of the means of z_i given theta."""
        return np.linalg.solve(self.local_precision, self.cross)

    def _whiten(self, columns: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
        """Return `R' u` of every column u = (theta, z_1..z_N), with `Lambda = R R'`.

        Formula: `u' Lambda u = theta' S theta + sum_i (z_i + L_i^-1 C_i theta)' L_i (z_i + L_i^-1 C_i theta)`, S the
        Schur complement.
        """
        n, d, k = self.cross.shape
        theta, z = columns[:k], columns[k:].reshape(n, d, -1)
        roots = np.linalg.cholesky(self.local_precision).transpose(0, 2, 1)
        local = roots @ (z + self._slopes() @ theta)
        return np.concatenate([np.linalg.cholesky(self.schur()).T @ theta, local.reshape(n * d, -1)])


def arrowhead_posterior(
    *,
    global_precision: Float[np.ndarray, "K K"],
    cross: Float[np.ndarray, "N d K"],
    local_precision: Float[np.ndarray, "N d d"],
    global_linear: Float[np.ndarray, " K"],
    local_linear: Float[np.ndarray, "N d"],
) -> ArrowheadPosterior:
    """Return the normal over theta and all z with the given quadratic and linear terms.

    Formula: density in proportion to `exp(-1/2 u' Lambda u + b' u)`, u = (theta, z_1..z_N).

    Args:
      global_precision, cross, local_precision: the parts P, C_i and L_i of Lambda, as in `ArrowheadPosterior`.
      global_linear: theta's part of b, [K].
      local_linear: the part of every z_i, [N, d].

    Returns:
      ArrowheadPosterior.
    """
    solved = np.linalg.solve(local_precision, np.concatenate([cross, local_linear[:, :, None]], axis=2))
    slopes, offsets = solved[:, :, :-1], solved[:, :, -1]
    schur = global_precision - np.einsum("ndk,ndl->kl", cross, slopes)
    mean = np.linalg.solve(schur, global_linear - np.einsum("ndk,nd->k", cross, offsets))
    return ArrowheadPosterior(mean, offsets - slopes @ mean, global_precision, cross, local_precision)
