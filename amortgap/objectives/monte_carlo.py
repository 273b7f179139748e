"""Bounds on log p(x) by Monte Carlo: the log weight, and the ELBO and the importance-weighted bound made of it."""

from __future__ import annotations

from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from amortgap._internal.checks import check_choice, check_count, check_datum, check_key, check_phi, check_sizes
from amortgap.expectations import ESTIMATORS
from amortgap.protocols import Datum, Enumerable, Family, HasDensity, HasEntropy, Model, Reparameterised

Tree = TypeVar("Tree")


def log_weight(
    z: Float[Array, " d"],
    x: Datum,
    phi: Float[Array, " size"],
    *,
    model: Model,
    family: Family,
    log_q: Float[Array, ""] | None = None,
) -> Float[Array, ""]:
    """Log weight of one latent against one datum, whose mean under q is the ELBO.

    Formula: `log w(z) = log p(x, z) - log q(z; phi)`; `E_q[log w]` is the ELBO, `log E_q[w]` is log p(x).

    Args:
      z: one latent, [d].
      x: one datum.
      phi: variational parameters, [family.size].
      model, family: as in `elbo`.
      log_q: `log q(z; phi)` where the caller has it, as `sample_and_log_prob` returns it; needed for families without
        `log_prob`.

    Returns:
      A scalar in nats.

    Raises:
      ValueError: z or phi of another size, an x that is not one datum of the model, or a family without `log_prob`
        where log_q is not given.

    Example:
      At the exact posterior, N(1, 1/3) here, the weight of every latent is p(x).

      >>> import jax.numpy as jnp, amortgap as ag
      >>> model = ag.models.FactorAnalysis(loadings=jnp.ones((2, 1)), mean=jnp.zeros(2), noise_variance=jnp.ones(2))
      >>> family, x = ag.families.MeanFieldNormal(1), jnp.array([1.0, 2.0])
      >>> phi = family.from_moments(jnp.array([1.0]), jnp.array([[3**-0.5]]))
      >>> weights = [ag.log_weight(jnp.array([z]), x, phi, model=model, family=family) for z in (0.0, 5.0)]
      >>> print(*(f"{weight:.4f}" for weight in weights))
      -3.3872 -3.3872
    """
    check_sizes(model, family)
    check_phi(phi, family)
    x = check_datum(x, model)
    if jnp.shape(z) != (model.latent_dim,):
        raise ValueError(f"z must be one latent of shape ({model.latent_dim},), got {jnp.shape(z)}")
    if log_q is None:
        if not isinstance(family, HasDensity):
            raise ValueError(f"log_weight needs family.log_prob, which {type(family).__name__} lacks, or log_q")
        log_q = family.log_prob(z, phi)
    return model.log_joint(z, x) - log_q


def log_weights(
    key: jax.Array, phi: Float[Array, " size"], x: Datum, *, model: Model, family: Family, num_samples: int
) -> Float[Array, " num_samples"]:
    """Return the log weights of independent draws from q.

    Formula: `log w(z_s)` of `log_weight`, `z_s ~ q(z; phi)`, s = 1..S.

    Args:
      key, phi, x, model, family, num_samples: as in `elbo`.

    Returns:
      Log weights in nats, [num_samples].

    Raises:
      ValueError: as in `elbo`.
    """
    x = _checked_datum(key, phi, x, model=model, family=family, num_samples=num_samples)

    def weigh(z: Array, log_q: Array | None) -> Array:
        return log_weight(z, x, phi, model=model, family=family, log_q=log_q)

    if isinstance(family, Reparameterised):
        noise = _noise(key, num_samples, phi, family)
        return jax.vmap(lambda one: weigh(family.transform(one, phi), None))(noise)
    keys = jax.random.split(key, num_samples)
    return jax.vmap(lambda draw_key: weigh(*family.sample_and_log_prob(draw_key, phi)))(keys)


def log_mean_exp(log_values: Float[Array, " n"]) -> Float[Array, ""]:
    """Return `log (1/n) sum_s exp(l_s)` of the n numbers l_s in `log_values`, without overflow."""
    return jax.scipy.special.logsumexp(log_values) - jnp.log(float(log_values.size))


