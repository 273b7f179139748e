"""A mixture of encoders grown one component at a time, evaluated in a single pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from amortgap._internal.checks import check_count, check_data, check_encoder, check_key, check_sizes
from amortgap._internal.records import checked_record
from amortgap.families import FlowHead, MixtureOfNormals
from amortgap.inference.training.encoder import EncoderFit, maximise
from amortgap.objectives import elbo


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

    def __call__(self, x: Any) -> Float[Array, " size"]:
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
    xs: Any,
    *,
    model: Any,
    latent_dim: int,
    make_encoder: Callable[[jax.Array, FlowHead], Any],
    num_components: int,
    num_cycles: int = 1,
    num_steps: int = 1000,
    batch_size: int = 100,
    num_samples: int = 4,
    learning_rate: float = 3e-3,
) -> EncoderFit:
    """Train a mixture of encoders, adding components one by one to what the others leave.

    Formula: stage m maximises `(1/N) sum_i ELBO((1 - a_m) Q_{m-1} + a_m q_m; x_i)` over the encoder of component m, its
    weight a_m(x) included, all others held fixed; further cycles visit the components again.

    Args:
      key: typed key.
      xs: data.
      model: as in `elbo`.
      latent_dim: d.
      make_encoder: function `(key, head) -> encoder` with output [head.size] = [2 d + 1], such as
        `lambda key, head: mlp(key, in_dim, head)`.
      num_components: K.
      num_cycles: visits of every component after it has been added, the first included.
      num_steps, batch_size, num_samples, learning_rate: of Adam for every visit.

    Returns:
      EncoderFit for the family `MixtureOfNormals(latent_dim, num_components)`; its trace is that of the last visit.

    Raises:
      ValueError: bad key, data, sizes or settings, such as no components.

    Source: Kim and Pavlovic, "Recursive inference for variational autoencoders" (2020), algorithm 1; here every stage
    maximises the ELBO of the mixture itself, which needs no bound on the divergence from what is there.
    """
    check_key(key)
    check_count("num_components", num_components)
    check_count("num_cycles", num_cycles)
    check_count("num_samples", num_samples)
    xs = check_data("xs", xs, model)
    check_sizes(model, MixtureOfNormals(latent_dim, num_components))
    head, key_weights, key_train = FlowHead(latent_dim, 2 * latent_dim + 1), *jax.random.split(key)
    first = jax.tree.map(lambda leaf: leaf[0], xs)
    components: list[Any] = []
    finite, fit = jnp.asarray(True), None
    visits = [(k, 0) for k in range(num_components)]
    visits += [(k, cycle) for cycle in range(1, num_cycles) for k in range(num_components)]
    for number, (k, cycle) in enumerate(visits):
        if cycle == 0:
            encoder = make_encoder(jax.random.fold_in(key_weights, k), head)
            check_encoder(encoder, head, first)
            components.append(encoder)
        others = [component for j, component in enumerate(components) if j != k]
        fit = maximise(
            jax.random.fold_in(key_train, number), xs, (components[k],),
            _stage(model, MixtureOfNormals(latent_dim, len(components)), others, num_samples),
            num_steps=num_steps, batch_size=batch_size, learning_rate=learning_rate, model=model,
        )  # fmt: skip
        components[k] = fit.encoder
        finite = finite & fit.finite
    assert fit is not None
    return replace(fit, encoder=MixtureEncoder(tuple(components)), finite=finite)


def _stage(model: Any, family: MixtureOfNormals, others: list[Any], num_samples: int) -> Any:
    def objective(key: jax.Array, params: Any, x: Any) -> tuple[Array, Array]:
        # Equal weights are the start; an added component moves mass only as it earns it.
        parts = jnp.stack([*[other(x) for other in others], params[0](x)])
        value = elbo(key, _assembled(parts), x, model=model, family=family, num_samples=num_samples)
        return value, jnp.asarray(0)

    return objective
