"""Encoders of sequences with one latent a step: a window of fixed reach, and recurrence from both ends."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from amortgap._internal.checks import check_count, check_key
from amortgap._internal.records import checked_record
from amortgap.encoders.basic import OUTPUT_SCALE
from amortgap.networks import Network, bidirectional, dense, weight_count
from amortgap.protocols import Family


def _steps(x: ArrayLike, length: int, features: int) -> Array:
    if jnp.shape(x) not in ((length,), (length, features)) or (jnp.ndim(x) == 1 and features > 1):
        raise ValueError(
            f"the encoder reads one sequence of {length} steps and {features} features, shape "
            f"{(length, features)}, got {jnp.shape(x)}"
        )
    return jnp.reshape(x, (length, features))


def _per_step(family: Family, length: int) -> int:
    """Return the latents of one step of a family whose phi is `[means, log scales]` of all steps."""
    if family.size != 2 * family.latent_dim or family.latent_dim % length:
        raise ValueError(
            f"family must be a mean field of {length} equal steps, got {type(family).__name__} with size "
            f"{family.size} and latent_dim {family.latent_dim}"
        )
    return family.latent_dim // length


def _packed(out: Array) -> Array:
    """Return `[means of all steps, log scales of all steps]` from [T, 2 d] with both of every step side by side."""
    means, log_scales = jnp.split(out, 2, axis=1)
    return jnp.concatenate([means.ravel(), log_scales.ravel()])


@checked_record
@dataclass(frozen=True)
class WindowEncoder:
    """An encoder that infers every step from the observations around it; made by `window`.

    Formula: `phi_t = network_t(x_{t-w}..x_{t+w})`, zeros beyond the ends.

    Attributes:
      network: shared by all steps that see a whole window, trained.
      ends: networks of the w first and the w last steps, with a leading axis, trained; None to share there too.
      reach: w.
      length: steps of a sequence.
      features: of one observation.
    """

    network: Network
    ends: Network | None
    reach: int = field(metadata={"static": True})
    length: int = field(metadata={"static": True})
    features: int = field(metadata={"static": True})

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, " size"]:
        """Return phi of all steps of one sequence, refusing an x of another length or other features."""
        steps, w = _steps(x, self.length, self.features), self.reach
        padded = jnp.pad(steps, ((w, w), (0, 0)))
        windows = padded[np.arange(self.length)[:, None] + np.arange(2 * w + 1)[None, :]].reshape(self.length, -1)
        out = jax.vmap(self.network)(windows)
        if self.ends is not None and w:
            rows = np.concatenate([np.arange(w), np.arange(self.length - w, self.length)])
            out = out.at[rows].set(jax.vmap(lambda network, seen: network(seen))(self.ends, windows[rows]))
        return _packed(out)

    num_weights = weight_count("network", "ends")


def window(
    key: jax.Array,
    length: int,
    features: int,
    family: Family,
    *,
    reach: int,
    width: int = 0,
    depth: int = 1,
    free_ends: bool = False,
) -> WindowEncoder:
    """Return an encoder that infers every step from the `2 reach + 1` observations around it.

    Formula: `phi_t = network(x_{t-w}..x_{t+w})`, one network for all steps.

    Args:
      key: typed key of the initial weights.
      length, features: of a sequence.
      family: mean field over all steps, `latent_dim` divisible by `length`.
      reach: w, with `2 w + 1 <= length`; 0 for the observation of the step alone.
      width, depth: hidden layers; width 0 for an affine map.
      free_ends: give each of the w first and w last steps, which see less, a network of its own.

    Returns:
      WindowEncoder, from one sequence [length, features] to phi [family.size], means of all steps before log scales.

    Raises:
      ValueError: a bad key, a sequence shorter than the window, another family, or a bad size.

    Source: Margossian and Blei, "Amortized variational inference: when and why?" (2024), section 3.3, remark 3.7 for
    the ends.
    """
    check_key(key)
    check_count("length", length)
    check_count("features", features)
    check_count("reach", reach, minimum=0)
    check_count("width", width, minimum=0)
    check_count("depth", depth)
    if 2 * reach + 1 > length:
        raise ValueError(f"length must be at least the window, 2 * {reach} + 1 = {2 * reach + 1}, got {length}")
    outputs = 2 * _per_step(family, length)
    sizes = ((2 * reach + 1) * features, *([width] * depth if width else []), outputs)
    key, key_ends = jax.random.split(key)
    network = dense(key, sizes, output_scale=OUTPUT_SCALE)
    ends = None
    if free_ends and reach:
        copies = [dense(k, sizes, output_scale=OUTPUT_SCALE) for k in jax.random.split(key_ends, 2 * reach)]
        ends = jax.tree.map(lambda *leaves: jnp.stack(leaves), *copies)
    return WindowEncoder(network, ends, reach, length, features)


@checked_record
@dataclass(frozen=True)
class RecurrentEncoder:
    """An encoder that reads a sequence from both ends; made by `recurrent`.

    Attributes:
      network: from [T, features] to [T, 2 d], trained.
      length, features: of a sequence.
    """

    network: Network
    length: int = field(metadata={"static": True})
    features: int = field(metadata={"static": True})

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, " size"]:
        """Return phi of all steps of one sequence, refusing an x of another length or other features."""
        return _packed(self.network(_steps(x, self.length, self.features)))

    num_weights = weight_count("network")


def recurrent(key: jax.Array, length: int, features: int, family: Family, *, width: int = 32) -> RecurrentEncoder:
    """Return a bidirectional recurrent encoder: every step sees the whole sequence.

    Formula: `a_t = GRU(a_{t-1}, x_t)`, `b_t = GRU'(b_{t+1}, x_t)`, `phi_t = W [a_t, b_t] + c`.

    Args:
      key: typed key of the initial weights.
      length, features: of a sequence.
      family: mean field over all steps, `latent_dim` divisible by `length`.
      width: units of each direction.

    Returns:
      RecurrentEncoder, from one sequence [length, features] to phi [family.size], means of all steps before log scales.

    Raises:
      ValueError: a bad key, another family, or a size that is not positive.
    """
    check_count("length", length)
    outputs = 2 * _per_step(family, length)
    network = bidirectional(key, features, width, outputs, output_scale=OUTPUT_SCALE)
    return RecurrentEncoder(network, length, features)
