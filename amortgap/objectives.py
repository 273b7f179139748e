"""The bounds on log p(x): one datum in, one number out. Local and amortized VI maximise these same functions.

A bound goes up. Where an optimiser wants a loss, it is negated there, once.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from amortgap._internal.checks import check_choice, check_count, check_datum, check_key, check_phi, check_sizes
from amortgap.expectations import ESTIMATORS, MONTE_CARLO, Expectation, gauss_hermite, spherical_cubature


def elbo_draws(
    key: jax.Array,
    phi: Float[Array, " size"],
    x: Any,
    *,
    model: Any,
    family: Any,
    num_samples: int,
    estimator: str = "sticking_the_landing",
    antithetic: bool = False,
) -> Float[Array, " num_samples"]:
    """Return independent unbiased draws whose mean is the ELBO of one datum.

    Formula: draw s is `log p(x, z_s) - log q(z_s; phi)`, `z_s ~ q(z; phi)`; with the analytic entropy it is
    `log p(x, z_s) + H[q]`. Antithetic draws are means over the pair of noise and mirrored noise. For a family with a
    finite `support()` and its `probabilities(phi)` every draw is the ELBO itself, a sum; for one without `log_prob`
    (auxiliary variables) sticking the landing is the total gradient.

    Args:
      key, phi, x, model, family, num_samples, estimator, antithetic: as in `elbo`.

    Returns:
      The draws in nats, [num_samples] ([num_samples / 2] if antithetic).

    Raises:
      ValueError: as in `elbo`.

    Source: as in `elbo`.
    """
    x = _checked_datum(key, phi, x, model=model, family=family, num_samples=num_samples)
    check_choice("estimator", estimator, ESTIMATORS)
    if antithetic and (num_samples % 2 or not hasattr(family, "transform")):
        raise ValueError(
            "antithetic draws need an even num_samples and a family with transform(noise, phi), "
            f"got num_samples = {num_samples} and {type(family).__name__}"
        )
    if estimator == "analytic_entropy" and not hasattr(family, "entropy"):
        raise ValueError(f"estimator 'analytic_entropy' needs family.entropy, which {type(family).__name__} lacks")

    def integrand(z: Array, log_q: Array | None) -> Array:
        log_joint = model.log_joint(z, x)
        if estimator == "analytic_entropy":
            return log_joint + family.entropy(phi)
        if estimator == "sticking_the_landing" and hasattr(family, "log_prob"):
            # Same value as the total estimator; its gradient leaves out the score term, whose mean is zero, and so
            # has no noise at all where q equals the posterior.
            return log_joint - _stopped(family).log_prob(z, _stopped(phi))
        return log_joint - (family.log_prob(z, phi) if log_q is None else log_q)

    if hasattr(family, "support"):
        # Enumerated: every draw is the expectation itself, and so is its gradient.
        values = family.support()
        log_q = jax.vmap(lambda z: family.log_prob(z, phi))(values)
        log_joint = jax.vmap(lambda z: model.log_joint(z, x))(values)
        # Not exp(log_q): an annealed family states only a share of its log probabilities.
        return jnp.broadcast_to(jnp.sum(family.probabilities(phi) * (log_joint - log_q)), (num_samples,))
    if not hasattr(family, "transform"):
        return jax.vmap(lambda draw_key: integrand(*family.sample_and_log_prob(draw_key, phi)))(
            jax.random.split(key, num_samples)
        )
    # One block of noise for all draws: a key for each would double the random number generation to be compiled.
    count = num_samples // 2 if antithetic else num_samples
    noise = jax.random.normal(key, (count, family.noise_dim), phi.dtype)

    def draw(one: Array) -> Array:
        return integrand(family.transform(one, phi), None)

    if antithetic:
        return jax.vmap(lambda one: 0.5 * (draw(one) + draw(-one)))(noise)
    return jax.vmap(draw)(noise)


def _checked_datum(key: jax.Array, phi: Array, x: Any, *, model: Any, family: Any, num_samples: int) -> Any:
    """Return the datum as the model takes it, after the checks that all bounds share."""
    check_key(key)
    check_sizes(model, family)
    check_count("num_samples", num_samples)
    check_phi(phi, family)
    return check_datum(x, model)


def _stopped(tree: Any) -> Any:
    """Return the tree with no gradient through its arrays; a family may hold parameters that encoders share."""
    return jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if isinstance(leaf, jax.Array) else leaf, tree)


def elbo(
    key: jax.Array,
    phi: Float[Array, " size"],
    x: Any,
    *,
    model: Any,
    family: Any,
    num_samples: int,
    estimator: str = "sticking_the_landing",
    antithetic: bool = False,
) -> Float[Array, ""]:
    """Evidence lower bound of one datum, an unbiased Monte Carlo estimate.

    Formula: `ELBO(phi; x) = E_{q(z; phi)}[log p(x, z) - log q(z; phi)] = log p(x) - KL(q(z; phi) || p(z | x))`.

    Args:
      key: typed key of the draws.
      phi: variational parameters, [family.size].
      x: one datum.
      model: record with `log_joint(z, x)`.
      family: record with `size` and `sample_and_log_prob(key, phi)`.
      num_samples: number of draws S, at least one.
      estimator: "sticking_the_landing" (score term left out of the gradient, equal value), "analytic_entropy"
        (closed-form entropy in place of -log q) or "total" (plain reparameterised gradient).
      antithetic: use S / 2 pairs of mirrored noise.

    Returns:
      A scalar in nats.

    Raises:
      ValueError: key not typed, phi of another size, num_samples < 1, an unknown estimator, a model and family of
        different latent dimension, an x that is not finite or not one datum of the model, antithetic draws with an odd
        num_samples or a family without `transform`, or the analytic entropy of a family without `entropy`.

    Source: Kingma and Welling (2014), equation 7; Roeder, Wu and Duvenaud (2017) for sticking the landing.

    Example:
      At the exact posterior, N(1, 1/3) here, every single draw is log p(x).

      >>> import jax, jax.numpy as jnp, amortgap as ag
      >>> model = ag.models.FactorAnalysis(loadings=jnp.ones((2, 1)), mean=jnp.zeros(2), noise_variance=jnp.ones(2))
      >>> family = ag.families.MeanFieldNormal(1)
      >>> phi = family.from_moments(jnp.array([1.0]), jnp.array([[3**-0.5]]))
      >>> x = jnp.array([1.0, 2.0])
      >>> bound = ag.elbo(jax.random.key(0), phi, x, model=model, family=family, num_samples=1)
      >>> print(f"{bound:.4f}, exactly {model.log_evidence(x):.4f}")
      -3.3872, exactly -3.3872
    """
    draws = elbo_draws(
        key,
        phi,
        x,
        model=model,
        family=family,
        num_samples=num_samples,
        estimator=estimator,
        antithetic=antithetic,
    )
    return jnp.mean(draws)


def cubature_elbo(phi: Float[Array, " size"], x: Any, *, model: Any, family: Any) -> Float[Array, ""]:
    """ELBO of one datum by the third-degree spherical cubature rule: no draws, exact for log joints quadratic in z.

    Formula: `1/(2n) sum_j sum_{+-} log p(x, T(+-sqrt(n) e_j; phi)) + H[q]`, T the map from n standard normals to z and
    e_j the j-th unit vector. For other log joints it is an approximation of the ELBO and not a bound on log p(x).

    Args:
      phi, x, model: as in `elbo`.
      family: record with `noise_dim`, `transform(noise, phi)` affine in the noise, and `entropy(phi)`.

    Returns:
      A scalar in nats.

    Raises:
      ValueError: phi of another size, a family without `transform` and `entropy`, and as in `elbo`.

    Source: Arasaratnam and Haykin, "Cubature Kalman filters" (2009), section III.
    """
    _check_fixed_nodes(phi, model, family)
    points, weights = spherical_cubature(family.noise_dim)
    return _weighted_elbo(phi, x, jnp.asarray(points, phi.dtype), jnp.asarray(weights, phi.dtype), model, family)


def quadrature_elbo(
    phi: Float[Array, " size"], x: Any, *, model: Any, family: Any, num_nodes: int = 64
) -> Float[Array, ""]:
    """ELBO of one datum by Gauss-Hermite quadrature: no draws, for latents of at most three dimensions.

    Formula: `sum_j w_j log p(x, T(u_j; phi)) + H[q]`, u_j and w_j the product rule of the standard normal. Exact for
    log joints that are polynomials in z of degree below twice the nodes; for smooth ones the error falls exponentially.

    Args:
      phi, x, model, family: as in `cubature_elbo`.
      num_nodes: nodes of one axis, 2 to 128; the cost is num_nodes^d.

    Returns:
      A scalar in nats.

    Raises:
      ValueError: more than three dimensions, bad num_nodes, and as in `cubature_elbo`.

    Source: Liu and Pierce, "A note on Gauss-Hermite quadrature" (1994).
    """
    _check_fixed_nodes(phi, model, family)
    points, weights = gauss_hermite(num_nodes, family.noise_dim)
    return _weighted_elbo(phi, x, jnp.asarray(points, phi.dtype), jnp.asarray(weights, phi.dtype), model, family)


def _check_fixed_nodes(phi: Array, model: Any, family: Any) -> None:
    check_sizes(model, family)
    if not (hasattr(family, "transform") and hasattr(family, "entropy")):
        raise ValueError(f"fixed nodes need family.transform and family.entropy, {type(family).__name__} lacks one")
    check_phi(phi, family)


def _weighted_elbo(phi: Array, x: Any, points: Array, weights: Array, model: Any, family: Any) -> Array:
    x = check_datum(x, model)
    values = jax.vmap(lambda noise: model.log_joint(family.transform(noise, phi), x))(points)
    return jnp.sum(weights * values) + family.entropy(phi)


def iw_bound(
    key: jax.Array, phi: Float[Array, " size"], x: Any, *, model: Any, family: Any, num_samples: int
) -> Float[Array, ""]:
    """Importance-weighted lower bound of one datum.

    Formula: `log (1/S) sum_s p(x, z_s) / q(z_s; phi)`, `z_s ~ q(z; phi)`; its mean rises with S from the ELBO (S = 1)
    to log p(x).

    Args:
      key, phi, x, model, family: as in `elbo`.
      num_samples: number of draws S, at least one.

    Returns:
      A scalar in nats, in expectation a lower bound on log p(x).

    Raises:
      ValueError: as in `elbo`.

    Source: Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders" (2016), equation 8.
    """
    if hasattr(family, "support"):
        # What is enumerated has no weights; they are drawn here.
        x = _checked_datum(key, phi, x, model=model, family=family, num_samples=num_samples)

        def weigh(draw_key: jax.Array) -> Array:
            z, log_q = family.sample_and_log_prob(draw_key, phi)
            return model.log_joint(z, x) - log_q

        draws = jax.vmap(weigh)(jax.random.split(key, num_samples))
    else:
        draws = elbo_draws(key, phi, x, model=model, family=family, num_samples=num_samples, estimator="total")
    return jax.scipy.special.logsumexp(draws) - jnp.log(float(num_samples))


def bound(
    key: jax.Array | None,
    phi: Float[Array, " size"],
    x: Any,
    *,
    model: Any,
    family: Any,
    expectation: Expectation = MONTE_CARLO,
) -> Float[Array, ""]:
    """ELBO of one datum with the expectation taken as asked.

    Formula: `E_{q(z; phi)}[log p(x, z)] + H[q(z; phi)]`.

    Args:
      key: typed key of the draws; unused, and may be None, without Monte Carlo.
      phi, x, model, family: as in `elbo`.
      expectation: how the expectation is taken.

    Returns:
      A scalar in nats.

    Raises:
      ValueError: as in `elbo`, `cubature_elbo` and `quadrature_elbo`.

    Source: as in `elbo`, `cubature_elbo` and `quadrature_elbo`.
    """
    if expectation.method == "cubature":
        return cubature_elbo(phi, x, model=model, family=family)
    if expectation.method == "quadrature":
        return quadrature_elbo(phi, x, model=model, family=family, num_nodes=expectation.size)
    chosen = {"num_samples": expectation.size, "estimator": expectation.estimator}
    return elbo(key, phi, x, model=model, family=family, **chosen)  # pyright: ignore[reportArgumentType]
