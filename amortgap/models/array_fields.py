"""Checks that the records of exact models share: shapes that fit, finite entries, positive variances."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import jax

from amortgap._internal.checks import as_float_array, check_finite, is_concrete


def set_array_fields(record: object, shapes: Mapping[str, str], *, positive: Collection[str] = ()) -> None:
    """Turn fields of a frozen record into floating arrays after checking them; called by its `__post_init__`.

    Args:
      record: the record.
      shapes: the axes of every field, such as `{"loadings": "D d", "mean": "D"}`; axes of one name have one length, at
        least one, and a scalar has the axes "".
      positive: the fields whose entries must be positive.

    Raises:
      ValueError: shapes that do not fit each other, or entries that are not finite or not positive as asked for. What
        is traced has no values to check.
    """
    arrays = {name: as_float_array(name, getattr(record, name)) for name in shapes}
    lengths: dict[str, int] = {}

    def fits(array: jax.Array, axes: list[str]) -> bool:
        return array.ndim == len(axes) and all(
            length > 0 and lengths.setdefault(axis, length) == length
            for axis, length in zip(axes, array.shape, strict=True)
        )

    if not all(fits(arrays[name], axes.split()) for name, axes in shapes.items()):
        wanted = ", ".join(f"[{', '.join(axes.split())}]" for axes in shapes.values())
        found = ", ".join(str(list(array.shape)) for array in arrays.values())
        raise ValueError(f"{', '.join(shapes)} must have the shapes {wanted} with no axis empty, got {found}")
    for name, array in arrays.items():
        check_finite(name, array)
        if name in positive and is_concrete(array) and float(array.min()) <= 0:
            where = f" in entry {int(array.argmin())}" if array.ndim else ""
            raise ValueError(f"{name} must be positive, got {float(array.min()):g}{where}")
        object.__setattr__(record, name, array)
