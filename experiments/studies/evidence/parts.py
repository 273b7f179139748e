"""The measurements of `evidence_check.py` that compare log p(x) with exact values; each returns rows of its table."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

import amortgap as ag
from amortgap.diagnostics import simulate
from amortgap.evidence import UnreliableEvidence
from studies.evidence.study import Study, factor_analysis, row


class Case(NamedTuple):
    """A model, its data, exact log p(x), and approximate posteriors of two qualities."""

    name: str
    model: Any
    family: Any
    temperatures: int
    latents: Any
    xs: Any
    exact: Any
    local: Any
    amortized: Any


def make_case(study: Study, name: str, model: Any, temperatures: int) -> Case:
    """Simulate data, fit local optima and an affine encoder, and compute the exact evidence."""
    key_data, key_fit, key_encoder = jax.random.split(jax.random.key(study.seed + 1), 3)
    key_training = jax.random.fold_in(key_encoder, 1)
    latents, xs = simulate(key_data, model=model, num_data=study.num_data)
    # Mean field, so that correlated and non-normal posteriors leave something to correct.
    family = ag.families.MeanFieldNormal(model.latent_dim)
    local = ag.fit_local(key_fit, xs, model=model, family=family).phi
    encoder = ag.encoders.linear(key_encoder, xs.shape[1], family, rank=model.latent_dim, standardize=xs)
    amortized = ag.amortized_vi(key_training, xs, model=model, family=family, encoder=encoder, num_steps=1000)
    exact = jax.vmap(model.log_evidence)(xs) if hasattr(model, "log_evidence") else grid_evidence(model, xs)
    count = max(int(temperatures * study.temperature_factor), 3)
    return Case(name, model, family, count, latents, xs, exact, local, jax.vmap(amortized.encoder)(xs))


def grid_evidence(model: Any, xs: Any, *, half_width: float = 8.0, points: int = 200) -> Any:
    """log p(x) of two-dimensional models by the trapezoidal rule on a grid, which knows nothing of any posterior.

    The rule converges exponentially for smooth functions that vanish at the ends, as a standard normal prior makes
    them: twice the points change no value by more than the rounding of float32.
    """
    axis = jnp.linspace(-half_width, half_width, points)
    nodes = jnp.stack(jnp.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    log_cell = 2 * math.log(2 * half_width / (points - 1))

    @jax.jit
    def all_data(xs: Any) -> Any:
        return jax.lax.map(lambda x: logsumexp(jax.vmap(lambda z: model.log_joint(z, x))(nodes)) + log_cell, xs)

    return all_data(xs)


def methods(study: Study, case: Case) -> Iterator[dict]:
    """Every method against the exact value of every datum."""
    key = jax.random.key(study.seed + 2)
    given: dict[str, Any] = {"model": case.model, "family": case.family}
    annealed: dict[str, Any] = {
        "num_temperatures": case.temperatures,
        "num_chains": study.num_chains,
        "num_leapfrog": study.num_leapfrog,
        "model": case.model,
    }

    def importance(phis: Any, **more: Any) -> Any:
        return ag.evidence_of_data(
            key, case.xs, method="importance", phis=phis, num_samples=study.num_samples, **given, **more
        )

    # A base near the posterior needs a tenth of the temperatures.
    short: dict[str, Any] = annealed | {"num_temperatures": max(case.temperatures // 10, 3)}
    runs = {
        "importance, optimum": lambda: importance(case.local),
        "importance, optimum and prior": lambda: importance(case.local, defensive=0.2),
        "importance, encoder": lambda: importance(case.amortized),
        "importance, encoder and prior": lambda: importance(case.amortized, defensive=0.2),
        "AIS from optimum": lambda: ag.evidence_of_data(
            key,
            case.xs,
            method="ais",
            start="q",
            family=case.family,
            phis=case.local,
            **short,
        ),
    }
    if case.model.latent_dim <= 3:
        runs["quadrature"] = lambda: ag.evidence_of_data(
            key,
            case.xs,
            method="quadrature",
            phis=case.local,
            num_nodes=128,
            **given,
        )
    for name, run in runs.items():
        with warnings.catch_warnings():
            # Unreliable data are counted in a row of their own.
            warnings.simplefilter("ignore", UnreliableEvidence)
            found = run()
        share = float(np.mean(np.asarray(found.pareto_k) > 0.7))
        # Where the method itself warns of most data, neither its values nor its errors promise anything but direction.
        # Chains from the optimum of one mode never reach the other, and are too few for a k-hat.
        trusted = share <= 0.5 and (case.name, name) != ("mixture prior", "AIS from optimum")
        yield from _compare(case, name, found.log_evidence, found.standard_error, found.bias, trusted)
        if name.startswith("importance"):
            yield row("methods", case.name, name, "share of data with k-hat above 0.7", share)
    sandwich = ag.evidence_bounds(key, case.xs, latents=case.latents, **annealed)
    yield from _compare(case, "AIS from prior", sandwich.lower, sandwich.lower_standard_error, "lower bound")
    yield from _compare(case, "reverse AIS", sandwich.upper, sandwich.upper_standard_error, "upper bound")


def _compare(case: Case, method: str, values: Any, errors: Any, bias: str, trusted: bool = True) -> Iterator[dict]:
    difference = np.asarray(values, np.float64) - np.asarray(case.exact, np.float64)
    n = difference.size
    if bias == "numerical":
        # A hundredth of the smallest Monte Carlo error that the references serve to judge.
        yield row("methods", case.name, method, "largest absolute error, nats", np.abs(difference).max(), high=1e-3)
        return
    mean, error = difference.mean(), difference.std(ddof=1) / math.sqrt(n)
    ends = {"high": 3 * error} if bias == "lower bound" else {"low": -3 * error}
    yield row("methods", case.name, method, "mean minus exact, nats", mean, error, **ends)
    # E[w] = p(x) forward, E[1/w] = 1/p(x) backward: an identity that holds whatever the size of the bias.
    ratio = np.exp(difference if bias == "lower bound" else -difference)
    score = (ratio.mean() - 1) / (ratio.std(ddof=1) / math.sqrt(n))
    within = {"low": -4, "high": 4} if trusted else {"high": 4}
    yield row("methods", case.name, method, "z-score of the mean weight ratio", score, **within)
    scores = difference / np.maximum(np.asarray(errors, np.float64), 1e-6)
    # Reported without a bound: the delta method is normal only where the weights are nearly equal.
    yield row("methods", case.name, method, "root mean square z-score of single data", math.sqrt(np.mean(scores**2)))
    yield row("methods", case.name, method, "mean reported standard error, nats", np.mean(errors))


def bound_against_draws(study: Study, case: Case) -> Iterator[dict]:
    """The importance-weighted bound at growing K, encoder proposals, paired over data."""
    before = None
    for number, draws in enumerate(study.draws):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnreliableEvidence)
            found = ag.evidence_of_data(
                jax.random.key(100 + number),
                case.xs,
                model=case.model,
                method="importance",
                family=case.family,
                phis=case.amortized,
                num_samples=draws,
            )
        short = np.asarray(found.log_evidence - case.exact, np.float64)
        name = f"K = {draws}"
        yield row(
            "draws", case.name, name, "mean minus exact, nats", short.mean(), short.std(ddof=1) / math.sqrt(short.size)
        )
        if before is not None:
            rise = short - before
            error = rise.std(ddof=1) / math.sqrt(rise.size)
            yield row("draws", case.name, name, "rise over the K before, nats", rise.mean(), error, low=-3 * error)
        before = short


def sandwich_ladder(study: Study) -> Iterator[dict]:
    """Bidirectional Monte Carlo on factor analysis against the number of temperatures."""
    dim = study.dims[min(1, len(study.dims) - 1)]
    model = factor_analysis(study.seed, dim)
    name = f"factor analysis, d = {dim}"
    latents, xs = simulate(jax.random.key(study.seed + 3), model=model, num_data=study.replicates)
    exact = np.asarray(jax.vmap(model.log_evidence)(xs), np.float64)
    # Markov: a one-sided bound misses by more than c nats with probability at most exp(-c).
    margin = math.log(40)
    widths, errors = [], []
    for temperatures in study.ladder:
        found = ag.evidence_bounds(
            jax.random.key(study.seed + 4),
            xs,
            model=model,
            latents=latents,
            num_temperatures=temperatures,
            num_chains=study.sandwich_chains,
            num_leapfrog=study.num_leapfrog,
            num_pilots=2,
        )
        lower, upper = np.asarray(found.lower, np.float64), np.asarray(found.upper, np.float64)
        method = f"{temperatures} temperatures"
        held = (lower <= exact) & (exact <= upper)
        wide = (lower - margin <= exact) & (exact <= upper + margin)
        yield row("sandwich", name, method, "share of replicates between the bounds", held.mean())
        yield row("sandwich", name, method, "share between the bounds widened by log 40 nats", wide.mean(), low=0.95)
        for side, difference in (("lower", exact - lower), ("upper", upper - exact)):
            error = difference.std(ddof=1) / math.sqrt(difference.size)
            quantity = f"mean distance of the {side} bound, nats"
            yield row("sandwich", name, method, quantity, difference.mean(), error, low=-3 * error)
        width = upper - lower
        widths.append(width.mean())
        errors.append(width.std(ddof=1) / math.sqrt(width.size))
        yield row("sandwich", name, method, "mean width, nats", widths[-1], errors[-1])
        yield row("sandwich", name, method, "mean acceptance rate", float(jnp.mean(found.acceptance)))
    if len(widths) > 2:
        # The last half of the ladder, where the theory's limit of many temperatures applies.
        first = len(widths) // 2
        slope, error = _log_slope(study.ladder[first:], widths[first:], errors[first:])
        quantity = "slope of log width against log temperatures"
        yield row("sandwich", name, f"{study.ladder[first]} and more", quantity, slope, error, low=-1.3, high=-0.7)


def _log_slope(counts: Any, widths: Any, errors: Any) -> tuple[float, float]:
    """Slope of log width against log count by weighted least squares, and its standard error."""
    x, y = np.log(counts), np.log(widths)
    weights = (np.asarray(widths) / np.asarray(errors)) ** 2
    centred = x - np.average(x, weights=weights)
    spread = np.sum(weights * centred**2)
    return float(np.sum(weights * centred * y) / spread), float(spread**-0.5)
