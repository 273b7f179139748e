"""Entropy annealing: a family whose log density counts for less, so that a VAE's latents survive its first steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array, Float


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Annealed:
    """A family that draws as its base does and states a share of its log density.

    Formula: the ELBO with it is `E_q[log p(x, z) - w log q(z; phi)]`.

    Attributes:
      base: the family.
      weight: w, in [0, 1].

    Source: Cremer, Li and Duvenaud, "Inference suboptimality in variational autoencoders" (2018), section 5.2.
    """

    base: Any
    weight: Array

    def __getattr__(self, name: str) -> Any:
        # What a base lacks its annealed form lacks too; underscores are asked for before `base` exists.
        if name.startswith("_"):
            raise AttributeError(name)
        base = self.base
        if name == "entropy":
            return lambda phi: self.weight * base.entropy(phi)
        if name == "log_prob":
            log_prob = base.log_prob
            return lambda z, phi: self.weight * log_prob(z, phi)
        return getattr(base, name)

    def sample_and_log_prob(self, key: jax.Array, phi: Float[Array, " size"]) -> tuple[Array, Array]:
        """Return a draw and the weighted log density there."""
        z, log_q = self.base.sample_and_log_prob(key, phi)
        return z, self.weight * log_q
