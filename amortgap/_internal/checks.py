"""Checks of arguments before anything is compiled: each failure is a ValueError naming the argument and its value.

Values that are still being traced cannot be looked at, so checks of *values* are skipped inside `jit` and `vmap`;
checks of shapes and types always run.
"""

from __future__ import annotations

import math
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import PyTree

from amortgap.protocols import Data, Datum, Encoder, Family, Head, HierarchicalModel, Model, Validating

Tree = TypeVar("Tree")


def is_concrete(tree: PyTree) -> bool:
    """Return whether the values of all leaves can be read now: none of them is being traced."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def check_key(key: object) -> None:
    """Refuse anything but one typed key made by `jax.random.key`."""
    if isinstance(key, (jax.Array, np.ndarray)):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            if key.shape != ():
                raise ValueError(
                    f"key must be one key, got an array of keys of shape {key.shape}; map over keys with jax.vmap"
                )
            return
        got = f"an array of {key.dtype} and shape {key.shape}"
        got += "; the key is the first argument" if jnp.issubdtype(key.dtype, jnp.floating) else ""
    else:
        got = type(key).__name__
    raise ValueError(f"key must be a typed key made by jax.random.key(seed), got {got}")


def check_count(name: str, value: object, *, minimum: int = 1, maximum: int | None = None) -> int:
    """Return `value` as an int, refusing what is not a whole number in [minimum, maximum]."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, np.integer))
        or not minimum <= value <= (maximum or value)
    ):
        bound = f"at least {minimum}" if maximum is None else f"between {minimum} and {maximum}"
        raise ValueError(f"{name} must be a whole number, {bound}, got {value!r}")
    return int(value)


def check_positive(name: str, value: object) -> float:
    """Return `value` as a float, refusing what is not a positive finite number."""
    if not isinstance(value, (int, float, np.integer, np.floating)) or not np.isfinite(value) or value <= 0:
        raise ValueError(f"{name} must be a positive number, got {value!r}")
    return float(value)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def as_float_array(name: str, value: object) -> jax.Array:
    """Return `value` as a floating array; whole numbers and booleans are converted if that is exact, else refused."""
    if isinstance(value, Tracer):
        return value if jnp.issubdtype(value.dtype, jnp.floating) else value.astype(jnp.zeros(()).dtype)
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    if jnp.issubdtype(array.dtype, jnp.floating):
        return jnp.asarray(array)
    if array.dtype == bool or jnp.issubdtype(array.dtype, jnp.integer):
        converted = jnp.asarray(array).astype(jnp.zeros(()).dtype)
        # Compare on the host in 64 bits: on the device the comparison itself would round.
        if array.size and not np.array_equal(np.asarray(converted, np.float64), np.asarray(array, np.float64)):
            worst = int(np.abs(np.asarray(array, np.float64)).argmax())
            raise ValueError(
                f"{name} holds whole numbers that {converted.dtype} cannot hold exactly, such as "
                f"{np.asarray(array).ravel()[worst]}; convert them to floating point yourself"
            )
        return converted
    raise ValueError(f"{name} must be an array of numbers, got dtype {array.dtype}")


def check_finite(name: str, array: ArrayLike) -> None:
    """Refuse NaN and infinite entries of a concrete array, saying how many and in which rows."""
    if not is_concrete(array):
        return
    host = np.asarray(array)
    bad = ~np.isfinite(host)
    if bad.any():
        rows = np.unique(np.argwhere(bad)[:, 0]) if host.ndim else np.array([0])
        shown = ", ".join(map(str, rows[:10])) + (", ..." if rows.size > 10 else "")
        raise ValueError(f"{name} holds {int(bad.sum())} NaN or infinite entries, in rows {shown}")


def as_data(name: str, xs: Data) -> Data:
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


def num_rows(xs: Data) -> int:
    """Return the number of data in `xs`, the length of the shared first axis."""
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(xs)}
    if len(sizes) != 1:
        # JAX clamps an index past the end of the shortest array, which would use its last row again.
        raise ValueError(f"arrays over data must share their first axis, got lengths {sorted(sizes)}")
    return sizes.pop()


def first_row(xs: Tree) -> Tree:
    """Return the first datum of a data set."""
    return jax.tree.map(lambda leaf: leaf[0], xs)


def check_data(name: str, xs: Data, model: object) -> Data:
    """Return `xs` as finite floating arrays after asking the model whether it can be its data."""
    xs = as_data(name, xs)
    if isinstance(model, Validating):
        model.validate(name, xs)
    return xs