def elbo_draws(
    key: jax.Array,
    phi: Float[Array, " size"],
    x: Datum,
    *,
    model: Model,
    family: Family,
    num_samples: int,
    estimator: str = "sticking_the_landing",
    antithetic: bool = False,
    entropy_weight: float | Array = 1.0,
    density_phi: Float[Array, " size"] | None = None,
) -> Float[Array, " draws"]:
    """Return independent unbiased draws whose mean is the ELBO of one datum.

    Formula: draw s is the log weight `log p(x, z_s) - w log q(z_s; phi)`, `z_s ~ q(z; phi)`, with w = 1 for the ELBO;
    with the analytic entropy it is `log p(x, z_s) + w H[q]`. Antithetic draws are means over the pair of noise and
    mirrored noise. For an enumerable family every draw is the ELBO itself, a sum over its values; for a family without
    `log_prob` (auxiliary variables) sticking the landing is the total gradient.

    Args:
      key, phi, x, model, family, num_samples, estimator, antithetic, entropy_weight: as in `elbo`.
      density_phi: parameters whose log density is stated at the draws of `phi`, where they are to be varied apart;
        only with the estimator "total" and a family with `log_prob`.

    Returns:
      The draws in nats, [num_samples] ([num_samples / 2] if antithetic).

    Raises:
      ValueError: as in `elbo`.

    Source: as in `elbo`.
    """
    x = _checked_datum(key, phi, x, model=model, family=family, num_samples=num_samples)
    check_choice("estimator", estimator, ESTIMATORS)
    if antithetic and (num_samples % 2 or not isinstance(family, Reparameterised)):
        raise ValueError(
            "antithetic draws need an even num_samples and a family with transform(noise, phi), "
            f"got num_samples = {num_samples} and {type(family).__name__}"
        )
    if estimator == "analytic_entropy" and not isinstance(family, HasEntropy):
        raise ValueError(f"estimator 'analytic_entropy' needs family.entropy, which {type(family).__name__} lacks")
    if density_phi is not None and (estimator != "total" or not isinstance(family, HasDensity)):
        raise ValueError("density_phi needs the estimator 'total' and a family with log_prob(z, phi)")
    weigh = partial(log_weight, x=x, phi=phi, model=model, family=family)

    if isinstance(family, Enumerable):
        # Every draw is the expectation itself, and so is its gradient.
        values = family.support()
        log_q = entropy_weight * jax.vmap(lambda z: family.log_prob(z, phi))(values)
        terms = jax.vmap(lambda z, stated: weigh(z, log_q=stated))(values, log_q)
        return jnp.broadcast_to(jnp.sum(family.probabilities(phi) * terms), (num_samples,))

    def integrand(z: Array, log_q: Array | None) -> Array:
        if estimator == "analytic_entropy" and isinstance(family, HasEntropy):
            return weigh(z, log_q=-entropy_weight * family.entropy(phi))
        if isinstance(family, HasDensity):
            if estimator == "sticking_the_landing":
                # Same value as the total estimator; its gradient leaves out the score term, whose mean is zero, and
                # so has no noise at all where q equals the posterior.
                log_q = _stopped(family).log_prob(z, _stopped(phi))
            elif log_q is None or density_phi is not None:
                log_q = family.log_prob(z, phi if density_phi is None else density_phi)
        assert log_q is not None
        return weigh(z, log_q=entropy_weight * log_q)

    if not isinstance(family, Reparameterised):
        return jax.vmap(lambda draw_key: integrand(*family.sample_and_log_prob(draw_key, phi)))(
            jax.random.split(key, num_samples)
        )

    def draw(noise: Array) -> Array:
        return integrand(family.transform(noise, phi), None)

    if antithetic:
        noise = _noise(key, num_samples // 2, phi, family)
        return jax.vmap(lambda one: 0.5 * (draw(one) + draw(-one)))(noise)
    return jax.vmap(draw)(_noise(key, num_samples, phi, family))


def _noise(key: jax.Array, count: int, phi: Array, family: Reparameterised) -> Array:
    """Return one block of noise for all draws: a key for each would double the random numbers to be compiled."""
    return jax.random.normal(key, (count, family.noise_dim), phi.dtype)


def _checked_datum(key: jax.Array, phi: Array, x: Datum, *, model: Model, family: Family, num_samples: int) -> Datum:
    """Return the datum as the model takes it, after the checks that all bounds share."""
    check_key(key)
    check_sizes(model, family)
    check_count("num_samples", num_samples)
    check_phi(phi, family)
    return check_datum(x, model)


def _stopped(tree: Tree) -> Tree:
    """Return the tree with no gradient through its arrays; a family may hold parameters that encoders share."""
    return jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if isinstance(leaf, jax.Array) else leaf, tree)


def elbo(
    key: jax.Array,
    phi: Float[Array, " size"],
    x: Datum,
    *,
    model: Model,
    family: Family,
    num_samples: int,
    estimator: str = "sticking_the_landing",
    antithetic: bool = False,
    entropy_weight: float | Array = 1.0,
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
      entropy_weight: w in `E_q[log p(x, z) - w log q(z; phi)]`; a w below one warms up the training of a VAE, and the
        result is a bound on log p(x) for w = 1 only.

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
        entropy_weight=entropy_weight,
    )
    return jnp.mean(draws)


def iw_bound(
    key: jax.Array, phi: Float[Array, " size"], x: Datum, *, model: Model, family: Family, num_samples: int
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
    # Enumerable families too are drawn from: their ELBO is a sum, which has no weights.
    draws = log_weights(key, phi, x, model=model, family=family, num_samples=num_samples)
    return log_mean_exp(draws)
