"""A NumPyro model with a local plate as a model of one datum."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.distributions.transforms import biject_to
from numpyro.infer.util import compute_log_probs

from amortgap._internal.checks import first_row
from amortgap.interop.numpyro_plan import (
    BROKEN,
    Plan,
    arguments_of,
    check_globals,
    frame_of,
    has_shape,
    local_sites,
    members,
    plate_size_of,
    rows_of,
    shapes,
    static_of,
    valued,
)
from amortgap.protocols import Data

_UNTRACEABLE = (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError)


class _Density(NamedTuple):
    """Log density of z, that of the constrained latents, and these."""

    total: Array
    constrained: Array
    values: dict[str, Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class NumpyroModel:
    """One datum of a NumPyro model, its local latents in one unconstrained vector; made by `from_numpyro`.

    Formula: `log p(x, z) = sum_s log p(site_s | ..) + log |dT / dz|` over the sites in the local plate, T the bijector
    from z to the constrained latents.

    Attributes:
      data: the data, one row a datum, as the functions of this package take them: {argument: [N, ...]}.
      constants: arguments of the model that have no row for every datum.
      given: values of the global sites.
      latent_dim: dimension d of z.
      plan: the parts that all data share: the NumPyro model, its plate, its sites and its arguments.
      sites: names of the local sites in the order in which z holds them.
    """

    data: dict[str, Any]
    constants: dict[str, Any]
    given: dict[str, Any]
    latent_dim: int = field(metadata={"static": True})
    plan: Plan = field(metadata={"static": True})

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the local sites, in the order in which z holds them."""
        return tuple(site.name for site in self.plan.sites)

    def validate(self, name: str, xs: Data) -> None:
        """Raise a ValueError that names `name` unless `xs` hold rows like those of `data`."""

        def rows(data: Data) -> dict[str, tuple[int, ...]] | str:
            if not isinstance(data, Mapping):
                return type(data).__name__
            return {argument: jnp.shape(leaf)[1:] for argument, leaf in data.items()}

        wanted, got = rows(self.data), rows(xs)
        if got != wanted:
            raise ValueError(
                f"{name} must hold rows of the shapes {wanted}, got {got}; pass this model's `data`, not the arguments "
                "of the NumPyro one"
            )

    def log_joint(self, z: Float[Array, " d"], x: Mapping[str, Any]) -> Float[Array, ""]:
        """Return `log p(x, z)` in nats, discrete local latents summed out."""
        if not self.plan.discrete:
            return self._log_density(z, x, {}).total
        choices = itertools.product(*(range(site.values) for site in self.plan.discrete))
        table = jnp.asarray(np.array(list(choices), np.int32))

        def at(choice: Array) -> Array:
            return self._log_density(z, x, {site.name: choice[i] for i, site in enumerate(self.plan.discrete)}).total

        return jax.nn.logsumexp(jax.vmap(at)(table))

    def unpack(self, z: Float[Array, " d"], x: Mapping[str, Any]) -> dict[str, Array]:
        """Return the local latents of one datum by their names, constrained, without the plate's axis."""
        choice = {site.name: jnp.asarray(0) for site in self.plan.discrete}
        values = self._log_density(z, x, choice).values
        return {site.name: jnp.squeeze(values[site.name], site.axis) for site in self.plan.sites}

    def trace(self, fn: Callable[..., Any], values: Mapping[str, Any], x: Mapping[str, Any]) -> dict[str, Any]:
        """Return NumPyro's trace of this model or of a guide, run on one datum with values of its parameters."""
        one = members(fn, {**self.given, **values}, self.plan.plate, 1)
        return handlers.trace(one).get_trace(**arguments_of(self.plan, x, self.constants))

    def _log_density(self, z: Array, x: Mapping[str, Any], choice: dict[str, Array]) -> _Density:
        plan = self.plan
        ends = np.cumsum([math.prod(site.shape) for site in plan.sites])[:-1]
        parts = dict(zip([site.name for site in plan.sites], jnp.split(z, ends), strict=True))
        shapes = {site.name: site.shape for site in plan.sites}
        jacobians, values = [], {}

        def place(site: dict[str, Any]) -> Array | None:
            name = site["name"]
            if site["type"] != "sample" or site["is_observed"]:
                return None
            if name in choice:
                values[name] = site["fn"].enumerate_support(expand=True)[choice[name]]
                return values[name]
            if name not in parts:
                return None
            # Ask for the support at every call: it may depend on other latents.
            transform = biject_to(site["fn"].support)
            free = parts[name].reshape(shapes[name])
            values[name] = transform(free)
            jacobians.append(jnp.sum(transform.log_abs_det_jacobian(free, values[name])))
            return values[name]

        one = members(plan.np_model, self.given, plan.plate, 1)
        wrapped = handlers.substitute(one, substitute_fn=place)
        log_probs, trace = compute_log_probs(wrapped, (), arguments_of(plan, x, self.constants), {})
        inside = [log_probs[name] for name in log_probs if frame_of(trace[name], plan.plate) is not None]
        density = jnp.asarray(sum(inside))
        return _Density(density + sum(jacobians), density, values)


