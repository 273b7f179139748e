"""One-datum models out of a model with a global latent theta and one local latent z for every datum.

The joint density of a `HierarchicalModel` over a data set is `p(theta) prod_i p(z_i, x_i | theta)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
from jaxtyping import Array, Float

from amortgap._internal.checks import as_float_array
from amortgap._internal.records import checked_record
from amortgap.protocols import Data, Datum, HierarchicalModel, Validating


def check_global_model(model: object) -> None:
    """Refuse a model without a global part, naming the parts that it lacks.

    Raises:
      ValueError: `model` lacks `global_dim`, `log_prior` or `log_local`.
    """
    missing = [name for name in ("global_dim", "log_prior", "log_local") if not hasattr(model, name)]
    if missing:
        raise ValueError(
            f"model must have a global part (global_dim, log_prior, log_local) to go with a variational family for "
            f"theta, {type(model).__name__} lacks {', '.join(missing)}"
        )


@checked_record
@dataclass(frozen=True, kw_only=True)
class FixedGlobal:
    """The one-datum model at a fixed global latent; made by `fix_global`.

    Formula: `log p(x, z | theta)`.

    Attributes:
      model: the hierarchical model.
      theta: [K].
    """

    model: HierarchicalModel
    theta: Float[Array, " K"]

    @property
    def latent_dim(self) -> int:
        """Dimension d of z."""
        return self.model.latent_dim

    def validate(self, name: str, xs: Data) -> None:
        """Raise a ValueError that names `name` unless `xs` can be data of the model."""
        if isinstance(self.model, Validating):
            self.model.validate(name, xs)

    def log_joint(self, z: Float[Array, " d"], x: Datum) -> Float[Array, ""]:
        """Return `log p(x, z | theta)` in nats."""
        return self.model.log_local(self.theta, z, x)


def fix_global(model: HierarchicalModel, theta: object) -> FixedGlobal:
    """Return the one-datum model at a fixed theta, for `elbo`, `local_vi`, `amortized_vi` and all else.

    Formula: `log_joint(z, x) = log p(z | theta) + log p(x | z, theta)`.

    Args:
      model: the hierarchical model.
      theta: array-like, [K].

    Returns:
      FixedGlobal.

    Raises:
      ValueError: a model without a global part, or a theta of another shape.
    """
    check_global_model(model)
    theta = as_float_array("theta", theta)
    if theta.shape != (model.global_dim,):
        raise ValueError(f"theta must have shape ({model.global_dim},), the model's global_dim, got {theta.shape}")
    return FixedGlobal(model=model, theta=theta)


@checked_record
@dataclass(frozen=True, kw_only=True)
class AveragedGlobal:
    """The one-datum model whose log joint is an average over theta.

    Formula: `log_joint(z, x) = sum_s w_s log p(x, z | theta_s)`. With quadrature nodes of q(theta) this is
    `E_q[log p(x, z | theta)]`; its exponential is, up to a constant, the optimal local factor.

    Attributes:
      model: the hierarchical model.
      thetas: nodes, [S, K].
      weights: their weights, [S], which sum to one.

    Source: Margossian and Blei, "Amortized variational inference: when and why?" (2024), lemma 3.1.
    """

    model: HierarchicalModel
    thetas: Float[Array, "S K"]
    weights: Float[Array, " S"]

    @property
    def latent_dim(self) -> int:
        """Dimension d of z."""
        return self.model.latent_dim

    def log_joint(self, z: Float[Array, " d"], x: Datum) -> Float[Array, ""]:
        """Return the averaged `log p(x, z | theta)` in nats."""
        return self.weights @ jax.vmap(lambda theta: self.model.log_local(theta, z, x))(self.thetas)
