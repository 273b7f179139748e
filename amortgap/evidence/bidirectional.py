"""Bidirectional Monte Carlo: log p(x) between a forward and a reverse annealed run."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from amortgap._internal.checks import check_count, check_datum, check_key
from amortgap.evidence.ais import Plan, Settings, anneal, anneal_back, make_settings, plan
from amortgap.evidence.hmc import Path, make_path, place, transition
from amortgap.evidence.records import EvidenceBounds, log_mean


def bidirectional(
    key: jax.Array,
    x: Any,
    *,
    model: Any,
    latent: Float[Array, " d"] | None = None,
    family: Any = None,
    phi: Float[Array, " size"] | None = None,
    start: str = "prior",
    schedule: str = "sigmoid",
    num_temperatures: int = 1000,
    temperatures: Any = None,
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
    `latent` out: every reverse chain then starts where a long HMC run from a weighted end of the forward chains
    stopped, and the upper bound is heuristic, because nothing guarantees that this run reached the posterior.

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
    path = make_path(model, x, start=start, family=family, phi=phi)
    key_plan, key_forward, key_warmup, key_back = jax.random.split(key, 4)
    fixed = plan(key_plan, path, betas, settings)
    forward = anneal(key_forward, path, fixed, settings)
    if latent is None:
        starts = _long_run(key_warmup, path, fixed, forward.log_weights, forward.ends, settings, num_warmup)
    else:
        starts = jnp.broadcast_to(latent, (num_chains, *jnp.shape(latent))).astype(forward.ends.dtype)
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
        method=f"bidirectional AIS from {start}, {betas.size} temperatures, {num_chains} chains each way",
    )


def _long_run(
    key: jax.Array, path: Path, fixed: Plan, log_weights: Array, ends: Array, settings: Settings, num_warmup: int
) -> Array:
    key_pick, key_run = jax.random.split(key)
    picks = jax.random.categorical(key_pick, log_weights, shape=(settings.num_chains,))
    step = jnp.median(fixed.step_sizes[-1]) if fixed.step_sizes.shape[0] else jnp.asarray(0.1, ends.dtype)

    def one(chain_key: jax.Array, z: Array) -> Array:
        def move(chain, move_key):
            return transition(move_key, path, chain, jnp.ones_like(step), step, settings.num_leapfrog)[0], None

        return jax.lax.scan(move, place(path, z), jax.random.split(chain_key, num_warmup))[0].z

    return jax.vmap(one)(jax.random.split(key_run, settings.num_chains), ends[picks])
