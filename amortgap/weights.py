"""Weights on disk: safetensors with a JSON sidecar, refused where they do not match. Nothing read is ever executed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from safetensors import SafetensorError
from safetensors.numpy import load as parse
from safetensors.numpy import save as serialize

from amortgap._internal.files import write_atomic

FORMAT_VERSION = 1
Tree = TypeVar("Tree")


def save_weights(path: str | os.PathLike[str], tree: PyTree, *, config: object) -> pathlib.Path:
    """Write the arrays of a pytree, such as an encoder or a decoder, to a safetensors file with a JSON sidecar.

    Formula: leaf `tree.a["b"][0]` is stored under the name `a/b/0`; the sidecar `<path>.json` holds the format
    version, the sha256 of the file, the shape and dtype under every name, and `config`.

    Both files are replaced atomically, the weights first: after a crash in between, the sidecar belongs to other
    weights and loading is refused.

    Args:
      path: name of the file, ending in `.safetensors`; its folder is created if needed.
      tree: pytree of arrays, not typed keys.
      config: the settings that rebuild the tree, a dataclass or any value that JSON can hold.

    Returns:
      The path written.

    Raises:
      ValueError: another suffix, a tree without arrays or with leaves that are no arrays, two leaves of one name, or a
        config that JSON cannot hold.
      OSError: the folder cannot be written.
    """
    path = _weights_path(path)
    names, leaves, _ = _named_leaves("tree", tree)
    # Copy in C order: safetensors writes the memory as it is, whatever the strides.
    tensors = {name: np.array(leaf, order="C") for name, leaf in zip(names, leaves, strict=True)}
    data = serialize(tensors)
    sidecar = {
        "format_version": FORMAT_VERSION,
        "sha256": hashlib.sha256(data).hexdigest(),
        "tensors": _describe(tensors),
        "config": _plain(config),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data)
    write_atomic(_sidecar_path(path), (json.dumps(sidecar, indent=2, sort_keys=True) + "\n").encode())
    return path


def load_weights(path: str | os.PathLike[str], template: Tree, *, config: object = None) -> Tree:
    """Return the pytree saved by `save_weights`, in the structure of `template`.

    Args:
      path: name of the safetensors file; its sidecar lies beside it.
      template: pytree of the same structure, shapes and dtypes, of arrays or of `jax.ShapeDtypeStruct`
        (from `jax.eval_shape`, which computes no weights).
      config: the value that the saved config must equal; None to accept any.

    Returns:
      A pytree like `template` with the saved arrays.

    Raises:
      ValueError: a file or a sidecar that is missing, damaged, of another format version or no safetensors file;
        names, shapes or dtypes that differ from the template's; or another config.
    """
    path = _weights_path(path)
    sidecar, data = _read_sidecar(_sidecar_path(path)), _read(path)
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != sidecar["sha256"]:
        raise ValueError(
            f"{path} is damaged or belongs to another sidecar: sha256 {sha256}, expected {sidecar['sha256']}"
        )
    try:
        tensors = parse(data)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error
    if _describe(tensors) != sidecar["tensors"]:
        raise ValueError(f"{_sidecar_path(path)} is damaged: its names and shapes are not those of {path}")

    names, leaves, structure = _named_leaves("template", template)
    if missing := sorted(set(names) - set(tensors)):
        raise ValueError(f"{path} lacks weights that the template has: {', '.join(missing)}")
    if extra := sorted(set(tensors) - set(names)):
        raise ValueError(f"{path} holds weights that the template lacks: {', '.join(extra)}")
    for name, leaf in zip(names, leaves, strict=True):
        have, want = tensors[name], jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype)
        if have.shape != want.shape or have.dtype != want.dtype:
            raise ValueError(
                f"{path} does not fit the template: {name} is {have.dtype}{list(have.shape)}, "
                f"the template's is {want.dtype}{list(want.shape)}"
            )
    if config is not None:
        _check_config(path, sidecar["config"], _plain(config))
    return jax.tree.unflatten(structure, [jnp.asarray(tensors[name]) for name in names])


def _weights_path(path: str | os.PathLike[str]) -> pathlib.Path:
    path = pathlib.Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path must name a .safetensors file, got {str(path)!r}; no other format is read or written")
    return path


def _sidecar_path(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(path.name + ".json")


def _named_leaves(argument: str, tree: PyTree) -> tuple[list[str], list[Any], Any]:
    pairs, structure = jax.tree_util.tree_flatten_with_path(tree)
    names = [jax.tree_util.keystr(keys, simple=True, separator="/") for keys, _ in pairs]
    if not names:
        raise ValueError(f"{argument} holds no arrays")
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"{argument} has several leaves of one name: {', '.join(twice)}")
    for name, (_, leaf) in zip(names, pairs, strict=True):
        dtype = getattr(leaf, "dtype", None)
        # Typed keys have a dtype that numpy does not know; bfloat16 has one that safetensors cannot give back to numpy.
        if not isinstance(dtype, np.dtype) or dtype.kind not in "biuf":
            raise ValueError(
                f"{argument} must hold arrays of booleans, integers or floats that numpy knows, "
                f"got {dtype or type(leaf).__name__} in {name or 'its only leaf'}"
            )
    return names, [leaf for _, leaf in pairs], structure


def _describe(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {name: {"shape": list(value.shape), "dtype": str(value.dtype)} for name, value in tensors.items()}


def _plain(config: object) -> object:
    """Return `config` as JSON would give it back, so that tuples and lists compare equal."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    try:
        return json.loads(json.dumps(config, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"config must be a dataclass or what JSON can hold, got {config!r}: {error}") from error


def _check_config(path: pathlib.Path, saved: object, wanted: object) -> None:
    if saved == wanted:
        return
    if isinstance(saved, dict) and isinstance(wanted, dict):
        pairs = [(name, saved.get(name, "nothing"), wanted.get(name, "nothing")) for name in sorted({*saved, *wanted})]
        difference = "; ".join(f"{name} is {old!r}, wanted {new!r}" for name, old, new in pairs if old != new)
    else:
        difference = f"it is {saved!r}, wanted {wanted!r}"
    raise ValueError(f"{path} was saved with another config: {difference}")


def _read(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error


def _read_sidecar(path: pathlib.Path) -> dict[str, Any]:
    try:
        sidecar = json.loads(_read(path))
    except ValueError as error:
        raise ValueError(f"weights are only read with their JSON sidecar, and {path} cannot be: {error}") from error
    if not isinstance(sidecar, dict) or sidecar.get("format_version") != FORMAT_VERSION:
        version = sidecar.get("format_version") if isinstance(sidecar, dict) else None
        raise ValueError(f"{path} has format version {version!r}, this code reads {FORMAT_VERSION}")
    if missing := {"sha256", "tensors", "config"} - sidecar.keys():
        raise ValueError(f"{path} is damaged: it lacks {', '.join(sorted(missing))}")
    return sidecar
