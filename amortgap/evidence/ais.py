"""Annealed importance sampling: log p(x) along a path of densities from the prior, or from q, to the posterior."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from amortgap._internal.checks import check_choice, check_count, check_datum, check_key, check_positive
from amortgap.evidence.hmc import Chain, Path, make_path, place, transition
from amortgap.evidence.pareto import pareto_k
from amortgap.evidence.records import Evidence, log_mean
from amortgap.evidence.temperatures import (
    SCHEDULES,
    Temperatures,
    check_temperatures,
    constant_ess_temperatures,
    named_temperatures,
)
from amortgap.protocols import Datum, Family, Model

TARGET_ACCEPTANCE = 0.65
# Adaptation of the step size: its first value, the gain of its log in one transition, the transitions before the first
# temperature, and the least number of transitions along the path.
_FIRST_STEP, _GAIN, _WARMUP, _ADAPTATION = 0.5, 0.2, 30, 200


class Plan(NamedTuple):
    """Temperatures and step sizes of the measured chains, fixed before any of these is drawn.

    Attributes:
      temperatures: beta_0 = 0 to beta_{T-1} = 1, [T].
      step_sizes: of the transitions at beta_1 to beta_{T-2}, for every pilot chain, [T - 2, pilots].
    """

    temperatures: Array
    step_sizes: Array


class Settings(NamedTuple):
    """The settings of an annealed run that decide shapes."""

    num_chains: int
    num_leapfrog: int
    num_pilots: int
    adaptive: bool
    step_size: float | None


def make_settings(
    *,
    temperatures: Temperatures | None,
    schedule: str,
    num_temperatures: int,
    num_chains: int,
    num_leapfrog: int,
    num_pilots: int,
    step_size: float | None,
) -> tuple[Settings, Array]:
    """Return checked settings and the first temperatures."""
    check_choice("schedule", schedule, SCHEDULES)
    check_count("num_chains", num_chains, minimum=2)
    check_count("num_leapfrog", num_leapfrog)
    check_count("num_pilots", num_pilots, minimum=2)
    if step_size is not None:
        check_positive("step_size", step_size)
        if schedule == "adaptive" and temperatures is None:
            raise ValueError("schedule 'adaptive' needs the pilot run that a fixed step_size leaves out")
    if temperatures is None:
        check_count("num_temperatures", num_temperatures, minimum=2)
        betas = named_temperatures(schedule, num_temperatures)
    else:
        betas = check_temperatures(temperatures)
    adaptive = schedule == "adaptive" and temperatures is None
    return Settings(num_chains, num_leapfrog, num_pilots, adaptive, step_size), betas


def pilot_repeats(num_temperatures: int) -> int:
    """Return the transitions that a pilot chain makes at every temperature."""
    return max(1, -(-_ADAPTATION // num_temperatures))


def plan(key: jax.Array, path: Path, betas: Float[Array, " T"], settings: Settings) -> Plan:
    """Return temperatures and step sizes, from a pilot run of its own chains where they are adapted.

    Every pilot chain moves the log of its own step size by `gain * (acceptance - 0.65)` after each transition. The
    measured chains are drawn afterwards with keys of their own and take this path of step sizes as given: conditional
    on the pilot their transitions are fixed, each leaves its density invariant, and so the mean weight stays unbiased.
    """
    inner = betas[1:-1]
    if settings.step_size is not None or (inner.size == 0 and not settings.adaptive):
        fixed = _FIRST_STEP if settings.step_size is None else settings.step_size
        return Plan(betas, jnp.full((inner.size, 1), fixed, betas.dtype))

    def pilot(chain_key: jax.Array) -> tuple[Array, Array]:
        key_start, key_warmup, key_run = jax.random.split(chain_key, 3)

        def move(carry: tuple[Chain, Array], step: tuple[jax.Array, Array]) -> tuple[tuple[Chain, Array], tuple]:
            chain, log_step = carry
            move_key, beta = step
            chain, accepted = transition(move_key, path, chain, beta, jnp.exp(log_step), settings.num_leapfrog)
            log_step = log_step + _GAIN * (accepted - TARGET_ACCEPTANCE)
            return (chain, log_step), (log_step, chain.ratio)

        start = place(path, path.sample(key_start))
        log_step = jnp.log(jnp.full((), _FIRST_STEP, betas.dtype))
        warmup = jax.random.split(key_warmup, _WARMUP), jnp.full(_WARMUP, betas[1])
        carry, _ = jax.lax.scan(move, (start, log_step), warmup)
        # Few temperatures lie far apart: one transition at each would not adapt the step size in time.
        repeats = pilot_repeats(betas.size)
        levels = jax.random.split(key_run, repeats * (betas.size - 1)), jnp.repeat(betas[1:], repeats)
        _, (log_steps, ratios) = jax.lax.scan(move, carry, levels)
        last = slice(repeats - 1, None, repeats)
        return jnp.exp(log_steps[last]), jnp.concatenate([start.ratio[None], ratios[last]])

    steps, ratios = jax.vmap(pilot, out_axes=1)(jax.random.split(key, settings.num_pilots))
    if not settings.adaptive:
        return Plan(betas, steps[:-1])
    new = constant_ess_temperatures(betas, ratios)
    log_steps = jax.vmap(lambda column: jnp.interp(new[1:-1], betas[1:], column), 1, 1)(jnp.log(steps))
    return Plan(new, jnp.exp(log_steps))


class Run(NamedTuple):
    """Weights and ends of annealed chains.

    Attributes:
      log_weights: of every chain, [chains].
      ends: last positions, [chains, d]; weighted, they approximate the posterior.
      acceptance: mean acceptance rate.
    """

    log_weights: Array
    ends: Array
    acceptance: Array


def _chain_steps(plan: Plan, num_chains: int) -> Array:
    return plan.step_sizes[:, jnp.arange(num_chains) % plan.step_sizes.shape[1]]


def anneal(key: jax.Array, path: Path, plan: Plan, settings: Settings) -> Run:
    """Run chains from the base to the target.

    Formula: `log w = sum_{t=1}^{T-1} (beta_t - beta_{t-1}) l(z_{t-1})`, z_0 from the base and z_t from a transition
    at beta_t; T - 2 transitions of L gradients each.
    """
    betas = plan.temperatures

    def one(chain_key: jax.Array, steps: Array) -> tuple[Array, Array, Array]:
        key_start, key_run = jax.random.split(chain_key)
        chain = place(path, path.sample(key_start))

        def move(carry: tuple[Chain, Array], step: tuple) -> tuple[tuple[Chain, Array], Array]:
            chain, log_weight = carry
            move_key, before, beta, size = step
            log_weight = log_weight + (beta - before) * chain.ratio
            chain, accepted = transition(move_key, path, chain, beta, size, settings.num_leapfrog)
            return (chain, log_weight), accepted

        levels = (jax.random.split(key_run, steps.size), betas[:-2], betas[1:-1], steps)
        (chain, log_weight), accepted = jax.lax.scan(move, (chain, jnp.zeros_like(chain.ratio)), levels)
        return log_weight + (betas[-1] - betas[-2]) * chain.ratio, chain.z, jnp.sum(accepted) / max(steps.size, 1)

    keys = jax.random.split(key, settings.num_chains)
    log_weights, ends, accepted = jax.vmap(one, in_axes=(0, 1))(keys, _chain_steps(plan, settings.num_chains))
    return Run(log_weights, ends, jnp.mean(accepted))


def anneal_back(key: jax.Array, path: Path, plan: Plan, starts: Float[Array, "chains d"], settings: Settings) -> Array:
    """Run chains from draws of the target back to the base and return the log weights of the reverse direction.

    Formula: the transitions of `anneal` in opposite order, `log w = sum_t (beta_t - beta_{t-1}) l(z_t)`; with starts
    from the posterior `E[1 / w] = 1 / p(x)`.
    """
    betas = plan.temperatures

    def one(chain_key: jax.Array, start: Array, steps: Array) -> Array:
        def move(carry: tuple[Chain, Array], step: tuple) -> tuple[tuple[Chain, Array], None]:
            chain, log_weight = carry
            move_key, beta, above, size = step
            log_weight = log_weight + (above - beta) * chain.ratio
            chain, _ = transition(move_key, path, chain, beta, size, settings.num_leapfrog)
            return (chain, log_weight), None

        chain = place(path, start)
        levels = (jax.random.split(chain_key, steps.size), betas[1:-1], betas[2:], steps)
        (chain, log_weight), _ = jax.lax.scan(move, (chain, jnp.zeros_like(chain.ratio)), levels, reverse=True)
        return log_weight + (betas[1] - betas[0]) * chain.ratio

    keys = jax.random.split(key, settings.num_chains)
    return jax.vmap(one, in_axes=(0, 0, 1))(keys, starts, _chain_steps(plan, settings.num_chains))


def ais(
    key: jax.Array,
    x: Datum,
    *,
    model: Model,
    family: Family | None = None,
    phi: Float[Array, " size"] | None = None,
    start: str = "prior",
    schedule: str = "sigmoid",
    num_temperatures: int = 1000,
    temperatures: Temperatures | None = None,
    num_chains: int = 16,
    num_leapfrog: int = 10,
    num_pilots: int = 8,
    step_size: float | None = None,
) -> Evidence:
    """Estimate log p(x) of one datum by annealed importance sampling with HMC transitions.

    Formula: `log (1/C) sum_c w_c`, `w = prod_t f_t(z_{t-1}) / f_{t-1}(z_{t-1})` along
    `f_t = base^(1 - b_t) p(x, z)^(b_t)` from `b = 0` to 1; E[w] = p(x), so the estimate is a lower bound in
    expectation.

    The chains of the estimate use temperatures and step sizes that are fixed before they start. These come from a
    pilot run of separate chains with keys of their own, in which every pilot chain adapts its own step size towards an
    acceptance rate of 0.65; chain c of the estimate takes the step sizes of pilot c modulo their number. Adapting on
    the chains that are weighted would make each transition depend on the past and bias the weights.

    Args:
      key: typed key.
      x: one datum.
      model: record with `log_joint`; for `start="prior"` with `log_prior`, `log_likelihood` and `sample`.
      family, phi: q(z; phi), the base of `start="q"`.
      start: "prior" or "q"; a good q needs about ten times fewer temperatures.
      schedule: "linear", "sigmoid", or "adaptive" (equal conditional effective sample size, from the pilot run).
      num_temperatures: temperatures T, both ends included; the chains make T - 2 transitions.
      temperatures: explicit temperatures from 0 to 1 in place of a schedule, [T].
      num_chains: C.
      num_leapfrog: L, gradients of a transition; a chain costs 1 + L (T - 2) of them.
      num_pilots: chains of the pilot run.
      step_size: a fixed step size in place of the pilot run, in units of the base's scale.

    Returns:
      Evidence in nats; the standard error is over the C independent chains.

    Raises:
      ValueError: bad key, x, sizes, counts, schedule, or temperatures that do not increase from 0 to 1.

    Source: Neal, "Annealed importance sampling" (2001); Wu, Burda, Salakhutdinov and Grosse (2017), section 3.2 and
      Table 1 for the start from q.
    """
    check_key(key)
    x = check_datum(x, model)
    settings, betas = make_settings(
        temperatures=temperatures,
        schedule=schedule,
        num_temperatures=num_temperatures,
        num_chains=num_chains,
        num_leapfrog=num_leapfrog,
        num_pilots=num_pilots,
        step_size=step_size,
    )
    path = make_path(model, x, start=start, family=family, phi=phi)
    key_plan, key_run = jax.random.split(key)
    run = anneal(key_run, path, plan(key_plan, path, betas, settings), settings)
    value, error, effective = log_mean(run.log_weights)
    return Evidence(
        log_evidence=value,
        standard_error=error,
        effective_sample_size=effective,
        pareto_k=pareto_k(run.log_weights),
        method=f"AIS from {start}, {betas.size} temperatures, {num_chains} chains of {num_leapfrog} leapfrog steps",
        bias="lower bound",
        num_draws=num_chains,
    )
