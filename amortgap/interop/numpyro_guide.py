"""A trained amortized guide of NumPyro as an encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, PyTree
from numpyro.distributions.transforms import Transform, biject_to

from amortgap._internal.checks import first_row
from amortgap.interop.numpyro_model import NumpyroModel
from amortgap.networks import weight_count
from amortgap.protocols import Normal, is_diagonal

# Points at which the transform of a guide's site is compared with the bijector of the model's.
_POINTS = (-1.5, -0.2, 0.0, 0.7, 2.0)
_WRAPPERS = (dist.Independent, dist.ExpandedDistribution, dist.MaskedDistribution)


class _Source:
    """The guide, the model of its arguments and their family; static, since it equals itself alone."""

    def __init__(self, guide: Callable[..., Any], model: NumpyroModel, family: Normal) -> None:
        self.guide, self.model, self.family = guide, model, family


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GuideEncoder:
    """A guide's map from one datum to the normals of its local sites; made by `from_numpyro_guide`.

    Formula: `phi = [means, log scales]` of the unconstrained local sites, or the `from_moments` of the family.

    Attributes:
      params: parameters of the guide, trained.
      source: the guide, the model whose sites it fills, and the family of phi.
    """

    params: PyTree
    source: _Source = field(metadata={"static": True})

    def __call__(self, x: Mapping[str, Any]) -> Float[Array, " size"]:
        """Return phi for one datum."""
        guide, model, family = self.source.guide, self.source.model, self.source.family
        trace = model.trace(guide, self.params, x)
        parts = [_moments(name, trace[name]["fn"]) for name in model.sites]
        mean = jnp.concatenate([loc for loc, _ in parts])
        return family.from_moments(mean, jax.scipy.linalg.block_diag(*(root for _, root in parts)))

    num_weights = weight_count("params")


def from_numpyro_guide(
    guide: Callable[..., Any], params: Mapping[str, Any], *, model: NumpyroModel, family: Normal
) -> GuideEncoder:
    """Return a hand-written amortized guide with trained parameters as an encoder of its model.

    Formula: `phi(x)` are the moments of the guide's sites given x, on the unconstrained scale of the model.

    Args:
      guide: takes the same arguments as the model and samples every local latent of it from a normal, or from a
        transformed normal whose transform is the bijector of the model's support (`LogNormal` for positive latents).
      params: its trained parameters, such as `svi.get_params(state)`.
      model: made by `from_numpyro`; its `condition` fixes the global latents.
      family: `MeanFieldNormal`, or `FullRankNormal` for multivariate normals.

    Returns:
      GuideEncoder, from one datum of the model to phi [family.size].

    Raises:
      ValueError: a guide that cannot be run on one datum, whose sites are not those of the model, whose distributions
        are not normal on the unconstrained scale, that draws one site given another, or a family that cannot hold them.
    """
    if not isinstance(family, Normal) or family.latent_dim != model.latent_dim:
        raise ValueError(
            f"family must be a MeanFieldNormal or a FullRankNormal of the model's {model.latent_dim} latents, got "
            f"{type(family).__name__} of {family.latent_dim}"
        )
    first = first_row(model.data)
    try:
        trace = model.trace(guide, params, first)
    except (TypeError, ValueError, IndexError, AssertionError, KeyError) as error:
        raise ValueError(f"the guide cannot be run on one datum of the model: {error}") from error
    plate = model.plan.plate
    local = [
        name
        for name, site in trace.items()
        if site["type"] == "sample"
        and not site["is_observed"]
        and any(frame.name == plate for frame in site["cond_indep_stack"])
    ]
    if set(local) != set(model.sites):
        raise ValueError(
            f"the guide must sample the local latents of the model in plate {plate!r}, {sorted(model.sites)}, got "
            f"{sorted(local)}"
        )
    if missing := [name for name, site in trace.items() if site["type"] == "param" and name not in params]:
        raise ValueError(f"params lack parameters of the guide: {', '.join(sorted(missing))}")
    supports = model.trace(model.plan.np_model, {}, first)
    for name in model.sites:
        _, root = _moments(name, trace[name]["fn"])
        _check_transform(name, trace[name]["fn"], supports[name]["fn"])
        correlated = bool(jnp.any(root != jnp.diag(jnp.diag(root))))
        if correlated and is_diagonal(family):
            raise ValueError(
                f"site {name!r} of the guide is a multivariate normal, which a MeanFieldNormal cannot hold"
            )
    _check_independent(model, guide, params, first, local)
    return GuideEncoder(jax.tree.map(jnp.asarray, dict(params)), _Source(guide, model, family))


def _base(distribution: dist.Distribution) -> tuple[dist.Distribution, tuple[Transform, ...]]:
    """Return the distribution behind all wrappers, and the transforms on the way."""
    transforms: tuple[Transform, ...] = ()
    while True:
        if isinstance(distribution, _WRAPPERS):
            distribution = distribution.base_dist
        elif isinstance(distribution, dist.TransformedDistribution):
            transforms = (*distribution.transforms, *transforms)
            distribution = distribution.base_dist
        else:
            return distribution, transforms


def _moments(name: str, distribution: dist.Distribution) -> tuple[Array, Array]:
    """Return mean and triangular root of the covariance of a site's normal, flat."""
    base, _ = _base(distribution)
    loc = jnp.asarray(getattr(base, "loc", 0.0))
    if isinstance(base, dist.Normal):
        shape = distribution.shape()
        scale = jnp.broadcast_to(jnp.asarray(base.scale), shape)
        return jnp.broadcast_to(loc, shape).ravel(), jnp.diag(scale.ravel())
    if isinstance(base, dist.MultivariateNormal):
        root = jnp.asarray(base.scale_tril)
        if root.size == root.shape[-1] ** 2:
            return loc.ravel(), root.reshape(root.shape[-2:])
    raise ValueError(f"site {name!r} of the guide must be normal or a transformed normal, got {type(base).__name__}")


def _check_transform(name: str, of_guide: dist.Distribution, of_model: dist.Distribution) -> None:
    """Refuse a site whose transform is not the bijector of the model's support."""
    _, transforms = _base(of_guide)
    wanted = biject_to(of_model.support)
    for point in _POINTS:
        here = have = jnp.full(of_guide.shape(), point)
        for transform in transforms:
            have = transform(have)
        want = wanted(here)
        if jnp.shape(want) != jnp.shape(have) or not jnp.allclose(want, have, rtol=1e-4, atol=1e-5):
            names = ", ".join(type(transform).__name__ for transform in transforms) or "none"
            raise ValueError(
                f"site {name!r} of the guide must be a normal under the bijector of the model's support "
                f"{of_model.support}; its transforms are: {names}"
            )


def _check_independent(
    model: NumpyroModel, guide: Callable[..., Any], params: Mapping[str, Any], x: Mapping[str, Any], local: list[str]
) -> None:
    """Refuse a guide that reads one local site to draw another: its joint is no normal with these moments."""
    trace = model.trace(guide, params, x)
    moved = {name: trace[name]["value"] + 0.5 for name in local}
    again = model.trace(guide, {**params, **moved}, x)
    for name in (name for name in local if name in again):
        for before, after in zip(_moments(name, trace[name]["fn"]), _moments(name, again[name]["fn"]), strict=True):
            if not jnp.allclose(before, after, rtol=1e-5, atol=1e-6):
                raise ValueError(f"the guide draws site {name!r} given other local sites, which no single normal does")
