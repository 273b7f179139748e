"""What the parts of `evidence_check.py` share: their sizes, the rows of the table, and the models."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import amortgap as ag
from amortgap.sweep import Column, Schema
from studies.requirements import WITHIN, Requirement

SCHEMA = Schema(
    version=1,
    columns=(
        Column("part", str, "methods, draws, sandwich or coverage", key=True),
        Column("model", str, "the model", key=True),
        Column("method", str, "how log p(x) or the interval was obtained", key=True),
        Column("quantity", str, "what the value is, with its unit; shares and coverages have none", key=True),
        Column("value", float, "the value; empty if not finite"),
        Column("standard_error", float, "of the value, over data or replicates"),
        *WITHIN,
    ),
)


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


def row(part: str, model: str, method: str, quantity: str, value: Any, error: Any = None, **required: Any) -> dict:
    """One row; `low` and `high` are what the value must lie between."""
    low, high = required.get("low"), required.get("high")
    return {
        "part": part,
        "model": model,
        "method": method,
        "quantity": quantity,
        "value": float(value) if np.isfinite(value) else None,
        "standard_error": None if error is None or not np.isfinite(error) else float(error),
        "low": None if low is None else float(low),
        "high": None if high is None else float(high),
        "met": Requirement(low, high).met(value),
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
    model = ag.models.deep_latent_gaussian(
        jax.random.key(study.seed), latent_dim=2, data_dim=10, width=8, depth=1, activation="tanh"
    )
    decoder: Any = model.decoder
    # The fresh weights are scaled up until the posterior is visibly not normal.
    weights = jax.tree.map(lambda leaf: 2.5 * leaf, decoder.weights)
    decoder = dataclasses.replace(decoder, weights=weights)
    yield "nonlinear decoder, d = 2", dataclasses.replace(model, decoder=decoder), 100
