"""Neural networks as values: a hashable flax graph and a pytree of weights. The only file that knows flax."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from amortgap._checks import check_choice, check_count, check_key


def _elu(x: Array) -> Array:
    # jax.nn.elu keeps relative precision near zero by expm1, whose two transcendental functions take a twentieth of a
    # gradient of a 784-pixel decoder; what is added to the result has no use for it.
    return jnp.where(x > 0, x, jnp.exp(jnp.where(x > 0, 0, x)) - 1)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "elu": _elu,
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "tanh": jnp.tanh,
    "identity": lambda x: x,
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Network:
    """A flax network split once into its static graph and its weights, so that only the weights are traced.

    Formula: `network(x) = merge(graph, weights)(x)`.

    Attributes:
      graph: the hashable graph definition; another graph retraces.
      weights: pytree of arrays; other values of the same shapes never retrace.
    """

    graph: Any = field(metadata={"static": True})
    weights: Any

    def __call__(self, x: Float[Array, " inputs"]) -> Float[Array, " outputs"]:
        """Return the output of the network for one input."""
        return nnx.merge(self.graph, self.weights)(x)


class _Dense(nnx.Module):
    """A stack of affine layers with one activation between them."""

    def __init__(self, sizes: Sequence[int], activation: str, dtype: Any, rngs: nnx.Rngs):
        self.layers = nnx.List(
            [
                nnx.Linear(fan_in, fan_out, param_dtype=dtype, dtype=dtype, rngs=rngs)
                for fan_in, fan_out in itertools.pairwise(sizes)
            ]
        )
        self.activation = activation

    def __call__(self, x: Array) -> Array:
        for layer in list(self.layers)[:-1]:
            x = ACTIVATIONS[self.activation](layer(x))
        return self.layers[-1](x)


def from_module(module: nnx.Module) -> Network:
    """Return a flax `nnx` module as a Network.

    Raises:
      ValueError: `module` is not an `nnx.Module`.
    """
    if not isinstance(module, nnx.Module):
        raise ValueError(f"module must be a flax.nnx module, got {type(module).__name__}")
    graph, weights = nnx.split(module)
    return Network(graph, weights)


def dense(key: jax.Array, sizes: Sequence[int], *, activation: str = "elu", output_scale: float = 1.0) -> Network:
    """Return a fully connected network with the layer sizes `sizes` (input first, output last).

    Formula: `h_0 = x; h_{l+1} = activation(W_l h_l + b_l)`, without activation after the last layer.

    Args:
      key: typed key for the initial weights (LeCun normal, zero biases).
      sizes: at least two positive sizes.
      activation: one of `ACTIVATIONS`.
      output_scale: factor on the initial weights of the last layer.

    Raises:
      ValueError: a size that is not positive, fewer than two sizes, or an unknown activation.
    """
    check_key(key)
    check_choice("activation", activation, tuple(ACTIVATIONS))
    if len(sizes) < 2:
        raise ValueError(f"sizes must name an input and an output size, got {tuple(sizes)}")
    for size in sizes:
        check_count("sizes", size)
    # A key consumed here, not a stored stream: the graph of the module then holds no random state.
    module = _Dense(tuple(sizes), activation, jnp.zeros(()).dtype, nnx.Rngs(params=key))
    last = module.layers[-1]
    last.kernel[...] = output_scale * last.kernel[...]
    return from_module(module)


def pad_weights(weights: Any, template: Any) -> Any:
    """Return `weights` embedded in the shapes of `template`, zeros elsewhere.

    With an activation that maps 0 to 0, a padded unit outputs zero and all its gradients are zero, so the padded
    network computes and trains as the narrow one (elu, relu, leaky_relu, tanh and identity qualify).
    """

    def pad(small: Array, large: Array) -> Array:
        return jnp.pad(small, [(0, have - need) for need, have in zip(small.shape, large.shape, strict=True)])

    return jax.tree.map(pad, weights, template)


def count_weights(weights: Any) -> int:
    """Return the number of scalars in a pytree of weights."""
    return sum(leaf.size for leaf in jax.tree.leaves(weights))
