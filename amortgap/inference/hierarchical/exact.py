"""The optimum of factorized VI to rounding error: Newton steps on q0 and on the local factors in turn."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from amortgap._internal.checks import check_count, num_rows
from amortgap.expectations import CUBATURE, Expectation, nodes
from amortgap.inference.hierarchical.elbo import check_hierarchy, hierarchical_elbo
from amortgap.inference.hierarchical.factors import free_factors, model_datum
from amortgap.inference.hierarchical.newton import LocalOptima, check_deterministic, local_optima, newton_maximise
from amortgap.models.hierarchical import AveragedGlobal
from amortgap.protocols import Data, Family, HierarchicalModel, Reparameterised


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


def factorized_optimum(
    xs: Data,
    *,
    model: HierarchicalModel,
    global_family: Reparameterised,
    family: Family,
    starts: Float[ArrayLike, ...],
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
      xs, model, global_family, family: as in `hierarchical_elbo`.
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
    check_deterministic("global_expectation", global_expectation, global_family)
    check_deterministic("local_expectation", local_expectation, family)
    # Free factors read no input but the number of the datum.
    xs = model_datum(xs)
    xs = check_hierarchy(xs, free_factors(family, num_rows(xs)), model, global_family, family)
    check_count("max_sweeps", max_sweeps)
    global_phi = global_family.standard() if global_start is None else global_start
    previous, local = -jnp.inf, None
    elbo = decrement = change = jnp.asarray(jnp.inf)
    for _ in range(max_sweeps):
        thetas, weights = nodes(global_phi, family=global_family, expectation=global_expectation)
        averaged = AveragedGlobal(model=model, thetas=thetas, weights=weights)
        local_starts = starts if local is None else local.phi[:, None]
        local = local_optima(xs, local_starts, model=averaged, family=family, expectation=local_expectation)
        global_phi, elbo, decrement = _global_step(
            xs, global_phi, local.phi, model, global_family, family, global_expectation, local_expectation
        )
        change, previous = elbo - previous, elbo
        if change < tolerance:
            break
    assert local is not None
    return FactorizedOptimum(global_phi, local, elbo, decrement + jnp.sum(local.decrement), change)


@partial(jax.jit, static_argnames=("global_expectation", "local_expectation"))
def _global_step(
    xs: Data,
    global_phi: Array,
    phis: Array,
    model: HierarchicalModel,
    global_family: Family,
    family: Family,
    global_expectation: Expectation,
    local_expectation: Expectation,
) -> tuple[Array, Array, Array]:
    """Return q0's best parameters at these local factors, the ELBO and the Newton decrement there."""
    factors = free_factors(family, phis.shape[0], start=phis)

    def function(global_phi: Array) -> Array:
        return hierarchical_elbo(
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

    optimum = newton_maximise(function, global_phi)
    return optimum.phi, optimum.elbo, optimum.decrement
