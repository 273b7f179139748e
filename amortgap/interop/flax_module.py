"""Modules that users bring, flax nnx or linen, as pure functions of one datum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from amortgap._internal.checks import first_row, in_shape
from amortgap.networks import weight_count

_STATEFUL = "changes its own state when it is run, as dropout and batch norm in training mode do"
# The errors of a module whose layers do not fit its input.
_CALL_ERRORS = (TypeError, ValueError, AssertionError, IndexError, AttributeError, flax.errors.FlaxError)


class _Constants:
    """Arrays that are not trained, such as averages of a batch norm and keys; static, since it equals itself alone."""

    def __init__(self, arrays: PyTree) -> None:
        self.arrays = arrays


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class UserModule:
    """A module written for batches, called on one datum as a batch of one.

    Attributes:
      definition: the graph of an nnx module, or a linen module.
      constants: its arrays that are not weights.
      shape: of one datum, which is reshaped to it.
      weights: its parameters, trained; other values of the same shapes never retrace.
    """

    definition: Any = field(metadata={"static": True})
    constants: _Constants = field(metadata={"static": True})
    shape: tuple[int, ...] = field(metadata={"static": True})
    weights: PyTree

    def __call__(self, x: ArrayLike) -> PyTree:
        """Return the outputs for one datum of `shape`, or its entries in a row, without the axis of the batch."""
        batch = in_shape(x, self.shape)[None]
        if isinstance(self.definition, linen.Module):
            out = self.definition.apply({**self.constants.arrays, "params": self.weights}, batch)
        else:
            out = nnx.merge(self.definition, self.weights, self.constants.arrays)(batch)
        return first_row(out)

    num_weights = weight_count("weights")

    def __repr__(self) -> str:
        """Return the shape and the number of weights alone, since notebooks print records that hold modules."""
        return f"UserModule(shape={self.shape}, <{self.num_weights} weights>)"


def wrap_module(
    argument: str, module: object, shape: int | tuple[int, ...], variables: Mapping[str, PyTree] | None = None
) -> UserModule:
    """Return a user's module as a function of one datum of this shape, after running it once on zeros.

    Args:
      argument: name of the module in messages.
      module: an `nnx.Module`, or a `linen.Module` with its `variables`.
      shape: of one datum, without the axis of the batch.
      variables: of a linen module, as `module.init` returns them, trained.

    Returns:
      UserModule, from one datum to the module's outputs without the axis of the batch.

    Raises:
      ValueError: no flax module; a linen module without variables, or an nnx module with some; one that cannot be run
        on a batch of one, or that changes its own state when it is run (dropout, batch norm in training mode).
    """
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    zeros = jnp.zeros((1, *shape))
    if isinstance(module, linen.Module):
        return _linen(argument, module, zeros, variables)
    if not isinstance(module, nnx.Module):
        raise ValueError(f"{argument} must be a flax nnx or linen module, got {type(module).__name__}")
    if variables is not None:
        got = type(variables).__name__
        raise ValueError(f"{argument} is an nnx module, which holds its own weights: variables must be None, got {got}")
    # Split and run copies: nnx shares variables between a module and its parts, and the trial must not change them.
    definition, weights, rest = nnx.split(nnx.clone(module), nnx.Param, ...)
    run = nnx.clone(module)
    try:
        run(zeros)
    except _CALL_ERRORS as error:
        raise ValueError(f"{argument} cannot be run on a batch of shape {zeros.shape}: {error}") from error
    if not _equal(rest, nnx.split(run, nnx.Param, ...)[2]):
        raise ValueError(f"{argument} {_STATEFUL}; call {argument}.eval() first")
    return UserModule(definition, _Constants(rest), shape, weights)


def _linen(argument: str, module: linen.Module, zeros: Array, variables: Mapping[str, PyTree] | None) -> UserModule:
    if variables is None or "params" not in variables:
        have = "none" if variables is None else f"collections {sorted(variables)}"
        raise ValueError(
            f"{argument} is a linen module, which holds no weights: give its variables with 'params', got {have}"
        )
    try:
        module.apply(variables, zeros)
    except (flax.errors.ModifyScopeVariableError, flax.errors.InvalidRngError) as error:
        raise ValueError(
            f"{argument} {_STATEFUL}; give it in evaluation mode (deterministic=True, use_running_average=True): "
            f"{error}"
        ) from error
    except _CALL_ERRORS as error:
        raise ValueError(f"{argument} cannot be run on a batch of shape {zeros.shape}: {error}") from error
    rest = {name: value for name, value in variables.items() if name != "params"}
    weights = jax.tree.map(jnp.asarray, variables["params"])
    return UserModule(module, _Constants(rest), zeros.shape[1:], weights)


def _equal(before: PyTree, after: PyTree) -> bool:
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return all(np.array_equal(_plain(a), _plain(b), equal_nan=True) for a, b in pairs)


def _plain(leaf: ArrayLike) -> np.ndarray:
    leaf = jnp.asarray(leaf)
    return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
