"""An encoder that a user has written in flax."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from amortgap._internal.checks import check_choice
from amortgap.interop.flax_module import UserModule, wrap_module
from amortgap.networks import weight_count
from amortgap.protocols import Family, HasMoments

# The kinds of second output, each with its map to a log scale.
SCALE_OUTPUTS = {
    "log_variance": lambda out: 0.5 * out,
    "log_scale": lambda out: out,
    "scale": jnp.log,
    "variance": lambda out: 0.5 * jnp.log(out),
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ModuleEncoder:
    """A flax encoder as an encoder of this package; made by `from_module`.

    Attributes:
      module: the user's module.
      scale_output: the quantity that its second output is; "phi" where its only output is phi.
    """

    module: UserModule
    scale_output: str = field(metadata={"static": True})

    def __call__(self, x: ArrayLike) -> Float[Array, " size"]:
        """Return phi for one datum."""
        out = self.module(x)
        if self.scale_output == "phi":
            return jnp.ravel(out)
        mean, scale = out
        return jnp.concatenate([jnp.ravel(mean), jnp.ravel(SCALE_OUTPUTS[self.scale_output](scale))])

    num_weights = weight_count("module")


def from_module(
    module: object,
    family: Family,
    *,
    data_shape: tuple[int, ...],
    scale_output: str = "log_variance",
    variables: Mapping[str, PyTree] | None = None,
) -> ModuleEncoder:
    """Return a flax encoder, written for batches, as an encoder of one datum.

    Formula: `phi = [mean(x), log scale(x)]` from outputs (mean, scale_output), each [batch, d]; or phi itself from one
    output [batch, family.size].

    Args:
      module: an `nnx.Module` in evaluation mode, or a `linen.Module` with its `variables`.
      family: `MeanFieldNormal` for two outputs, any family for one.
      data_shape: shape of one datum as the module reads it, such as (28, 28, 1); data may come flat.
      scale_output: the quantity that the second output is: "log_variance", "log_scale", "scale" or "variance".
      variables: of a linen module, trained.

    Returns:
      ModuleEncoder, from one datum to phi [family.size].

    Raises:
      ValueError: an unknown `scale_output`, no flax module, one that cannot be run, that changes its own state (dropout
        or batch norm in training mode) or whose outputs do not fit the family.
    """
    check_choice("scale_output", scale_output, tuple(SCALE_OUTPUTS))
    wrapped = wrap_module("module", module, data_shape, variables)
    out = jax.eval_shape(wrapped, jnp.zeros(wrapped.shape))
    shapes = [leaf.shape for leaf in jax.tree.leaves(out)]
    if isinstance(out, (tuple, list)) and len(out) == 2:
        d = family.latent_dim
        if family.size != 2 * d or not isinstance(family, HasMoments):
            raise ValueError(f"two outputs are the phi of a MeanFieldNormal, not of a {type(family).__name__}")
        if any(leaf.size != d for leaf in jax.tree.leaves(out)):
            raise ValueError(f"both outputs must have family.latent_dim = {d} entries for one datum, got {shapes}")
        return ModuleEncoder(wrapped, scale_output)
    if len(shapes) != 1 or jax.tree.leaves(out)[0].size != family.size:
        raise ValueError(
            f"module must return (mean, {scale_output}) or one vector of family.size = {family.size} entries for one "
            f"datum, got {shapes}"
        )
    return ModuleEncoder(wrapped, "phi")
