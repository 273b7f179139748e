"""Which stage of a run of local VI is kept, compared on draws that the run has not seen."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from amortgap.inference.local.certificate import Certificate, certify
from amortgap.inference.local.newton import antithetic_curvature, divisor_up_to, log_det
from amortgap.inference.local.records import Problem
from amortgap.objectives import log_weight
from amortgap.protocols import Normal, is_diagonal


class SelectedFit(NamedTuple):
    """The kept stage of a run.

    Attributes:
      phi: its variational parameters, [size].
      elbo, standard_error: its ELBO on fresh draws, in nats.
      start_elbo: ELBO of the start, by the common draws of all stages relative to `elbo`.
      horizon_gain, horizon_error: nats gained over the first horizon, with their standard error.
      certificate: nats that it still misses.
    """

    phi: Array
    elbo: Array
    standard_error: Array
    start_elbo: Array
    horizon_gain: Array
    horizon_error: Array
    certificate: Certificate


class Choice(NamedTuple):
    """The stage of a run to be kept, as an index, and its gains in nats.

    Attributes:
      index: into start, warm-up or previous fit (if there was one), first horizon, end.
      gain, gain_error: of the kept stage over the first horizon, with its standard error.
      over_start: of the kept stage over the start; never negative unless all are NaN.
    """

    index: Array
    gain: Array
    gain_error: Array
    over_start: Array


def mean_and_root(family: Normal, phi: Array) -> tuple[Array, Array]:
    """Return the mean and the root of the covariance: scales in mean field, lower triangular in full rank."""
    mean, scale_tril = family.moments(phi)
    return mean, jnp.diag(scale_tril) if is_diagonal(family) else scale_tril


def pack(family: Normal, mean: Array, root: Array) -> Array:
    """Return the phi of the normal with this mean and root of the covariance, the inverse of `mean_and_root`."""
    if root.ndim == 1:
        return family.from_moments(mean, jnp.diag(root))
    # The triangular root of the same covariance, with a positive diagonal.
    lower = jnp.linalg.qr(root.T, mode="r").T
    return family.from_moments(mean, lower * jnp.sign(jnp.diag(lower))[None, :])


def choose(values: Float[Array, "stages draws"]) -> Choice:
    """Return which stage is kept on common draws: the last, unless an earlier one is better beyond chance."""
    averages = jnp.mean(values, axis=1)
    # The start wins every tie, NaN included.
    difference = averages - averages[-1]
    clear = jnp.isfinite(averages) & ~(difference <= 2 * _error_of_mean(values - values[-1][None, :]))
    index = jnp.where(clear.any(), jnp.argmax(jnp.where(clear, averages, -jnp.inf)), averages.size - 1)
    index = jnp.where(averages[index] > averages[0], index, 0)
    gain, over_start = averages[index] - averages[-2], averages[index] - averages[0]
    return Choice(index, gain, _error_of_mean(values[index] - values[-2]), over_start)


def select(
    phis: Float[Array, "stages size"],
    values: Float[Array, "stages draws"],
    evaluate: Callable[[Array, Choice], tuple[Array, Certificate]],
) -> SelectedFit:
    """Return the best stage with its ELBO and its certificate.

    Args:
      phis: the start, further stages, the first horizon and the end.
      values: draws of the ELBO of every stage, common to all stages.
      evaluate: function of the kept phi and the choice that returns fresh draws of its ELBO, and its certificate.
    """
    choice = choose(values)
    phi = phis[choice.index]
    draws, certificate = evaluate(phi, choice)
    elbo = jnp.mean(draws)
    return SelectedFit(
        phi=phi,
        elbo=elbo,
        standard_error=_error_of_mean(draws),
        start_elbo=elbo - choice.over_start,
        horizon_gain=choice.gain,
        horizon_error=choice.gain_error,
        certificate=certificate,
    )


def select_normal(
    choice_noise: Float[Array, "draws d"],
    sample_noise: Float[Array, "pairs d"],
    problem: Problem,
    start: Array,
    runs: list[tuple[Array, Array]],
) -> SelectedFit:
    """Return the best of the start and the stages `runs` (mean and root) of a normal family, with its certificate."""
    family, together = problem.normal, problem.pairs_at_once
    phis = jnp.stack([start, *[pack(family, *run) for run in runs]])

    def values(phi: Array) -> Array:
        def pair(noise: Array) -> Array:
            points = jax.vmap(lambda e: family.transform(e, phi))(jnp.stack([noise, -noise]))
            weigh = partial(log_weight, x=problem.x, phi=phi, model=problem.model, family=family)
            return jnp.mean(jax.vmap(weigh)(points))

        return jax.lax.map(pair, choice_noise, batch_size=divisor_up_to(choice_noise.shape[0], together))

    def evaluate(phi: Array, _: Choice) -> tuple[Array, Certificate]:
        mean, root = mean_and_root(family, phi)
        sample = antithetic_curvature(sample_noise, problem.log_joint, mean, root, pairs_at_once=together)
        draws = sample.values + (0.5 * family.latent_dim * math.log(2 * math.pi) + log_det(root))
        return jnp.where(sample.finite, draws, jnp.nan), certify(sample, mean_field=is_diagonal(family))

    return select(phis, jax.lax.map(values, phis), evaluate)


def _error_of_mean(draws: Float[Array, "*rows draws"]) -> Float[Array, "*rows"]:
    """Return the standard error of the mean over the last axis."""
    count = draws.shape[-1]
    return jnp.std(draws, axis=-1, ddof=min(1, count - 1)) / jnp.sqrt(float(count))
