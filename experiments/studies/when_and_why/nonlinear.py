"""The nonlinear model of `when_and_why.py`: its optima, trained encoders, and the noise of the published baseline."""

from __future__ import annotations

import functools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import amortgap as ag
from amortgap.expectations import CUBATURE, Expectation
from amortgap.inference import constant_factors, free_factors
from studies.when_and_why.data import nonlinear_data
from studies.when_and_why.exact import NORMAL, Rows, lbfgs, scalar_optimum, scalar_vi
from studies.when_and_why.models import NonlinearHierarchy
from studies.when_and_why.study import Known, Study, at_most, judged, mlp_factors, published_loss, row, train_by_default


def _nonlinear(study: Study, normalised: bool) -> tuple[Any, Any]:
    xs = jnp.asarray(nonlinear_data()[:: study.nonlinear_stride])
    return NonlinearHierarchy(normalised=normalised), xs


def _best_starts(study: Study, model: Any, xs: Any, theta: Any) -> jax.Array:
    """Return for every datum the four best points of a grid wider than all optima: the bound has several modes."""
    grid = jnp.asarray([[mean, scale] for mean in np.linspace(-14, 14, 29) for scale in (-2.5, -1.5, -0.5)])
    fixed = ag.models.fix_global(model, theta)

    def best(x: jax.Array) -> jax.Array:
        values = jax.vmap(
            lambda phi: ag.quadrature_elbo(phi, x, model=fixed, family=NORMAL, num_nodes=study.trained_nodes)
        )(grid)
        return grid[jax.lax.top_k(values, 4)[1]]

    return jax.jit(lambda xs: jax.lax.map(best, xs, batch_size=500))(xs)


@functools.cache
def nonlinear_known(study: Study, normalised: bool) -> Known:
    """Return the optima of the nonlinear model: in the basin of the prior's start, from many starts, and shared."""
    model, xs = _nonlinear(study, normalised)
    # The data set is one datum with latent theta: its log joint at fixed z is quadratic in theta, so cubature is exact.
    rule = Expectation("quadrature", study.exact_nodes)
    basin = scalar_optimum(xs, model=model, local_expectation=rule, tolerance=1e-6)
    starts = jnp.concatenate([_best_starts(study, model, xs, basin.global_phi[:1]), basin.local.phi[:, None]], axis=1)
    everywhere = scalar_optimum(
        xs, model=model, starts=starts, global_start=basin.global_phi, local_expectation=rule, tolerance=1e-6
    )
    shared = lbfgs(xs, constant_factors(NORMAL), model=model, local_expectation=rule)
    left = float(basin.decrement), float(everywhere.decrement)
    return Known(float(basin.elbo), float(everywhere.elbo), float(shared.elbo), left)


def nonlinear_optima(study: Study, normalised: bool) -> Rows:
    """Return the reference values of the nonlinear model, as published losses where they are comparable."""
    known, (_, xs) = nonlinear_known(study, normalised), _nonlinear(study, normalised)
    part, n = "nonlinear, normalised" if normalised else "nonlinear", len(xs)
    targets = {"Const": 36700.4448, "F-VI, basin": 32384.2618, "F-VI, global": 32220.8082}
    values = {"Const": known.shared, "F-VI, basin": known.basin, "F-VI, global": known.everywhere}
    rows = []
    for method, elbo in values.items():
        comparable = not normalised and study.nonlinear_stride == 1
        limits: dict[str, Any] = {"target": targets[method], "tolerance": 1e-3} if comparable else {}
        value = published_loss(elbo, n)
        rows.append(row(part=part, method=method, num_data=n, quantity="loss, nats", value=value, **limits))
    for method, left in zip(("F-VI, basin", "F-VI, global"), known.left, strict=True):
        what = "Newton decrement of q0 and all data, nats"
        rows.append(row(part=part, method=method, num_data=n, quantity=what, value=left, **at_most(1e-4, left)))
    return rows


