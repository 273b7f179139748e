"""Models with a global latent theta and one local latent z for every datum: how one-datum models come out of them.

Such a model is a record with `global_dim`, `latent_dim`, `log_prior(theta)` and `log_local(theta, z, x)`; its joint
density over a data set is `p(theta) prod_i p(z_i, x_i | theta)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from amortgap._internal.checks import as_float_array
from amortgap._internal.records import checked_record
from amortgap.protocols import Validating


def check_global_model(model: Any) -> None:
    """Refuse a model without a global part, naming what it lacks.

    Raises:
      ValueError: `model` lacks `global_dim`, `log_prior` or `log_local`.
    """
    missing = [name for name in ("global_dim", "log_prior", "log_local") if not hasattr(model, name)]
    if missing:
        raise ValueError(
            f"model must have a global part (global_dim, log_prior, log_local) to go with a variational family for "
            f"theta, {type(model).__name__} lacks {', '.join(missing)}"
        )


def check_theta(model: Any, theta: Any) -> None:
    """Refuse a theta whose shape is not [model.global_dim].

    Raises:
      ValueError: as said, or a model without a global part.
    """
    check_global_model(model)
    if jnp.shape(theta) != (model.global_dim,):
        raise ValueError(f"theta must have shape ({model.global_dim},), the model's global_dim, got {jnp.shape(theta)}")


@checked_record
@dataclass(frozen=True, kw_only=True)
class FixedGlobal:
    """The one-datum model at a fixed global latent; made by `fix_global`.

    Formula: `log p(x, z | theta)`.

    Attributes:
      model: the model with a global part.
      theta: [K].
    """

    model: Any
    theta: Float[Array, " K"]

    @property
    def latent_dim(self) -> int:
        """Dimension d of z."""
        return self.model.latent_dim

    def validate(self, name: str, xs: Any) -> None:
        """Raise a ValueError that names `name` unless `xs` can be data of the model."""
        if isinstance(self.model, Validating):
            self.model.validate(name, xs)

    def log_joint(self, z: Float[Array, " d"], x: Any) -> Float[Array, ""]:
        """Return `log p(x, z | theta)` in nats."""
        return self.model.log_local(self.theta, z, x)


def fix_global(model: Any, theta: Any) -> FixedGlobal:
    """Return the one-datum model at a fixed theta, for `elbo`, `local_vi`, `amortized_vi` and all else.

    Formula: `log_joint(z, x) = log p(z | theta) + log p(x | z, theta)`.

    Args:
      model: record with a global part.
      theta: [K].

    Returns:
      FixedGlobal.

    Raises:
      ValueError: a model without a global part, or a theta of another shape.
    """
    theta = as_float_array("theta", theta)
    check_theta(model, theta)
    return FixedGlobal(model=model, theta=theta)


@checked_record
@dataclass(frozen=True, kw_only=True)
class AveragedGlobal:
    """The one-datum model whose log joint is an average over theta.

    Formula: `log_joint(z, x) = sum_s w_s log p(x, z | theta_s)`, for nodes of q(theta) the expected log joint, whose
    exponential is, up to a constant, the optimal local factor.

    Attributes:
      model: the model with a global part.
      thetas: nodes, [S, K].
      weights: their weights, [S], which sum to one.

    Source: Margossian and Blei, "Amortized variational inference: when and why?" (2024), lemma 3.1.
    """

    model: Any
    thetas: Float[Array, "S K"]
    weights: Float[Array, " S"]

    @property
    def latent_dim(self) -> int:
        """Dimension d of z."""
        return self.model.latent_dim

    def log_joint(self, z: Float[Array, " d"], x: Any) -> Float[Array, ""]:
        """Return the averaged `log p(x, z | theta)` in nats."""
        return self.weights @ jax.vmap(lambda theta: self.model.log_local(theta, z, x))(self.thetas)
