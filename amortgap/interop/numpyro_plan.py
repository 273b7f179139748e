"""How the arguments and sites of a NumPyro model become those of one member of its local plate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.distributions.transforms import biject_to
from numpyro.primitives import CondIndepStackFrame, Messenger

# Largest number of joint values of the discrete local latents that are summed over.
_MOST_VALUES = 1000
# The errors of a model whose arguments do not fit each other.
BROKEN = (TypeError, ValueError, IndexError, AssertionError)


class Site(NamedTuple):
    """A local latent: its name, its unconstrained shape with the plate's axis, and where that axis lies."""

    name: str
    shape: tuple[int, ...]
    axis: int


class Discrete(NamedTuple):
    """A discrete local latent: its name, the number of its values, and where the plate's axis lies."""

    name: str
    values: int
    axis: int


@dataclass(frozen=True)
class Plan:
    """The parts that all data share: the model, its plate, its sites and how rows become arguments."""

    np_model: Callable[..., Any]
    plate: str
    sites: tuple[Site, ...]
    discrete: tuple[Discrete, ...]
    rows: tuple[tuple[str, int, str], ...]
    """Name, axis of the data and dtype of every argument that has one row a datum."""
    static: tuple[tuple[str, Any], ...]
    """Arguments that are no arrays, such as sizes and flags."""
    plate_size: int


class _Members(Messenger):
    """Restrict a plate to its first members and undo the subsampling scale that NumPyro applies."""

    def __init__(self, fn: Callable[..., Any], plate: str, count: int) -> None:
        super().__init__(fn)
        self._plate, self._count, self._declared = plate, count, count

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "plate" and msg["name"] == self._plate:
            self._declared = msg["args"][0]
            msg["args"] = (self._declared, None)
            msg["value"] = jnp.arange(self._count)
        elif msg["type"] == "sample" and self._declared != self._count and frame_of(msg, self._plate) is not None:
            msg["scale"] = msg["scale"] * (self._count / self._declared)


