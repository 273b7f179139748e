"""How many nats below the best ELBO a fit can be: the optimism of a sample-average objective bounds it from above."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from amortgap._internal.checks import check_count, check_datum, check_key, check_phi, check_sizes
from amortgap.evidence.records import Bound
from amortgap.objectives import log_weight
from amortgap.protocols import Datum, Family, Model, Normal, Reparameterised, is_log_concave


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
    check_count("num_samples", num_samples, minimum=2 * model.latent_dim)
    check_count("num_replicates", num_replicates, minimum=2)
    check_count("num_steps", num_steps)
    if not isinstance(family, Reparameterised):
        raise ValueError(f"a bound from fixed noise needs family.transform, which {type(family).__name__} lacks")
    check_phi(phi, family)
    noise_shape = (-(-num_samples // 2), family.noise_dim)

    def gain(replicate_key: jax.Array) -> Array:
        half = jax.random.normal(replicate_key, noise_shape, phi.dtype)
        return maximise_on_noise(half, phi, x, model=model, family=family, num_steps=num_steps)[1]

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
) -> tuple[Float[Array, " size"], Float[Array, ""]]:
    """Return the best phi that L-BFGS meets on the ELBO of this noise and its mirror image, and its gain over `phi`."""
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

    def keep_better(best: tuple[Array, Array], candidate: Array, value: Array) -> tuple[Array, Array]:
        better = value < best[1]
        return jnp.where(better, candidate, best[0]), jnp.where(better, value, best[1])

    def step(carry: tuple[Array, Any, tuple[Array, Array]], _: None) -> tuple[tuple, None]:
        at, state, best = carry
        value, slope = value_and_slope(at, state=state)
        best = keep_better(best, at, jnp.asarray(value))
        update, state = optimiser.update(slope, state, at, value=value, grad=slope, value_fn=loss)
        moved = at + jnp.asarray(update)
        return (jnp.where(jnp.all(jnp.isfinite(moved)), moved, at), state, best), None

    start = (phi, optimiser.init(phi), (phi, jnp.zeros((), phi.dtype)))
    (last, _, best), _ = jax.lax.scan(step, start, None, length=num_steps)
    best_phi, least = keep_better(best, last, loss(last))
    # Where the loss at phi is not a number no candidate is better, which must not read as nothing to gain.
    return best_phi, jnp.where(jnp.all(jnp.isfinite(reference)), -least, jnp.inf)
