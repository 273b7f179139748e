"""Evidence of a whole data set: the one-datum estimates on all devices, in bounded memory, failures named."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from amortgap._internal.checks import (
    check_count,
    check_data,
    check_key,
    check_phis,
    check_sizes,
    is_concrete,
    num_rows,
)
from amortgap._internal.devices import chosen_devices, map_sharded
from amortgap.evidence.ais import ais
from amortgap.evidence.bidirectional import bidirectional
from amortgap.evidence.importance import importance
from amortgap.evidence.methods import check_method, log_evidence
from amortgap.evidence.pareto import UNRELIABLE
from amortgap.evidence.quadrature import quadrature
from amortgap.evidence.records import Bound, Evidence, EvidenceBounds
from amortgap.evidence.suboptimality import suboptimality_bound
from amortgap.protocols import HasExactEvidence

# Evaluations of the model in flight: few enough to stay in cache, enough to fill the matrix products.
_ROWS = 1000


# Numerical error of quadrature, in nats, above which log p(x) is not known well enough for any gap.
COARSE = 0.1


class UnreliableEvidence(RuntimeWarning):
    """Some estimates of log p(x) cannot be relied on; the message names the data."""


def evidence_of_data(
    key: jax.Array,
    xs: Any,
    *,
    model: Any,
    method: str = "auto",
    family: Any = None,
    phis: Float[Array, "N size"] | None = None,
    num_samples: int = 5000,
    devices: Sequence[Any] | None = None,
    **settings: Any,
) -> Evidence:
    """Return log p(x) of every datum.

    Formula: `log p(x_i)`, i = 1..N, by the estimate of `log_evidence` that `method` names.

    Args:
      key: typed key; datum i uses `fold_in(key, i)`.
      xs: data.
      model: the model.
      method: one of `amortgap.evidence.METHODS`, or "auto" for the first of "exact" and "importance" that applies.
      family, phis: approximate posterior of every datum, [N, size]: local optima or an encoder's outputs.
      num_samples: draws per datum of importance sampling; other methods do not use it.
      devices: devices to split the data over; None for all local ones.
      settings: keyword arguments of the method, as in `log_evidence`.

    Returns:
      Evidence with a leading axis N. Data whose every weight is zero hold -inf. A warning of the class
      `UnreliableEvidence` names them, and those whose Pareto k-hat exceeds 0.7.

    Raises:
      ValueError: as in `log_evidence`, bad data, phis of another shape, or no devices.

    Source: that of the method's own function.
    """
    check_key(key)
    check_method("method", method, model)
    xs = check_data("xs", xs, model)
    if method == "auto":
        method = "exact" if isinstance(model, HasExactEvidence) else "importance"
    if method == "importance":
        if family is None or phis is None:
            raise ValueError("method 'importance' needs a proposal: give family and phis")
        settings["num_samples"] = num_samples
    if method == "exact":
        family = phis = None
    _check_phis(phis, family, xs)
    evidence = _evidence(key, phis, xs, model, family, method, _hashable(settings), chosen_devices(devices))
    warn_unreliable(evidence)
    return evidence


def bidirectional_of_data(
    key: jax.Array,
    xs: Any,
    *,
    model: Any,
    latents: Float[Array, "N d"] | None = None,
    family: Any = None,
    phis: Float[Array, "N size"] | None = None,
    devices: Sequence[Any] | None = None,
    **settings: Any,
) -> EvidenceBounds:
    """Return bounds on log p(x) of every datum from both sides by bidirectional Monte Carlo.

    Formula: `E[lower_i] <= log p(x_i) <= E[upper_i]`; the second inequality is proven only where `latents` holds the
    z that each x was simulated with.

    Args:
      key: typed key; datum i uses `fold_in(key, i)`.
      xs: data.
      latents: latents of simulated data, [N, d]; None for real data, where the upper bound is heuristic.
      model, family, phis, devices: as in `evidence_of_data`.
      settings: keyword arguments of `bidirectional`.

    Returns:
      EvidenceBounds with a leading axis N. A warning (`UnreliableEvidence`) names data with bounds that are not finite.

    Raises:
      ValueError: as in `bidirectional`, bad data, latents or phis of another shape, or no devices.

    Source: as in `bidirectional`.
    """
    check_key(key)
    xs = check_data("xs", xs, model)
    _check_phis(phis, family, xs)
    if latents is not None and jnp.shape(latents) != (num_rows(xs), model.latent_dim):
        raise ValueError(f"latents must have shape {(num_rows(xs), model.latent_dim)}, got {jnp.shape(latents)}")
    found = _bounds(key, latents, phis, xs, model, family, _hashable(settings), chosen_devices(devices))
    _warn_of_bounds(found)
    return found


# The name of the rule is `bidirectional_of_data`; this one says what is returned.
evidence_bounds = bidirectional_of_data


def suboptimality_bound_of_data(
    key: jax.Array,
    phis: Float[Array, "N size"],
    xs: Any,
    *,
    model: Any,
    family: Any,
    devices: Sequence[Any] | None = None,
    **settings: Any,
) -> Bound:
    """Return `suboptimality_bound` of every datum; datum i uses `fold_in(key, i)`.

    Formula: `E[max F_i - F_i(phi_i)] >= ELBO(phi*_i; x_i) - ELBO(phi_i; x_i)`, i = 1..N, F as in `suboptimality_bound`.

    Args:
      key: typed key of the noise, not one that any phi was optimised with.
      phis: fits, [N, size].
      xs: data, [N, ...].
      model, family: as in `suboptimality_bound`.
      devices: devices to split the data over; None for all local ones.
      settings: keyword arguments of `suboptimality_bound`.

    Returns:
      Bound in nats, its arrays [N].

    Raises:
      ValueError: as in `suboptimality_bound`, bad data, phis of another shape, or no devices.

    Source: as in `suboptimality_bound`.
    """
    check_key(key)
    xs = check_data("xs", xs, model)
    check_sizes(model, family)
    _check_phis(phis, family, xs)
    return _suboptimality(key, phis, xs, model, family, _hashable(settings), chosen_devices(devices))


def too_coarse(standard_error: np.ndarray, bias: str) -> np.ndarray:
    """Return where quadrature does not know log p(x) well enough, by the error and the bias that `Evidence` states."""
    return (standard_error > COARSE) & (bias == "numerical")


def warn_unreliable(evidence: Evidence) -> None:
    """Warn of data whose log p(x) is not finite, or is not known: k-hat above 0.7, or a grid that is too coarse.

    Args:
      evidence: of one datum, or of many with a leading axis N; one that is still being traced is passed over.

    Returns:
      Nothing; each warning is an `UnreliableEvidence` and names the data.
    """
    if not is_concrete((evidence.log_evidence, evidence.pareto_k)):
        return
    value, shape = np.atleast_1d(evidence.log_evidence), np.atleast_1d(evidence.pareto_k)
    for bad, what in (
        (np.isneginf(value), "log p(x) is -inf, every weight is zero"),
        (np.isnan(value) | np.isposinf(value), "log p(x) is not a number or infinite: the log joint is, at some draw"),
        (
            np.isfinite(value) & (shape > UNRELIABLE),
            f"Pareto k-hat above {UNRELIABLE}, the proposal misses posterior mass",
        ),
        (
            np.isfinite(value) & too_coarse(np.atleast_1d(evidence.standard_error), evidence.bias),
            f"the numerical error exceeds {COARSE} nats, more nodes or another method may resolve the posterior",
        ),
    ):
        _warn_of_rows(bad, what)


def _warn_of_bounds(found: EvidenceBounds) -> None:
    if not is_concrete((found.lower, found.upper)):
        return
    lower, upper = np.asarray(found.lower), np.asarray(found.upper)
    _warn_of_rows(np.isneginf(lower), "the lower bound is -inf, every weight is zero")
    _warn_of_rows(np.isnan(lower) | np.isposinf(lower), "the lower bound is not a number or infinite")
    _warn_of_rows(~np.isfinite(upper), "the upper bound is not finite")


def _warn_of_rows(bad: np.ndarray, what: str) -> None:
    if bad.any():
        rows = np.flatnonzero(bad)
        shown = ", ".join(map(str, rows[:10])) + (", ..." if rows.size > 10 else "")
        # Reported where the user called the function over data.
        warnings.warn(f"{what}: {rows.size} of {bad.size} data, [{shown}]", UnreliableEvidence, stacklevel=4)


def _check_phis(phis: Any, family: Any, xs: Any) -> None:
    if phis is None:
        return
    if family is None:
        raise ValueError("phis were given without their family")
    check_phis("phis", phis, family, num_rows(xs))


def _hashable(settings: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    def freeze(value: Any) -> Any:
        if isinstance(value, (jax.Array, np.ndarray)):
            value = np.asarray(value).tolist()
        return tuple(freeze(each) for each in value) if isinstance(value, (list, tuple)) else value

    return tuple(sorted((name, freeze(value)) for name, value in settings.items()))


def _count(function: Callable[..., Any], settings: dict[str, Any], name: str) -> int:
    """Return a count that `function` will be called with, checked here since it decides how memory is divided."""
    return check_count(name, settings.get(name, inspect.signature(function).parameters[name].default))


def _chunk(rows_of_one: int) -> int:
    return max(1, _ROWS // rows_of_one)


def _evaluations(method: str, options: dict[str, Any], model: Any) -> int:
    """Return how many evaluations of the model at one datum a method holds in memory together."""
    if method == "quadrature":
        return _count(quadrature, options, "num_nodes") ** model.latent_dim
    if method == "importance":
        return min(_count(importance, options, name) for name in ("block_size", "num_samples"))
    return _count(ais, options, "num_chains") if method == "ais" else 1


@partial(jax.jit, static_argnames=("method", "settings", "devices"))
def _evidence(
    key: jax.Array, phis: Any, xs: Any, model: Any, family: Any, method: str, settings: tuple, devices: tuple
) -> Evidence:
    options = dict(settings)

    def one(index: Array, row: Any) -> Evidence:
        phi, x = row
        return log_evidence(
            jax.random.fold_in(key, index), x, model=model, method=method, family=family, phi=phi, **options
        )

    return map_sharded(one, (phis, xs), chunk_size=_chunk(_evaluations(method, options, model)), devices=devices)


@partial(jax.jit, static_argnames=("settings", "devices"))
def _bounds(
    key: jax.Array, latents: Any, phis: Any, xs: Any, model: Any, family: Any, settings: tuple, devices: tuple
) -> EvidenceBounds:
    options = dict(settings)

    def one(index: Array, row: Any) -> EvidenceBounds:
        latent, phi, x = row
        return bidirectional(
            jax.random.fold_in(key, index), x, model=model, latent=latent, family=family, phi=phi, **options
        )

    size = _chunk(_count(bidirectional, options, "num_chains"))
    return map_sharded(one, (latents, phis, xs), chunk_size=size, devices=devices)


@partial(jax.jit, static_argnames=("settings", "devices"))
def _suboptimality(
    key: jax.Array, phis: Any, xs: Any, model: Any, family: Any, settings: tuple, devices: tuple
) -> Bound:
    options = dict(settings)

    def one(index: Array, row: Any) -> Bound:
        phi, x = row
        return suboptimality_bound(jax.random.fold_in(key, index), phi, x, model=model, family=family, **options)

    # The objective of one datum runs over all its noise at once.
    size = _chunk(_count(suboptimality_bound, options, "num_samples"))
    return map_sharded(one, (phis, xs), chunk_size=size, devices=devices)
