"""Iterative amortized inference: a network that proposes updates from the current phi and its gradient."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from amortgap._internal.checks import check_count, check_key, check_sizes
from amortgap._internal.records import checked_record
from amortgap.encoders.basic import OUTPUT_SCALE
from amortgap.inference.refinement.refine import climbed_elbo
from amortgap.inference.training.certificate import TOLERANCE
from amortgap.inference.training.encoder import train_encoder
from amortgap.inference.training.objectives import ElboObjective
from amortgap.inference.training.records import AmortizedFit
from amortgap.networks import Network, count_weights, dense
from amortgap.protocols import Data, Datum, Family, HasEntropy, Model, Reparameterised


@checked_record
@dataclass(frozen=True)
class IterativeEncoder:
    """An encoder that improves one phi step by step with a learned optimiser; made by `iterative_encoder`.

    Formula: `phi_{t+1} = g phi_t + (1 - g) (phi_t + u)`, `[u, logit g] = network([phi_t, asinh(grad ELBO(phi_t; x))])`.
    The network never sees x but through the gradient, so that its size does not grow with the data's.

    Attributes:
      network: from [2 size] to [2 size], trained.
      start: phi_0, [size], trained.
      model: whose gradients it reads, a constant here.
      family: variational family.
      seed: whole number below 2^24, a constant, that fixes the draws of the gradients of all data.
      num_iterations: T.
      gradient_samples: draws per gradient, always the same ones; 0 for the cubature rule.
    """

    network: Network
    start: Float[Array, " size"]
    model: Model
    family: Family
    seed: Float[Array, ""]
    num_iterations: int = field(metadata={"static": True})
    gradient_samples: int = field(metadata={"static": True})

    def path(self, x: Datum) -> Float[Array, "iterations size"]:
        """Return phi before and after every iteration for one datum."""
        model = jax.lax.stop_gradient(self.model)
        key = jax.random.key(jax.lax.stop_gradient(self.seed).astype(jnp.uint32))

        def step(phi: Array, index: Array) -> tuple[Array, Array]:
            here = jax.lax.stop_gradient(phi)
            step_key = jax.random.fold_in(key, index)
            _, gradient = climbed_elbo(step_key, here, x, model, self.family, self.gradient_samples)
            # Gradients range over orders of magnitude; asinh is linear near zero and logarithmic far off.
            update, gate = jnp.split(self.network(jnp.concatenate([phi, jnp.arcsinh(gradient)])), 2)
            new = phi + jax.nn.sigmoid(-gate) * update
            return new, new

        _, rest = jax.lax.scan(step, self.start, jnp.arange(self.num_iterations))
        return jnp.concatenate([self.start[None], rest])

    def __call__(self, x: Datum) -> Float[Array, " size"]:
        """Return phi after the last iteration for one datum."""
        return self.path(x)[-1]

    @property
    def num_weights(self) -> int:
        """Number of trained scalars."""
        return count_weights((self.network, self.start))


def iterative_encoder(
    key: jax.Array, *, model: Model, family: Family, num_iterations: int = 5, width: int = 64, gradient_samples: int = 0
) -> IterativeEncoder:
    """Return an untrained iterative encoder with one hidden layer.

    Formula: as in `IterativeEncoder`, with phi_0 the family's standard member.

    Args:
      key: typed key of the initial weights and of the draws of the gradients.
      model, family: as in `elbo`; the cubature rule needs a normal family.
      num_iterations: T.
      width: hidden units of the network.
      gradient_samples: draws per gradient; 0 for the cubature rule.

    Returns:
      IterativeEncoder, from one datum to phi [family.size].

    Raises:
      ValueError: bad key, sizes that do not fit or are not positive, or cubature with a family that lacks what it
        needs.

    Source: Marino, Yue and Mandt, "Iterative amortized inference" (2018), equation 6.
    """
    check_sizes(model, family)
    check_count("num_iterations", num_iterations)
    check_count("width", width)
    check_count("gradient_samples", gradient_samples, minimum=0)
    if gradient_samples == 0 and not (isinstance(family, Reparameterised) and isinstance(family, HasEntropy)):
        raise ValueError(
            f"gradient_samples must be positive for {type(family).__name__}, which cubature cannot integrate"
        )
    network = dense(key, (2 * family.size, width, 2 * family.size), output_scale=OUTPUT_SCALE)
    # A floating number, so that all leaves are of the kind that optimisers take; it has no gradient and stays.
    seed = jax.random.randint(jax.random.fold_in(key, 1), (), 0, 2**24).astype(jnp.zeros(()).dtype)
    return IterativeEncoder(network, family.standard(), model, family, seed, num_iterations, gradient_samples)


def iterative_amortized_vi(
    key: jax.Array,
    xs: Data,
    *,
    model: Model,
    family: Family,
    num_iterations: int = 5,
    width: int = 64,
    gradient_samples: int = 0,
    num_steps: int = 2000,
    batch_size: int = 100,
    num_samples: int = 1,
    learning_rate: float | Array = 3e-3,
    tolerance: float = TOLERANCE,
) -> AmortizedFit:
    """Train an iterative encoder on the ELBOs of all its iterations.

    Formula: `max_w (1/N) sum_i (1/T) sum_{t=1..T} ELBO(phi_t(x_i); x_i)`.

    Args:
      key: typed key.
      xs: data.
      model, family: as in `elbo`.
      num_iterations, width: T and the hidden units of the update network.
      gradient_samples: draws per gradient that the network reads; 0 for the cubature rule.
      num_steps, batch_size, num_samples, learning_rate, tolerance: as in `amortized_vi`, with Adam.

    Returns:
      AmortizedFit, its encoder an `IterativeEncoder`.

    Raises:
      ValueError: bad key, data, sizes or settings.

    Source: Marino, Yue and Mandt, "Iterative amortized inference" (2018), equation 6 and algorithm 1.
    """
    check_key(key)
    check_count("num_samples", num_samples)
    key_weights, key_train = jax.random.split(key)
    encoder = iterative_encoder(
        key_weights,
        model=model,
        family=family,
        num_iterations=num_iterations,
        width=width,
        gradient_samples=gradient_samples,
    )
    return train_encoder(
        key_train,
        xs,
        encoder=encoder,
        objective=_MeanOverIterations(ElboObjective(model, family, num_samples)),
        model=model,
        num_steps=num_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        tolerance=tolerance,
    )


@checked_record
@dataclass(frozen=True)
class _MeanOverIterations:
    bound: ElboObjective

    def __call__(self, key: jax.Array, encoder: IterativeEncoder, x: Datum) -> Float[Array, ""]:
        path = encoder.path(x)[1:]
        return jnp.mean(jax.vmap(lambda phi: self.bound(key, lambda _: phi, x))(path))