def from_numpyro(
    np_model: Callable[..., Any],
    data: Mapping[str, Any],
    *,
    local_plate: str,
    condition: Mapping[str, Any] | None = None,
    axes: Mapping[str, int] | None = None,
) -> NumpyroModel:
    """Return one datum of a NumPyro model, the member of its local plate, as a model of this package.

    Formula: `log p(data, latents | globals) = sum_i log p(x_i, z_i | globals)`, and `log_joint(z, x)` is one term with
    z unconstrained. That the terms add up is checked here, at a draw of the latents.

    The model runs on one row of the data and one member of the plate. Constrained latents go through their bijectors
    with the Jacobian, several local sites share one vector (`unpack` names them again), masks and factors count,
    scales of subsampling do not. Finite discrete local latents are summed out.

    Args:
      np_model: a NumPyro model, called with `data` as keyword arguments.
      data: arguments by name. Arrays with one entry for every member of the plate along their axis become the data,
        all else is constant.
      local_plate: name of the plate over data.
      condition: values of the global latents by name, such as a posterior draw or point estimates, and of parameters,
        such as those of a `flax_module` or an `nnx_module`.
      axes: the axis of the data in an argument where it is not the first.

    Returns:
      NumpyroModel; its `data` are the `xs` for `fit_local`, `amortized_vi` and `inference_gaps`.

    Raises:
      ValueError: a plate that is not there; global latents without a value; no continuous local latent, or discrete
        ones without finite support; a plate that is not local, because its terms do not add up; data of the wrong
        length; Python control flow on traced values; a log joint that is not finite at z = 0.

    Source: Phan, Pradhan and Jankowiak, "Composable effects for flexible and accelerated probabilistic programming in
      NumPyro" (2019).
    """
    given = jax.tree.map(jnp.asarray, dict(condition or {}))
    try:
        trace = handlers.trace(valued(np_model, given)).get_trace(**data)
    except BROKEN as error:
        raise ValueError(f"the model cannot be run on data {shapes(data)}: {error}") from error
    size = plate_size_of(trace, local_plate)
    check_globals(trace, local_plate, given)
    rows = rows_of(data, size, axes or {}, local_plate)
    if not rows:
        raise ValueError(
            f"no argument has {size} entries along its data axis, one for each member of plate {local_plate!r}: data "
            f"hold {shapes(data)}; name the axis in `axes` if it is not the first"
        )
    named = {name for name, _, _ in rows}
    xs = {name: jnp.moveaxis(jnp.asarray(data[name]), axis, 0) for name, axis, _ in rows}
    rest = {name: value for name, value in data.items() if name not in named}
    constants = {name: value for name, value in rest.items() if has_shape(value)}
    draft = Plan(np_model, local_plate, (), (), rows, static_of(rest), size)
    first = first_row(xs)
    sites, discrete = local_sites(draft, given, first, constants)
    plan = dataclasses.replace(draft, sites=sites, discrete=discrete)
    latent_dim = sum(math.prod(site.shape) for site in sites)
    model = NumpyroModel(data=xs, constants=constants, given=given, latent_dim=latent_dim, plan=plan)
    _check_terms(model, data)
    return model


def _along(values: Array, axis: int) -> Array:
    """Return values [N, .., 1, ..] of single members with their members along the plate's axis."""
    return jnp.moveaxis(jnp.squeeze(values, axis), 0, axis)


def _check_terms(model: NumpyroModel, data: Mapping[str, Any]) -> None:
    """Compare the sum of the terms with the log density of all data, as local latents go from one draw to another."""
    plan = model.plan
    zeros = jnp.zeros(model.latent_dim)
    try:
        jax.eval_shape(model.log_joint, zeros, first_row(model.data))
    except _UNTRACEABLE as error:
        raise ValueError(
            f"the model branches in Python on values that jax traces; use jnp.where or jax.lax.cond: {error}"
        ) from error
    terms = jax.vmap(model.log_joint, (None, 0))(zeros, model.data)
    bad = np.flatnonzero(~np.isfinite(np.asarray(terms)))
    if bad.size:
        raise ValueError(
            f"the log joint is not finite at z = 0 for {bad.size} of {plan.plate_size} data, first {bad[:10].tolist()}"
        )
    whole = members(plan.np_model, model.given, plan.plate, plan.plate_size)
    choice = {site.name: jnp.asarray(0) for site in plan.discrete}

    def both(key: jax.Array) -> tuple[float, float]:
        z = 0.5 * jax.random.normal(key, (plan.plate_size, model.latent_dim))
        each = jax.vmap(lambda z, x: model._log_density(z, x, choice))(z, model.data)
        # A single row has length one along the axis of the plate; here the rows lie along it.
        values = {site.name: _along(each.values[site.name], site.axis) for site in (*plan.sites, *plan.discrete)}
        try:
            log_probs, _ = compute_log_probs(handlers.substitute(whole, values), (), dict(data), {})
        except BROKEN as error:
            raise ValueError(f"the model cannot be run on data {shapes(data)}: {error}") from error
        return float(jnp.sum(each.constrained)), float(sum(log_probs[name] for name in log_probs))

    (first, all_first), (second, all_second) = both(jax.random.key(1)), both(jax.random.key(2))
    if not math.isclose(first - second, all_first - all_second, rel_tol=1e-3, abs_tol=1e-2 + 1e-6 * abs(all_first)):
        raise ValueError(
            f"plate {plan.plate!r} is not local: between two draws of the local latents its terms change by "
            f"{first - second:.4f} nats and the density of all data by {all_first - all_second:.4f}; the likelihood "
            "couples data"
        )
