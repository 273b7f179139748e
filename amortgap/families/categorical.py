"""The family of all distributions over finitely many values, whose ELBO is a sum and not an estimate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from amortgap._internal.checks import check_count


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Categorical:
    """Categorical family for one discrete latent, a one-hot vector.

    Formula: `q(z = e_k; phi) = softmax(phi)_k`. The bounds enumerate `support()`: every draw of the ELBO is
    `sum_k q_k (log p(x, e_k) - log q_k)`, without Monte Carlo error.

    Args:
      num_categories: K, also the dimension of z.

    Attributes:
      name: of the family, "categorical".

    Raises:
      ValueError: `num_categories` is not a positive whole number.
    """

    num_categories: int = field(metadata={"static": True})
    name: ClassVar[str] = "categorical"

    def __post_init__(self) -> None:
        check_count("num_categories", self.num_categories)

    @property
    def latent_dim(self) -> int:
        """Dimension of the one-hot vector z."""
        return self.num_categories

    @property
    def size(self) -> int:
        """Length of phi, K."""
        return self.num_categories

    def support(self) -> Float[Array, "K K"]:
        """Return all values of z, one a row, [K, K]."""
        return jnp.eye(self.num_categories)

    def standard(self) -> Float[Array, " size"]:
        """Return the phi of the uniform distribution."""
        return jnp.zeros(self.size)

    def probabilities(self, phi: Float[Array, " size"]) -> Float[Array, " K"]:
        """Return `q(z; phi)` of all values, in the order of `support()`."""
        return jax.nn.softmax(phi)

    def log_prob(self, z: Float[Array, " K"], phi: Float[Array, " size"]) -> Float[Array, ""]:
        """Return `log q(z; phi)` in nats."""
        # Index instead of multiplying by z: zero times the infinite log of an impossible category is NaN.
        return jax.nn.log_softmax(phi)[jnp.argmax(z)]

    def entropy(self, phi: Float[Array, " size"]) -> Float[Array, ""]:
        """Return the entropy `-sum_k q_k log q_k` in nats."""
        log_q = jax.nn.log_softmax(phi)
        return -jnp.sum(jnp.exp(log_q) * log_q)

    def sample_and_log_prob(
        self, key: jax.Array, phi: Float[Array, " size"]
    ) -> tuple[Float[Array, " K"], Float[Array, ""]]:
        """Return one draw and its log probability in nats."""
        z = jax.nn.one_hot(jax.random.categorical(key, phi), self.num_categories, dtype=phi.dtype)
        return z, self.log_prob(z, phi)
