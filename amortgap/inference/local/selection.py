"""Which stage of a run of local VI is kept, judged on draws that the run has not seen."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from amortgap.inference.local.certificate import Certificate, certify
from amortgap.inference.local.newton import divisor_up_to, log_det, look_around
from amortgap.protocols import is_diagonal


class Judged(NamedTuple):
    """The kept stage of a run, its ELBO on fresh draws, and what it misses; the fields are those of `LocalFit`."""

    phi: Array
    value: Array
    standard_error: Array
    start_value: Array
    horizon_gain: Array
    horizon_error: Array
    certificate: Certificate


class _Choice(NamedTuple):
    """The stage of a run to be kept, as an index, and what it gained, in nats.

    Attributes:
      index: into start, warm-up or previous fit (if there was one), first horizon, end.
      gain: of the kept one over the first horizon, with its standard error.
      over_start: of the kept one over the start; never negative unless all are NaN.
    """

    index: Array
    gain: Array
    gain_error: Array
    over_start: Array


def mean_and_root(family: Any, phi: Array) -> tuple[Array, Array]:
    """Return the mean and the root of the covariance: scales in mean field, lower triangular in full rank."""
    mean, scale_tril = family.moments(phi)
    return mean, jnp.diag(scale_tril) if is_diagonal(family) else scale_tril


def pack(family: Any, mean: Array, root: Array) -> Array:
    """Return the phi of the normal with this mean and root of the covariance, the inverse of `mean_and_root`."""
    if root.ndim == 1:
        return family.from_moments(mean, jnp.diag(root))
    # The triangular root of the same covariance, with a positive diagonal.
    lower = jnp.linalg.qr(root.T, mode="r").T
    return family.from_moments(mean, lower * jnp.sign(jnp.diag(lower))[None, :])


def choose(values: Float[Array, "stages draws"]) -> _Choice:
    """Return which stage is kept on common draws: the last, unless an earlier one is better beyond chance."""
    averages = jnp.mean(values, axis=1)

    def error(difference: Array) -> Array:
        return jnp.std(difference, axis=-1, ddof=min(1, values.shape[1] - 1)) / jnp.sqrt(float(values.shape[1]))

    # The start wins every tie, NaN included.
    clear = jnp.isfinite(averages) & ~(averages - averages[-1] <= 2 * error(values - values[-1][None, :]))
    index = jnp.where(clear.any(), jnp.argmax(jnp.where(clear, averages, -jnp.inf)), averages.size - 1)
    index = jnp.where(averages[index] > averages[0], index, 0)
    gain, over_start = averages[index] - averages[-2], averages[index] - averages[0]
    return _Choice(index, gain, error(values[index] - values[-2]), over_start)


def judge(
    choice_noise: Float[Array, "draws d"],
    sweep_noise: Float[Array, "pairs d"],
    x: Any,
    start: Array,
    runs: Any,
    model: Any,
    family: Any,
    pairs_at_once: int,
) -> Judged:
    """Keep the best stage of a run of a normal family on common draws; judge it and what it misses on others."""
    phis = jnp.stack([start, *[pack(family, *run) for run in runs]])

    def values(phi: Array) -> Array:
        def pair(noise: Array) -> Array:
            points = jax.vmap(lambda e: family.transform(e, phi))(jnp.stack([noise, -noise]))
            return jnp.mean(jax.vmap(lambda z: model.log_joint(z, x) - family.log_prob(z, phi))(points))

        return jax.lax.map(pair, choice_noise, batch_size=divisor_up_to(choice_noise.shape[0], pairs_at_once))

    choice = choose(jax.lax.map(values, phis))
    phi = phis[choice.index]
    mean, root = mean_and_root(family, phi)
    sweep = look_around(sweep_noise, lambda z: model.log_joint(z, x), mean, root, pairs_at_once=pairs_at_once)
    draws = sweep.values + (0.5 * family.latent_dim * math.log(2 * math.pi) + log_det(root))
    draws = jnp.where(sweep.finite, draws, jnp.nan)
    certificate = certify(sweep, mean_field=is_diagonal(family))
    return verdict(phi, draws, choice, certificate)


def verdict(phi: Array, draws: Array, choice: _Choice, certificate: Certificate) -> Judged:
    """Return the kept phi with its ELBO on fresh draws."""
    value = jnp.mean(draws)
    return Judged(
        phi=phi,
        value=value,
        standard_error=jnp.std(draws, ddof=min(1, draws.size - 1)) / jnp.sqrt(float(draws.size)),
        start_value=value - choice.over_start,
        horizon_gain=choice.gain,
        horizon_error=choice.gain_error,
        certificate=certificate,
    )
