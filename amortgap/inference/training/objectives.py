"""What an encoder may be trained on: `objective(key, encoder, x)`, one number to be raised, for one datum.

Each is a function of a model and a family that returns such an objective; `train_encoder` maximises its mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from amortgap._internal.checks import check_count, check_phi, check_positive, check_sizes
from amortgap.inference.training.shared_weights import encoder_elbo
from amortgap.objectives import iw_bound
from amortgap.protocols import Enumerable, HasDensity, Simulating

Objective = Callable[[jax.Array, Any, Any], Array]


def elbo_objective(*, model: Any, family: Any, num_samples: int = 1) -> Objective:
    """Return the ELBO of the encoder's output.

    Formula: `ELBO(encoder(x); x)`.

    Args:
      model, family: as in `elbo`.
      num_samples: draws per datum and step.

    Returns:
      Objective `(key, encoder, x) -> scalar` in nats, for `train_encoder`.

    Raises:
      ValueError: a model and family that do not fit, or num_samples < 1.

    Source: as in `elbo`.
    """
    check_sizes(model, family)
    check_count("num_samples", num_samples)

    def objective(key: jax.Array, encoder: Any, x: Any) -> Array:
        return encoder_elbo(key, encoder, x, model=model, family=family, num_samples=num_samples)

    return objective


def iwae_objective(*, model: Any, family: Any, num_samples: int, doubly_reparameterised: bool = True) -> Objective:
    """Return the importance-weighted bound of the encoder's output.

    Formula: `log (1/S) sum_s w_s`, `w_s = p(x, z_s) / q(z_s; encoder(x))`. The doubly reparameterised gradient is
    `sum_s (w_s / sum w)^2 (d log w_s / dz_s) (dz_s / dphi)`: unbiased, and its signal does not vanish as S grows.

    Args:
      model, family: as in `elbo`; the family needs `log_prob` for the doubly reparameterised gradient.
      num_samples: S.
      doubly_reparameterised: use that gradient and not the plain one of the bound.

    Returns:
      Objective `(key, encoder, x) -> scalar` in nats, for `train_encoder`.

    Raises:
      ValueError: a model and family that do not fit, num_samples < 1, a family with finite support, or, with the doubly
        reparameterised gradient, one without `log_prob`.

    Source: Burda, Grosse and Salakhutdinov (2016); Tucker et al., "Doubly reparameterized gradient estimators" (2019),
    equation 8.
    """
    check_sizes(model, family)
    check_count("num_samples", num_samples)
    if isinstance(family, Enumerable):
        raise ValueError(f"draws of {type(family).__name__} carry no gradient: train it on its ELBO, which is a sum")
    if doubly_reparameterised and not isinstance(family, HasDensity):
        raise ValueError(f"doubly reparameterised gradients need family.log_prob, {type(family).__name__} lacks it")

    def objective(key: jax.Array, encoder: Any, x: Any) -> Array:
        phi = encoder(x)
        if not doubly_reparameterised:
            return iw_bound(key, phi, x, model=model, family=family, num_samples=num_samples)
        check_phi(phi, family)

        def log_weight(draw_key: jax.Array) -> Array:
            z, _ = family.sample_and_log_prob(draw_key, phi)
            return model.log_joint(z, x) - family.log_prob(z, jax.lax.stop_gradient(phi))

        log_weights = jax.vmap(log_weight)(jax.random.split(key, num_samples))
        bound = jax.scipy.special.logsumexp(log_weights) - jnp.log(float(num_samples))
        shares = jax.lax.stop_gradient(jax.nn.softmax(log_weights))
        surrogate = jnp.sum(shares**2 * log_weights)
        return jax.lax.stop_gradient(bound - surrogate) + surrogate

    return objective


def sleep_objective(*, model: Any, family: Any) -> Objective:
    """Return the log density of the latent behind a simulated datum: forward KL, the sleep phase.

    Formula: `log q(z; encoder(x'))`, `(z, x') ~ p`; its maximum over encoders minimises
    `E_p(x)[KL(p(z | x) || q(z | x))]`. The datum x is not used.

    Args:
      model: record with `sample(key)`, which returns z [d] and one datum.
      family: record with `log_prob(z, phi)`.

    Returns:
      Objective `(key, encoder, x) -> scalar` in nats, for `train_encoder`.

    Raises:
      ValueError: a model without `sample`, a family without `log_prob`, or sizes that do not fit.

    Source: Hinton et al., "The wake-sleep algorithm" (1995); Bornschein and Bengio (2015).
    """
    check_sizes(model, family)
    if not (isinstance(model, Simulating) and isinstance(family, HasDensity)):
        raise ValueError(
            f"sleep needs model.sample and family.log_prob, got {type(model).__name__} and {type(family).__name__}"
        )

    def objective(key: jax.Array, encoder: Any, x: Any) -> Array:
        z, simulated = model.sample(key)
        phi = encoder(simulated)
        check_phi(phi, family)
        return family.log_prob(z, phi)

    return objective


def reverse_half_asleep_objective(*, model: Any, family: Any, num_samples: int = 1) -> Objective:
    """Return the mean of the ELBOs at the datum and at one simulated by the model: the encoder sees more than the data.

    Formula: `1/2 ELBO(encoder(x); x) + 1/2 ELBO(encoder(x'); x')`, `x' ~ p(x)`.

    Args:
      model: as in `elbo`, with `sample(key)`.
      family: as in `elbo`.
      num_samples: draws for each of the two ELBOs.

    Returns:
      Objective `(key, encoder, x) -> scalar` in nats, for `train_encoder`.

    Raises:
      ValueError: a model without `sample`, or as in `elbo_objective`.

    Source: Zhang, Hayes and Barber, "Generalization gap in amortized inference" (2022), section 4.
    """
    awake = elbo_objective(model=model, family=family, num_samples=num_samples)
    if not isinstance(model, Simulating):
        raise ValueError(f"reverse half-asleep needs model.sample, which {type(model).__name__} lacks")

    def objective(key: jax.Array, encoder: Any, x: Any) -> Array:
        key_awake, key_sample, key_asleep = jax.random.split(key, 3)
        _, simulated = model.sample(key_sample)
        return 0.5 * awake(key_awake, encoder, x) + 0.5 * awake(key_asleep, encoder, simulated)

    return objective


def denoising_objective(*, model: Any, family: Any, noise_scale: float, num_samples: int = 1) -> Objective:
    """Return the ELBO at x of what the encoder makes of x with noise: a smoother encoder.

    Formula: `ELBO(encoder(x + noise_scale * e); x)`, `e ~ N(0, I)`.

    Args:
      model, family: as in `elbo`; the datum x is one array.
      noise_scale: standard deviation of the noise, positive, in the units of x.
      num_samples: draws per datum and step.

    Returns:
      Objective `(key, encoder, x) -> scalar` in nats, for `train_encoder`.

    Raises:
      ValueError: a noise scale that is not positive, or as in `elbo_objective`.

    Source: Shu et al., "Amortized inference regularization" (2018), section 3.
    """
    check_positive("noise_scale", noise_scale)
    check_sizes(model, family)
    check_count("num_samples", num_samples)

    def objective(key: jax.Array, encoder: Any, x: Any) -> Array:
        key_noise, key_draws = jax.random.split(key)
        noisy = x + noise_scale * jax.random.normal(key_noise, jnp.shape(x), jnp.asarray(x).dtype)
        return encoder_elbo(key_draws, encoder, x, model=model, family=family, seen=noisy, num_samples=num_samples)

    return objective
