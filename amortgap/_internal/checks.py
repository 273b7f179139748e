"""Checks of arguments before anything is compiled: each failure is a ValueError naming the argument and its value.

Values that are still being traced cannot be looked at, so checks of *values* are skipped inside `jit` and `vmap`;
checks of shapes and types always run.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from amortgap.protocols import Family, Model


def is_concrete(tree: Any) -> bool:
    """True if every leaf of `tree` is an array whose values can be read now."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def check_key(key: Any) -> None:
    """Refuse anything but one typed key made by `jax.random.key`."""
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        what = type(key).__name__ if dtype is None else f"an array of {dtype} and shape {key.shape}"
        if dtype is not None and jnp.issubdtype(dtype, jnp.floating):
            what += "; the key is the first argument"
        raise ValueError(f"key must be a typed key made by jax.random.key(seed), got {what}")
    if key.shape != ():
        raise ValueError(f"key must be one key, got an array of keys of shape {key.shape}; map over keys with jax.vmap")


def check_count(name: str, value: Any, *, minimum: int = 1, maximum: int | None = None) -> int:
    """Return `value` as an int, refusing what is not a whole number in [minimum, maximum]."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < minimum or (maximum is not None and value > maximum):
        bound = f"at least {minimum}" if maximum is None else f"between {minimum} and {maximum}"
        raise ValueError(f"{name} must be a whole number, {bound}, got {value!r}")
    return int(value)


def check_positive(name: str, value: Any) -> float:
    """Return `value` as a float, refusing what is not a positive finite number."""
    if not isinstance(value, (int, float, np.integer, np.floating)) or not np.isfinite(value) or value <= 0:
        raise ValueError(f"{name} must be a positive number, got {value!r}")
    return float(value)


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def as_float_array(name: str, value: Any) -> jax.Array:
    """Return `value` as a floating array; whole numbers and booleans are converted if that is exact, else refused."""
    if isinstance(value, Tracer):
        return value if jnp.issubdtype(value.dtype, jnp.floating) else value.astype(jnp.zeros(()).dtype)
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    if jnp.issubdtype(array.dtype, jnp.floating):
        return jnp.asarray(array)
    if array.dtype == bool or jnp.issubdtype(array.dtype, jnp.integer):
        converted = jnp.asarray(array).astype(jnp.zeros(()).dtype)
        # Compared on the host in 64 bits: on the device the comparison itself would round.
        if array.size and not np.array_equal(np.asarray(converted, np.float64), np.asarray(array, np.float64)):
            worst = int(np.abs(np.asarray(array, np.float64)).argmax())
            raise ValueError(
                f"{name} holds whole numbers that {converted.dtype} cannot hold exactly, such as "
                f"{np.asarray(array).ravel()[worst]}; convert them to floating point yourself"
            )
        return converted
    raise ValueError(f"{name} must be an array of numbers, got dtype {array.dtype}")


def check_finite(name: str, array: Any) -> None:
    """Refuse NaN and infinite entries of a concrete array, saying how many and in which rows."""
    if not is_concrete(array):
        return
    host = np.asarray(array)
    bad = ~np.isfinite(host)
    if bad.any():
        rows = np.unique(np.argwhere(bad)[:, 0]) if host.ndim else np.array([0])
        shown = ", ".join(map(str, rows[:10])) + (", ..." if rows.size > 10 else "")
        raise ValueError(f"{name} holds {int(bad.sum())} NaN or infinite entries, in rows {shown}")


def as_data(name: str, xs: Any) -> Any:
    """Return a data set (an array or a pytree of arrays, data along the first axis) as finite floating arrays."""
    leaves, structure = jax.tree.flatten(xs)
    if not leaves:
        raise ValueError(f"{name} holds no arrays")
    arrays = [as_float_array(name, leaf) for leaf in leaves]
    sizes = {array.shape[0] if array.ndim else None for array in arrays}
    if None in sizes or len(sizes) > 1:
        raise ValueError(f"{name} must hold arrays that share their first axis, got {[a.shape for a in arrays]}")
    if sizes == {0}:
        raise ValueError(f"{name} has no rows, got shape {arrays[0].shape}")
    for array in arrays:
        check_finite(name, array)
    return jax.tree.unflatten(structure, arrays)


def num_rows(xs: Any) -> int:
    """Return the number of data in `xs`, the length of the shared first axis."""
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(xs)}
    if len(sizes) != 1:
        # An index past the end of the shortest would be clamped, and its last row used again.
        raise ValueError(f"arrays over data must share their first axis, got lengths {sorted(sizes)}")
    return sizes.pop()


def check_data(name: str, xs: Any, model: Any) -> Any:
    """Return `xs` as finite floating arrays after asking the model whether it can be its data."""
    xs = as_data(name, xs)
    validate = getattr(model, "validate", None)
    if validate is not None:
        validate(name, xs)
    return xs


def check_datum(x: Any, model: Any) -> Any:
    """Return one datum `x` as a floating array after asking the model whether it can be its datum.

    A datum of a model without `validate` is taken as it is, if its numbers are finite.
    """
    validate = getattr(model, "validate", None)
    if validate is None:
        for leaf in jax.tree.leaves(x):
            if not isinstance(leaf, Tracer) and jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
                check_finite("x", leaf)
        return x
    rows = jax.tree.map(lambda leaf: as_float_array("x", leaf)[None], x)
    for leaf in jax.tree.leaves(rows):
        check_finite("x", leaf)
    try:
        validate("x", rows)
    except ValueError as error:
        raise ValueError(f"x must be one datum of the model; as a row of data, {error}") from error
    return jax.tree.map(lambda leaf: leaf[0], rows)


def in_shape(x: Any, shape: tuple[int, ...]) -> Any:
    """Return one datum in `shape`, given so up to axes of length one, or as its entries in a row; no other layout."""
    got = jnp.shape(x)
    if got != (math.prod(shape),) and [n for n in got if n != 1] != [n for n in shape if n != 1]:
        raise ValueError(f"one datum must have shape {shape} or be its entries in a row, got {got}")
    return jnp.reshape(x, shape)


def check_row_shape(name: str, xs: Any, shape: tuple[int, ...]) -> None:
    """Refuse data whose rows are not single arrays of `shape`."""
    if getattr(xs, "shape", (0,))[1:] != shape:
        got = jax.tree.map(jnp.shape, xs)
        raise ValueError(f"{name} must have shape [N, {', '.join(map(str, shape))}], got {got}")


def check_range(name: str, xs: Any, *, low: float, high: float | None = None, whole: bool = False) -> None:
    """Refuse concrete data outside [low, high], or not whole where the likelihood needs counts."""
    if not is_concrete(xs):
        return
    host = np.asarray(xs)
    limit = "infinity" if high is None else f"{high:g}"
    if host.min() < low or (high is not None and host.max() > high):
        raise ValueError(f"{name} must lie in [{low:g}, {limit}], got values in [{host.min():g}, {host.max():g}]")
    if whole and np.any(host != np.round(host)):
        raise ValueError(f"{name} must hold whole numbers, got {host[host != np.round(host)].ravel()[0]:g}")


def check_sizes(model: object, family: object) -> None:
    """Refuse a model or a family that lacks a required part, and a pair whose latent dimensions differ."""
    if not hasattr(model, "log_joint"):
        hint = "; a model with a global latent has one by ag.models.fix_global" if hasattr(model, "log_local") else ""
        hint = "; its trained model is its attribute `model`" if hasattr(model, "model") else hint
        raise ValueError(f"model must have log_joint(z, x), which {type(model).__name__} lacks{hint}")
    _check_parts("model", model, Model)
    check_latent_dim(model, family)


def check_latent_dim(model: object, family: object) -> None:
    """Refuse a family that lacks a required part, and one whose latent dimension differs from the model's."""
    _check_parts("family", family, Family)
    wanted, got = getattr(model, "latent_dim", None), getattr(family, "latent_dim", None)
    if wanted != got:
        raise ValueError(
            f"model and family must have the same latent dimension, got model.latent_dim = {wanted} "
            f"and family.latent_dim = {got}"
        )


