"""A mixture of encoders grown one component at a time, evaluated in a single pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from amortgap._internal.checks import check_count, check_data, check_encoder, check_key, check_sizes, first_row
from amortgap._internal.records import checked_record
from amortgap.families import FlowHead, MixtureOfNormals
from amortgap.inference.training.certificate import TOLERANCE
from amortgap.inference.training.encoder import train_encoder
from amortgap.inference.training.records import AmortizedFit
from amortgap.objectives import elbo
from amortgap.protocols import Data, Datum, Encoder, Model


@checked_record
@dataclass(frozen=True)
class MixtureEncoder:
    """Encoders whose outputs are the components of one mixture; made by `recursive_mixture`.

    Formula: `phi = [logits, means, log scales]` of `MixtureOfNormals`, component k from `[mean, log scale, logit]` of
    encoder k.

    Attributes:
      components: encoders from one datum to [2 d + 1], trained.
    """

    components: tuple[Any, ...]

    def __call__(self, x: Datum) -> Float[Array, " size"]:
        """Return phi of the mixture for one datum."""
        return _assembled(jnp.stack([component(x) for component in self.components]))

    @property
    def num_weights(self) -> int:
        """Number of trained scalars."""
        return sum(component.num_weights for component in self.components)


def _assembled(parts: Float[Array, "K part"]) -> Float[Array, " size"]:
    d = parts.shape[1] // 2
    return jnp.concatenate([parts[:, -1], parts[:, :d].ravel(), parts[:, d : 2 * d].ravel()])


def recursive_mixture(
    key: jax.Array,
    xs: Data,
    *,
    model: Model,
    encoders: Sequence[Encoder],
    num_cycles: int = 1,
    num_steps: int = 1000,
    batch_size: int = 100,
    num_samples: int = 4,
    learning_rate: float | Array = 3e-3,
    tolerance: float = TOLERANCE,
) -> AmortizedFit:
    """Train a mixture of encoders, adding components one by one to what the others leave.

    Formula: stage m maximises `(1/N) sum_i ELBO((1 - a_m) Q_{m-1} + a_m q_m; x_i)` over the encoder of component m, its
    weight a_m(x) included, all others held fixed; further cycles visit the components again.

    Args:
      key: typed key.
      xs: data.
      model: as in `elbo`, with d latent dimensions.
      encoders: untrained encoders of the K components, each with output `[mean, log scale, logit]` [2 d + 1], such as
        `mlp(key, in_dim, FlowHead(d, 2 * d + 1))`.
      num_cycles: visits of every component after it has been added, the first included.
      num_steps, batch_size, num_samples, learning_rate, tolerance: as in `amortized_vi`, with Adam, for every visit.

    Returns:
      AmortizedFit for the family `MixtureOfNormals(d, K)`. Its trace, change and certificate are those of the last
      visit, which trains one component; `finite` and `num_steps` are those of all visits.

    Raises:
      ValueError: bad key, data, sizes or settings, such as no encoders.

    Source: Kim and Pavlovic, "Recursive inference for variational autoencoders" (2020), algorithm 1; here every stage
    maximises the ELBO of the mixture itself, which needs no bound on the divergence from the components before.
    """
    check_key(key)
    check_count("num_cycles", num_cycles)
    check_count("num_samples", num_samples)
    if not encoders:
        raise ValueError("encoders must hold at least one encoder, got none")
    xs = check_data("xs", xs, model)
    d = model.latent_dim
    check_sizes(model, MixtureOfNormals(d, len(encoders)))
    first = first_row(xs)
    starts = [check_encoder(encoder, FlowHead(d, 2 * d + 1), first) for encoder in encoders]
    components: list[Encoder] = []
    fits: list[AmortizedFit] = []
    for visit in range(num_cycles * len(starts)):
        k = visit % len(starts)
        if visit < len(starts):
            components.append(starts[k])
        others = tuple(component for j, component in enumerate(components) if j != k)
        fit = train_encoder(
            jax.random.fold_in(key, visit),
            xs,
            encoder=components[k],
            objective=_Stage(model, MixtureOfNormals(d, len(components)), others, num_samples),
            model=model,
            num_steps=num_steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            tolerance=tolerance,
        )
        components[k] = fit.encoder
        fits.append(fit)
    finite = jnp.stack([fit.finite for fit in fits]).all()
    return replace(
        fits[-1],
        encoder=MixtureEncoder(tuple(components)),
        finite=finite,
        converged=fits[-1].converged & finite,
        num_steps=sum(fit.num_steps for fit in fits),
    )


@checked_record
@dataclass(frozen=True)
class _Stage:
    """The ELBO of a mixture of fixed components and the one that is trained."""

    model: Model
    family: MixtureOfNormals
    others: tuple[Encoder, ...]
    num_samples: int = field(metadata={"static": True})

    def __call__(self, key: jax.Array, encoder: Encoder, x: Datum) -> Float[Array, ""]:
        # Equal weights are the start; an added component moves mass only as it earns it.
        parts = jnp.stack([*[other(x) for other in self.others], encoder(x)])
        return elbo(key, _assembled(parts), x, model=self.model, family=self.family, num_samples=self.num_samples)
