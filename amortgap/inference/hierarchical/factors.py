"""Where the parameters of the local factors come from: shared, free for every datum, or from an encoder.

`factors(index, x, theta) -> phi` is a callable pytree. Whether the factors depend on theta is another choice, made by
passing a `Branch` in the place of a family.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from amortgap._internal.checks import check_count, check_encoder, check_phis, check_trainable, first_row, num_rows
from amortgap.families.conditional import Branch
from amortgap.protocols import Data, Datum, Encoder, Family, HierarchicalModel

KINDS = ("constant", "free", "amortized")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LocalFactors:
    """Local factors `q(z_i; .)`; made by `constant_factors`, `free_factors` and `amortized_factors`.

    Attributes:
      source: parameters [size], parameters of every datum [N, size], or an encoder.
      branch: the `Branch` family through which they depend on theta, or None.
      kind: "constant", "free" or "amortized".
    """

    source: PyTree
    branch: Branch | None
    kind: str = field(metadata={"static": True})

    def __call__(self, index: Array, x: Datum, theta: Float[Array, " K"]) -> Float[Array, " phi"]:
        """Return phi of the datum x, number `index` of the data, at theta."""
        if self.kind == "amortized":
            parameters = self.source(encoder_input(x))
        else:
            parameters = self.source[index] if self.kind == "free" else self.source
        return parameters if self.branch is None else self.branch.given(theta, parameters)


def encoder_input(x: Datum) -> Datum:
    """Return the encoder's part of a datum: its entry "input" where it has one, else the whole datum."""
    return x["input"] if isinstance(x, dict) and "input" in x else x


def model_datum(x: Datum) -> Datum:
    """Return the model's part of a datum: its entry "datum" where it has one, else the whole datum."""
    return x["datum"] if isinstance(x, dict) and "datum" in x else x


def constant_factors(family: Family | Branch) -> LocalFactors:
    """Return one factor shared by all data (constant-factor VI); starts at the family's standard member.

    Formula: `q(theta, z) = q0(theta) prod_i q(z_i; phi)`.

    Args:
      family: a family, or a `Branch` of one for a factor that depends on theta.

    Returns:
      LocalFactors with parameters [family.size].

    Source: Margossian and Blei (2024), section 2.
    """
    return LocalFactors(source=family.standard(), branch=_branch(family), kind="constant")


def free_factors(
    family: Family | Branch, num_data: int, *, start: Float[Array, "N size"] | None = None
) -> LocalFactors:
    """Return a separate factor for every datum (factorized VI).

    Formula: `q(theta, z) = q0(theta) prod_i q(z_i; phi_i)`.

    Args:
      family: as in `constant_factors`.
      num_data: N.
      start: initial parameters [N, family.size]; None for the family's standard member.

    Returns:
      LocalFactors with parameters [N, family.size].

    Raises:
      ValueError: num_data not positive, or a start of another shape.

    Source: Margossian and Blei (2024), section 2.
    """
    check_count("num_data", num_data)
    if start is None:
        start = jnp.tile(family.standard()[None], (num_data, 1))
    check_phis("start", start, family, num_data)
    return LocalFactors(source=jnp.asarray(start), branch=_branch(family), kind="free")


def amortized_factors(encoder: Encoder, family: Family | Branch) -> LocalFactors:
    """Return factors from an encoder of the datum (amortized VI).

    Formula: `q(theta, z) = q0(theta) prod_i q(z_i; encoder(x_i))`.

    Args:
      encoder: callable pytree from one datum, or from its entry "input", to the family's parameters [family.size].
      family: as in `constant_factors`.

    Returns:
      LocalFactors whose parameters are the encoder's weights.

    Source: Margossian and Blei (2024), section 2.
    """
    return LocalFactors(source=encoder, branch=_branch(family), kind="amortized")


def check_factors(factors: object, xs: Data, family: Family, model: HierarchicalModel) -> None:
    """Refuse factors that do not fit family, model or data.

    Raises:
      ValueError: no LocalFactors; a size that is not the family's; not one row for each datum; a branch on another
        family or theta.
    """
    if not isinstance(factors, LocalFactors):
        raise ValueError(f"factors must be made by one of {KINDS} + '_factors', got {type(factors).__name__}")
    branch = factors.branch
    if branch is not None and (branch.base != family or branch.global_dim != model.global_dim):
        raise ValueError(
            f"factors given theta must be a Branch of family {family} on global_dim = {model.global_dim}, got base "
            f"{branch.base} on {branch.global_dim}"
        )
    wanted = family if branch is None else branch
    if factors.kind == "amortized":
        check_encoder(factors.source, wanted, encoder_input(first_row(xs)))
        check_trainable(factors.source)
        return
    shape = (wanted.size,) if factors.kind == "constant" else (num_rows(xs), wanted.size)
    if jnp.shape(factors.source) != shape:
        raise ValueError(f"{factors.kind} factors must have shape {shape}, got {jnp.shape(factors.source)}")


def _branch(family: Family | Branch) -> Branch | None:
    return family if isinstance(family, Branch) else None
