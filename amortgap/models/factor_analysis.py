"""Factor analysis: the model whose evidence, posterior and gaps are all known in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from amortgap._internal.checks import as_data, check_count, check_key, check_positive, check_row_shape
from amortgap._internal.records import checked_record
from amortgap.families.normal import LOG_2PI, standard_normal_log_prob
from amortgap.models.array_fields import set_array_fields
from amortgap.models.likelihoods import diagonal_normal_log_prob
from amortgap.models.normal_posterior import NormalPosterior, conditioning_gap
from amortgap.protocols import Data


@checked_record
@dataclass(frozen=True, kw_only=True)
class FactorAnalysis:
    """Factor analysis; probabilistic PCA where all noise variances are equal.

    Formula: `z ~ N(0, I_d)`, `x | z ~ N(W z + b, diag(psi))`.

    Args:
      loadings: W, [D, d].
      mean: b, [D].
      noise_variance: psi, [D], positive.

    Attributes:
      log_concave: True, `log p(x, z)` is concave in z.

    Raises:
      ValueError: shapes that do not fit, entries that are not finite, or a noise variance that is not positive.

    Source: Bishop, Pattern Recognition and Machine Learning (2006), section 12.2.

    Example:
      >>> import jax, jax.numpy as jnp, amortgap as ag
      >>> model = ag.models.FactorAnalysis(loadings=jnp.ones((2, 1)), mean=jnp.zeros(2), noise_variance=jnp.ones(2))
      >>> print(f"{model.log_evidence(jnp.array([1.0, 2.0])):.4f} nats")
      -3.3872 nats
    """

    loadings: Float[Array, "D d"]
    mean: Float[Array, " D"]
    noise_variance: Float[Array, " D"]
    log_concave: ClassVar[bool] = True

    def __post_init__(self) -> None:
        shapes = {"loadings": "D d", "mean": "D", "noise_variance": "D"}
        set_array_fields(self, shapes, positive=("noise_variance",))

    @property
    def latent_dim(self) -> int:
        """Dimension d of z."""
        return self.loadings.shape[-1]

    @property
    def data_dim(self) -> int:
        """Dimension D of x."""
        return self.loadings.shape[-2]

    def validate(self, name: str, xs: Data) -> None:
        """Raise a ValueError that names `name` unless `xs` can be data of this model."""
        check_row_shape(name, xs, (self.data_dim,))

    def log_prior(self, z: Float[Array, " d"]) -> Float[Array, ""]:
        """Return `log p(z)` in nats."""
        return standard_normal_log_prob(z)

    def log_likelihood(self, z: Float[Array, " d"], x: Float[Array, " D"]) -> Float[Array, ""]:
        """Return `log p(x | z)` in nats."""
        return diagonal_normal_log_prob(x - self.mean - self.loadings @ z, self.noise_variance)

    def log_joint(self, z: Float[Array, " d"], x: Float[Array, " D"]) -> Float[Array, ""]:
        """Return `log p(x, z)` in nats."""
        return self.log_prior(z) + self.log_likelihood(z, x)

    def posterior_precision(self) -> Float[Array, "d d"]:
        """Return `Lambda = I + W' Psi^-1 W`, the same for every datum."""
        return jnp.eye(self.latent_dim) + (self.loadings / self.noise_variance[:, None]).T @ self.loadings

    def posterior_mean(self, x: Float[Array, " D"]) -> Float[Array, " d"]:
        """Return `m(x) = Lambda^-1 W' Psi^-1 (x - b)`."""
        return jnp.linalg.solve(self.posterior_precision(), self.loadings.T @ ((x - self.mean) / self.noise_variance))

    def posterior(self, x: Float[Array, " D"]) -> NormalPosterior:
        """Return the exact posterior `N(m(x), Lambda^-1)` of one datum."""
        precision = self.posterior_precision()
        return NormalPosterior(self.posterior_mean(x), jnp.linalg.inv(precision), precision)

    def log_evidence(self, x: Float[Array, " D"]) -> Float[Array, ""]:
        """Return `log p(x) = log N(x; b, W W' + Psi)` in nats."""
        precision = self.posterior_precision()
        residual = x - self.mean
        projected = self.loadings.T @ (residual / self.noise_variance)
        # Woodbury and the determinant lemma: only d x d systems.
        quadratic = jnp.sum(residual**2 / self.noise_variance) - projected @ jnp.linalg.solve(precision, projected)
        log_det = jnp.sum(jnp.log(self.noise_variance)) + jnp.linalg.slogdet(precision)[1]
        return -0.5 * (quadratic + log_det + self.data_dim * LOG_2PI)

    def sample(self, key: jax.Array) -> tuple[Float[Array, " d"], Float[Array, " D"]]:
        """Return one draw (z, x) from the joint, [d] and [D]."""
        key_latent, key_noise = jax.random.split(key)
        z = jax.random.normal(key_latent, (self.latent_dim,), self.mean.dtype)
        noise = jax.random.normal(key_noise, (self.data_dim,), self.mean.dtype)
        return z, self.mean + self.loadings @ z + jnp.sqrt(self.noise_variance) * noise

    def approximation_gap(self) -> Float[Array, ""]:
        """Return the approximation gap of the mean field family in nats, the same for every datum.

        Formula: `1/2 [sum_j log Lambda_jj - log |Lambda|]`, reached at mean m(x) and variances 1 / Lambda_jj.

        Source: Margossian and Blei, "Amortized variational inference: when and why?" (2024), section 3.
        """
        precision = self.posterior_precision()
        return 0.5 * (jnp.sum(jnp.log(jnp.diag(precision))) - jnp.linalg.slogdet(precision)[1])

    def rank_gap(
        self, xs: Float[Array, "N D"], rank: int, *, held_out: Float[Array, "M D"] | None = None
    ) -> Float[Array, ""]:
        """Return the mean amortization gap of the best affine encoder with a bottleneck of `rank`, in nats.

        Formula: `1/2 sum_{j > rank} sv_j^2 / N` with the singular values of `(m(x_i) - mean m)' Lambda^{1/2}` stacked
        over data: the best affine map of given rank is the truncated singular value decomposition (Eckart and Young
        1936) in the metric of the posterior precision. It holds for mean field and full rank normals alike, whose
        optimal scales do not depend on x.

        Args:
          xs: the data that the encoder is fitted to, [N, D].
          rank: width of the bottleneck, from 0 (a constant encoder) to d.
          held_out: data on which the encoder fitted to `xs` is judged, [M, D]; None for `xs` themselves.

        Returns:
          A scalar in nats per datum.

        Raises:
          ValueError: `rank` is not in [0, d].
        """
        check_count("rank", rank, minimum=0, maximum=self.latent_dim)
        return _rank_gap(self, xs, xs if held_out is None else held_out, jnp.asarray(rank))

    def conditioning_gap(self, observed: Sequence[int]) -> Float[Array, ""]:
        """Return the mean gap in nats of the best encoder that sees only some coordinates of x, data from the model.

        Formula: `conditioning_gap` with V = I - Lambda^-1, `C_ms = (A C)[:, s]`, C = W W' + Psi, A = Lambda^-1 W'
        Psi^-1, for mean field and full rank normals alike.

        Args:
          observed: the coordinates s that the encoder sees, distinct, in [0, D).

        Returns:
          A scalar in nats per datum.

        Raises:
          ValueError: coordinates that are repeated or out of range.

        Source: Bayer et al. (2021); Bishop (2006), equation 2.81, for the conditional mean.
        """
        rows = np.asarray(observed, int)
        if rows.ndim != 1 or len(set(rows.tolist())) < rows.size or np.any((rows < 0) | (rows >= self.data_dim)):
            raise ValueError(f"observed must be distinct coordinates below {self.data_dim}, got {rows.tolist()}")
        precision = self.posterior_precision()
        covariance = self.loadings @ self.loadings.T + jnp.diag(self.noise_variance)
        gain = jnp.linalg.solve(precision, (self.loadings / self.noise_variance[:, None]).T)
        mean_covariance = jnp.eye(self.latent_dim) - jnp.linalg.inv(precision)
        return conditioning_gap(precision, mean_covariance, (gain @ covariance)[:, rows], covariance[rows][:, rows])


@jax.jit
def _rank_gap(
    model: FactorAnalysis, xs: Float[Array, "N D"], judged: Float[Array, "M D"], rank: Int[Array, ""]
) -> Float[Array, ""]:
    root = jnp.linalg.cholesky(model.posterior_precision())
    means = jax.vmap(model.posterior_mean)(xs)
    centre = jnp.mean(means, axis=0)[None, :]
    # Rows of zeros complete the directions where there are fewer data than dimensions.
    missing = max(0, model.latent_dim - xs.shape[0])
    _, _, directions = jnp.linalg.svd(jnp.pad((means - centre) @ root, ((0, missing), (0, 0))), full_matrices=False)
    # The encoder cannot express the part of the means along the discarded directions.
    parts = (jax.vmap(model.posterior_mean)(judged) - centre) @ root @ directions.T
    lost = jnp.where(jnp.arange(model.latent_dim) >= rank, jnp.mean(parts**2, axis=0), 0)
    return 0.5 * jnp.sum(lost)


class FactorAnalysisFit(NamedTuple):
    """Result of `fit_factor_analysis`.

    Attributes:
      model: the fitted FactorAnalysis.
      log_evidence: mean of log p(x) over the data after every step, in nats, [num_steps].
    """

    model: FactorAnalysis
    log_evidence: Float[Array, " num_steps"]


def fit_factor_analysis(
    key: jax.Array,
    xs: Data,
    *,
    latent_dim: int,
    num_steps: int = 500,
    min_noise_variance: float = 1e-2,
) -> FactorAnalysisFit:
    """Fit factor analysis to data by maximum likelihood with the EM algorithm.

    Formula: E-step `m_i = Lambda^-1 W' Psi^-1 (x_i - b)`; M-step
    `W = [sum (x_i - b) m_i'] [sum m_i m_i' + N Lambda^-1]^-1`, `psi = diag(S - W [sum m_i (x_i - b)'] / N)`.

    Args:
      key: typed key for the random initial loadings, which choose the rotation of the solution.
      xs: data, [N, D]; features may be constant.
      latent_dim: d, at most D.
      num_steps: EM steps.
      min_noise_variance: floor of psi, which keeps constant features and Heywood cases proper.

    Returns:
      FactorAnalysisFit.

    Raises:
      ValueError: bad data, sizes or floor.

    Source: Rubin and Thayer, "EM algorithms for ML factor analysis" (1982); Bishop (2006), equations 12.64 to 12.66.
    """
    check_key(key)
    xs = as_data("xs", xs)
    if xs.ndim != 2:
        raise ValueError(f"xs must have shape [N, D], got {xs.shape}")
    check_count("latent_dim", latent_dim, maximum=xs.shape[1])
    check_count("num_steps", num_steps)
    check_positive("min_noise_variance", min_noise_variance)
    return _em(key, xs, latent_dim=latent_dim, num_steps=num_steps, floor=min_noise_variance)


@partial(jax.jit, static_argnames=("latent_dim", "num_steps"))
def _em(key: jax.Array, xs: Array, *, latent_dim: int, num_steps: int, floor: float | Array) -> FactorAnalysisFit:
    mean = jnp.mean(xs, axis=0)
    centred = xs - mean[None, :]
    variance = jnp.mean(centred**2, axis=0)
    scale = jnp.sqrt(variance / latent_dim)[:, None]
    loadings = 0.5 * scale * jax.random.normal(key, (xs.shape[1], latent_dim), xs.dtype)
    start = FactorAnalysis(loadings=loadings, mean=mean, noise_variance=jnp.maximum(0.5 * variance, floor))

    def step(model: FactorAnalysis, _: None) -> tuple[FactorAnalysis, Array]:
        covariance = jnp.linalg.inv(model.posterior_precision())
        means = (centred / model.noise_variance[None, :]) @ model.loadings @ covariance
        cross = centred.T @ means
        loadings = jnp.linalg.solve(means.T @ means + xs.shape[0] * covariance, cross.T).T
        noise = jnp.maximum(variance - jnp.sum(loadings * cross, axis=1) / xs.shape[0], floor)
        updated = FactorAnalysis(loadings=loadings, mean=mean, noise_variance=noise)
        return updated, jnp.mean(jax.vmap(updated.log_evidence)(xs))

    model, trace = jax.lax.scan(step, start, None, length=num_steps)
    return FactorAnalysisFit(model, trace)
