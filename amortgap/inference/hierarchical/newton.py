"""Local maxima of deterministic bounds to rounding error, by Newton steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from amortgap._internal.checks import check_count, check_data, check_sizes, num_rows
from amortgap._internal.devices import map_data
from amortgap.expectations import Expectation
from amortgap.objectives import bound
from amortgap.protocols import Data, Datum, Family, Model

# Number of data whose Hessians are in memory together.
_CHUNK = 2000


class LocalOptima(NamedTuple):
    """Local maxima of a deterministic bound, one for each datum; a single one has no axis N.

    Attributes:
      phi: [N, size].
      elbo: the bound there, nats, [N].
      decrement: Newton decrement `1/2 g' |H|^-1 g`, the nats still to gain, [N].
      curved: whether the Hessian is negative definite, so that phi is a strict local maximum, [N].
    """

    phi: Float[Array, "*N size"]
    elbo: Float[Array, "*N"]
    decrement: Float[Array, "*N"]
    curved: Bool[Array, "*N"]


class _Point(NamedTuple):
    """A point with its value, its Newton step, the decrement and whether the Hessian is negative definite."""

    phi: Array
    value: Array
    step: Array
    decrement: Array
    curved: Array


class _Search(NamedTuple):
    best: _Point
    trial: _Point
    number: Int[Array, ""]
    rate: Float[Array, ""]


def newton_maximise(
    function: Callable[[Array], Array], start: Float[Array, " size"], *, max_steps: int = 60, tolerance: float = 1e-13
) -> LocalOptima:
    """Climb to a local maximum of a smooth bound of few variables.

    Formula: `phi <- phi + t |H|^-1 g`, |H| the Hessian with the absolute values of its eigenvalues, so that a step goes
    uphill also where the function is not concave; t is halved until the value does not fall.

    Args:
      function: the bound, from [size] to a scalar.
      start: [size].
      max_steps: steps at most.
      tolerance: decrement at which to stop.

    Returns:
      LocalOptima without the axis N.
    """

    def expand(phi: Array) -> _Point:
        value, slope = jax.value_and_grad(function)(phi)
        eigenvalues, vectors = jnp.linalg.eigh(jax.hessian(function)(phi))
        along = vectors.T @ slope
        size = jnp.maximum(jnp.abs(eigenvalues), 1e-10)
        step = vectors @ (along / size)
        return _Point(phi, value, step, 0.5 * jnp.sum(along**2 / size), jnp.all(eigenvalues < 0))

    def better(search: _Search) -> tuple[Array, _Point]:
        best, trial = search.best, search.trial
        # A loss within rounding counts as no fall, or the last digits would never settle.
        improved = trial.value >= best.value - 4 * jnp.finfo(best.value.dtype).eps * jnp.abs(best.value)
        return improved, jax.tree.map(lambda new, old: jnp.where(improved, new, old), trial, best)

    def going(search: _Search) -> Array:
        return (search.number < max_steps) & (search.trial.decrement > tolerance) & (search.rate > 1e-9)

    def advance(search: _Search) -> _Search:
        improved, best = better(search)
        rate = jnp.where(improved, jnp.minimum(1.0, 2 * search.rate), 0.5 * search.rate)
        # A bound on the length keeps log scales from overflowing far from the maximum.
        length = jnp.sqrt(jnp.sum(best.step**2))
        trial = best.phi + jnp.minimum(rate, 3.0 / jnp.maximum(length, 1e-30)) * best.step
        return _Search(best, expand(trial), search.number + 1, rate)

    first = expand(start)
    search = _Search(first, first, jnp.asarray(0), jnp.ones((), start.dtype))
    _, best = better(jax.lax.while_loop(going, advance, search))
    return LocalOptima(best.phi, best.value, best.decrement, best.curved)


def local_optima(
    xs: Data,
    starts: Float[ArrayLike, ...],
    *,
    model: Model,
    family: Family,
    expectation: Expectation,
    max_steps: int = 60,
) -> LocalOptima:
    """Find the best local maximum of a deterministic bound from several starts, for every datum.

    Formula: `phi_i = argmax over starts of the local maximum of ELBO(phi; x_i)`.

    Args:
      xs: data [N, ...].
      starts: [S, size] for all data, or [N, S, size].
      model, family: as in `elbo`.
      expectation: cubature or quadrature.
      max_steps: Newton steps from each start, at most.

    Returns:
      LocalOptima.

    Raises:
      ValueError: Monte Carlo, starts of another shape, and as in `quadrature_elbo`.
    """
    xs = check_data("xs", xs, model)
    check_sizes(model, family)
    check_deterministic("expectation", expectation, family)
    check_count("max_steps", max_steps)
    n = num_rows(xs)
    starts = jnp.asarray(starts)
    if starts.ndim not in (2, 3) or starts.shape[-1] != family.size or (starts.ndim == 3 and starts.shape[0] != n):
        raise ValueError(f"starts must have shape [S, size] or [N, S, size], size {family.size}, got {starts.shape}")
    return _local_optima(xs, starts, model, family, expectation, max_steps)


@partial(jax.jit, static_argnames=("expectation", "max_steps"))
def _local_optima(
    xs: Data, starts: Array, model: Model, family: Family, expectation: Expectation, max_steps: int
) -> LocalOptima:
    def fit(index: Array, x: Datum) -> LocalOptima:
        def function(phi: Array) -> Array:
            return bound(None, phi, x, model=model, family=family, expectation=expectation)

        from_starts = jax.vmap(lambda start: newton_maximise(function, start, max_steps=max_steps))
        optima = from_starts(starts if starts.ndim == 2 else starts[index])
        best = jnp.argmax(jnp.where(jnp.isfinite(optima.elbo), optima.elbo, -jnp.inf))
        return jax.tree.map(lambda leaf: leaf[best], optima)

    return map_data(fit, xs, chunk_size=_CHUNK)


def check_deterministic(name: str, expectation: Expectation, family: Family) -> None:
    """Refuse Monte Carlo, whose bound has no maximum to rounding error, and a rule that cannot serve the family."""
    if expectation.method == "monte_carlo":
        raise ValueError(f"{name} must be cubature or quadrature for a deterministic optimum, got 'monte_carlo'")
    expectation.check(name, family)
