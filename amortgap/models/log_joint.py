"""Any log joint density as a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from amortgap._internal.checks import check_count
from amortgap.protocols import Datum


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LogJoint:
    """A model given by a function; made by `from_log_joint`.

    Attributes:
      function: `function(z, x)`, or `function(params, z, x)` where `params` is not None.
      params: pytree of weights, traced, so that other values never retrace.
      latent_dim: dimension d of z.
      data_shape: shape of one datum, None for any.
    """

    function: Callable[..., Array] = field(metadata={"static": True})
    params: PyTree
    latent_dim: int = field(metadata={"static": True})
    data_shape: tuple[int, ...] | None = field(default=None, metadata={"static": True})

    def log_joint(self, z: Float[Array, " d"], x: Datum) -> Float[Array, ""]:
        """Return `log p(x, z)` in nats.

        Raises:
          ValueError: the function does not return one scalar, or x is not one datum of `data_shape`.
        """
        if self.data_shape is not None and getattr(x, "shape", None) != self.data_shape:
            got = jax.tree.map(jnp.shape, x)
            raise ValueError(f"x must be one datum, an array of shape {self.data_shape}, got {got}")
        value = self.function(z, x) if self.params is None else self.function(self.params, z, x)
        if getattr(value, "shape", None) != ():
            raise ValueError(f"the log joint must return one scalar, got shape {getattr(value, 'shape', type(value))}")
        return value


def from_log_joint(
    fn: Callable[..., Array], latent_dim: int, *, params: PyTree = None, data_shape: tuple[int, ...] | None = None
) -> LogJoint:
    """Return a model with the log joint density `fn`.

    Formula: `log p(x, z) = fn(z, x)`, or `fn(params, z, x)` if `params` is given; z is unconstrained.

    Args:
      fn: pure function of one latent z [d] and one datum x (an array or a pytree) to a scalar in nats, the log of a
        density that is normalised over x and z jointly; without its constant the ELBO is off by that constant and
        gaps between two ELBOs are still right.
      latent_dim: d.
      params: optional pytree of weights; pass them here rather than closing over them, and new values never retrace.
      data_shape: optional shape of one datum that is an array. A function that sums over whatever it is given cannot
        tell a batch from a datum; with this, a batch is refused.

    Returns:
      LogJoint.

    Raises:
      ValueError: `fn` is not callable, `latent_dim` is not positive or `data_shape` is no shape; at first use, `fn`
        does not return a scalar or a datum has another shape.

    Example:
      >>> import jax, jax.numpy as jnp, amortgap as ag
      >>> from jax.scipy.stats import norm, poisson
      >>> model = ag.models.from_log_joint(
      ...     lambda z, x: norm.logpdf(z[0]) + poisson.logpmf(x[0], jnp.exp(z[0])), latent_dim=1
      ... )
      >>> fit = ag.local_vi(jax.random.key(0), jnp.array([3.0]), model=model, family=ag.families.MeanFieldNormal(1))
      >>> bool(fit.converged)
      True
    """
    if not callable(fn):
        raise ValueError(f"fn must be a function (z, x) -> scalar, got {type(fn).__name__}")
    if data_shape is not None:
        if not isinstance(data_shape, tuple | list):
            raise ValueError(f"data_shape must be a shape such as (784,), got {data_shape!r}")
        data_shape = tuple(check_count("data_shape", length) for length in data_shape)
    return LogJoint(function=fn, params=params, latent_dim=check_count("latent_dim", latent_dim), data_shape=data_shape)
