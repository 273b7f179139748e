"""What an encoder may be trained on: `objective(key, encoder, x)`, one number to be raised, for one datum.

Each is a function of a model and a family that returns such an objective; `train_encoder` maximises its mean. The
objectives are pytrees whose leaves are the arrays of the model and the family, so that new weights do not retrace.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from amortgap._internal.checks import check_count, check_phi, check_positive, check_sizes
from amortgap._internal.records import checked_record
from amortgap.encoders import SharedFlowEncoder
from amortgap.families import FixedWeights
from amortgap.families.flows.head import Flow
from amortgap.objectives import elbo, iw_bound, log_mean_exp, log_weight
from amortgap.protocols import Datum, Encoder, Enumerable, Family, HasDensity, Model, Simulating


@runtime_checkable
class EncoderObjective(Protocol):
    """A function of an encoder and one datum that training raises: a pytree, or a plain function without arrays."""

    def __call__(self, key: jax.Array, encoder: Any, x: Datum, /) -> Array:
        """Return the objective of one datum, a scalar in nats."""
        ...


def without_copies(encoder: Encoder, family: Family) -> tuple[Encoder, Family]:
    """Return an equal encoder and family that do not copy shared flow weights for every datum.

    `vmap` over data of `[head(x), weights]` would, and multiply every copy with its datum alone.
    """
    if not (isinstance(encoder, SharedFlowEncoder) and isinstance(family, Flow)):
        return encoder, family
    return encoder.head, FixedWeights(family, encoder.weights)


@checked_record
@dataclass(frozen=True)
class ElboObjective:
    """The ELBO of an encoder's output, by draws; made by `elbo_objective`.

    Attributes:
      model: Model; None where it is trained too and replaced at every step.
      family: variational family.
      num_samples, estimator, antithetic: as in `elbo`.
    """

    model: Model | None
    family: Family
    num_samples: int = field(metadata={"static": True})
    estimator: str = field(default="sticking_the_landing", metadata={"static": True})
    antithetic: bool = field(default=False, metadata={"static": True})

    def __call__(self, key: jax.Array, encoder: Encoder, x: Datum) -> Float[Array, ""]:
        """Return `ELBO(encoder(x); x)` in nats."""
        return self.seeing(key, encoder, x, x)

    def seeing(
        self, key: jax.Array, encoder: Encoder, seen: Datum, x: Datum, *, entropy_weight: float | Array = 1.0
    ) -> Float[Array, ""]:
        """Return `ELBO(encoder(seen); x)` in nats, with the entropy weighted."""
        assert self.model is not None
        encoder, family = without_copies(encoder, self.family)
        return elbo(
            key,
            encoder(seen),
            x,
            model=self.model,
            family=family,
            num_samples=self.num_samples,
            estimator=self.estimator,
            antithetic=self.antithetic,
            entropy_weight=entropy_weight,
        )


def elbo_objective(*, model: Model, family: Family, num_samples: int = 1) -> EncoderObjective:
    """Return the ELBO of the encoder's output.

    Formula: `ELBO(encoder(x); x)`.

    Args:
      model, family: as in `elbo`.
      num_samples: draws per datum and step.

    Returns:
      EncoderObjective `(key, encoder, x) -> scalar` in nats, for `train_encoder`.

    Raises:
      ValueError: a model and family that do not fit, or num_samples < 1.

    Source: as in `elbo`.
    """
    check_sizes(model, family)
    check_count("num_samples", num_samples)
    return ElboObjective(model, family, num_samples)


@checked_record
@dataclass(frozen=True)
class _ImportanceWeighted:
    model: Model
    family: Family
    num_samples: int = field(metadata={"static": True})
    doubly_reparameterised: bool = field(metadata={"static": True})

    def __call__(self, key: jax.Array, encoder: Encoder, x: Datum) -> Float[Array, ""]:
        phi, model, family = encoder(x), self.model, self.family
        if not (self.doubly_reparameterised and isinstance(family, HasDensity)):
            return iw_bound(key, phi, x, model=model, family=family, num_samples=self.num_samples)
        check_phi(phi, family)
        stopped = jax.lax.stop_gradient(phi)

        def weigh(draw_key: jax.Array) -> Array:
            z, _ = family.sample_and_log_prob(draw_key, phi)
            return log_weight(z, x, stopped, model=model, family=family)

        log_weights = jax.vmap(weigh)(jax.random.split(key, self.num_samples))
        shares = jax.lax.stop_gradient(jax.nn.softmax(log_weights))
        # Its gradient is the doubly reparameterised one; its value is replaced by that of the bound.
        surrogate = jnp.sum(shares**2 * log_weights)
        return jax.lax.stop_gradient(log_mean_exp(log_weights) - surrogate) + surrogate


def iwae_objective(
    *, model: Model, family: Family, num_samples: int, doubly_reparameterised: bool = True
) -> EncoderObjective:
    """Return the importance-weighted bound of the encoder's output.

    Formula: `log (1/S) sum_s w_s`, `w_s = p(x, z_s) / q(z_s; encoder(x))`. The doubly reparameterised gradient is
    `sum_s (w_s / sum w)^2 (d log w_s / dz_s) (dz_s / dphi)`: unbiased, and its signal does not vanish as S grows.

    Args:
      model, family: as in `elbo`; the family needs `log_prob` for the doubly reparameterised gradient.
      num_samples: S.
      doubly_reparameterised: use that gradient and not the plain one of the bound.

    Returns:
      EncoderObjective `(key, encoder, x) -> scalar` in nats, for `train_encoder`.

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

    return _ImportanceWeighted(model, family, num_samples, doubly_reparameterised)


