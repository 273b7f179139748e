"""VI over global and local latents together: `max over q0 and the local factors of the ELBO of the whole data set`."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from amortgap._internal.checks import check_choice, check_count, check_key, check_positive, is_concrete, num_rows
from amortgap.expectations import MONTE_CARLO, Expectation
from amortgap.inference.hierarchical.ascent import OPTIMIZERS, GlobalLocalTrace, HierarchicalObjective, Plan, maximise
from amortgap.inference.hierarchical.elbo import check_hierarchy
from amortgap.inference.hierarchical.factors import LocalFactors
from amortgap.protocols import Data, Family, HierarchicalModel


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GlobalLocalFit:
    """Result of `global_local_vi`.

    Attributes:
      global_phi: parameters of q0(theta), [global_family.size].
      factors: LocalFactors.
      elbo: ELBO of the whole data set there, nats.
      trace: GlobalLocalTrace.
      finite: False if optimisation met a value that is not finite; the fit is then the best one before it.
    """

    global_phi: Float[Array, "*seeds size"]
    factors: LocalFactors
    elbo: Float[Array, "*seeds"]
    trace: GlobalLocalTrace
    finite: Bool[Array, "*seeds"]


def global_local_vi(
    key: jax.Array,
    xs: Data,
    *,
    model: HierarchicalModel,
    global_family: Family,
    family: Family,
    factors: LocalFactors,
    global_start: Float[Array, " size"] | None = None,
    num_steps: int = 2000,
    batch_size: int | None = None,
    learning_rate: float | Array = 1e-2,
    schedule: str = "cosine",
    optimizer: str = "adam",
    global_expectation: Expectation = MONTE_CARLO,
    local_expectation: Expectation = MONTE_CARLO,
    evaluation: tuple[Expectation, Expectation] | None = None,
    num_evaluations: int = 20,
    progress: bool = False,
) -> GlobalLocalFit:
    """Maximise the ELBO of the whole data set over q0(theta) and the local factors together.

    Formula: `max E_{q0}[log p(theta) - log q0(theta) + (N / |B|) sum_{i in B} ELBO(phi_i(theta); x_i, theta)]`, by Adam
    on minibatches drawn without replacement, or by L-BFGS on all data and with draws that stay fixed.

    With theta fixed the data separate, and `local_vi` and `amortized_vi` on `models.fix_global(model, theta)` solve the
    same problem. Adam divides the loss by N. Its momentum also moves free factors whose datum is not in the minibatch.

    Args:
      key: typed key.
      xs, model, global_family, family: as in `hierarchical_elbo`; at least two data.
      factors: LocalFactors; their parameters are the start.
      global_start: start of q0's parameters; None for the family's standard member.
      num_steps: optimiser steps in all.
      batch_size: data per step of Adam; None for all.
      learning_rate: of Adam, at its highest.
      schedule: "cosine" (short ramp, then a cosine to zero) or "constant".
      optimizer: "adam" or "lbfgs".
      global_expectation, local_expectation: of the objective, as in `hierarchical_elbo`.
      evaluation: of the trace (over theta, over z); None for those of the objective, with eight draws if Monte Carlo.
      num_evaluations: number of evaluations on all data, at most num_steps.
      progress: show a progress bar on standard error if that is a terminal.

    Returns:
      GlobalLocalFit: the best evaluated parameters. Under `vmap` over keys and stacked factors every field gets a
      leading axis.

    Raises:
      ValueError: bad key, data, sizes or settings, before anything is compiled.

    Source: Agrawal and Domke (2021), section 5; Margossian and Blei (2024), section 2.
    """
    check_key(key)
    xs = check_hierarchy(xs, factors, model, global_family, family)
    n = num_rows(xs)
    if n < 2:
        raise ValueError(f"xs must hold at least two data to amortize over, got N = {n}; use local_vi for one datum")
    training = (global_expectation, local_expectation)
    _check_settings(n, num_steps, num_evaluations, batch_size, learning_rate, schedule, optimizer, training)
    if evaluation is None:
        evaluation = (_for_evaluation(global_expectation), _for_evaluation(local_expectation))
    if len(evaluation) != 2:
        raise ValueError(f"evaluation must be two expectations, over theta and over z, got {len(evaluation)}")
    global_expectation.check("global_expectation", global_family)
    local_expectation.check("local_expectation", family)
    evaluation[0].check("evaluation[0]", global_family)
    evaluation[1].check("evaluation[1]", family)
    start = global_family.standard() if global_start is None else jnp.asarray(global_start)
    if start.shape != (global_family.size,):
        raise ValueError(f"global_start must have shape ({global_family.size},), got {start.shape}")
    objective = HierarchicalObjective(xs, model, global_family, family, (start, factors), training, evaluation)
    plan = Plan(
        steps=-(-num_steps // num_evaluations),
        rounds=num_evaluations,
        batch_size=None if batch_size == n else batch_size,
        optimizer=optimizer,
        schedule=schedule,
    )
    state, trace = maximise(key, objective, jnp.asarray(learning_rate), plan, progress=progress)
    return GlobalLocalFit(*objective.split(state.best), state.best_elbo, trace, state.finite)


def _check_settings(
    n: int,
    num_steps: int,
    num_evaluations: int,
    batch_size: int | None,
    learning_rate: float | Array,
    schedule: str,
    optimizer: str,
    training: tuple[Expectation, Expectation],
) -> None:
    check_choice("optimizer", optimizer, tuple(OPTIMIZERS))
    check_choice("schedule", schedule, ("cosine", "constant"))
    check_count("num_evaluations", num_evaluations)
    check_count("num_steps", num_steps, minimum=num_evaluations)
    if batch_size is not None:
        check_count("batch_size", batch_size, maximum=n)
    if is_concrete(learning_rate):
        check_positive("learning_rate", float(learning_rate))
    if optimizer == "adam":
        return
    if batch_size not in (None, n):
        raise ValueError(f"batch_size must be None with optimizer 'lbfgs', which uses all data, got {batch_size}")
    if any((each.method, each.estimator) == ("monte_carlo", "sticking_the_landing") for each in training):
        raise ValueError(
            "optimizer 'lbfgs' needs the gradient of its value: take estimator 'total' or 'analytic_entropy', or "
            "cubature or quadrature, got 'sticking_the_landing'"
        )


def _for_evaluation(expectation: Expectation) -> Expectation:
    return Expectation("monte_carlo", 8, "total") if expectation.method == "monte_carlo" else expectation
