"""The deep latent Gaussian model: a normal prior and a neural decoder, the generative half of a VAE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from amortgap._internal.checks import check_choice, check_count, check_key, check_row_shape
from amortgap._internal.records import checked_record
from amortgap.families.normal import standard_normal_log_prob
from amortgap.interop.flax_module import UserModule, wrap_module
from amortgap.models.likelihoods import Bernoulli, Gaussian, Likelihood
from amortgap.networks import Activation, dense
from amortgap.protocols import Data


@checked_record
@dataclass(frozen=True, kw_only=True)
class DeepLatentGaussian:
    """Latent Gaussian model with a neural decoder.

    Formula: `z ~ N(0, I_d)`, `x | z ~ likelihood(decoder(z))`.

    Args:
      decoder: callable pytree from z [d] to the likelihood's parameters [D], such as `amortgap.networks.Network`.
      likelihood: `Bernoulli()`, `Binomial(total_count)`, `Gaussian(log_noise_variance)` or another `Likelihood`.
      latent_dim: d.
      data_dim: D.

    Raises:
      ValueError: a size that is not positive, or a decoder whose output for one z is not [D].

    Source: Kingma and Welling (2014); Rezende, Mohamed and Wierstra (2014).
    """

    decoder: Callable[[Array], Array]
    likelihood: Likelihood
    latent_dim: int = field(metadata={"static": True})
    data_dim: int = field(metadata={"static": True})

    def __post_init__(self) -> None:
        check_count("latent_dim", self.latent_dim)
        check_count("data_dim", self.data_dim)
        out = jax.eval_shape(self.decoder, jnp.zeros(self.latent_dim))
        # An output of another shape might broadcast against the datum and give the bound of another model.
        if getattr(out, "shape", None) != (self.data_dim,):
            found = [leaf.shape for leaf in jax.tree.leaves(out)]
            raise ValueError(f"decoder must return one array of shape [data_dim] = ({self.data_dim},), got {found}")

    @classmethod
    def from_modules(
        cls,
        decoder: object,
        *,
        latent_dim: int,
        data_dim: int,
        likelihood: str | Likelihood = "bernoulli",
        variables: PyTree | None = None,
    ) -> DeepLatentGaussian:
        """Return the model of a VAE whose decoder is a flax module written for batches.

        Formula: `z ~ N(0, I_d)`, `x | z ~ likelihood(decoder(z))`, with logits or means [batch, ...] from the decoder.

        Args:
          decoder: an `nnx.Module` in evaluation mode, or a `linen.Module` with its `variables`.
          latent_dim: d.
          data_dim: D, the entries of one datum; data are flat, [N, D], in the order of the decoder's raveled output.
          likelihood: a likelihood, or "bernoulli" (logits) or "gaussian" (means, noise variance one).
          variables: of a linen module, trained.

        Returns:
          DeepLatentGaussian.

        Raises:
          ValueError: bad sizes, an unknown likelihood, no flax module, one that cannot be run on z, that changes its
            own state (dropout, batch norm in training mode) or whose output for one z is not `data_dim` entries.
        """
        check_count("latent_dim", latent_dim)
        check_count("data_dim", data_dim)
        wrapped = wrap_module("decoder", decoder, (latent_dim,), variables)
        out = jax.eval_shape(wrapped, jnp.zeros(latent_dim))
        if not hasattr(out, "shape") or out.size != data_dim:
            shapes = [leaf.shape for leaf in jax.tree.leaves(out)]
            raise ValueError(f"decoder must return one array of data_dim = {data_dim} entries for one z, got {shapes}")
        return cls(
            decoder=_Raveled(wrapped),
            likelihood=_likelihood(likelihood, data_dim),
            latent_dim=latent_dim,
            data_dim=data_dim,
        )

    def validate(self, name: str, xs: Data) -> None:
        """Raise a ValueError that names `name` unless `xs` can be data of this model."""
        check_row_shape(name, xs, (self.data_dim,))
        self.likelihood.validate(name, xs)

    def log_prior(self, z: Float[Array, " d"]) -> Float[Array, ""]:
        """Return `log p(z)` in nats."""
        return standard_normal_log_prob(z)

    def log_likelihood(self, z: Float[Array, " d"], x: Float[Array, " D"]) -> Float[Array, ""]:
        """Return `log p(x | z)` in nats."""
        return self.likelihood.log_prob(self.decoder(z), x)

    def log_joint(self, z: Float[Array, " d"], x: Float[Array, " D"]) -> Float[Array, ""]:
        """Return `log p(x, z)` in nats."""
        return self.log_prior(z) + self.log_likelihood(z, x)

    def sample(self, key: jax.Array) -> tuple[Float[Array, " d"], Float[Array, " D"]]:
        """Return one draw (z, x) from the joint, [d] and [D]."""
        key_latent, key_data = jax.random.split(key)
        z = jax.random.normal(key_latent, (self.latent_dim,))
        return z, self.likelihood.sample(key_data, self.decoder(z))


def deep_latent_gaussian(
    key: jax.Array,
    *,
    latent_dim: int,
    data_dim: int,
    width: int,
    depth: int,
    likelihood: str | Likelihood = "bernoulli",
    activation: Activation = "elu",
) -> DeepLatentGaussian:
    """Return a DeepLatentGaussian with a fresh fully connected decoder of `depth` hidden layers.

    Formula: `z ~ N(0, I_d)`, `x | z ~ likelihood(decoder(z))`.

    Args:
      key: typed key for the initial weights.
      latent_dim, data_dim: d and D.
      width, depth: size and number of hidden layers; depth 0 is an affine decoder.
      likelihood: a likelihood, or "bernoulli" or "gaussian" (noise variance one at the start).
      activation: one of `amortgap.networks.ACTIVATIONS`, or an elementwise function.

    Returns:
      DeepLatentGaussian.

    Raises:
      ValueError: bad key, a bad size or an unknown name.

    Source: as in `DeepLatentGaussian`.
    """
    check_key(key)
    check_count("latent_dim", latent_dim)
    check_count("data_dim", data_dim)
    check_count("width", width)
    check_count("depth", depth, minimum=0)
    likelihood = _likelihood(likelihood, data_dim)
    decoder = dense(key, (latent_dim, *[width] * depth, data_dim), activation=activation)
    return DeepLatentGaussian(decoder=decoder, likelihood=likelihood, latent_dim=latent_dim, data_dim=data_dim)


def _likelihood(likelihood: str | Likelihood, data_dim: int) -> Likelihood:
    if not isinstance(likelihood, str):
        return likelihood
    check_choice("likelihood", likelihood, ("bernoulli", "gaussian"))
    return Bernoulli() if likelihood == "bernoulli" else Gaussian(jnp.zeros(data_dim))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Raveled:
    """A decoder whose output is raveled, from the shape of images to flat data."""

    module: UserModule

    def __call__(self, z: Array) -> Array:
        return jnp.ravel(self.module(z))
