"""The parts of `when_and_why.py` with exact answers: linear model, hidden Markov series and hierarchical regression."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import amortgap as ag
from amortgap.expectations import CUBATURE, Expectation
from amortgap.families import Branch
from amortgap.inference import (
    FactorizedOptimum,
    GlobalLocalFit,
    LocalFactors,
    amortized_factors,
    constant_factors,
    factorized_optimum,
    free_factors,
    global_local_vi,
)
from amortgap.models import windows
from amortgap.protocols import Data, Family, HierarchicalModel
from studies.when_and_why.data import linear_data
from studies.when_and_why.models import LinearHierarchy
from studies.when_and_why.study import Study, at_most, row

NORMAL = ag.families.MeanFieldNormal(1)
# VI with scalar theta and z. Cubature over theta is exact where the whole log joint is quadratic in theta at fixed z.
scalar_vi = partial(global_local_vi, global_family=NORMAL, family=NORMAL, global_expectation=CUBATURE)
TAU, SIGMA = 1.155, 2.43
Rows = list[dict[str, Any]]


def scalar_optimum(
    xs: Data,
    *,
    model: HierarchicalModel,
    starts: jax.Array | None = None,
    global_start: jax.Array | None = None,
    local_expectation: Expectation = CUBATURE,
    tolerance: float = 1e-9,
) -> FactorizedOptimum:
    """Return the optimum of F-VI with scalar theta and z, by default the one of the basin of the prior."""
    return factorized_optimum(
        xs,
        model=model,
        global_family=NORMAL,
        family=NORMAL,
        starts=NORMAL.standard()[None] if starts is None else starts,
        global_start=global_start,
        local_expectation=local_expectation,
        tolerance=tolerance,
    )


def lbfgs(
    xs: Data,
    factors: LocalFactors,
    *,
    model: HierarchicalModel,
    family: Family = NORMAL,
    local_expectation: Expectation = CUBATURE,
    steps: int = 100,
) -> GlobalLocalFit:
    """Return the fit by L-BFGS on all data; expectations over theta are by cubature, and the key is not used."""
    return scalar_vi(
        jax.random.key(0),
        xs,
        factors=factors,
        model=model,
        global_family=family,
        family=family,
        local_expectation=local_expectation,
        optimizer="lbfgs",
        num_steps=steps,
        num_evaluations=2,
    )


def polynomial(xs: Any, degree: int) -> tuple[Any, Any, np.ndarray]:
    """Return data, factors and features of the encoder whose mean is a polynomial of the (scalar) datum."""
    features = np.asarray(xs, np.float64) ** np.arange(degree + 1)
    if degree == 0:
        return xs, constant_factors(NORMAL), features
    # Powers are nearly dependent: an orthonormal basis of the same space is what L-BFGS can climb in.
    basis = np.linalg.qr(features)[0] * math.sqrt(len(features))
    key_encoder = jax.random.key(degree)
    encoder = ag.encoders.linear(key_encoder, degree, NORMAL, rank=1)
    return {"datum": xs, "input": jnp.asarray(basis[:, 1:])}, amortized_factors(encoder, NORMAL), features


def linear(num_data: int) -> Rows:
    """Return approximation KL and amortization gaps of polynomials of degree 0 to 2, measured and exact."""
    model = LinearHierarchy(tau=TAU, sigma=SIGMA)
    xs = jnp.asarray(linear_data(0, num_data, TAU, SIGMA))
    best = scalar_optimum(xs, model=model).elbo
    posterior, variance = model.posterior(xs), TAU**2 + SIGMA**2
    x = np.asarray(xs)[:, 0]
    evidence = (num_data - 1) * math.log(2 * math.pi * variance) + math.log(num_data)
    evidence = -0.5 * (evidence + np.sum((x - x.mean()) ** 2) / variance)
    where = {"part": "linear", "num_data": num_data}
    # Rounding of a sum of N terms.
    limit = 1e-6 * max(1, num_data / 10_000)
    rows = [
        row(
            **where,
            method="F-VI",
            quantity="approximation KL, nats",
            value=float(evidence - best),
            target=0.10184510,
            tolerance=limit,
        )
    ]
    for degree in (0, 1, 2):
        read, factors, features = polynomial(xs, degree)
        fit = lbfgs(read, factors, model=model)
        exact = posterior.linear_gap(features)
        rows.append(
            row(
                **where,
                method="A-VI",
                size=degree,
                quantity="gap, nats",
                value=float(best - fit.elbo),
                target=exact,
                tolerance=limit * max(1.0, exact),
            )
        )
    return rows


def counter_examples() -> Rows:
    """Return why the published counter-example proves nothing, and examples that do."""
    number = 100
    published = 3 * np.eye(number + 1) - 2 * (np.eye(number + 1, k=1) + np.eye(number + 1, k=-1))
    # z_0 has a flat prior and no observation; the last state has no successor.
    precision = np.diag([1.0, *[3.0] * (number - 1), 2.0]) - np.eye(number + 1, k=1) - np.eye(number + 1, k=-1)
    ones = np.concatenate([[0.0], np.ones(number)])
    where = {"part": "hmm", "num_data": number}
    smallest = float(np.linalg.eigvalsh(published)[0])
    spread = float(np.abs(np.linalg.solve(precision, ones) - 1).max())
    rows = [
        # A precision matrix has none below zero.
        row(**where, method="published matrix", quantity="smallest eigenvalue", value=smallest, met=smallest < 0),
        row(
            **where,
            method="right matrix, all x = 1",
            quantity="largest distance of a mean from 1",
            value=spread,
            target=0.0,
            tolerance=1e-10,
        ),
    ]
    proper = precision.copy()
    proper[0, 0] += 1
    means = np.linalg.solve(proper, ones)
    for index, target in enumerate((0.764, 0.910, 0.966, 0.987), start=1):
        what = f"mean of state {index}"
        method = "proper prior, all x = 1"
        rows.append(
            row(**where, method=method, quantity=what, value=float(means[index]), target=target, tolerance=5e-4)
        )
    chain = ag.models.LinearGaussianChain(
        length=number, transition=1.0, process_variance=1.0, observation_variance=1.0, initial_variance=2.0
    )
    key_series = jax.random.key(0)
    x = np.array(chain.sample(key_series)[1])
    for method, copied in (("x_50 copied from x_49", 0), ("window of three copied", 1)):
        same = x.copy()
        here, there = (48, 49) if copied == 0 else (48, 52)
        same[there - copied : there + copied + 1] = same[here - copied : here + copied + 1]
        smooth = np.linalg.solve(chain.posterior_precision(), same)
        apart = abs(float(smooth[here] - smooth[there]))
        what = "distance of the means of equal inputs"
        rows.append(row(**where, method=method, quantity=what, value=apart, met=apart > 1e-3))
    return rows


def window(study: Study, half_width: int) -> Rows:
    """Return the gap of the best affine encoder of a window: exact, by dense least squares, and trained."""
    # Two series of one length, because an encoder needs more than one datum; the gap is their mean.
    chain = ag.models.LinearGaussianChain(
        length=study.chain_length, transition=0.8, process_variance=0.5, observation_variance=0.7
    )
    keys_series = [jax.random.key(seed) for seed in (0, 1)]
    xs = jnp.stack([chain.sample(key)[1] for key in keys_series])
    root = np.linalg.cholesky(chain.posterior_precision()).T
    means = np.stack([np.asarray(chain.smooth(x).mean) for x in xs])
    inputs = [np.column_stack([np.ones(len(x)), windows(x, half_width)]) for x in xs]
    design, target = np.concatenate([root @ part for part in inputs]), (means @ root.T).ravel()
    fitted = design @ np.linalg.lstsq(design, target, rcond=None)[0]
    dense = float(0.5 * np.sum((fitted - target) ** 2) / len(xs))
    family = ag.families.MeanFieldNormal(study.chain_length)
    key_encoder, key_training = jax.random.key(1), jax.random.key(2)
    encoder = ag.encoders.window(key_encoder, study.chain_length, 1, family, reach=half_width)
    fit = ag.amortized_vi(
        key_training,
        xs,
        model=chain,
        family=family,
        encoder=encoder,
        optimizer="lbfgs",
        estimator="cubature",
        num_steps=300,
        num_evaluations=2,
    )
    # What the means lose: scales at the ends differ from those inside, and the shared ones of a window cannot follow.
    found = jax.vmap(lambda x: family.moments(fit.encoder(x))[0])(xs)
    trained = float(np.mean([chain.mean_gap(np.asarray(own), x) for own, x in zip(found, np.asarray(xs), strict=True)]))
    where = {"part": "hmm", "num_data": study.chain_length, "size": half_width}
    alone = chain.window_gap(xs[0], half_width)
    one, first = inputs[0], means[0]
    solved = root @ one @ np.linalg.lstsq(root @ one, root @ first, rcond=None)[0] - root @ first
    name = "gap of one series, nats"
    return [
        row(
            **where,
            method="exact",
            quantity=name,
            value=alone,
            target=float(0.5 * solved @ solved),
            tolerance=1e-6,
        ),
        row(**where, method="exact", quantity="gap, nats", value=dense),
        # Exact expectations: what is left is the optimiser's, and there is no noise to have a standard error.
        row(**where, method="trained", quantity="gap, nats", value=trained, target=dense, tolerance=1e-3),
    ]


NONE: dict[str, Any] = {"target": 0.0, "tolerance": 1e-4}


def _joint_dense(model: ag.models.HierarchicalRegression, xs: ag.models.GroupStatistics, evidence: float) -> float:
    """Return what one dense normal over theta and all z loses: nothing but what local VI leaves."""
    count, d, k = xs.count.size, model.latent_dim, model.global_dim

    def log_joint(u: jax.Array, groups: Any) -> jax.Array:
        local = jax.vmap(model.log_local, (None, 0, 0))(u[:k], u[k:].reshape(count, d), groups)
        return model.log_prior(u[:k]) + jnp.sum(local)

    whole = ag.models.from_log_joint(log_joint, latent_dim=k + count * d)
    family = ag.families.FullRankNormal(k + count * d)
    key_local = jax.random.key(3)
    fit = ag.local_vi(key_local, xs, model=whole, family=family, num_steps=6, warmup_steps=0, max_reruns=0)
    return evidence - float(ag.cubature_elbo(fit.phi, xs, model=whole, family=family))


def regression(study: Study, groups: int) -> Rows:
    """Return what each structure of q loses of the exact evidence, and what branches and their amortization lose."""
    d = study.regression_dim
    model = ag.models.HierarchicalRegression(dim=d)
    key_data = jax.random.key(groups)
    xs = model.sample(key_data, groups, 20)[2]
    posterior, evidence = model.posterior(xs), model.log_evidence_of_data(xs)
    where = {"part": "regression", "num_data": groups}
    what = "gap to the evidence, nats"
    full, diagonal = ag.families.FullRankNormal(d), ag.families.MeanFieldNormal(d)
    rows = [
        row(**where, method=f"joint {name}", quantity=f"exact {what}", value=posterior.approximation_gap(name))
        for name in ("dense", "block", "diagonal")
    ]
    if groups <= study.regression_joint:
        rows.append(row(**where, method="joint dense", quantity=what, value=_joint_dense(model, xs, evidence), **NONE))
    for name, family in (("block", full), ("diagonal", diagonal)):
        if groups <= study.regression_free:
            starts = family.standard()[None]
            optimum = factorized_optimum(xs, model=model, global_family=family, family=family, starts=starts)
            value = evidence - float(optimum.elbo)
            limits: dict[str, Any] = {
                "target": posterior.approximation_gap(name),
                "tolerance": 1e-5 * max(1.0, groups / 100),
            }
            rows.append(row(**where, method=f"joint {name}", quantity=what, value=value, **limits))
    branch = Branch(full, d)
    if groups <= study.regression_free:
        fit = lbfgs(xs, free_factors(branch, groups), model=model, family=full, steps=300)
        # A normal branch holds the exact posterior.
        gap = evidence - float(fit.elbo)
        rows.append(row(**where, method="branch", quantity=what, value=gap, **at_most(0.001 * groups, gap)))
    read = {"datum": xs, "input": jax.vmap(lambda group: group.features())(xs)}
    key_encoder, key_training = jax.random.key(1), jax.random.key(2)
    encoder = ag.encoders.mlp(key_encoder, read["input"].shape[1], branch, width=32, depth=2, standardize=read["input"])
    fit = global_local_vi(
        key_training,
        read,
        factors=amortized_factors(encoder, branch),
        batch_size=min(200, groups),
        num_steps=study.regression_steps,
        num_evaluations=5,
        model=model,
        global_family=full,
        family=full,
        global_expectation=CUBATURE,
        local_expectation=CUBATURE,
    )
    gap = evidence - float(fit.elbo)
    rows.append(row(**where, method="amortized branch", quantity=what, value=gap))
    rows.append(row(**where, method="amortized branch", quantity="gap per group, nats", value=gap / groups))
    seconds = float(jnp.sum(fit.trace.seconds))
    rows.append(row(**where, method="amortized branch", quantity="seconds, compilation included", value=seconds))
    return rows
