"""Neural networks as values: a hashable flax graph and a pytree of weights; those of users are in `modules`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from amortgap._internal.checks import check_choice, check_count, check_key, is_concrete


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

    def __call__(self, x: Float[Array, "*inputs"]) -> Float[Array, "*outputs"]:
        """Return the output of the network for one input."""
        return nnx.merge(self.graph, self.weights)(x)

    def __repr__(self) -> str:
        """Return the count alone: records that hold networks are printed in notebooks."""
        return f"Network(<{count_weights(self.weights)} weights>)"


# Standard deviation of a standard normal cut off at two.
_CUT_OFF = 0.87962566103423978


@partial(jax.jit, static_argnames=("count", "dtype"))
def _draws(key: jax.Array, count: int, dtype: Any) -> Array:
    return jax.random.truncated_normal(key, -2.0, 2.0, (count,), dtype)


def _lecun_normal(scale: float) -> Callable[[jax.Array, Sequence[int], Any], Array]:
    """Return an initialiser of weights with standard deviation `scale / sqrt(inputs)`."""

    def initial(key: jax.Array, shape: Sequence[int], dtype: Any) -> Array:
        count = math.prod(shape)
        # Draws by the power of four, cut on the host: layers of every shape share a handful of compiled programs, where
        # one for each shape would take longer to compile than a small network to train.
        draws = _draws(key, 4 ** max(4, math.ceil(math.log(count, 4))), jnp.dtype(dtype))
        if is_concrete(draws):
            draws = np.asarray(draws)
        return jnp.asarray(draws[:count].reshape(shape) * (scale / _CUT_OFF / math.sqrt(shape[0])))

    return initial


def _zeros(key: jax.Array, shape: Sequence[int], dtype: Any) -> Array:
    return jnp.asarray(np.zeros(shape, dtype))


class _Dense(nnx.Module):
    """A stack of affine layers with one activation between them."""

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str,
        output_scale: float,
        residual: bool,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        scales = [1.0] * (len(sizes) - 2) + [output_scale]
        self.layers = nnx.List(
            [
                nnx.Linear(
                    *ends, kernel_init=_lecun_normal(scale), bias_init=_zeros, param_dtype=dtype, dtype=dtype, rngs=rngs
                )
                for ends, scale in zip(itertools.pairwise(sizes), scales, strict=True)
            ]
        )
        self.activation = activation
        self.residual = residual

    def __call__(self, x: Array) -> Array:
        for layer in list(self.layers)[:-1]:
            out = ACTIVATIONS[self.activation](layer(x))
            x = x + out if self.residual and x.shape == out.shape else out
        return self.layers[-1](x)


class _Convolutions(nnx.Module):
    """3 x 3 convolutions of stride two, each halving an image, then one affine layer."""

    def __init__(self, shape: Sequence[int], channels: Sequence[int], outputs: int, dtype: Any, rngs: nnx.Rngs):
        height, width, before = shape
        layers = []
        for after in channels:
            layers.append(nnx.Conv(before, after, (3, 3), strides=2, param_dtype=dtype, dtype=dtype, rngs=rngs))
            height, width, before = -(-height // 2), -(-width // 2), after
        self.layers = nnx.List(layers)
        self.last = nnx.Linear(height * width * before, outputs, param_dtype=dtype, dtype=dtype, rngs=rngs)

    def __call__(self, image: Array) -> Array:
        for layer in list(self.layers):
            image = jax.nn.elu(layer(image))
        return self.last(image.ravel())


class _Bidirectional(nnx.Module):
    """Two gated recurrent units that read a sequence from both ends, then one affine layer a step."""

    def __init__(self, features: int, width: int, outputs: int, dtype: Any, rngs: nnx.Rngs):
        self.forwards = nnx.GRUCell(features, width, param_dtype=dtype, dtype=dtype, rngs=rngs)
        self.backwards = nnx.GRUCell(features, width, param_dtype=dtype, dtype=dtype, rngs=rngs)
        self.last = nnx.Linear(2 * width, outputs, param_dtype=dtype, dtype=dtype, rngs=rngs)
        self.width = width

    def __call__(self, steps: Array) -> Array:
        start = jnp.zeros(self.width, steps.dtype)
        _, ahead = jax.lax.scan(self.forwards, start, steps)
        _, behind = jax.lax.scan(self.backwards, start, steps, reverse=True)
        return self.last(jnp.concatenate([ahead, behind], axis=1))


def split_module(module: nnx.Module) -> Network:
    """Return a flax `nnx` module as a Network.

    Raises:
      ValueError: `module` is not an `nnx.Module`.
    """
    if not isinstance(module, nnx.Module):
        raise ValueError(f"module must be a flax.nnx module, got {type(module).__name__}")
    graph, weights = nnx.split(module)
    return Network(graph, weights)


def dense(
    key: jax.Array,
    sizes: Sequence[int],
    *,
    activation: str = "elu",
    output_scale: float = 1.0,
    residual: bool = False,
) -> Network:
    """Return a fully connected network with the layer sizes `sizes` (input first, output last).

    Formula: `h_0 = x; h_{l+1} = activation(W_l h_l + b_l)`, without activation after the last layer; residual layers
    between equal sizes add their input, `h_{l+1} = h_l + activation(W_l h_l + b_l)`.

    Args:
      key: typed key for the initial weights (LeCun normal, zero biases).
      sizes: at least two positive sizes.
      activation: one of `ACTIVATIONS`.
      output_scale: factor on the initial weights of the last layer.
      residual: add the input of every hidden layer between equal sizes to its output.

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
    dtype = jnp.zeros(()).dtype
    return split_module(_Dense(tuple(sizes), activation, output_scale, residual, dtype, nnx.Rngs(params=key)))