def check_datum(x: Datum, model: object) -> Datum:
    """Return one datum `x` as a floating array after asking the model whether it can be its datum.

    A datum of a model without `validate` is taken as it is, if its numbers are finite.
    """
    if not isinstance(model, Validating):
        for leaf in jax.tree.leaves(x):
            if not isinstance(leaf, Tracer) and jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
                check_finite("x", leaf)
        return x
    rows = jax.tree.map(lambda leaf: as_float_array("x", leaf)[None], x)
    for leaf in jax.tree.leaves(rows):
        check_finite("x", leaf)
    try:
        model.validate("x", rows)
    except ValueError as error:
        raise ValueError(f"x must be one datum of the model; as a row of data, {error}") from error
    return first_row(rows)


def in_shape(x: ArrayLike, shape: tuple[int, ...]) -> jax.Array:
    """Return one datum in `shape`; its axes of length one may be missing, or its entries may lie in a row."""
    got = jnp.shape(x)
    if got != (math.prod(shape),) and [n for n in got if n != 1] != [n for n in shape if n != 1]:
        raise ValueError(f"one datum must have shape {shape} or be its entries in a row, got {got}")
    return jnp.reshape(x, shape)


def check_row_shape(name: str, xs: Data, shape: tuple[int, ...]) -> None:
    """Refuse data whose rows are not single arrays of `shape`."""
    if getattr(xs, "shape", (0,))[1:] != shape:
        got = jax.tree.map(jnp.shape, xs)
        raise ValueError(f"{name} must have shape [N, {', '.join(map(str, shape))}], got {got}")


def check_range(name: str, xs: ArrayLike, *, low: float, high: float | None = None, whole: bool = False) -> None:
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
    if "log_joint" in (missing := _missing("model", model, Model)):
        hint = "; a model with a global latent has one by ag.models.fix_global"
        hint = hint if isinstance(model, HierarchicalModel) else ""
        hint = "; its trained model is its attribute `model`" if hasattr(model, "model") else hint
        raise ValueError(f"model must have log_joint(z, x), which {type(model).__name__} lacks{hint}")
    _refuse("model", model, Model, missing)
    check_latent_dim(model, family)


def check_latent_dim(model: object, family: object) -> None:
    """Refuse a family that lacks a required part, and one whose latent dimension differs from the model's."""
    _refuse("family", family, Family, _missing("family", family, Family))
    wanted, got = getattr(model, "latent_dim", None), getattr(family, "latent_dim", None)
    if wanted != got:
        raise ValueError(
            f"model and family must have the same latent dimension, got model.latent_dim = {wanted} "
            f"and family.latent_dim = {got}"
        )


def _missing(argument: str, value: object, contract: type) -> list[str]:
    """Return the parts of its protocol that a value lacks, refusing a class in the place of an instance."""
    if isinstance(value, type):
        raise ValueError(f"{argument} must be an instance, got the class {value.__name__}; call it with its sizes")
    return [name for name in vars(contract) if not name.startswith("_") and not hasattr(value, name)]


def _refuse(argument: str, value: object, contract: type, missing: list[str]) -> None:
    """Refuse a value that lacks parts of its protocol, naming them."""
    if missing:
        raise ValueError(
            f"{argument} must have {', '.join(missing)}, which {type(value).__name__} lacks; "
            f"amortgap.protocols.{contract.__name__} lists the parts of a {argument}"
        )


def check_phi(phi: object, family: Family) -> None:
    """Refuse variational parameters that are not one vector of the family's size."""
    wanted = f"phi must have shape ({family.size},), the family's size, got"
    if hasattr(phi, "phi"):
        raise ValueError(f"{wanted} {type(phi).__name__}; its parameters are its `phi`")
    if getattr(phi, "shape", None) != (family.size,):
        raise ValueError(f"{wanted} {getattr(phi, 'shape', type(phi).__name__)}")


def check_phis(name: str, phis: ArrayLike, family: Family | Head, num_data: int) -> None:
    """Refuse variational parameters that are not one vector of the family's size for every datum."""
    if jnp.shape(phis) != (num_data, family.size):
        raise ValueError(f"{name} must have shape [N, size] = {(num_data, family.size)}, got {jnp.shape(phis)}")


def check_encoder(encoder: object, family: Family | Head, row: Datum) -> Encoder:
    """Return `encoder` as a pytree after refusing one whose output for a datum is not one vector of `family.size`.

    A plain function, which has no weights, becomes a pytree without leaves. It is a new one at every call, so that no
    compiled program is used after a variable has changed over which the function closes.
    """
    if not isinstance(encoder, Encoder):
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


def check_trainable(encoder: Encoder) -> None:
    """Refuse an encoder without weights where it is to be trained, such as a plain function."""
    leaves = jax.tree.leaves(encoder)
    if not leaves or not all(isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves):
        got = "a plain function" if isinstance(encoder, jax.tree_util.Partial) else type(encoder).__name__
        raise ValueError(
            f"encoder must hold weights to train, as a pytree whose leaves are arrays, got {got}: "
            "make its class a dataclass registered by jax.tree_util.register_dataclass, or a flax module brought by "
            "ag.encoders.from_module"
        )