def valued(np_model: Callable[..., Any], given: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the model with values of its global sites and parameters."""
    # NumPyro needs a key to run the model; no draw is used, since every site has a value where a density is computed.
    # Only `substitute` reaches the parameters of modules, which are not sampled.
    return handlers.substitute(
        handlers.condition(handlers.seed(np_model, jax.random.key(0)), dict(given)), data=dict(given)
    )


def members(np_model: Callable[..., Any], given: Mapping[str, Any], plate: str, count: int) -> Callable[..., Any]:
    """Return the model with the first members of its plate alone."""
    return _Members(valued(np_model, given), plate, count)


def arguments_of(plan: Plan, x: Mapping[str, Any], constants: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of the model for one datum."""
    # The checks of data make floats of counts and indices, which become whole numbers again here.
    rows = {name: jnp.expand_dims(jnp.asarray(x[name]).astype(dtype), axis) for name, axis, dtype in plan.rows}
    return dict(plan.static) | constants | rows


def frame_of(site: Mapping[str, Any], plate: str) -> CondIndepStackFrame | None:
    """Return the frame of the plate in which a site lies, None outside of it."""
    return next((frame for frame in site["cond_indep_stack"] if frame.name == plate), None)


def _latents(trace: Mapping[str, Any]) -> dict[str, Any]:
    return {name: site for name, site in trace.items() if site["type"] == "sample" and not site["is_observed"]}


def has_shape(value: object) -> bool:
    """Return whether a value is an array, of any library, rather than a constant such as a size or a flag."""
    return hasattr(value, "shape")


def shapes(data: Mapping[str, Any]) -> str:
    """Return names and shapes in words."""
    return ", ".join(f"{name} {np.shape(value)}" for name, value in data.items())


def plate_size_of(trace: Mapping[str, Any], plate: str) -> int:
    """Return the members of the plate, refusing a name that the model lacks."""
    sizes = {name: site["args"][0] for name, site in trace.items() if site["type"] == "plate"}
    if plate not in sizes:
        there = ", ".join(sorted(sizes)) or "none"
        raise ValueError(
            f"the model has no plate {plate!r} (its plates: {there}). Without a plate over data, as in a time series "
            "whose states follow each other, the data do not separate and local VI has no meaning"
        )
    return sizes[plate]


def check_globals(trace: Mapping[str, Any], plate: str, given: Mapping[str, Any]) -> None:
    """Refuse values of sites that are not there, and global sites without one."""
    if unknown := sorted(set(given) - set(trace)):
        raise ValueError(f"condition names sites that the model lacks: {', '.join(unknown)}")
    free = [name for name, site in _latents(trace).items() if frame_of(site, plate) is None]
    free += [name for name, site in trace.items() if site["type"] == "param" and name not in given]
    if free:
        raise ValueError(
            f"global latents or parameters without a value: {', '.join(sorted(free))}. Give each in `condition`, such "
            f"as a posterior draw: only latents in plate {plate!r} belong to one datum"
        )


def rows_of(
    data: Mapping[str, Any], size: int, axes: Mapping[str, int], plate: str
) -> tuple[tuple[str, int, str], ...]:
    """Return name, axis and dtype of every argument with one row for each member of the plate."""
    rows = []
    for name, value in data.items():
        if not has_shape(value):
            continue
        axis, shape = axes.get(name, 0), np.shape(value)
        if len(shape) > axis and shape[axis] == size:
            rows.append((name, axis, str(jnp.asarray(value).dtype)))
        elif name in axes:
            raise ValueError(f"axis {axis} of {name} must have {size} entries as plate {plate!r}, got shape {shape}")
    return tuple(rows)


def static_of(rest: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Return the arguments that are no arrays, refusing those that cannot be constants."""
    constants = tuple((name, value) for name, value in rest.items() if not has_shape(value))
    for name, value in constants:
        try:
            hash(value)
        except TypeError as error:
            raise ValueError(
                f"argument {name} must be an array or a constant such as a size or a flag, got {type(value).__name__}; "
                "close over it instead"
            ) from error
    return constants


def local_sites(
    plan: Plan, given: dict[str, Any], x: Mapping[str, Any], constants: dict[str, Any]
) -> tuple[tuple[Site, ...], tuple[Discrete, ...]]:
    """Return the continuous and the discrete latents of one member of the plate."""
    arguments = arguments_of(plan, x, constants)
    try:
        trace = handlers.trace(members(plan.np_model, given, plan.plate, 1)).get_trace(**arguments)
    except BROKEN as error:
        raise ValueError(
            f"the model cannot be run on one member of plate {plan.plate!r}, with {shapes(arguments)}: {error}"
        ) from error
    sites, discrete = [], []
    for name, site in _latents(trace).items():
        distribution, frame = site["fn"], frame_of(site, plan.plate)
        if frame is None:
            continue
        if distribution.support.is_discrete:
            if not distribution.has_enumerate_support:
                kind = type(getattr(distribution, "base_dist", distribution)).__name__
                raise ValueError(
                    f"local latent {name!r} is discrete ({kind}) without finite support: sum it "
                    "out in the model, or put a continuous latent in its place"
                )
            discrete.append(Discrete(name, distribution.enumerate_support(expand=False).shape[0], frame.dim))
            continue
        free = biject_to(distribution.support).inverse_shape(np.shape(site["value"]))
        sites.append(Site(name, tuple(free), frame.dim - distribution.event_dim))
    # NumPyro counts a site with a given value as observed, too.
    if not any(site["type"] == "sample" and site["is_observed"] for name, site in trace.items() if name not in given):
        raise ValueError(
            "the model has no observed site: was an argument left out of the data? All of its sites are latent: "
            f"{', '.join(sorted(_latents(trace)))}"
        )
    if not sites:
        raise ValueError(
            f"plate {plan.plate!r} holds no continuous latents"
            + (", and discrete ones alone have an exact posterior by enumeration" if discrete else "")
        )
    if (values := math.prod(site.values for site in discrete)) > _MOST_VALUES:
        raise ValueError(f"discrete local latents take {values} values together, more than {_MOST_VALUES}")
    return tuple(sites), tuple(discrete)