def references(study: Study, kind: str) -> Rows:
    """Return how free factors (F-VI) or a shared one (Const) get to their optimum by Adam, as the encoders do."""
    model, xs = _nonlinear(study, False)
    known, n = nonlinear_known(study, False), len(xs)
    best = known.basin if kind == "F-VI" else known.shared
    rule = Expectation("quadrature", study.trained_nodes)
    key_training = jax.random.key(5)
    fit = scalar_vi(
        key_training,
        xs,
        factors=free_factors(NORMAL, n) if kind == "F-VI" else constant_factors(NORMAL),
        model=model,
        batch_size=min(study.batch_size, n),
        num_steps=2 * study.adam_steps,
        num_evaluations=min(20, study.adam_steps),
        learning_rate=0.05 if kind == "F-VI" else 0.01,
        local_expectation=rule,
        evaluation=(CUBATURE, Expectation("quadrature", study.exact_nodes)),
    )
    return judged(
        [[fit]],
        best,
        -jnp.inf,
        part="nonlinear",
        method=f"{kind}, Adam",
        num_data=n,
        size=-1,
        loss=lambda elbo: published_loss(elbo, n),
    )


def nonlinear(study: Study, recipe: str, width: int, *, normalised: bool = False) -> Rows:
    """Return how encoders of one width end on the nonlinear model, by the library's recipe or the published one."""
    model, xs = _nonlinear(study, normalised)
    known, n = nonlinear_known(study, normalised), len(xs)
    rule = Expectation("quadrature", study.trained_nodes)
    # Both recipes are judged on the same deterministic bound.
    judge = CUBATURE, Expectation("quadrature", study.exact_nodes)
    chains = []
    for seed in range(study.normalised_seeds if normalised else study.seeds):
        factors = mlp_factors(seed, xs, NORMAL, width, recipe=recipe, separate=True)
        key_training = jax.random.key(1000 + seed)
        if recipe == "default":
            vi = partial(scalar_vi, key_training, xs, model=model, local_expectation=rule, evaluation=judge)
            batch_size = min(study.batch_size, n)
            chains.append(train_by_default(study, vi, factors, batch_size=batch_size, polish_steps=study.polish_steps))
        else:
            draws = Expectation(size=study.published_draws, estimator="total")
            chains.append(
                [
                    scalar_vi(
                        key_training,
                        xs,
                        factors=factors,
                        batch_size=min(study.batch_size, n),
                        num_steps=study.published_steps,
                        num_evaluations=min(40, study.published_steps),
                        schedule="constant",
                        learning_rate=1e-2,
                        global_expectation=Expectation(estimator="total"),
                        local_expectation=draws,
                        model=model,
                        evaluation=judge,
                    )
                ]
            )
    strict = recipe == "default" and width == max(study.nonlinear_widths) and not normalised
    return judged(
        chains,
        known.basin,
        known.shared,
        part="nonlinear, normalised" if normalised else "nonlinear",
        method=f"A-VI, {recipe}",
        num_data=n,
        size=width,
        loss=lambda elbo: published_loss(elbo, n),
        limit=1.1 if strict else None,
    )


def noise(study: Study) -> Rows:
    """Return the nats that Adam at a constant rate of 1e-2 with 100 draws leaves F-VI above its own optimum."""
    model, xs = _nonlinear(study, False)
    xs = xs[:: study.noise_stride]
    rule = Expectation("quadrature", study.exact_nodes)
    best = scalar_optimum(xs, model=model, local_expectation=rule)
    draws = Expectation(size=100, estimator="total")
    # From the optimum: what is left is noise, with nothing of the way there.
    key_training = jax.random.key(0)
    fit = scalar_vi(
        key_training,
        xs,
        model=model,
        factors=free_factors(NORMAL, len(xs), start=best.local.phi),
        global_start=best.global_phi,
        num_steps=study.noise_steps,
        num_evaluations=min(20, study.noise_steps),
        schedule="constant",
        learning_rate=1e-2,
        global_expectation=Expectation(estimator="total"),
        local_expectation=draws,
        evaluation=(CUBATURE, rule),
    )
    late = np.asarray(fit.trace.elbo)[len(fit.trace.elbo) // 2 :]
    left = (float(best.elbo) - late) * study.noise_stride
    where = {"part": "nonlinear", "method": "F-VI, published", "num_data": len(xs) * study.noise_stride}
    return [
        row(**where, quantity="stationary noise of all data, nats", value=float(left.mean())),
        row(**where, quantity="stationary noise of all data, standard deviation in time", value=float(left.std())),
    ]
