"""How many nats below the best ELBO a fit can be: the optimism of a sample-average objective bounds it from above."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from amortgap._internal.checks import (
    check_count,
    check_data,
    check_datum,
    check_key,
    check_phi,
    check_phis,
    check_sizes,
    num_rows,
)
from amortgap._internal.devices import chosen_devices, map_sharded, rows_at_once
from amortgap.evidence.records import Bound
from amortgap.objectives import log_weight
from amortgap.protocols import Data, Datum, Family, Model, Normal, Reparameterised, is_log_concave


def suboptimality_bound(
    key: jax.Array,
    phi: Float[Array, " size"],
    x: Datum,
    *,
    model: Model,
    family: Family,
    num_samples: int = 512,
    num_replicates: int = 2,
    num_steps: int = 30,
) -> Bound:
    """Bound from above, in expectation, how many nats the best ELBO of one datum exceeds that of a fit.

    Formula: with noise e_1..e_n fixed and `F(phi) = (1/n) sum_s log p(x, T(e_s; phi)) - log q(T(e_s; phi); phi)`,
    `E[max F] >= max E[F] = ELBO(phi*)`, the mean of a maximum being at least the maximum of the mean. Hence
    `E[max F - F(phi)] >= ELBO(phi*) - ELBO(phi)`. The same noise in both terms leaves the difference little variance;
    the bound falls as 1/n.

    Args:
      key: typed key of the noise, not one that phi was optimised with.
      phi: a fit, [size]; also where the search for the maximum starts.
      x: one datum.
      model: record with `log_joint(z, x)`.
      family: record with `transform(noise, phi)` and `log_prob(z, phi)`.
      num_samples: n, in antithetic pairs; at least twice the latent dimension.
      num_replicates: independent sets of noise, at least two.
      num_steps: L-BFGS steps for each set.

    Returns:
      Bound in nats, the mean over replicates with its standard error; both are infinite where a draw at phi has no
      finite log joint, since nothing is then bounded. It is `proven` where the model states that `log p(x, z)` is
      concave in z and the family is a mean field or full rank normal: F is then concave in mean and square root of
      the covariance, for every noise, and L-BFGS ends at its maximum if its steps are enough. From a fit near its
      optimum the default ones are; from a bad one the bound may fall short.

    Raises:
      ValueError: bad key, x, sizes or counts, or a family that is no transform of fixed noise.

    Source: Burroni, Domke and Sheldon, "Sample average approximation for black-box VI" (2024), section 4; Challis and
      Barber, "Gaussian Kullback-Leibler approximate inference" (2013), section 3, for the concavity.
    """
    check_key(key)
    x = check_datum(x, model)
    check_sizes(model, family)
    check_suboptimality("num_samples", num_samples, family)
    check_count("num_replicates", num_replicates, minimum=2)
    check_count("num_steps", num_steps)
    check_phi(phi, family)
    assert isinstance(family, Reparameterised)
    noise_shape = (-(-num_samples // 2), family.noise_dim)

    def gain(replicate_key: jax.Array) -> Array:
        half = jax.random.normal(replicate_key, noise_shape, phi.dtype)
        return maximise_on_noise(half, phi, x, model=model, family=family, num_steps=num_steps)

    gains = jax.vmap(gain)(jax.random.split(key, num_replicates))
    mean = jnp.mean(gains)
    error = jnp.where(jnp.isfinite(mean), jnp.std(gains, ddof=1) / num_replicates**0.5, jnp.inf)
    return Bound(mean, error, is_log_concave(model) and isinstance(family, Normal))


def maximise_on_noise(
    half: Float[Array, "pairs noise_dim"],
    phi: Float[Array, " size"],
    x: Datum,
    *,
    model: Model,
    family: Reparameterised,
    num_steps: int,
) -> Float[Array, ""]:
    """Return how many nats L-BFGS gains over `phi` on the ELBO of this noise and its mirror image.

    The gain is infinite where a draw at `phi` has no finite log joint.
    """
    optimiser = optax.lbfgs(memory_size=10, linesearch=optax.scale_by_backtracking_linesearch(15, store_grad=True))

    def draws(candidate: Array) -> Array:
        def value(noise: Array) -> Array:
            return log_weight(family.transform(noise, candidate), x, candidate, model=model, family=family)

        return 0.5 * (jax.vmap(value)(half) + jax.vmap(value)(-half))

    reference = draws(phi)

    # The loss is a mean of differences: in float32 the ELBO itself would round away the last steps.
    def loss(candidate: Array) -> Array:
        return jnp.mean(reference - draws(candidate))

    value_and_slope = optax.value_and_grad_from_state(loss)

    def step(carry: tuple[Array, Any, Array], _: None) -> tuple[tuple[Array, Any, Array], None]:
        at, state, least = carry
        value, slope = value_and_slope(at, state=state)
        update, state = optimiser.update(slope, state, at, value=value, grad=slope, value_fn=loss)
        moved = at + jnp.asarray(update)
        return (jnp.where(jnp.all(jnp.isfinite(moved)), moved, at), state, jnp.fmin(value, least)), None

    start = (phi, optimiser.init(phi), jnp.zeros((), phi.dtype))
    (last, _, least), _ = jax.lax.scan(step, start, None, length=num_steps)
    # A loss that is not a number at phi would be passed over, and read as nothing to gain.
    return jnp.where(jnp.all(jnp.isfinite(reference)), -jnp.fmin(loss(last), least), jnp.inf)


def check_suboptimality(name: str, num_samples: int, family: Family) -> None:
    """Refuse too few draws for `suboptimality_bound`, or a family that is no transform of fixed noise."""
    check_count(name, num_samples, minimum=2 * family.latent_dim)
    if not isinstance(family, Reparameterised):
        raise ValueError(f"{name}: fixed noise needs family.transform, which {type(family).__name__} lacks")


def suboptimality_bound_of_data(
    key: jax.Array,
    phis: Float[Array, "N size"],
    xs: Data,
    *,
    model: Model,
    family: Family,
    num_samples: int = 512,
    num_replicates: int = 2,
    num_steps: int = 30,
    devices: Sequence[Any] | None = None,
) -> Bound:
    """Return `suboptimality_bound` of every datum; datum i uses `fold_in(key, i)`.

    Formula: `E[max F_i - F_i(phi_i)] >= ELBO(phi*_i; x_i) - ELBO(phi_i; x_i)`, i = 1..N, F as in `suboptimality_bound`.

    Args:
      key: typed key of the noise, not one that any phi was optimised with.
      phis: fits, [N, size].
      xs: data, [N, ...].
      devices: devices to split the data over; None for all local ones.
      model, family, num_samples, num_replicates, num_steps: as in `suboptimality_bound`.

    Returns:
      Bound in nats, its arrays [N].

    Raises:
      ValueError: as in `suboptimality_bound`, bad data, phis of another shape, or no devices.
    """
    check_key(key)
    xs = check_data("xs", xs, model)
    check_sizes(model, family)
    check_suboptimality("num_samples", num_samples, family)
    check_phis("phis", phis, family, num_rows(xs))
    return suboptimality_bounds(
        key,
        phis,
        xs,
        model,
        family,
        num_samples=num_samples,
        num_replicates=num_replicates,
        num_steps=num_steps,
        devices=chosen_devices(devices),
    )


@partial(jax.jit, static_argnames=("num_samples", "num_replicates", "num_steps", "devices"))
def suboptimality_bounds(
    key: jax.Array,
    phis: Array,
    xs: Data,
    model: Model,
    family: Family,
    *,
    num_samples: int,
    num_replicates: int = 2,
    num_steps: int = 30,
    devices: tuple[Any, ...],
) -> Bound:
    """Return `suboptimality_bound_of_data` of checked arguments, compiled."""

    def one(index: Array, row: tuple[Array, Datum]) -> Bound:
        return suboptimality_bound(
            jax.random.fold_in(key, index),
            *row,
            model=model,
            family=family,
            num_samples=num_samples,
            num_replicates=num_replicates,
            num_steps=num_steps,
        )

    # The objective of one datum runs over all its noise at once.
    return map_sharded(one, (phis, xs), chunk_size=rows_at_once(num_samples), devices=devices)