def _check_parts(argument: str, value: object, contract: type) -> None:
    """Refuse a value that lacks a part of its protocol, naming the parts, or that is a class and not an instance."""
    if isinstance(value, type):
        raise ValueError(f"{argument} must be an instance, got the class {value.__name__}; call it with its sizes")
    parts = [name for name in vars(contract) if not name.startswith("_") and not hasattr(value, name)]
    if parts:
        raise ValueError(
            f"{argument} must have {', '.join(parts)}, which {type(value).__name__} lacks; what a {argument} "
            f"must offer is in amortgap.protocols.{contract.__name__}"
        )


def check_phi(phi: Any, family: Any) -> None:
    """Refuse variational parameters that are not one vector of the family's size."""
    wanted = f"phi must have shape ({family.size},), the family's size, got"
    if hasattr(phi, "phi"):
        raise ValueError(f"{wanted} {type(phi).__name__}; its parameters are its `phi`")
    if jnp.shape(phi) != (family.size,):
        raise ValueError(f"{wanted} {jnp.shape(phi)}")


def check_phis(name: str, phis: Any, family: Any, num_data: int) -> None:
    """Refuse variational parameters that are not one vector of the family's size for every datum."""
    if jnp.shape(phis) != (num_data, family.size):
        raise ValueError(f"{name} must have shape [N, size] = {(num_data, family.size)}, got {jnp.shape(phis)}")


def check_encoder(encoder: Any, family: Any, row: Any) -> Any:
    """Return `encoder` as a pytree after refusing one whose output for a datum is not one vector of `family.size`.

    A plain function, which has no weights, becomes a pytree without leaves: a new one at every call, since what it
    closes over may have changed and a compiled program must not outlive that.
    """
    if not callable(encoder):
        hint = "; its trained encoder is its attribute `encoder`" if hasattr(encoder, "encoder") else ""
        raise ValueError(f"encoder must be a function of one datum, got {type(encoder).__name__}{hint}")
    try:
        out = jax.eval_shape(encoder, row)
    except (TypeError, ValueError) as error:
        shapes = [leaf.shape for leaf in jax.tree.leaves(row)]
        raise ValueError(f"encoder cannot read a datum of shape {shapes}: {error}") from error
    if getattr(out, "shape", None) != (family.size,):
        got = getattr(out, "shape", type(out).__name__)
        raise ValueError(f"encoder must return one vector of family.size = {family.size}, got {got}")
    return jax.tree_util.Partial(lambda x: encoder(x)) if jax.tree_util.all_leaves([encoder]) else encoder


def check_trainable(encoder: Any) -> None:
    """Refuse an encoder without weights where it is to be trained, such as a plain function."""
    leaves = jax.tree.leaves(encoder)
    if not leaves or not all(hasattr(leaf, "dtype") for leaf in leaves):
        what = "a plain function" if isinstance(encoder, jax.tree_util.Partial) else type(encoder).__name__
        raise ValueError(
            f"encoder must hold weights to train, as a pytree whose leaves are arrays, got {what}: "
            "make its class a dataclass registered by jax.tree_util.register_dataclass, or a flax module brought by "
            "ag.encoders.from_module"
        )
