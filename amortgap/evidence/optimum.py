"""How far above a local fit the best ELBO can be: the optimism of the sample-average-approximation objective."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from amortgap._internal.checks import check_count, check_datum, check_key, check_phi, check_sizes
from amortgap.families import FullRankNormal, MeanFieldNormal
from amortgap.protocols import Reparameterised


def optimum_excess(
    key: jax.Array,
    phi: Float[Array, " size"],
    x: Any,
    *,
    model: Any,
    family: Any,
    num_samples: int = 512,
    num_replicates: int = 2,
    num_steps: int = 30,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Bound from above, in expectation, how many nats the best ELBO of one datum exceeds that of a fit.

    Formula: with noise e_1..e_n fixed and `F(phi) = (1/n) sum_s log p(x, T(e_s; phi)) - log q(T(e_s; phi); phi)`,
    `E[max F] >= max E[F] = ELBO(phi*)`, the mean of a maximum being at least the maximum of the mean. Hence
    `E[max F - F(phi)] >= ELBO(phi*) - ELBO(phi)`. The same noise in both terms leaves the difference little variance;
    it falls as 1/n.

    Args:
      key: typed key of the noise, not one that phi was optimised with.
      phi: a fit, [size]; also where the search for the maximum starts.
      x: one datum.
      model: record with `log_joint(z, x)`.
      family: record with `transform(noise, phi)` and `log_prob(z, phi)`.
      num_samples: n, in antithetic pairs; at least twice the latent dimension.
      num_replicates: independent sets of noise, at least two.
      num_steps: L-BFGS steps for each.

    Returns:
      The mean excess over replicates, in nats, and its standard error; infinite where a draw at phi has no finite
      log joint, since nothing is then bounded. Whether the bound is proven says
      `excess_is_proven`.

    Raises:
      ValueError: bad key, x, sizes or counts, or a family that is no transform of fixed noise.

    Source: Burroni, Domke and Sheldon, "Sample average approximation for black-box VI" (2024), section 4.
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
    optimiser = optax.lbfgs(memory_size=10, linesearch=optax.scale_by_backtracking_linesearch(15, store_grad=True))

    def excess(replicate_key: jax.Array) -> Array:
        half = jax.random.normal(replicate_key, (-(-num_samples // 2), family.noise_dim), phi.dtype)

        def draws(candidate: Array) -> Array:
            def value(noise: Array) -> Array:
                z = family.transform(noise, candidate)
                return model.log_joint(z, x) - family.log_prob(z, candidate)

            return 0.5 * (jax.vmap(value)(half) + jax.vmap(value)(-half))

        reference = draws(phi)

        # The loss is a mean of differences: in float32 the ELBO itself would round away the last steps.
        def loss(candidate: Array) -> Array:
            return jnp.mean(reference - draws(candidate))

        slope = optax.value_and_grad_from_state(loss)

        def step(carry: tuple[Array, Any, Array], _: None) -> tuple[tuple[Array, Any, Array], None]:
            at, state, least = carry
            value, gradient = slope(at, state=state)
            update, state = optimiser.update(gradient, state, at, value=value, grad=gradient, value_fn=loss)
            moved = at + jnp.asarray(update)
            moved = jnp.where(jnp.all(jnp.isfinite(moved)), moved, at)
            return (moved, state, jnp.fmin(value, least)), None

        start = (phi, optimiser.init(phi), jnp.zeros((), phi.dtype))
        (last, _, least), _ = jax.lax.scan(step, start, None, length=num_steps)
        # A loss that is not a number at phi would be passed over, and read as nothing to gain.
        return jnp.where(jnp.all(jnp.isfinite(reference)), -jnp.fmin(loss(last), least), jnp.inf)

    values = jax.vmap(excess)(jax.random.split(key, num_replicates))
    mean = jnp.mean(values)
    return mean, jnp.where(jnp.isfinite(mean), jnp.std(values, ddof=1) / num_replicates**0.5, jnp.inf)


def excess_is_proven(model: Any, family: Any) -> bool:
    """Return whether `optimum_excess` climbs a concave objective, without which its bound is heuristic.

    Where `log p(x, z)` is concave in z and the family is a mean field or full rank normal, the objective is concave in
    mean and square root of the covariance, for every noise: L-BFGS then ends at the global maximum, if its steps are
    enough. From a fit near its optimum the default ones are; from a bad one the bound may fall short.

    Args:
      model: a model; it declares a log joint that is concave in z by `log_concave = True`.
      family: a variational family.

    Returns:
      True where the model declares `log p(x, z)` concave in z (`model.log_concave`) and the family is a mean field or
      full rank normal, else False.

    Source: Challis and Barber, "Gaussian Kullback-Leibler approximate inference" (2013), section 3.
    """
    return bool(getattr(model, "log_concave", False)) and isinstance(family, (MeanFieldNormal, FullRankNormal))
