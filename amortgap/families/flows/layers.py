"""Layers of normalising flows as functions of flat weights: affine coupling and affine autoregression."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# softplus(_UNIT_SCALE) = 1: a conditioner whose outputs are zero gives the identity.
_UNIT_SCALE = math.log(math.e - 1)
# A function of weights, inputs, width and number of outputs.
Conditioner = Callable[[Array, Array, int, int], Array]


def net_size(inputs: int, width: int, outputs: int) -> int:
    """Return the number of weights of a network with one hidden layer."""
    return (inputs + 1) * width + (width + 1) * outputs


def unpack_net(
    weights: Float[Array, " n"], inputs: int, width: int, outputs: int
) -> tuple[
    Float[Array, "width inputs"], Float[Array, " width"], Float[Array, "outputs width"], Float[Array, " outputs"]
]:
    """Return the matrices and biases of both layers; a fixed draw is added to the first matrix.

    All weights zero then give zero outputs, but not zero gradients: phi near zero is a start from which every weight
    can move.
    """
    first, bias, second, offset = jnp.split(weights, np.cumsum([inputs * width, width, width * outputs]))
    matrix = first.reshape(width, inputs) + _first_matrix(width, inputs).astype(weights.dtype)
    return matrix, bias, second.reshape(outputs, width), offset


@functools.lru_cache
def _first_matrix(width: int, inputs: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((width, inputs)) / math.sqrt(max(inputs, 1))


def net(weights: Float[Array, " n"], x: Float[Array, " inputs"], width: int, outputs: int) -> Float[Array, " outputs"]:
    """Return `W_2 tanh(W_1 x + b_1) + b_2`."""
    first, bias, second, offset = unpack_net(weights, x.size, width, outputs)
    return second @ jnp.tanh(first @ x + bias) + offset


def linear_net_size(inputs: int, width: int, outputs: int) -> int:
    """Return the number of weights of `linear_net`."""
    return net_size(inputs, width, outputs) + inputs * outputs // 2


def linear_net(
    weights: Float[Array, " n"], x: Float[Array, " inputs"], width: int, outputs: int
) -> Float[Array, " outputs"]:
    """Return `net(x)` with `A x` added to every second output, A the last of the weights.

    Those outputs are the shifts of a conditioner: with a linear shift flows hold correlated normals exactly. Scales
    have no linear part: they would vanish or overflow far out.
    """
    hidden, matrix = jnp.split(weights, [weights.size - x.size * outputs // 2])
    shift = matrix.reshape(-1, x.size) @ x
    return net(hidden, x, width, outputs) + jnp.stack([shift, jnp.zeros_like(shift)], axis=1).ravel()


def pack_linear(matrix: Float[Array, "moved inputs"], raw: Float[Array, " moved"], width: int) -> Float[Array, " n"]:
    """Return the weights with which `linear_net` gives the shifts `matrix x` and the other outputs `raw`."""
    moved, inputs = matrix.shape
    hidden = jnp.zeros((inputs + 1) * width + width * 2 * moved, matrix.dtype)
    return jnp.concatenate([hidden, jnp.stack([jnp.zeros_like(raw), raw], axis=1).ravel(), matrix.ravel()])


def raw_scale(scale: Float[Array, " n"]) -> Float[Array, " n"]:
    """Return the outputs of a conditioner that give these scales."""
    return jnp.log(jnp.expm1(scale)) - _UNIT_SCALE


def _shift_and_scale(out: Array) -> tuple[Array, Array]:
    shift, raw = out.reshape(-1, 2).T
    return shift, jax.nn.softplus(raw + _UNIT_SCALE)


def coupling_size(dim: int, context_dim: int, width: int) -> int:
    """Return the number of weights of one coupling layer."""
    return net_size(dim // 2 + context_dim, width, 2 * (dim - dim // 2))


def coupling(
    weights: Float[Array, " n"],
    x: Float[Array, " dim"],
    context: Float[Array, " c"],
    width: int,
    *,
    inverse: bool,
    num_kept: int | None = None,
    conditioner: Conditioner = net,
) -> tuple[Float[Array, " dim"], Float[Array, ""]]:
    """Return the image of x under one affine coupling layer, or its inverse image, and the log determinant.

    Formula: `y_1 = x_1`, `y_2 = x_2 * scale(x_1, c) + shift(x_1, c)`, x_1 the first `num_kept` of x, by default half.

    Source: Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP" (2017), equations 7 and 8.
    """
    num_kept = x.size // 2 if num_kept is None else num_kept
    kept, moved = x[:num_kept], x[num_kept:]
    shift, scale = _shift_and_scale(conditioner(weights, jnp.concatenate([kept, context]), width, 2 * moved.size))
    log_det = jnp.sum(jnp.log(scale))
    if inverse:
        return jnp.concatenate([kept, (moved - shift) / scale]), -log_det
    return jnp.concatenate([kept, moved * scale + shift]), log_det


def autoregressive_size(dim: int, context_dim: int, width: int) -> int:
    """Return the number of weights of one autoregressive layer."""
    return net_size(dim + context_dim, width, 2 * dim)


@functools.lru_cache
def masks(dim: int, context_dim: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the masks of both matrices, with which outputs j read inputs before j and the whole context."""
    inputs = np.concatenate([np.arange(dim), np.full(context_dim, -1)])
    # Without a context no input has rank -1, and units of that rank would read nothing.
    hidden = np.arange(width) % (dim - 1) if context_dim == 0 and dim > 1 else np.arange(width) % dim - 1
    outputs = np.repeat(np.arange(dim), 2)
    return hidden[:, None] >= inputs, outputs[:, None] > hidden


def autoregressive(
    weights: Float[Array, " n"], x: Float[Array, " dim"], context: Float[Array, " c"], width: int, *, inverse: bool
) -> tuple[Float[Array, " dim"], Float[Array, ""]]:
    """Return the image of x under one inverse autoregressive layer, or its inverse image, and the log determinant.

    Formula: `y_j = x_j * scale_j(x_1..x_{j-1}, c) + shift_j(x_1..x_{j-1}, c)`; the inverse takes dim passes.

    Source: Kingma et al., "Improved variational inference with inverse autoregressive flow" (2016), section 4.
    """
    first, bias, second, offset = unpack_net(weights, x.size + context.size, width, 2 * x.size)
    first_mask, second_mask = masks(x.size, context.size, width)
    first, second = first * first_mask, second * second_mask

    def conditioned(x: Array) -> tuple[Array, Array]:
        return _shift_and_scale(second @ jnp.tanh(first @ jnp.concatenate([x, context]) + bias) + offset)

    if not inverse:
        shift, scale = conditioned(x)
        return x * scale + shift, jnp.sum(jnp.log(scale))

    def solve(_: Array, guess: Array) -> Array:
        # After pass j the first j coordinates are exact.
        shift, scale = conditioned(guess)
        return (x - shift) / scale

    solution = jax.lax.fori_loop(0, x.size, solve, jnp.zeros_like(x))
    return solution, -jnp.sum(jnp.log(conditioned(solution)[1]))