@checked_record
@dataclass(frozen=True)
class _Sleep:
    model: Simulating
    family: HasDensity

    def __call__(self, key: jax.Array, encoder: Encoder, x: Datum) -> Float[Array, ""]:
        z, simulated = self.model.sample(key)
        phi = encoder(simulated)
        check_phi(phi, self.family)
        return self.family.log_prob(z, phi)


def sleep_objective(*, model: Model, family: Family) -> EncoderObjective:
    """Return the log density of the latent behind a simulated datum: forward KL, the sleep phase.

    Formula: `log q(z; encoder(x'))`, `(z, x') ~ p`; its maximum over encoders minimises
    `E_p(x)[KL(p(z | x) || q(z | x))]`. The datum x is not used.

    Args:
      model: record with `sample(key)`, which returns z [d] and one datum.
      family: record with `log_prob(z, phi)`.

    Returns:
      EncoderObjective `(key, encoder, x) -> scalar` in nats, for `train_encoder`.

    Raises:
      ValueError: a model without `sample`, a family without `log_prob`, or sizes that do not fit.

    Source: Hinton et al., "The wake-sleep algorithm" (1995); Bornschein and Bengio (2015).
    """
    check_sizes(model, family)
    if not (isinstance(model, Simulating) and isinstance(family, HasDensity)):
        raise ValueError(
            f"sleep needs model.sample and family.log_prob, got {type(model).__name__} and {type(family).__name__}"
        )

    return _Sleep(model, family)


@checked_record
@dataclass(frozen=True)
class _ReverseHalfAsleep:
    model: Simulating
    awake: EncoderObjective

    def __call__(self, key: jax.Array, encoder: Encoder, x: Datum) -> Float[Array, ""]:
        key_awake, key_sample, key_asleep = jax.random.split(key, 3)
        _, simulated = self.model.sample(key_sample)
        return 0.5 * self.awake(key_awake, encoder, x) + 0.5 * self.awake(key_asleep, encoder, simulated)


def reverse_half_asleep_objective(*, model: Model, family: Family, num_samples: int = 1) -> EncoderObjective:
    """Return the mean of the ELBOs at the datum and at one simulated by the model: the encoder sees more than the data.

    Formula: `1/2 ELBO(encoder(x); x) + 1/2 ELBO(encoder(x'); x')`, `x' ~ p(x)`.

    Args:
      model: as in `elbo`, with `sample(key)`.
      family: as in `elbo`.
      num_samples: draws for each of the two ELBOs.

    Returns:
      EncoderObjective `(key, encoder, x) -> scalar` in nats, for `train_encoder`.

    Raises:
      ValueError: a model without `sample`, or as in `elbo_objective`.

    Source: Zhang, Hayes and Barber, "Generalization gap in amortized inference" (2022), section 4.
    """
    awake = elbo_objective(model=model, family=family, num_samples=num_samples)
    if not isinstance(model, Simulating):
        raise ValueError(f"reverse half-asleep needs model.sample, which {type(model).__name__} lacks")

    return _ReverseHalfAsleep(model, awake)


@checked_record
@dataclass(frozen=True)
class _Denoising:
    bound: ElboObjective
    noise_scale: float | Array

    def __call__(self, key: jax.Array, encoder: Encoder, x: Datum) -> Float[Array, ""]:
        key_noise, key_draws = jax.random.split(key)
        noise = jax.random.normal(key_noise, jnp.shape(x), jnp.asarray(x).dtype)
        return self.bound.seeing(key_draws, encoder, x + self.noise_scale * noise, x)


def denoising_objective(*, model: Model, family: Family, noise_scale: float, num_samples: int = 1) -> EncoderObjective:
    """Return the ELBO at x of what the encoder makes of x with noise: a smoother encoder.

    Formula: `ELBO(encoder(x + noise_scale * e); x)`, `e ~ N(0, I)`.

    Args:
      model, family: as in `elbo`; the datum x is one array.
      noise_scale: standard deviation of the noise, positive, in the units of x.
      num_samples: draws per datum and step.

    Returns:
      EncoderObjective `(key, encoder, x) -> scalar` in nats, for `train_encoder`.

    Raises:
      ValueError: a noise scale that is not positive, or as in `elbo_objective`.

    Source: Shu et al., "Amortized inference regularization" (2018), section 3.
    """
    check_positive("noise_scale", noise_scale)
    check_sizes(model, family)
    check_count("num_samples", num_samples)

    return _Denoising(ElboObjective(model, family, num_samples), noise_scale)
