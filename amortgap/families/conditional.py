"""Branch families: local factors whose mean is affine in the global latent."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from amortgap._internal.checks import check_count
from amortgap.families.constrained import ConstrainedNormal
from amortgap.protocols import Family, HasHead, HasMoments


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Branch:
    """Local factor given theta: the base family with a mean that moves with theta.

    Formula: `q(z | theta; w) = base(z; phi)` with `mean(phi) = m + G theta`, `w = [phi with mean m, G by rows]`. With a
    full rank base this is the conditional of a dense joint normal.

    Args:
      base: family whose phi begins with the mean, such as `MeanFieldNormal` and `FullRankNormal`.
      global_dim: dimension K of theta.

    Raises:
      ValueError: a global_dim that is not positive, or a base whose phi does not begin with the mean.

    Source: Agrawal and Domke, "Amortized variational inference for simple hierarchical models" (2021).
    """

    base: Family
    global_dim: int = field(metadata={"static": True})

    def __post_init__(self) -> None:
        check_count("global_dim", self.global_dim)
        if not isinstance(self.base, (HasMoments, HasHead, ConstrainedNormal)):
            raise ValueError(f"base must be a family whose phi begins with the mean, got {type(self.base).__name__}")

    @property
    def latent_dim(self) -> int:
        """Dimension d of z."""
        return self.base.latent_dim

    @property
    def size(self) -> int:
        """Length of w, `base.size + d K`."""
        return self.base.size + self.base.latent_dim * self.global_dim

    def standard(self) -> Float[Array, " size"]:
        """Return the w of the base's standard member, which does not move with theta."""
        return jnp.concatenate([self.base.standard(), jnp.zeros(self.size - self.base.size)])

    def given(self, theta: Float[Array, " K"], w: Float[Array, " size"]) -> Float[Array, " base"]:
        """Return the base's phi [base.size] at this theta [K]."""
        slopes = w[self.base.size :].reshape(self.latent_dim, self.global_dim)
        return w[: self.base.size].at[: self.latent_dim].add(slopes @ theta)
