"""The measurement of `evidence_check.py` that counts how often intervals of the gaps contain the truth."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

import amortgap as ag
from amortgap.diagnostics import simulate
from studies.evidence.study import Study, factor_analysis, poisson_gamma, row


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
        exact = _with_sum(*jax.vmap(truth)(xs))

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
        return model.approximation_gap(), 0.5 * shift @ precision @ shift + spread

    approximation = float(model.approximation_gap())
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
        return model.approximation_gap(x), gap

    counts = np.arange(400)
    shape, rate = float(model.shape), float(model.rate)
    mass = stats.nbinom.pmf(counts, shape, rate / (rate + 1))
    parts = jax.vmap(truth)(jnp.asarray(counts, jnp.float32)[:, None])
    approximation, amortization = (float(mass @ np.asarray(part, np.float64)) for part in parts)
    return "Poisson-Gamma", model, family, encoder, truth, _with_sum(approximation, amortization)


def _with_sum(approximation: Any, amortization: Any) -> dict[str, Any]:
    return {
        "approximation": approximation,
        "amortization": amortization,
        "inference": approximation + amortization,
    }
