"""log p(x) of one datum and of all data, by the method that is asked for or the one that suits the model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
from jaxtyping import Array, Float

from amortgap._internal.checks import check_data, check_datum, num_rows
from amortgap._internal.devices import chosen_devices, map_sharded, rows_at_once
from amortgap.evidence.ais import ais
from amortgap.evidence.importance import importance
from amortgap.evidence.proposal import check_proposals
from amortgap.evidence.quadrature import check_exact, exact, quadrature
from amortgap.evidence.records import Evidence
from amortgap.evidence.reliability import warn_unreliable
from amortgap.evidence.settings import (
    Settings,
    check_key_of,
    check_method,
    chosen_method,
    evaluations,
    settings_for,
)
from amortgap.evidence.temperatures import Temperatures, check_temperatures
from amortgap.protocols import Data, Datum, Family, Model


def log_evidence(
    key: jax.Array | None,
    x: Datum,
    *,
    model: Model,
    method: str = "auto",
    family: Family | None = None,
    phi: Float[Array, " size"] | None = None,
    num_nodes: int | None = None,
    num_refinements: int | None = None,
    num_samples: int | None = None,
    block_size: int | None = None,
    defensive: float | None = None,
    start: str | None = None,
    schedule: str | None = None,
    num_temperatures: int | None = None,
    temperatures: Temperatures | None = None,
    num_chains: int | None = None,
    num_leapfrog: int | None = None,
    num_pilots: int | None = None,
    step_size: float | None = None,
) -> Evidence:
    """Return log p(x) of one datum.

    Formula: `log p(x) = log integral p(x, z) dz`, by the model's closed form ("exact"), by adaptive Gauss-Hermite
    quadrature ("quadrature", latent dimension up to 3), by importance sampling ("importance") or by annealed
    importance sampling ("ais"); the last two are lower bounds in expectation.

    Args:
      key: typed key; it may be None where the method draws nothing ("exact", "quadrature").
      x: one datum.
      model: record with `log_joint(z, x)`, and the parts that the method needs besides.
      method: one of `amortgap.evidence.METHODS`, or "auto": exact where the model has `log_evidence`, else quadrature
        in one or two latent dimensions, else importance sampling.
      family, phi: an approximate posterior, best the local optimum of the datum: the proposal of "importance" and the
        centre of "quadrature", which both fit a normal themselves without it, and the base of "ais" with `start="q"`.
      num_nodes, num_refinements: as in `quadrature`; here and below None leaves the method's default.
      num_samples, block_size, defensive: as in `importance`.
      start, schedule, num_temperatures, temperatures, num_chains, num_leapfrog, num_pilots, step_size: as in `ais`.

    Returns:
      Evidence, in nats, with its standard error.

    Raises:
      ValueError: an unknown method, a setting that the method does not take ("auto" takes those of quadrature and
        importance sampling), no key where draws are needed, and as in the function of the method.

    Example:
      >>> import jax, jax.numpy as jnp, amortgap as ag
      >>> model = ag.models.FactorAnalysis(loadings=jnp.ones((2, 1)), mean=jnp.zeros(2), noise_variance=jnp.ones(2))
      >>> found = ag.log_evidence(None, jnp.array([1.0, 2.0]), model=model)
      >>> print(f"{found.log_evidence:.4f}, {found.method}, bias: {found.bias}")
      -3.3872, exact, bias: none
    """
    check_method("method", method, model)
    asked = {
        "num_nodes": num_nodes,
        "num_refinements": num_refinements,
        "num_samples": num_samples,
        "block_size": block_size,
        "defensive": defensive,
        "start": start,
        "schedule": schedule,
        "num_temperatures": num_temperatures,
        "temperatures": temperatures,
        "num_chains": num_chains,
        "num_leapfrog": num_leapfrog,
        "num_pilots": num_pilots,
        "step_size": step_size,
    }
    settings = settings_for(method, asked)
    method = chosen_method(method, model, family)
    check_key_of(method, key)
    x = check_datum(x, model)
    return _estimate(key, x, phi, temperatures, model=model, family=family, method=method, settings=settings)


def evidence_of_data(
    key: jax.Array | None,
    xs: Data,
    *,
    model: Model,
    method: str = "auto",
    family: Family | None = None,
    phis: Float[Array, "N size"] | None = None,
    num_nodes: int | None = None,
    num_refinements: int | None = None,
    num_samples: int | None = None,
    block_size: int | None = None,
    defensive: float | None = None,
    start: str | None = None,
    schedule: str | None = None,
    num_temperatures: int | None = None,
    temperatures: Temperatures | None = None,
    num_chains: int | None = None,
    num_leapfrog: int | None = None,
    num_pilots: int | None = None,
    step_size: float | None = None,
    devices: Sequence[Any] | None = None,
) -> Evidence:
    """Return log p(x) of every datum: `log_evidence` mapped over data, in bounded memory, on all devices.

    Formula: `log p(x_i)`, i = 1..N, by the estimate of `log_evidence` that `method` names.

    Args:
      key: typed key; datum i uses `fold_in(key, i)`. It may be None where the method draws nothing.
      xs: data.
      phis: approximate posterior of every datum, [N, size]: local optima or an encoder's outputs.
      devices: devices to split the data over; None for all local ones.
      model, method, family, num_nodes, num_refinements, num_samples, block_size, defensive, start, schedule,
        num_temperatures, temperatures, num_chains, num_leapfrog, num_pilots, step_size: as in `log_evidence`.

    Returns:
      Evidence with a leading axis N. Data whose every weight is zero hold -inf. A warning of the class
      `UnreliableEvidence` names them, and those whose Pareto k-hat is above `reliable_below(num_draws)`.

    Raises:
      ValueError: as in `log_evidence`, bad data, phis of another shape, or no devices.
    """
    check_method("method", method, model)
    asked = {
        "num_nodes": num_nodes,
        "num_refinements": num_refinements,
        "num_samples": num_samples,
        "block_size": block_size,
        "defensive": defensive,
        "start": start,
        "schedule": schedule,
        "num_temperatures": num_temperatures,
        "temperatures": temperatures,
        "num_chains": num_chains,
        "num_leapfrog": num_leapfrog,
        "num_pilots": num_pilots,
        "step_size": step_size,
    }
    settings = settings_for(method, asked)
    method = chosen_method(method, model, family)
    check_key_of(method, key)
    xs = check_data("xs", xs, model)
    check_proposals(model, family, phis, num_rows(xs))
    if temperatures is not None:
        temperatures = check_temperatures(temperatures)
    evidence = estimate_of_data(
        key, (phis, xs), temperatures, model, family, method=method, settings=settings, devices=chosen_devices(devices)
    )
    warn_unreliable(evidence)
    return evidence


@partial(jax.jit, static_argnames=("method", "settings", "devices"))
def estimate_of_data(
    key: jax.Array | None,
    rows: tuple[Array | None, Data],
    temperatures: Array | None,
    model: Model,
    family: Family | None,
    *,
    method: str,
    settings: Settings,
    devices: tuple[Any, ...],
) -> Evidence:
    """Return `evidence_of_data` of checked phis and data, compiled."""

    def one(index: Array, row: tuple[Array | None, Datum]) -> Evidence:
        phi, x = row
        datum_key = None if key is None else jax.random.fold_in(key, index)
        return _estimate(datum_key, x, phi, temperatures, model=model, family=family, method=method, settings=settings)

    size = rows_at_once(evaluations(method, settings, model, fits=rows[0] is None))
    return map_sharded(one, rows, chunk_size=size, devices=devices)


def _estimate(
    key: jax.Array | None,
    x: Datum,
    phi: Array | None,
    temperatures: Temperatures | None,
    *,
    model: Model,
    family: Family | None,
    method: str,
    settings: Settings,
) -> Evidence:
    if method == "exact":
        return exact(x, model=check_exact(model))
    if method == "quadrature":
        return quadrature(
            key,
            x,
            model=model,
            family=family,
            phi=phi,
            num_nodes=settings.num_nodes,
            num_refinements=settings.num_refinements,
        )
    assert key is not None
    if method == "importance":
        return importance(
            key,
            x,
            model=model,
            family=family,
            phi=phi,
            num_samples=settings.num_samples,
            block_size=settings.block_size,
            defensive=settings.defensive,
        )
    return ais(
        key,
        x,
        model=model,
        family=family,
        phi=phi,
        start=settings.start,
        schedule=settings.schedule,
        num_temperatures=settings.num_temperatures,
        temperatures=temperatures,
        num_chains=settings.num_chains,
        num_leapfrog=settings.num_leapfrog,
        num_pilots=settings.num_pilots,
        step_size=settings.step_size,
    )
