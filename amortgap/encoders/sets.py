"""Encoders of groups: a varying number of observations in any order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from amortgap._internal.checks import check_count, check_key, is_concrete
from amortgap._internal.records import checked_record
from amortgap.encoders.basic import OUTPUT_SCALE
from amortgap.networks import Network, dense, weight_count
from amortgap.protocols import Family, Head


class Group(NamedTuple):
    """One group of observations, padded to the size of the largest.

    Attributes:
      values: [max_observations, features]; rows without an observation hold anything finite.
      mask: one where there is an observation, else zero, [max_observations].
    """

    values: Float[Array, "*data n features"]
    mask: Float[Array, "*data n"]


def pad_groups(groups: Sequence[ArrayLike]) -> Group:
    """Return groups of different sizes, each [n_i, features], as one stacked `Group` with leading axis N.

    Args:
      groups: a sequence of N arrays [n_i, features], n_i at least one.

    Returns:
      Group with values [N, n, features], zeros where there is no observation, and mask [N, n], n the largest n_i.

    Raises:
      ValueError: no groups, an empty group, or groups that are not matrices with the same number of columns.
    """
    rows = [np.asarray(group) for group in groups]
    if not rows or any(row.ndim != 2 or row.shape[1] != rows[0].shape[1] for row in rows):
        raise ValueError(f"groups must be matrices [n_i, features], got shapes {[row.shape for row in rows]}")
    if empty := [i for i, row in enumerate(rows) if not len(row)]:
        raise ValueError(f"groups must hold at least one observation each, group {empty[0]} is empty")
    largest = max(len(row) for row in rows)
    values = np.stack([np.pad(row, ((0, largest - len(row)), (0, 0))) for row in rows])
    mask = np.stack([np.arange(largest) < len(row) for row in rows])
    return Group(jnp.asarray(values), jnp.asarray(mask, values.dtype if values.dtype.kind == "f" else np.float32))


@checked_record
@dataclass(frozen=True)
class SetEncoder:
    """An encoder that does not depend on the order of observations; made by `deep_set`.

    Formula: `s = sum_j mask_j inner(v_j)`, `phi = outer([s / n, log n])`, n = sum_j mask_j.

    Attributes:
      inner: of one observation, trained.
      outer: of the mean of `inner` and the log number of observations, trained.
      features: of one observation.
    """

    inner: Network
    outer: Network
    features: int = field(metadata={"static": True})

    def __call__(self, x: Group) -> Float[Array, " size"]:
        """Return phi for one group, refusing an x that is empty or of other features."""
        values, mask = x
        if jnp.ndim(values) != 2 or jnp.shape(values)[1] != self.features or jnp.shape(mask) != jnp.shape(values)[:1]:
            raise ValueError(
                f"the encoder reads one group: values [n, {self.features}] and mask [n], got shapes "
                f"{jnp.shape(values)} and {jnp.shape(mask)}"
            )
        if is_concrete((values, mask)) and not np.asarray(mask).any():
            raise ValueError("x must be a group of at least one observation, got a mask of zeros")
        inside = jax.vmap(self.inner)(values)
        count = jnp.sum(mask)
        # Select instead of multiplying: rows without an observation may hold NaN.
        total = jnp.sum(jnp.where(mask[:, None] > 0, inside, 0), axis=0)
        return self.outer(jnp.concatenate([total / count, jnp.log(count)[None]]))

    num_weights = weight_count("inner", "outer")


def deep_set(
    key: jax.Array, features: int, family: Family | Head, *, width: int = 64, depth: int = 1, summary: int = 32
) -> SetEncoder:
    """Return an encoder of groups with a varying number of observations.

    Formula: `phi = outer([mean_j inner(v_j), log n])` over the observations that the mask marks.

    Args:
      key: typed key of the initial weights.
      features: of one observation.
      family: variational family.
      width, depth: hidden layers of both networks.
      summary: length of the vector that `inner` returns for one observation.

    Returns:
      SetEncoder, from one Group to phi [family.size].

    Raises:
      ValueError: a bad key, or a size that is not positive.

    Source: Zaheer et al., "Deep sets" (2017), theorem 2.
    """
    check_key(key)
    for name, size in (("features", features), ("width", width), ("depth", depth), ("summary", summary)):
        check_count(name, size)
    key_inner, key_outer = jax.random.split(key)
    inner = dense(key_inner, (features, *[width] * depth, summary))
    outer = dense(key_outer, (summary + 1, *[width] * depth, family.size), output_scale=OUTPUT_SCALE)
    return SetEncoder(inner, outer, features)
