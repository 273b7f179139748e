"""Iterative amortized inference: a network that proposes updates from the current phi and its gradient."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from amortgap._internal.checks import check_count, check_data, check_key, check_sizes
from amortgap._internal.records import checked_record
from amortgap.encoders.basic import OUTPUT_SCALE
from amortgap.inference.refinement.refine import climbed_elbo
from amortgap.inference.training.encoder import EncoderFit, maximise
from amortgap.networks import Network, count_weights, dense
from amortgap.objectives import elbo
from amortgap.protocols import Family, HasEntropy, Model, Reparameterised


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
      num_iterations: T.
      gradient_samples: draws per gradient, always the same ones; 0 for the cubature rule.
    """

    network: Network
    start: Float[Array, " size"]
    model: Model
    family: Family
    num_iterations: int = field(metadata={"static": True})
    gradient_samples: int = field(metadata={"static": True})

    def path(self, x: Any) -> Float[Array, "iterations size"]:
        """Return phi before and after every iteration for one datum."""
        model, key = jax.lax.stop_gradient(self.model), jax.random.key(0)

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

    def __call__(self, x: Any) -> Float[Array, " size"]:
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
      key: typed key of the initial weights.
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
    return IterativeEncoder(network, family.standard(), model, family, num_iterations, gradient_samples)


def iterative_amortized_vi(
    key: jax.Array,
    xs: Any,
    *,
    model: Model,
    family: Family,
    num_iterations: int = 5,
    width: int = 64,
    gradient_samples: int = 0,
    num_steps: int = 2000,
    batch_size: int = 100,
    num_samples: int = 1,
    learning_rate: float = 3e-3,
) -> EncoderFit:
    """Train an iterative encoder on the ELBOs of all its iterations.

    Formula: `max_w (1/N) sum_i (1/T) sum_{t=1..T} ELBO(phi_t(x_i); x_i)`.

    Args:
      key: typed key.
      xs: data.
      model, family: as in `elbo`.
      num_iterations, width: T and the hidden units of the update network.
      gradient_samples: draws per gradient that the network reads; 0 for the cubature rule.
      num_steps, batch_size, num_samples, learning_rate: of Adam, as in `train_encoder`.

    Returns:
      EncoderFit, its encoder an `IterativeEncoder`.

    Raises:
      ValueError: bad key, data, sizes or settings.

    Source: Marino, Yue and Mandt, "Iterative amortized inference" (2018), equation 6 and algorithm 1.
    """
    check_key(key)
    xs = check_data("xs", xs, model)
    check_count("num_samples", num_samples)
    key_weights, key_train = jax.random.split(key)
    encoder = iterative_encoder(
        key_weights, model=model, family=family, num_iterations=num_iterations, width=width,
        gradient_samples=gradient_samples,
    )  # fmt: skip

    def objective(key: jax.Array, params: Any, x: Any) -> tuple[Array, Array]:
        def bound(phi: Array) -> Array:
            return elbo(key, phi, x, model=model, family=family, num_samples=num_samples)

        return jnp.mean(jax.vmap(bound)(params[0].path(x)[1:])), jnp.asarray(0)

    return maximise(
        key_train, xs, (encoder,), objective, num_steps=num_steps, batch_size=batch_size, learning_rate=learning_rate,
        model=model,
    )  # fmt: skip
