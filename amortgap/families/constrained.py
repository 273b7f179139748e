"""A diagonal family for latents that live on an interval or a half line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from amortgap._internal.checks import check_choice, check_count
from amortgap.families.normal import standard_normal_log_prob, transformed_draw

_SUPPORTS = ("positive", "unit_interval")


@runtime_checkable
class Bijector(Protocol):
    """The part of NumPyro's transforms that a constrained family needs."""

    def __call__(self, x: Array) -> Array:
        """Return the constrained coordinates."""
        ...

    def _inverse(self, y: Array) -> Array: ...

    def log_abs_det_jacobian(self, x: Array, y: Array) -> Array:
        """Return the logarithm of the derivative at x, where the image is y."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ConstrainedNormal:
    """Independent normals carried to constrained coordinates by a bijector.

    Formula: `z = T(y)`, `y ~ N(mean, diag(scale^2))`, `log q(z; phi) = log N(y) - sum_j log |T'(y_j)|`,
    `phi = [mean, log scale]` of y. With `T = exp` it is the log-normal family.

    Args:
      latent_dim: dimension d of z.
      bijector: an elementwise transform of NumPyro (called for T, with `_inverse` and `log_abs_det_jacobian`), or
        "positive" (exp) or "unit_interval" (logistic).

    Attributes:
      name: of the family, "constrained_normal".
      full_support: False, its density is zero outside the image of T.

    Raises:
      ValueError: `latent_dim` is not positive, or the bijector is unknown or does not map coordinates one by one.
    """

    latent_dim: int = field(metadata={"static": True})
    bijector: Any
    name: ClassVar[str] = "constrained_normal"
    full_support: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_count("latent_dim", self.latent_dim)
        if isinstance(self.bijector, str):
            check_choice("bijector", self.bijector, _SUPPORTS)
            # A slow import that other families do not need.
            from numpyro.distributions import biject_to, constraints

            object.__setattr__(self, "bijector", biject_to(getattr(constraints, self.bijector)))
        if not isinstance(self.bijector, Bijector):
            raise ValueError(
                "bijector must be 'positive', 'unit_interval' or a transform of NumPyro with an inverse, got "
                f"{getattr(self.bijector, '__name__', type(self.bijector).__name__)}"
            )
        domain, codomain = (getattr(self.bijector, name, None) for name in ("domain", "codomain"))
        if any(side is not None and side.event_dim for side in (domain, codomain)):
            raise ValueError(f"bijector must map every coordinate on its own, got {type(self.bijector).__name__}")

    @property
    def size(self) -> int:
        """Length of phi, `2 d`."""
        return 2 * self.latent_dim

    @property
    def noise_dim(self) -> int:
        """Number of standard normals behind one draw."""
        return self.latent_dim

    def standard(self) -> Float[Array, " size"]:
        """Return the phi whose unconstrained coordinates are standard normal."""
        return jnp.zeros(self.size)

    def transform(self, noise: Float[Array, " d"], phi: Float[Array, " size"]) -> Float[Array, " d"]:
        """Return `z = T(mean + scale * noise)`."""
        mean, log_scale = jnp.split(phi, 2)
        return self.bijector(mean + jnp.exp(log_scale) * noise)

    def log_prob(self, z: Float[Array, " d"], phi: Float[Array, " size"]) -> Float[Array, ""]:
        """Return `log q(z; phi)` in nats."""
        mean, log_scale = jnp.split(phi, 2)
        y = self.bijector._inverse(z)
        noise = (y - mean) * jnp.exp(-log_scale)
        log_normal = standard_normal_log_prob(noise) - jnp.sum(log_scale)
        return log_normal - jnp.sum(self.bijector.log_abs_det_jacobian(y, z))

    sample_and_log_prob = transformed_draw
