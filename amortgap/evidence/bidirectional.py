"""Bidirectional Monte Carlo: log p(x) between a forward and a reverse annealed run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from amortgap._internal.checks import check_count, check_data, check_datum, check_key, num_rows
from amortgap._internal.devices import chosen_devices, map_sharded, rows_at_once
from amortgap.evidence.ais import Plan, Settings, anneal, anneal_back, make_settings, plan
from amortgap.evidence.hmc import Chain, Path, make_path, place, transition
from amortgap.evidence.proposal import check_proposals
from amortgap.evidence.records import EvidenceBounds, log_mean
from amortgap.evidence.reliability import warn_unreliable_bounds
from amortgap.evidence.temperatures import Temperatures
from amortgap.protocols import Data, Datum, Family, Model


def bidirectional(
    key: jax.Array,
    x: Datum,
    *,
    model: Model,
    latent: Float[Array, " d"] | None = None,
    family: Family | None = None,
    phi: Float[Array, " size"] | None = None,
    start: str = "prior",
    schedule: str = "sigmoid",
    num_temperatures: int = 1000,
    temperatures: Temperatures | None = None,
    num_chains: int = 16,
    num_leapfrog: int = 10,
    num_pilots: int = 8,
    num_warmup: int = 1000,
) -> EvidenceBounds:
    """Bound log p(x) of one datum from both sides in expectation.

    Formula: forward chains give `E[log mean w] <= log p(x)`; reverse chains that start at a draw of the posterior
    give `E[-log mean (1 / w')] >= log p(x)`.

    On data simulated from the model, `(z, x) ~ p(z, x)`, the latent z is an exact draw of p(z | x) and both bounds are
    proven. Reverse chains may share it: each has `E[1/w' | x] = 1 / p(x)`, and so has their mean. On real data leave
    `latent` out: every reverse chain then starts at the end of a long HMC run, which starts in turn at a weighted end
    of the forward chains. The upper bound is then heuristic, because nothing guarantees that this run reached the
    posterior.

    Args:
      key: typed key.
      x: one datum.
      latent: the z that x was simulated with, [d]; None for real data.
      num_warmup: HMC transitions at the posterior before the reverse chains, on real data.
      model, family, phi, start, schedule, num_temperatures, temperatures, num_chains, num_leapfrog, num_pilots: as in
        `ais`; both directions share the pilot run.

    Returns:
      EvidenceBounds in nats.

    Raises:
      ValueError: as in `ais`, or a latent of another shape.

    Source: Grosse, Ghahramani and Adams, "Sandwiching the marginal likelihood using bidirectional Monte Carlo"
      (2015), section 4; Wu, Burda, Salakhutdinov and Grosse (2017), section 3.3.
    """
    check_key(key)
    x = check_datum(x, model)
    check_count("num_warmup", num_warmup, minimum=0)
    settings, betas = make_settings(
        temperatures=temperatures,
        schedule=schedule,
        num_temperatures=num_temperatures,
        num_chains=num_chains,
        num_leapfrog=num_leapfrog,
        num_pilots=num_pilots,
        step_size=None,
    )
    if latent is not None and jnp.shape(latent) != (model.latent_dim,):
        raise ValueError(f"latent must have shape ({model.latent_dim},), got {jnp.shape(latent)}")
    return _bounds_of_datum(
        key, x, latent, phi, betas, model, family, start=start, settings=settings, num_warmup=num_warmup
    )


def _bounds_of_datum(
    key: jax.Array,
    x: Datum,
    latent: Array | None,
    phi: Array | None,
    betas: Array,
    model: Model,
    family: Family | None,
    *,
    start: str,
    settings: Settings,
    num_warmup: int,
) -> EvidenceBounds:
    path = make_path(model, x, start=start, family=family, phi=phi)
    key_plan, key_forward, key_warmup, key_back = jax.random.split(key, 4)
    fixed = plan(key_plan, path, betas, settings)
    forward = anneal(key_forward, path, fixed, settings)
    if latent is None:
        starts = _long_run(key_warmup, path, fixed, forward.log_weights, forward.ends, settings, num_warmup)
    else:
        starts = jnp.broadcast_to(latent, (settings.num_chains, *jnp.shape(latent))).astype(forward.ends.dtype)
    backward = anneal_back(key_back, path, fixed, starts, settings)
    lower, lower_error, _ = log_mean(forward.log_weights)
    negative_upper, upper_error, _ = log_mean(-backward)
    return EvidenceBounds(
        lower=lower,
        upper=-negative_upper,
        lower_standard_error=lower_error,
        upper_standard_error=upper_error,
        acceptance=forward.acceptance,
        proven=latent is not None,
        method=f"bidirectional AIS from {start}, {betas.size} temperatures, {settings.num_chains} chains each way",
    )


def bidirectional_of_data(
    key: jax.Array,
    xs: Data,
    *,
    model: Model,
    latents: Float[Array, "N d"] | None = None,
    family: Family | None = None,
    phis: Float[Array, "N size"] | None = None,
    start: str = "prior",
    schedule: str = "sigmoid",
    num_temperatures: int = 1000,
    temperatures: Temperatures | None = None,
    num_chains: int = 16,
    num_leapfrog: int = 10,
    num_pilots: int = 8,
    num_warmup: int = 1000,
    devices: Sequence[Any] | None = None,
) -> EvidenceBounds:
    """Bound log p(x) of every datum from both sides; `ag.evidence_bounds` is this function too.

    Formula: `E[lower_i] <= log p(x_i) <= E[upper_i]`; the second inequality is proven only where `latents` holds the
    z that each x was simulated with.

    Args:
      key: typed key; datum i uses `fold_in(key, i)`.
      xs: data.
      latents: latents of simulated data, [N, d]; None for real data, where the upper bound is heuristic.
      phis: variational parameters of every datum, [N, size], for `start="q"`.
      devices: devices to split the data over; None for all local ones.
      model, family, start, schedule, num_temperatures, temperatures, num_chains, num_leapfrog, num_pilots, num_warmup:
        as in `bidirectional`.

    Returns:
      EvidenceBounds with a leading axis N. A warning (`UnreliableEvidence`) names data with bounds that are not finite.

    Raises:
      ValueError: as in `bidirectional`, bad data, latents or phis of another shape, or no devices.
    """
    check_key(key)
    xs = check_data("xs", xs, model)
    check_proposals(model, family, phis, num_rows(xs))
    if latents is not None and jnp.shape(latents) != (num_rows(xs), model.latent_dim):
        raise ValueError(f"latents must have shape {(num_rows(xs), model.latent_dim)}, got {jnp.shape(latents)}")
    check_count("num_warmup", num_warmup, minimum=0)
    settings, betas = make_settings(
        temperatures=temperatures,
        schedule=schedule,
        num_temperatures=num_temperatures,
        num_chains=num_chains,
        num_leapfrog=num_leapfrog,
        num_pilots=num_pilots,
        step_size=None,
    )
    bounds = _bounds_of_data(
        key,
        (latents, phis, xs),
        betas,
        model,
        family,
        start=start,
        settings=settings,
        num_warmup=num_warmup,
        devices=chosen_devices(devices),
    )
    warn_unreliable_bounds(bounds)
    return bounds


# The older name, which says what is returned.
evidence_bounds = bidirectional_of_data


@partial(jax.jit, static_argnames=("start", "settings", "num_warmup", "devices"))
def _bounds_of_data(
    key: jax.Array,
    rows: tuple[Array | None, Array | None, Data],
    betas: Array,
    model: Model,
    family: Family | None,
    *,
    start: str,
    settings: Settings,
    num_warmup: int,
    devices: tuple[Any, ...],
) -> EvidenceBounds:
    def one(index: Array, row: tuple[Array | None, Array | None, Datum]) -> EvidenceBounds:
        latent, phi, x = row
        datum_key = jax.random.fold_in(key, index)
        return _bounds_of_datum(
            datum_key, x, latent, phi, betas, model, family, start=start, settings=settings, num_warmup=num_warmup
        )

    return map_sharded(one, rows, chunk_size=rows_at_once(settings.num_chains), devices=devices)


def _long_run(
    key: jax.Array, path: Path, fixed: Plan, log_weights: Array, ends: Array, settings: Settings, num_warmup: int
) -> Array:
    key_pick, key_run = jax.random.split(key)
    picks = jax.random.categorical(key_pick, log_weights, shape=(settings.num_chains,))
    step = jnp.median(fixed.step_sizes[-1]) if fixed.step_sizes.shape[0] else jnp.asarray(0.1, ends.dtype)

    def one(chain_key: jax.Array, z: Array) -> Array:
        def move(chain: Chain, move_key: jax.Array) -> tuple[Chain, None]:
            return transition(move_key, path, chain, jnp.ones_like(step), step, settings.num_leapfrog)[0], None

        return jax.lax.scan(move, place(path, z), jax.random.split(chain_key, num_warmup))[0].z

    return jax.vmap(one)(jax.random.split(key_run, settings.num_chains), ends[picks])
