"""Finite mixtures of normals with the component as a discrete latent: every bound is a sum of few terms."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from amortgap._internal.checks import check_row_shape, is_concrete
from amortgap._internal.records import checked_record
from amortgap.families.normal import standard_normal_log_prob
from amortgap.models.array_fields import set_array_fields
from amortgap.protocols import Data


@checked_record
@dataclass(frozen=True, kw_only=True)
class FiniteMixture:
    """Mixture of normals; the latent is the one-hot vector of the component.

    Formula: `z = e_k` with probability w_k, `x | z = e_k ~ N(c_k, S_k)`. The posterior is `Categorical` with log odds
    affine in x if all S_k are equal, quadratic otherwise.

    Args:
      log_weights: log w_k, normalised when used, [K].
      centres: c_k, [K, D].
      covariances: S_k, positive definite, [K, D, D].

    Raises:
      ValueError: no components, shapes that do not fit, entries that are not finite, or covariances that are not
        positive definite.

    Source: Bishop, Pattern Recognition and Machine Learning (2006), section 9.2.
    """

    log_weights: Float[Array, " K"]
    centres: Float[Array, "K D"]
    covariances: Float[Array, "K D D"]

    def __post_init__(self) -> None:
        set_array_fields(self, {"log_weights": "K", "centres": "K D", "covariances": "K D D"})
        if not is_concrete(self.covariances):
            return
        lowest = float(jnp.linalg.eigvalsh(self.covariances).min())
        if lowest <= 0:
            raise ValueError(f"covariances must be positive definite, got an eigenvalue of {lowest:g}")

    @property
    def latent_dim(self) -> int:
        """Number of components K, the dimension of the one-hot vector z."""
        return self.centres.shape[-2]

    @property
    def data_dim(self) -> int:
        """Dimension D of x."""
        return self.centres.shape[-1]

    def validate(self, name: str, xs: Data) -> None:
        """Raise a ValueError that names `name` unless `xs` can be data of this model."""
        check_row_shape(name, xs, (self.data_dim,))

    def _joints(self, x: Array) -> Array:
        """Return `log w_k + log N(x; c_k, S_k)` for every component."""

        def one(centre: Array, covariance: Array) -> Array:
            root = jnp.linalg.cholesky(covariance)
            noise = jax.scipy.linalg.solve_triangular(root, x - centre, lower=True)
            return standard_normal_log_prob(noise) - jnp.sum(jnp.log(jnp.diag(root)))

        return jax.nn.log_softmax(self.log_weights) + jax.vmap(one)(self.centres, self.covariances)

    def log_joint(self, z: Float[Array, " K"], x: Float[Array, " D"]) -> Float[Array, ""]:
        """Return `log p(x, z)` in nats for a one-hot z."""
        return self._joints(x)[jnp.argmax(z)]

    def posterior(self, x: Float[Array, " D"]) -> Float[Array, " K"]:
        """Return the log responsibilities `log p(z = e_k | x)`, which are the phi of the exact `Categorical`."""
        return jax.nn.log_softmax(self._joints(x))

    def log_evidence(self, x: Float[Array, " D"]) -> Float[Array, ""]:
        """Return `log p(x) = log sum_k w_k N(x; c_k, S_k)` in nats."""
        return logsumexp(self._joints(x))

    def constant_gap(self, xs: Float[Array, "N D"]) -> Float[Array, ""]:
        """Return the mean gap of the best constant encoder in nats.

        Formula: `-log sum_k exp(mean_i log r_ik)`, r_ik the responsibilities; reached by q_k in proportion to the
        summand. The gap of a conjugate family pooled over data: mean A(eta_i) - A(mean eta_i).
        """
        return -logsumexp(jnp.mean(jax.vmap(self.posterior)(xs), axis=0))

    def affine_log_odds(self) -> tuple[Float[Array, "K D"], Float[Array, " K"]]:
        """Return the matrix and offsets of the exact affine encoder, `log p(e_k | x) = A x + a + const`.

        Raises:
          ValueError: covariances that differ, for which log odds are quadratic.
        """
        shared = self.covariances[0]
        if is_concrete(self.covariances) and not bool(jnp.all(self.covariances == shared[None])):
            raise ValueError("covariances must all be equal for affine log odds")
        matrix = jnp.linalg.solve(shared, self.centres.T).T
        return matrix, jax.nn.log_softmax(self.log_weights) - 0.5 * jnp.sum(matrix * self.centres, axis=1)

    def sample(self, key: jax.Array) -> tuple[Float[Array, " K"], Float[Array, " D"]]:
        """Return one draw (z, x) from the joint, z one-hot [K] and x [D]."""
        key_component, key_noise = jax.random.split(key)
        k = jax.random.categorical(key_component, self.log_weights)
        noise = jax.random.normal(key_noise, (self.data_dim,), self.centres.dtype)
        z = jax.nn.one_hot(k, self.latent_dim, dtype=self.centres.dtype)
        return z, self.centres[k] + jnp.linalg.cholesky(self.covariances[k]) @ noise