def convolutions(
    key: jax.Array, shape: tuple[int, int, int], channels: Sequence[int], outputs: int, *, output_scale: float = 1.0
) -> Network:
    """Return a convolutional network from images `shape` (height, width, channels) to a vector of `outputs`.

    Formula: for each entry of `channels` a 3 x 3 convolution of stride two and elu, then an affine layer.

    Raises:
      ValueError: a shape that is not three positive sizes, no channels, or a size that is not positive.
    """
    check_key(key)
    if len(shape) != 3 or not channels:
        raise ValueError(f"shape must be (height, width, channels) and channels not empty, got {shape} and {channels}")
    for name, sizes in (("shape", shape), ("channels", channels), ("outputs", (outputs,))):
        for size in sizes:
            check_count(name, size)
    module = _Convolutions(shape, tuple(channels), outputs, jnp.zeros(()).dtype, nnx.Rngs(params=key))
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
    module = _Bidirectional(features, width, outputs, jnp.zeros(()).dtype, nnx.Rngs(params=key))
    return _scaled(module, module.last, output_scale)


def _scaled(module: nnx.Module, last: Any, scale: float) -> Network:
    last.kernel[...] = scale * last.kernel[...]
    return split_module(module)


def architecture(network: Network) -> tuple[str, bool]:
    """Return what a dense network does besides its sizes: its activation, and whether its layers are residual."""
    module = nnx.merge(network.graph, network.weights)
    return getattr(module, "activation", ""), getattr(module, "residual", False)


def pad_weights(weights: Any, template: Any) -> Any:
    """Return `weights` embedded in the shapes of `template`, zeros elsewhere.

    With an activation that maps 0 to 0, a padded unit outputs zero and all its gradients are zero, so the padded
    network computes and trains as the narrow one (elu, relu, leaky_relu, tanh and identity qualify).
    """

    def pad(small: Array, large: Array) -> Array:
        # On the host where it can be: on a device every pair of shapes would be a program of its own.
        library = np if is_concrete(small) else jnp
        missing = [(0, have - need) for need, have in zip(small.shape, large.shape, strict=True)]
        return jnp.asarray(library.pad(small, missing))

    return jax.tree.map(pad, weights, template)


def count_weights(weights: Any) -> int:
    """Return how many floating-point numbers a pytree of weights holds."""
    # What jax puts in the place of weights when it says what is wrong has no size and no dtype, and is printed too.
    return sum(
        getattr(leaf, "size", 1)
        for leaf in jax.tree.leaves(weights)
        if jnp.issubdtype(getattr(leaf, "dtype", jnp.float32), jnp.floating)
    )
