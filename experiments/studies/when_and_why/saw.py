"""The saw series of `when_and_why.py`: its exact optima and trained encoders that read one or two observations."""

from __future__ import annotations

import functools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import amortgap as ag
from amortgap.expectations import CUBATURE
from amortgap.inference import amortized_factors, constant_factors, free_factors
from studies.when_and_why.data import saw_data
from studies.when_and_why.exact import NORMAL, Rows, lbfgs, scalar_optimum, scalar_vi
from studies.when_and_why.models import SawSeries
from studies.when_and_why.study import Known, Study, at_most, judged, mlp_factors, published_loss, row, train_by_default


def _saw() -> tuple[Any, Any]:
    return SawSeries(alpha=0.75), jnp.asarray(saw_data())


@functools.cache
def saw_known() -> Known:
    """Return the optima of the saw series."""
    model, xs = _saw()
    best = scalar_optimum(xs, model=model).elbo
    shared = lbfgs(xs, constant_factors(NORMAL), model=model).elbo
    return Known(float(best), float(best), float(shared), (0.0, 0.0))


def saw_exact() -> Rows:
    """Return the optima of the saw series as published losses, and the gaps of encoders linear in fixed features."""
    (model, xs), known = _saw(), saw_known()
    where = {"part": "saw", "num_data": len(xs)}

    def loss(method: str, elbo: Any, target: float) -> dict[str, Any]:
        value = published_loss(elbo, len(xs))
        return row(**where, method=method, quantity="loss, nats", value=value, target=target, tolerance=1e-4)

    rows = [loss("F-VI", known.basin, 553.013907), loss("Const", known.shared, 2933.567141)]
    for inputs in (1, 2):
        key_encoder = jax.random.key(inputs)
        encoder = ag.encoders.linear(key_encoder, inputs, NORMAL, rank=1)
        read = {"datum": xs, "input": xs[:, 2 - inputs :]}
        elbo = float(lbfgs(read, amortized_factors(encoder, NORMAL), steps=200, model=model).elbo)
        if inputs == 1:
            rows.append(loss("affine in x_n", elbo, 892.634460))
        else:
            what, gap = "gap, nats", known.basin - elbo
            method = "affine in (x_{n-1}, x_n)"
            rows.append(row(**where, method=method, quantity=what, value=gap, target=0.0, tolerance=1e-6))
    posterior, now = model.posterior(xs), np.asarray(xs)[:, 1:]
    for degree, target in ((1, 339.620553), (2, 338.465), (3, 336.022), (5, 331.316), (9, 328.569)):
        gap = posterior.linear_gap((now / 5) ** np.arange(degree + 1))
        limits: dict[str, Any] = {"target": target, "tolerance": 1e-3}
        rows.append(row(**where, method="polynomial of x_n", size=degree, quantity="gap, nats", value=gap, **limits))
    variance = 1 + 0.75**2
    series = np.asarray(xs)
    off = series[:, 1] - 0.75 * series[:, 0]
    n = len(off)
    evidence = -0.5 * (n * np.log(2 * np.pi * variance) + np.sum((off - off.mean()) ** 2) / variance)
    evidence += 0.5 * np.log(2 * np.pi * variance / (n * 0.75**2))
    kl = float(evidence - known.basin)
    exact: dict[str, Any] = {"target": 0.223144, "tolerance": 1e-6}
    return [*rows, row(**where, method="F-VI", quantity="approximation KL, nats", value=kl, **exact)]


def references(study: Study, kind: str) -> Rows:
    """Return how free factors (F-VI) or a shared one (Const) get to their optimum by Adam, as the encoders do."""
    (model, xs), known = _saw(), saw_known()
    factors = free_factors(NORMAL, len(xs)) if kind == "F-VI" else constant_factors(NORMAL)
    steps = 2 * study.adam_steps
    key_training = jax.random.key(5)
    fit = scalar_vi(
        key_training,
        xs,
        factors=factors,
        num_steps=steps,
        num_evaluations=min(20, steps),
        model=model,
        local_expectation=CUBATURE,
    )
    best = known.basin if kind == "F-VI" else known.shared
    return judged(
        [[fit]],
        best,
        -jnp.inf,
        part="saw, 2 inputs",
        method=f"{kind}, Adam",
        num_data=len(xs),
        size=-1,
        loss=lambda elbo: published_loss(elbo, len(xs)),
    )


def saw(study: Study, recipe: str, inputs: int, width: int) -> Rows:
    """Return how encoders of one width that read one or two observations end on the saw series."""
    (model, xs), known = _saw(), saw_known()
    read = {"datum": xs, "input": xs[:, 2 - inputs :]}
    chains = []
    for seed in range(study.seeds):
        factors = mlp_factors(seed, read["input"], NORMAL, width, recipe=recipe)
        key_training = jax.random.key(2000 + seed)
        if recipe == "default":
            vi = partial(scalar_vi, key_training, read, model=model, local_expectation=CUBATURE)
            chains.append(train_by_default(study, vi, factors, batch_size=None, polish_steps=2 * study.polish_steps))
        else:
            steps = study.saw_steps
            chains.append(
                [
                    scalar_vi(
                        key_training,
                        read,
                        factors=factors,
                        num_steps=steps,
                        num_evaluations=min(40, steps),
                        schedule="constant",
                        model=model,
                        local_expectation=CUBATURE,
                    )
                ]
            )
    part = f"saw, {inputs} input{'s' if inputs > 1 else ''}"
    rows = judged(
        chains,
        known.basin,
        known.shared,
        part=part,
        method=f"A-VI, {recipe}",
        num_data=len(xs),
        size=width,
        loss=lambda elbo: published_loss(elbo, len(xs)),
    )
    if recipe == "default" and inputs == 1 and width <= 6:
        affine = model.posterior(xs).linear_gap(np.column_stack([np.ones(len(xs)), np.asarray(xs)[:, 1]]))
        worst = max(r["value"] if r["value"] is not None else np.inf for r in rows if r["quantity"] == "gap, nats")
        over, what = worst - affine, "gap of the worst seed over the affine encoder's, nats"
        where = {"part": part, "method": "A-VI, default", "num_data": len(xs), "size": width}
        rows.append(row(**where, quantity=what, value=over, **at_most(0.1, over)))
    return rows
