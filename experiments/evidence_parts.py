"""The measurements of `evidence_check.py`: each part returns rows of its table."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from scipy import stats

import amortgap as ag
from amortgap.diagnostics import simulate
from amortgap.evidence import UnreliableEvidence


@dataclasses.dataclass(frozen=True)
class Study:
    """Sizes of the measurements."""

    seed: int = 0
    """Seed of everything random."""
    num_data: int = 100
    """Simulated data a model, for the comparison of methods with the exact value."""
    num_samples: int = 2000
    """Draws a datum of importance sampling."""
    num_chains: int = 16
    """Chains of annealed importance sampling."""
    num_leapfrog: int = 5
    """Leapfrog steps of a transition."""
    temperature_factor: float = 1.0
    """Factor of the numbers of temperatures of all models."""
    dims: tuple[int, ...] = (2, 10, 50)
    """Latent dimensions of factor analysis."""
    replicates: int = 1000
    """Simulated data of the sandwich."""
    ladder: tuple[int, ...] = (25, 50, 100, 200, 400, 800)
    """Numbers of temperatures of the sandwich."""
    sandwich_chains: int = 2
    """Chains each way of the sandwich: the fewer, the more of its width is bias and the less is noise."""
    draws: tuple[int, ...] = (1, 10, 100, 1000)
    """Draws of the importance-weighted bound."""
    data_sets: int = 1000
    """Replicated data sets for the coverage of intervals."""
    data_per_set: int = 100
    """Data in each of them."""
    fit_samples: int = 1024
    """Draws of the local fits whose gaps the intervals are for."""
    fit_tolerance: float = 1e-3
    """Their tolerance in nats: what they miss shifts every interval, so it must be small against its half width."""


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


def row(part: str, model: str, method: str, quantity: str, value: Any, error: Any = None, **required: Any) -> dict:
    """One row; `low` and `high` are what the value must lie between."""
    low, high = required.get("low"), required.get("high")
    met = None
    if low is not None or high is not None:
        met = bool((low is None or value >= low) and (high is None or value <= high))
    return {
        "part": part,
        "model": model,
        "method": method,
        "quantity": quantity,
        "value": float(value) if np.isfinite(value) else None,
        "standard_error": None if error is None or not np.isfinite(error) else float(error),
        "low": None if low is None else float(low),
        "high": None if high is None else float(high),
        "met": met,
    }


def factor_analysis(seed: int, dim: int) -> ag.models.FactorAnalysis:
    """Factor analysis whose posterior is correlated and neither vague nor sharp in any dimension."""
    loadings = jax.random.normal(jax.random.key(seed), (2 * dim, dim)) / math.sqrt(2 * dim)
    return ag.models.FactorAnalysis(
        loadings=1.5 * loadings, mean=jnp.zeros(2 * dim), noise_variance=jnp.full(2 * dim, 0.5)
    )


def poisson_gamma() -> ag.models.PoissonGamma:
    """Counts with a mean of three and a skewed posterior."""
    return ag.models.PoissonGamma(shape=jnp.array(1.5), rate=jnp.array(0.5))


def models(study: Study) -> Iterator[tuple[str, Any, int]]:
    """Yield name, model and number of temperatures."""
    for dim, temperatures in zip(study.dims, (100, 300, 1000), strict=False):
        yield f"factor analysis, d = {dim}", factor_analysis(study.seed, dim), temperatures
    yield "Poisson-Gamma", poisson_gamma(), 100
    mixture = ag.models.MixturePrior(
        log_weights=jnp.log(jnp.array([0.3, 0.7])),
        centres=jnp.array([[-2.0], [1.5]]),
        scales=jnp.array([[0.4], [0.6]]),
        loadings=jnp.array([[0.5]]),
        mean=jnp.array([0.2]),
        noise_variance=jnp.array([0.8]),
    )
    yield "mixture prior", mixture, 100
    decoder = ag.models.deep_latent_gaussian(
        jax.random.key(study.seed), latent_dim=2, data_dim=10, width=8, depth=1, activation="tanh"
    )
    # The fresh weights are scaled up until the posterior is visibly not normal.
    weights = jax.tree.map(lambda leaf: 2.5 * leaf, decoder.decoder.weights)
    yield (
        "nonlinear decoder, d = 2",
        dataclasses.replace(decoder, decoder=dataclasses.replace(decoder.decoder, weights=weights)),
        100,
    )


def make_case(study: Study, name: str, model: Any, temperatures: int) -> Case:
    """Simulate data, fit local optima and an affine encoder, and compute the exact evidence."""
    key_data, key_fit, key_encoder = jax.random.split(jax.random.key(study.seed + 1), 3)
    latents, xs = simulate(key_data, model=model, num_data=study.num_data)
    # Mean field, so that correlated and non-normal posteriors leave something to correct.
    family = ag.families.MeanFieldNormal(model.latent_dim)
    local = ag.fit_local(key_fit, xs, model=model, family=family).phi
    encoder = ag.encoders.linear(key_encoder, xs.shape[1], family, rank=model.latent_dim, standardize=xs)
    amortized = ag.amortized_vi(key_encoder, xs, model=model, family=family, encoder=encoder, num_steps=1000)
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
    given = {"model": case.model, "family": case.family}
    annealed = {
        "num_temperatures": case.temperatures,
        "num_chains": study.num_chains,
        "num_leapfrog": study.num_leapfrog,
        "model": case.model,
    }

    def importance(phis: Any, **more: Any) -> Any:
        return ag.evidence_of_data(
            key, case.xs, method="importance", phis=phis, num_samples=study.num_samples, **given, **more
        )

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
            **(annealed | {"num_temperatures": max(case.temperatures // 10, 3)}),
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


def coverage(study: Study, level: float = 0.95) -> Iterator[dict]:
    """How often nominal intervals of the gaps contain the truth, over replicated data sets."""
    total = study.data_sets * study.data_per_set
    for name, model, family, encoder, truth, population in (_factor_analysis_case(study), _poisson_gamma_case()):
        key_data, key_fit, key_gaps = jax.random.split(jax.random.key(study.seed + 5), 3)
        xs = simulate(key_data, model=model, num_data=total).xs
        local = ag.fit_local(
            key_fit,
            xs,
            model=model,
            family=family,
            init=jax.vmap(encoder)(xs),
            num_samples=study.fit_samples,
            tolerance=study.fit_tolerance,
            chunk_size=2500,
        )
        gaps = ag.inference_gaps(
            key_gaps, xs, model=model, family=family, encoder=encoder, local=local, num_samples=100
        )
        exact = dict(zip(("approximation", "amortization"), jax.vmap(truth)(xs), strict=True))
        exact["inference"] = exact["approximation"] + exact["amortization"]

        def of_set(number: int, gaps=gaps) -> ag.Gaps:
            rows = slice(number * study.data_per_set, (number + 1) * study.data_per_set)
            return jax.tree.map(lambda leaf: leaf[rows], gaps)

        sets = [jax.device_get(of_set(number)).estimates() for number in range(study.data_sets)]
        for gap in ("approximation", "amortization", "inference"):
            per_set = np.asarray(exact[gap], np.float64).reshape(study.data_sets, -1).mean(axis=1)
            for over, targets in (("data", np.full(study.data_sets, population[gap])), ("draws", per_set)):
                ends = [found[gap].interval(level, over=over) for found in sets]
                inside = [low <= target <= high for (low, high), target in zip(ends, targets, strict=True)]
                share = np.mean(inside)
                error = math.sqrt(share * (1 - share) / study.data_sets)
                yield row("coverage", name, f"interval over {over}", gap, share, error, low=0.93, high=0.97)
            mean = np.mean([float(found[gap].mean) for found in sets])
            yield row("coverage", name, "mean over all data minus truth", gap, mean - per_set.mean())


def _factor_analysis_case(study: Study) -> tuple:
    model = factor_analysis(study.seed, 2)
    family = ag.families.MeanFieldNormal(2)
    precision = model.posterior_precision()
    scale = jnp.diag(1.3 * jnp.diag(precision) ** -0.5)

    def encoder(x):
        return family.from_moments(0.8 * model.posterior_mean(x), scale)

    spread = 0.5 * 2 * (1.3**2 - 1 - 2 * math.log(1.3))

    def truth(x):
        shift = 0.2 * model.posterior_mean(x)
        return model.mean_field_kl(), 0.5 * shift @ precision @ shift + spread

    approximation = float(model.mean_field_kl())
    # E[m' Lambda m] = tr(Lambda - I), since Cov(m) = I - Lambda^-1.
    amortization = 0.5 * 0.2**2 * (float(jnp.trace(precision)) - 2) + spread
    return "factor analysis, d = 2", model, family, encoder, truth, _with_sum(approximation, amortization)


def _poisson_gamma_case() -> tuple:
    model = poisson_gamma()
    family = ag.families.MeanFieldNormal(1)

    def encoder(x):
        mean, scale = model.normal_optimum(x)
        return family.from_moments(mean + 0.3 * scale, 1.2 * scale[None, :])

    def truth(x):
        alpha, beta = model.posterior_parameters(x)
        mean, scale = model.normal_optimum(x)
        off, wide = mean[0] + 0.3 * scale[0], 1.2 * scale[0]
        delta = off + 0.5 * wide**2 - jnp.log(alpha / beta)
        gap = -0.5 * jnp.log(alpha * wide**2) - alpha * (off - mean[0]) + alpha * jnp.expm1(delta)
        return model.normal_kl(x), gap

    counts = np.arange(400)
    shape, rate = float(model.shape), float(model.rate)
    mass = stats.nbinom.pmf(counts, shape, rate / (rate + 1))
    parts = jax.vmap(truth)(jnp.asarray(counts, jnp.float32)[:, None])
    approximation, amortization = (float(mass @ np.asarray(part, np.float64)) for part in parts)
    return "Poisson-Gamma", model, family, encoder, truth, _with_sum(approximation, amortization)


def _with_sum(approximation: float, amortization: float) -> dict[str, float]:
    return {
        "approximation": approximation,
        "amortization": amortization,
        "inference": approximation + amortization,
    }
