"""The optimum of factorized VI to rounding error: Newton steps on deterministic bounds, one block after the other."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from amortgap._internal.checks import check_count, check_data, check_sizes, num_rows
from amortgap._internal.devices import map_data
from amortgap.expectations import CUBATURE, Expectation, nodes
from amortgap.inference.hierarchical.elbo import check_whole, whole_elbo
from amortgap.inference.hierarchical.factors import free_factors, model_datum
from amortgap.models.hierarchical import AveragedGlobal
from amortgap.objectives import bound

_CHUNK = 2000


class LocalOptima(NamedTuple):
    """Local maxima of a deterministic bound, one for each datum.

    Attributes:
      phi: [N, size].
      elbo: the bound there, nats, [N].
      decrement: Newton decrement `1/2 g' |H|^-1 g`, the nats still to gain, [N].
      curved: whether the Hessian is negative definite, so that phi is a strict local maximum, [N].
    """

    phi: Float[Array, "N size"]
    elbo: Float[Array, " N"]
    decrement: Float[Array, " N"]
    curved: Bool[Array, " N"]


class FactorizedOptimum(NamedTuple):
    """Result of `factorized_optimum`.

    Attributes:
      global_phi: parameters of q0(theta).
      local: LocalOptima under that q0.
      elbo: ELBO of the whole data set, nats.
      decrement: Newton decrements of q0 and of all data together, nats.
      change: gain of the last sweep over both blocks, nats.
    """

    global_phi: Float[Array, " size"]
    local: LocalOptima
    elbo: Float[Array, ""]
    decrement: Float[Array, ""]
    change: Float[Array, ""]


def newton_maximise(
    function: Callable[[Array], Array], start: Float[Array, " size"], *, max_steps: int = 60, tolerance: float = 1e-13
) -> tuple[Array, Array, Array, Array]:
    """Climb to a local maximum of a smooth function of few variables.

    Formula: `phi <- phi + t |H|^-1 g`, |H| the Hessian with the absolute values of its eigenvalues, so that a step goes
    uphill also where the function is not concave; t is halved until the value does not fall.

    Returns:
      The point, the value, the Newton decrement `1/2 g' |H|^-1 g` and whether the Hessian is negative definite.
    """

    def expand(phi: Array) -> tuple[Array, Array, Array, Array]:
        value, slope = jax.value_and_grad(function)(phi)
        eigenvalues, vectors = jnp.linalg.eigh(jax.hessian(function)(phi))
        along = vectors.T @ slope
        size = jnp.maximum(jnp.abs(eigenvalues), 1e-10)
        return value, vectors @ (along / size), 0.5 * jnp.sum(along**2 / size), jnp.all(eigenvalues < 0)

    def going(carry: Any) -> Array:
        _, _, _, (_, _, decrement, _), number, rate = carry
        return (number < max_steps) & (decrement > tolerance) & (rate > 1e-9)

    def chosen(phi: Array, trial: Array, here: Any, there: Any) -> tuple[Array, Array, Any]:
        # Equality within rounding counts as no fall, or the last digits would never settle.
        better = there[0] >= here[0] - 4 * jnp.finfo(phi.dtype).eps * jnp.abs(here[0])
        pick = partial(jax.tree.map, lambda new, old: jnp.where(better, new, old))
        return better, *pick((trial, there), (phi, here))

    def step(carry: Any) -> Any:
        phi, trial, here, there, number, rate = carry
        better, phi, here = chosen(phi, trial, here, there)
        rate = jnp.where(better, jnp.minimum(1.0, 2 * rate), 0.5 * rate)
        # A bound on the length keeps log scales from overflowing far from the maximum.
        length = jnp.sqrt(jnp.sum(here[1] ** 2))
        trial = phi + jnp.minimum(rate, 3.0 / jnp.maximum(length, 1e-30)) * here[1]
        return phi, trial, here, expand(trial), number + 1, rate

    def first(start: Array) -> Any:
        here = expand(start)
        return start, start, here, here, 0, jnp.asarray(1.0, start.dtype)

    phi, trial, here, there, *_ = jax.lax.while_loop(going, step, first(start))
    _, phi, (value, _, decrement, curved) = chosen(phi, trial, here, there)
    return phi, value, decrement, curved


def local_optima(
    xs: Any,
    starts: Any,
    *,
    model: Any,
    family: Any,
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
    _check_deterministic("expectation", expectation, family)
    check_count("max_steps", max_steps)
    n = num_rows(xs)
    starts = jnp.asarray(starts)
    if starts.ndim not in (2, 3) or starts.shape[-1] != family.size or (starts.ndim == 3 and starts.shape[0] != n):
        raise ValueError(f"starts must have shape [S, size] or [N, S, size], size {family.size}, got {starts.shape}")
    return _local_optima(xs, starts, model, family, expectation, max_steps)


@partial(jax.jit, static_argnames=("expectation", "max_steps"))
def _local_optima(
    xs: Any, starts: Array, model: Any, family: Any, expectation: Expectation, max_steps: int
) -> LocalOptima:
    def fit(index: Array, x: Any) -> LocalOptima:
        def function(phi: Array) -> Array:
            return bound(None, phi, x, model=model, family=family, expectation=expectation)

        own = starts if starts.ndim == 2 else starts[index]
        found = jax.vmap(lambda start: newton_maximise(function, start, max_steps=max_steps))(own)
        best = jnp.argmax(jnp.where(jnp.isfinite(found[1]), found[1], -jnp.inf))
        return LocalOptima(*(part[best] for part in found))

    return map_data(fit, xs, chunk_size=_CHUNK)


def factorized_optimum(
    xs: Any,
    *,
    model: Any,
    global_family: Any,
    family: Any,
    starts: Any,
    global_start: Float[Array, " size"] | None = None,
    global_expectation: Expectation = CUBATURE,
    local_expectation: Expectation = CUBATURE,
    max_sweeps: int = 100,
    tolerance: float = 1e-9,
) -> FactorizedOptimum:
    """Find the optimum of factorized VI, q0(theta) and a free factor for every datum, by deterministic ascent.

    Formula: in turn `phi_i <- argmax ELBO(phi_i; x_i)` under the log joint averaged over q0, and
    `phi_0 <- argmax ELBO` at those factors; each is a Newton ascent, and no sweep can lower the ELBO.

    Args:
      xs, model, global_family, family: as in `whole_elbo`.
      starts: of the local factors, as in `local_optima`; the best maximum reached from them is kept in the first sweep,
        and later sweeps go on from there. One start near the prior gives the optimum of its basin, many the global one.
      global_start: start of q0's parameters; None for the family's standard member.
      global_expectation, local_expectation: cubature or quadrature.
      max_sweeps: sweeps over both blocks, at most.
      tolerance: gain of a sweep in nats below which to stop.

    Returns:
      FactorizedOptimum.

    Raises:
      ValueError: Monte Carlo, and parts that do not fit each other.

    Source: Margossian and Blei (2024), lemma 3.1 (coordinate ascent).
    """
    _check_deterministic("global_expectation", global_expectation, global_family)
    _check_deterministic("local_expectation", local_expectation, family)
    # Free factors read no input but the number of the datum.
    xs = model_datum(xs)
    n = num_rows(xs)
    xs = check_whole(xs, free_factors(family, n), model, global_family, family, global_expectation, local_expectation)
    check_count("max_sweeps", max_sweeps)
    global_phi = global_family.standard() if global_start is None else global_start
    parts = (model, global_family, family, global_expectation, local_expectation)
    before, local = -jnp.inf, None
    elbo = decrement = change = jnp.asarray(jnp.inf)
    for _ in range(max_sweeps):
        thetas, weights = nodes(global_phi, family=global_family, expectation=global_expectation)
        averaged = AveragedGlobal(model=model, thetas=thetas, weights=weights)
        own = starts if local is None else local.phi[:, None]
        local = local_optima(xs, own, model=averaged, family=family, expectation=local_expectation)
        global_phi, elbo, decrement = _global_step(xs, global_phi, local.phi, *parts)
        change, before = elbo - before, elbo
        if change < tolerance:
            break
    assert local is not None
    return FactorizedOptimum(global_phi, local, elbo, decrement + jnp.sum(local.decrement), change)


@partial(jax.jit, static_argnames=("global_expectation", "local_expectation"))
def _global_step(
    xs: Any,
    global_phi: Array,
    phis: Array,
    model: Any,
    global_family: Any,
    family: Any,
    global_expectation: Expectation,
    local_expectation: Expectation,
) -> tuple[Array, Array, Array]:
    factors = free_factors(family, phis.shape[0], start=phis)

    def function(global_phi: Array) -> Array:
        return whole_elbo(
            None,
            global_phi,
            factors,
            xs,
            model=model,
            global_family=global_family,
            family=family,
            global_expectation=global_expectation,
            local_expectation=local_expectation,
        )

    phi, value, decrement, _ = newton_maximise(function, global_phi)
    return phi, value, decrement


def _check_deterministic(name: str, expectation: Expectation, family: Any) -> None:
    if expectation.method == "monte_carlo":
        raise ValueError(f"{name} must be cubature or quadrature for a deterministic optimum, got 'monte_carlo'")
    expectation.check(name, family)
