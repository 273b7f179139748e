"""Neural networks as values: a hashable flax graph and a pytree of weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from amortgap._internal.checks import check_choice, check_count, check_key, is_concrete
from amortgap.protocols import CountsWeights

Activation: TypeAlias = str | Callable[[Array], Array]
Sizes: TypeAlias = Sequence[int]


def _elu(x: Array) -> Array:
    # exp(x) - 1 instead of the expm1 of jax.nn.elu saves 5 % of a decoder's gradient; the extra precision near zero is
    # lost in the next layer.
    return jnp.where(x > 0, x, jnp.exp(jnp.where(x > 0, 0, x)) - 1)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "elu": _elu,
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "tanh": jnp.tanh,
    "identity": lambda x: x,
}


def check_activation(activation: object) -> None:
    """Refuse an activation that is neither a function nor one of the names in `ACTIVATIONS`."""
    if not callable(activation):
        check_choice("activation", activation, tuple(ACTIVATIONS))


def activate(activation: Activation, x: Array) -> Array:
    """Return the activation of x."""
    return (ACTIVATIONS[activation] if isinstance(activation, str) else activation)(x)


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
    weights: PyTree

    def __call__(self, x: Float[Array, "*inputs"]) -> Float[Array, "*outputs"]:
        """Return the output of the network for one input."""
        return nnx.merge(self.graph, self.weights)(x)

    def __repr__(self) -> str:
        """Return the number of weights alone, since notebooks print records that hold networks."""
        return f"Network(<{count_weights(self.weights)} weights>)"


# Standard deviation of a standard normal truncated to [-2, 2].
_TRUNCATED_DEVIATION = 0.87962566103423978


@partial(jax.jit, static_argnames=("count", "dtype"))
def _draws(key: jax.Array, count: int, dtype: DTypeLike) -> Array:
    return jax.random.truncated_normal(key, -2.0, 2.0, (count,), dtype)


def _lecun_normal(scale: float) -> Callable[[jax.Array, Sizes, Any], Array]:
    """Return an initialiser of weights with standard deviation `scale / sqrt(inputs)`."""

    def initial(key: jax.Array, shape: Sizes, dtype: DTypeLike) -> Array:
        count = math.prod(shape)
        # Draw 4^k numbers and slice on the host, so that all layer shapes share a few compiled programs: a program for
        # each shape would take longer to compile than a small network takes to train.
        draws = _draws(key, 4 ** max(4, math.ceil(math.log(count, 4))), jnp.dtype(dtype))
        if is_concrete(draws):
            draws = np.asarray(draws)
        return jnp.asarray(draws[:count].reshape(shape) * (scale / _TRUNCATED_DEVIATION / math.sqrt(shape[0])))

    return initial


def _zeros(key: jax.Array, shape: Sizes, dtype: DTypeLike) -> Array:
    return jnp.asarray(np.zeros(shape, dtype))


class _Dense(nnx.Module):
    """A stack of affine layers with one activation between them."""

    def __init__(
        self, sizes: Sizes, activation: Activation, output_scale: float, residual: bool, rngs: nnx.Rngs
    ) -> None:
        dtype = jnp.zeros(()).dtype
        scales = [1.0] * (len(sizes) - 2) + [output_scale]
        layers = []
        for (before, after), scale in zip(itertools.pairwise(sizes), scales, strict=True):
            kernel = _lecun_normal(scale)
            layer = nnx.Linear(
                before, after, kernel_init=kernel, bias_init=_zeros, param_dtype=dtype, dtype=dtype, rngs=rngs
            )
            layers.append(layer)
        self.layers = nnx.List(layers)
        self.activation = activation
        self.residual = residual

    def __call__(self, x: Array) -> Array:
        for layer in list(self.layers)[:-1]:
            out = activate(self.activation, layer(x))
            x = x + out if self.residual and x.shape == out.shape else out
        return self.layers[-1](x)


class _Convolutions(nnx.Module):
    """3 x 3 convolutions of stride two, each halving an image, then one affine layer."""

    def __init__(self, shape: Sizes, channels: Sizes, outputs: int, activation: Activation, rngs: nnx.Rngs) -> None:
        dtype = jnp.zeros(()).dtype
        height, width, before = shape
        layers = []
        for after in channels:
            layers.append(nnx.Conv(before, after, (3, 3), strides=2, param_dtype=dtype, dtype=dtype, rngs=rngs))
            height, width, before = -(-height // 2), -(-width // 2), after
        self.layers = nnx.List(layers)
        self.last = nnx.Linear(height * width * before, outputs, param_dtype=dtype, dtype=dtype, rngs=rngs)
        self.activation = activation

    def __call__(self, image: Array) -> Array:
        for layer in list(self.layers):
            image = activate(self.activation, layer(image))
        return self.last(image.ravel())


class _Bidirectional(nnx.Module):
    """Two gated recurrent units that read a sequence from both ends, then one affine layer a step."""

    def __init__(self, features: int, width: int, outputs: int, rngs: nnx.Rngs) -> None:
        dtype = jnp.zeros(()).dtype
        self.forwards = nnx.GRUCell(features, width, param_dtype=dtype, dtype=dtype, rngs=rngs)
        self.backwards = nnx.GRUCell(features, width, param_dtype=dtype, dtype=dtype, rngs=rngs)
        self.last = nnx.Linear(2 * width, outputs, param_dtype=dtype, dtype=dtype, rngs=rngs)
        self.width = width

    def __call__(self, steps: Array) -> Array:
        start = jnp.zeros(self.width, steps.dtype)
        _, ahead = jax.lax.scan(self.forwards, start, steps)
        _, behind = jax.lax.scan(self.backwards, start, steps, reverse=True)
        return self.last(jnp.concatenate([ahead, behind], axis=1))


def dense(
    key: jax.Array, sizes: Sizes, *, activation: Activation = "elu", output_scale: float = 1.0, residual: bool = False
) -> Network:
    """Return a fully connected network with the layer sizes `sizes` (input first, output last).

    Formula: `h_0 = x; h_{l+1} = activation(W_l h_l + b_l)`, without activation after the last layer; residual layers
    between equal sizes add their input, `h_{l+1} = h_l + activation(W_l h_l + b_l)`.

    Args:
      key: typed key for the initial weights (LeCun normal, zero biases).
      sizes: at least two positive sizes.
      activation: one of `ACTIVATIONS`, or an elementwise function such as `jax.nn.gelu`.
      output_scale: factor on the initial weights of the last layer.
      residual: add the input of every hidden layer between equal sizes to its output.

    Raises:
      ValueError: a size that is not positive, fewer than two sizes, or an unknown activation.
    """
    check_key(key)
    check_activation(activation)
    if len(sizes) < 2:
        raise ValueError(f"sizes must name an input and an output size, got {tuple(sizes)}")
    for size in sizes:
        check_count("sizes", size)
    return _split(_Dense(tuple(sizes), activation, output_scale, residual, nnx.Rngs(params=key)))


def convolutions(
    key: jax.Array,
    shape: Sizes,
    channels: Sizes,
    outputs: int,
    *,
    activation: Activation = jax.nn.elu,
    output_scale: float = 1.0,
) -> Network:
    """Return a convolutional network from images `shape` (height, width, channels) to a vector of `outputs`.

    Formula: for each entry of `channels` a 3 x 3 convolution of stride two and activation, then an affine layer.

    Raises:
      ValueError: a shape that is not three positive sizes, no channels, a size that is not positive, or an unknown
        activation.
    """
    check_key(key)
    check_activation(activation)
    if len(shape) != 3 or not channels:
        raise ValueError(f"shape must be (height, width, channels) and channels not empty, got {shape} and {channels}")
    for name, sizes in (("shape", shape), ("channels", channels), ("outputs", (outputs,))):
        for size in sizes:
            check_count(name, size)
    module = _Convolutions(shape, tuple(channels), outputs, activation, nnx.Rngs(params=key))
    return _scaled(module, module.last, output_scale)


def bidirectional(key: jax.Array, features: int, width: int, outputs: int, *, output_scale: float = 1.0) -> Network:
    """Return a network from a sequence [T, features] to [T, outputs] that reads it from both ends.

    Formula: `a_t = GRU(a_{t-1}, x_t)`, `b_t = GRU'(b_{t+1}, x_t)`, `y_t = W [a_t, b_t] + c`.

    Raises:
      ValueError: a size that is not positive.
    """
    check_key(key)
    for name, size in (("features", features), ("width", width), ("outputs", outputs)):
        check_count(name, size)
    module = _Bidirectional(features, width, outputs, nnx.Rngs(params=key))
    return _scaled(module, module.last, output_scale)


def _scaled(module: nnx.Module, last: nnx.Linear, scale: float) -> Network:
    last.kernel[...] = scale * last.kernel[...]
    return _split(module)


def _split(module: nnx.Module) -> Network:
    graph, weights = nnx.split(module)
    return Network(graph, weights)


def architecture(network: Network) -> tuple[Activation, bool]:
    """Return the activation of a network ("" without one), and whether its layers are residual."""
    module = nnx.merge(network.graph, network.weights)
    return getattr(module, "activation", ""), getattr(module, "residual", False)


def pad_weights(weights: PyTree, template: PyTree) -> PyTree:
    """Return `weights` embedded in the shapes of `template`, zeros elsewhere.

    With an activation that maps 0 to 0, a padded unit outputs zero and all its gradients are zero, so the padded
    network computes and trains as the narrow one (all of `ACTIVATIONS` qualify).
    """

    def pad(small: Array, large: Array) -> Array:
        # Pad on the host where possible: on a device every pair of shapes would be a program of its own.
        library = np if is_concrete(small) else jnp
        missing = [(0, have - need) for need, have in zip(small.shape, large.shape, strict=True)]
        return jnp.asarray(library.pad(small, missing))

    return jax.tree.map(pad, weights, template)


def count_weights(weights: PyTree) -> int:
    """Return how many floating-point numbers a pytree of weights holds."""
    # JAX error messages print pytrees whose leaves are placeholders without size or dtype.
    return sum(
        getattr(leaf, "size", 1)
        for leaf in jax.tree.leaves(weights)
        if jnp.issubdtype(getattr(leaf, "dtype", jnp.float32), jnp.floating)
    )


def weight_count(*fields: str) -> property:
    """Return the property `num_weights` of a record, the number of trained scalars in these fields."""

    def num_weights(record: object) -> int:
        parts = [getattr(record, name) for name in fields]
        return sum(part.num_weights if isinstance(part, CountsWeights) else count_weights(part) for part in parts)

    return property(num_weights, doc="Number of trained scalars.")
