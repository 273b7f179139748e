"""Which method estimates log p(x), and its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax

from amortgap._internal.checks import check_choice, check_count, check_key
from amortgap.evidence.proposal import num_nodes
from amortgap.evidence.quadrature import check_exact, check_quadrature, default_nodes
from amortgap.protocols import Enumerable, Family, HasExactEvidence, Model

# The settings that each method takes.
_TAKEN = {
    "exact": (),
    "quadrature": ("num_nodes", "num_refinements"),
    "importance": ("num_samples", "block_size", "defensive"),
    "ais": (
        "start",
        "schedule",
        "num_temperatures",
        "temperatures",
        "num_chains",
        "num_leapfrog",
        "num_pilots",
        "step_size",
    ),
}
METHODS = tuple(_TAKEN)
# In more dimensions the grid costs more than the draws of importance sampling.
_MAX_GRID_DIM = 2


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of all methods but temperatures, which may be traced; each method reads those it takes."""

    num_nodes: int | None = None
    num_refinements: int = 3
    num_samples: int = 5000
    block_size: int = 100
    defensive: float | None = None
    start: str = "prior"
    schedule: str = "sigmoid"
    num_temperatures: int = 1000
    num_chains: int = 16
    num_leapfrog: int = 10
    num_pilots: int = 8
    step_size: float | None = None


def check_method(name: str, method: str, model: Model) -> None:
    """Refuse a method that is unknown or that this model cannot serve."""
    check_choice(name, method, ("auto", *METHODS))
    if method == "exact":
        check_exact(model)
    if method == "quadrature":
        check_quadrature(model)


def chosen_method(method: str, model: Model, family: Family | None) -> str:
    """Return the method, "auto" replaced by the first of exact, quadrature and importance sampling that suits.

    Quadrature suits up to two latent dimensions, where it costs no more than draws, if the latent is continuous.
    """
    if method != "auto":
        return method
    if isinstance(model, HasExactEvidence):
        return "exact"
    return "quadrature" if model.latent_dim <= _MAX_GRID_DIM and not isinstance(family, Enumerable) else "importance"


def settings_for(method: str, asked: Mapping[str, object]) -> Settings:
    """Return the settings that were asked for, those that are None at their defaults.

    Raises:
      ValueError: a setting that the method does not take, or an array, on which no compiled program can depend.
    """
    given = {name: value for name, value in asked.items() if value is not None}
    taken = (*_TAKEN["quadrature"], *_TAKEN["importance"]) if method == "auto" else _TAKEN[method]
    if foreign := [name for name in given if name not in taken]:
        raise ValueError(f"method {method!r} does not take {', '.join(foreign)}; it takes {', '.join(taken) or 'none'}")
    given.pop("temperatures", None)
    for name, value in given.items():
        if isinstance(value, jax.Array):
            raise ValueError(f"{name} decides what is compiled and must be a plain value, got {type(value).__name__}")
    return Settings(**given)  # pyright: ignore[reportArgumentType]


def check_key_of(method: str, key: jax.Array | None) -> None:
    """Refuse None in place of a key where the method draws."""
    if key is not None or method not in ("exact", "quadrature"):
        check_key(key)


def evaluations(method: str, settings: Settings, model: Model, *, fits: bool) -> int:
    """Return how many evaluations of the model at one datum a method holds in memory together."""
    if method == "quadrature":
        nodes = default_nodes(model.latent_dim) if settings.num_nodes is None else settings.num_nodes
        return check_count("num_nodes", nodes) ** model.latent_dim
    if method == "importance":
        counts = check_count("block_size", settings.block_size), check_count("num_samples", settings.num_samples)
        return max(min(counts), 5 * num_nodes(model.latent_dim) if fits else 0)
    return check_count("num_chains", settings.num_chains) if method == "ais" else 1
