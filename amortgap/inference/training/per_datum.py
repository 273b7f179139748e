"""The contract between an objective and the training loop, and its usual case: a mean over data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from amortgap._internal.devices import map_sharded, mean_over_rows
from amortgap._internal.records import checked_record
from amortgap.inference.training.objectives import ElboObjective, EncoderObjective
from amortgap.objectives import cubature_elbo
from amortgap.protocols import Data, Datum, Family, Model

Devices = tuple[Any, ...]


@runtime_checkable
class DatumObjective(Protocol):
    """A function of one datum to be raised; a pytree, so that new weights of a model in it do not retrace."""

    def __call__(self, key: jax.Array, params: Any, x: Datum, step: Int[Array, ""], /) -> tuple[Array, Array]:
        """Return the value in nats, and how many steps inside it were not finite."""
        ...


@runtime_checkable
class Objective(Protocol):
    """The function of parameters that `fit` raises and the one that it evaluates; a pytree, like `DatumObjective`."""

    def draw_keys(self, key: jax.Array, num_steps: int, batch_size: int) -> jax.Array:
        """Return the keys of all steps of a round, stacked along the first axis."""
        ...

    def fixed_keys(self, key: jax.Array, num_data: int) -> jax.Array:
        """Return the keys of every step on all data, whose draws stay fixed."""
        ...

    def mean(
        self, keys: jax.Array, params: Any, rows: Int[Array, " batch"], batch: Data, step: Int[Array, ""],
        devices: Devices,
    ) -> tuple[Array, Array]:  # fmt: skip
        """Return the objective per datum, estimated from a minibatch, and the count of `DatumObjective`."""
        ...

    def evaluate(self, key: jax.Array, params: Any, data: Data, devices: Devices) -> Float[Array, " values"]:
        """Return the values whose mean chooses the best parameters, as many as `fit` was told."""
        ...


@checked_record
@dataclass(frozen=True)
class PerDatum:
    """The mean over data of objectives of one datum: an `Objective` whose every datum has draws of its own.

    Attributes:
      training: DatumObjective whose mean is raised.
      evaluation: DatumObjective that chooses the best parameters.
    """

    training: DatumObjective
    evaluation: DatumObjective

    def draw_keys(self, key: jax.Array, num_steps: int, batch_size: int) -> jax.Array:
        """Return a key for every datum of every step, [num_steps, batch_size]."""
        return jax.random.split(key, (num_steps, batch_size))

    def fixed_keys(self, key: jax.Array, num_data: int) -> jax.Array:
        """Return a key for every datum, [num_data]."""
        return jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(num_data))

    def mean(
        self, keys: jax.Array, params: Any, rows: Int[Array, " batch"], batch: Data, step: Int[Array, ""],
        devices: Devices,
    ) -> tuple[Array, Array]:  # fmt: skip
        """Return the mean over the minibatch, and the sum of the counts."""
        value, bad = mean_over_rows(lambda key, x: self.training(key, params, x, step), (keys, batch), devices)
        return value, jnp.round(bad * rows.size).astype(jnp.int32)

    def evaluate(self, key: jax.Array, params: Any, data: Data, devices: Devices) -> Float[Array, " values"]:
        """Return the value of every datum, with the same draws whenever the key is the same."""
        last = jnp.asarray(jnp.iinfo(jnp.int32).max, jnp.int32)

        def value(index: Array, x: Datum) -> Array:
            return self.evaluation(jax.random.fold_in(key, index), params, x, last)[0]

        return map_sharded(value, data, chunk_size=500, devices=devices)


class Params(NamedTuple):
    """The trained parts.

    Attributes:
      encoder: the encoder.
      model: the model where it is trained too, else None.
    """

    encoder: Any
    model: Any = None


@checked_record
@dataclass(frozen=True)
class OnEncoder:
    """An objective of the encoder alone as a DatumObjective.

    Attributes:
      objective: EncoderObjective, a pytree.
    """

    objective: EncoderObjective

    def __call__(self, key: jax.Array, params: Params, x: Datum, step: Int[Array, ""]) -> tuple[Array, Array]:
        """Return the objective of the encoder, and no failed steps."""
        return self.objective(key, params.encoder, x), jnp.zeros((), jnp.int32)


@checked_record
@dataclass(frozen=True)
class MeanOverDraws:
    """The mean of another DatumObjective over independent keys, for evaluations.

    Attributes:
      objective: DatumObjective.
      num_samples: number of keys.
    """

    objective: DatumObjective
    num_samples: int = field(metadata={"static": True})

    def __call__(self, key: jax.Array, params: Params, x: Datum, step: Int[Array, ""]) -> tuple[Array, Array]:
        """Return the mean of the values, and the sum of the counts."""
        keys = jax.random.split(key, self.num_samples)
        values, bad = jax.vmap(lambda draw_key: self.objective(draw_key, params, x, step))(keys)
        return jnp.mean(values), jnp.sum(bad)


@checked_record
@dataclass(frozen=True)
class ElboOfParams:
    """The ELBO of a datum by `Params`, as a DatumObjective.

    Attributes:
      model: Model; None for the one in the params.
      family: variational family.
      num_samples, estimator, antithetic: as in `elbo`; also the estimator "cubature", which needs no draws.
      entropy_warmup: steps over which the weight of the entropy rises from zero to one.
    """

    model: Model | None
    family: Family
    num_samples: int = field(metadata={"static": True})
    estimator: str = field(default="sticking_the_landing", metadata={"static": True})
    antithetic: bool = field(default=False, metadata={"static": True})
    entropy_warmup: int = field(default=0, metadata={"static": True})

    def __call__(self, key: jax.Array, params: Params, x: Datum, step: Int[Array, ""]) -> tuple[Array, Array]:
        """Return the ELBO in nats, and no failed steps."""
        model = params.model if self.model is None else self.model
        if self.estimator == "cubature":
            value = cubature_elbo(params.encoder(x), x, model=model, family=self.family)
            return value, jnp.zeros((), jnp.int32)
        weight: float | Array = 1.0
        if self.entropy_warmup:
            dtype = jnp.result_type(*jax.tree.leaves(params))
            weight = jnp.minimum(1.0, step.astype(dtype) / self.entropy_warmup)
        bound = ElboObjective(model, self.family, self.num_samples, self.estimator, self.antithetic)
        value = bound.seeing(key, params.encoder, x, x, entropy_weight=weight)
        return value, jnp.zeros((), jnp.int32)
