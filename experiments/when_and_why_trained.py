"""The parts of `when_and_why.py` that train encoders: nonlinear model, saw series and image decoder."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from when_and_why_data import nonlinear_data, saw_data
from when_and_why_exact import EXACT, NORMAL, SCALAR, Rows, lbfgs
from when_and_why_study import Study, at_most, judged, mlp_factors, published_loss, row

import amortgap as ag
from amortgap.expectations import CUBATURE, Expectation
from amortgap.inference import (
    amortized_factors,
    constant_factors,
    factorized_optimum,
    free_factors,
    global_local_vi,
    whole_elbo,
)

DRAWS_OF_THETA: dict[str, Any] = {"global_expectation": Expectation(size=1)}


class Known(NamedTuple):
    """ELBOs: of F-VI in the basin that descent reaches, of the best of all starts, of one shared factor."""

    basin: float
    everywhere: float
    shared: float


def _nonlinear(study: Study, normalised: bool) -> tuple[Any, Any]:
    xs = jnp.asarray(nonlinear_data()[:: study.nonlinear_stride])
    return ag.models.NonlinearHierarchy(normalised=normalised), xs


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
    rule: dict[str, Any] = {"local_expectation": Expectation("quadrature", study.exact_nodes)}
    given: dict[str, Any] = {"model": model, **SCALAR, **rule}
    given["tolerance"] = 1e-6
    basin = factorized_optimum(xs, starts=NORMAL.standard()[None], **given)
    starts = jnp.concatenate([_best_starts(study, model, xs, basin.global_phi[:1]), basin.local.phi[:, None]], axis=1)
    everywhere = factorized_optimum(xs, starts=starts, global_start=basin.global_phi, **given)
    shared = global_local_vi(
        jax.random.key(0), xs, factors=constant_factors(NORMAL), optimizer="lbfgs", num_steps=100, num_evaluations=2,
        global_expectation=CUBATURE, model=model, **SCALAR, **rule,
    )  # fmt: skip
    return Known(float(basin.elbo), float(everywhere.elbo), float(shared.elbo))


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
    return rows


def nonlinear(study: Study, recipe: str, width: int, *, normalised: bool = False) -> Rows:
    """Return how encoders of one width end on the nonlinear model, by the library's recipe or the published one."""
    model, xs = _nonlinear(study, normalised)
    known, n = nonlinear_known(study, normalised), len(xs)
    rule = Expectation("quadrature", study.trained_nodes)
    exact: dict[str, Any] = {
        "global_expectation": CUBATURE,
        "local_expectation": Expectation("quadrature", study.exact_nodes),
    }
    given: dict[str, Any] = {"model": model, **SCALAR}
    # Under both expectations the evaluation is the same deterministic bound.
    judge: dict[str, Any] = {"evaluation": (CUBATURE, exact["local_expectation"])}
    chains = []
    for seed in range(study.normalised_seeds if normalised else study.seeds):
        factors = mlp_factors(seed, xs, NORMAL, width, recipe=recipe, separate=True)
        key = jax.random.key(1000 + seed)
        if recipe == "default":
            first = global_local_vi(
                key, xs, factors=factors, batch_size=min(study.batch_size, n), num_steps=study.adam_steps,
                num_evaluations=min(20, study.adam_steps), global_expectation=CUBATURE, local_expectation=rule,
                **given, **judge,
            )  # fmt: skip
            second = global_local_vi(
                key, xs, factors=first.factors, global_start=first.global_phi, optimizer="lbfgs",
                num_steps=study.polish_steps, num_evaluations=min(5, study.polish_steps), global_expectation=CUBATURE,
                local_expectation=rule, **given, **judge,
            )  # fmt: skip
            chains.append([first, second])
        else:
            draws = Expectation(size=study.published_draws, estimator="total")
            chains.append([
                global_local_vi(
                    key, xs, factors=factors, batch_size=min(study.batch_size, n), num_steps=study.published_steps,
                    num_evaluations=min(40, study.published_steps), schedule="constant", learning_rate=1e-2,
                    global_expectation=Expectation(estimator="total"), local_expectation=draws, **given, **judge,
                )
            ])  # fmt: skip
    strict = recipe == "default" and width == max(study.nonlinear_widths) and not normalised
    return judged(
        chains, known.basin, known.shared, part="nonlinear, normalised" if normalised else "nonlinear",
        method=f"A-VI, {recipe}", num_data=n, size=width, loss=lambda elbo: published_loss(elbo, n),
        limit=1.1 if strict else None,
    )  # fmt: skip


def noise(study: Study) -> Rows:
    """Return the nats that Adam at a constant rate of 1e-2 with 100 draws leaves F-VI above its own optimum."""
    model, xs = _nonlinear(study, False)
    xs = xs[:: study.noise_stride]
    rule = Expectation("quadrature", study.exact_nodes)
    given: dict[str, Any] = {"model": model, **SCALAR}
    best = factorized_optimum(xs, starts=NORMAL.standard()[None], local_expectation=rule, **given)
    draws = Expectation(size=100, estimator="total")
    # From the optimum: what is left is noise, with nothing of the way there.
    fit = global_local_vi(
        jax.random.key(0), xs, factors=free_factors(NORMAL, len(xs), start=best.local.phi),
        global_start=best.global_phi, num_steps=study.noise_steps, num_evaluations=min(20, study.noise_steps),
        schedule="constant", learning_rate=1e-2, global_expectation=Expectation(estimator="total"),
        local_expectation=draws, evaluation=(CUBATURE, rule), **given,
    )  # fmt: skip
    late = np.asarray(fit.trace.elbo)[len(fit.trace.elbo) // 2 :]
    left = (float(best.elbo) - late) * study.noise_stride
    where = {"part": "nonlinear", "method": "F-VI, published", "num_data": len(xs) * study.noise_stride}
    return [
        row(**where, quantity="stationary noise of all data, nats", value=float(left.mean())),
        row(**where, quantity="stationary noise of all data, standard deviation in time", value=float(left.std())),
    ]


def _saw() -> tuple[Any, Any]:
    return ag.models.SawSeries(alpha=0.75), jnp.asarray(saw_data())


@functools.cache
def saw_known() -> Known:
    """Return the optima of the saw series."""
    model, xs = _saw()
    given: dict[str, Any] = {"model": model, **SCALAR}
    best = factorized_optimum(xs, starts=NORMAL.standard()[None], **given).elbo
    shared = lbfgs(xs, constant_factors(NORMAL), **given).elbo
    return Known(float(best), float(best), float(shared))


def saw_exact(study: Study) -> Rows:
    """Return the optima of the saw series as published losses, and the gaps of encoders linear in fixed features."""
    (model, xs), known = _saw(), saw_known()
    where = {"part": "saw", "num_data": len(xs)}

    def loss(method: str, elbo: Any, target: float) -> dict[str, Any]:
        value = published_loss(elbo, len(xs))
        return row(**where, method=method, quantity="loss, nats", value=value, target=target, tolerance=1e-4)

    rows = [loss("F-VI", known.basin, 553.013907), loss("Const", known.shared, 2933.567141)]
    for inputs in (1, 2):
        encoder = ag.encoders.linear(jax.random.key(inputs), inputs, NORMAL, rank=1)
        read = {"datum": xs, "input": xs[:, 2 - inputs :]}
        elbo = float(lbfgs(read, amortized_factors(encoder, NORMAL), steps=200, model=model, **SCALAR).elbo)
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


def saw(study: Study, recipe: str, inputs: int, width: int) -> Rows:
    """Return how encoders of one width that read one or two observations end on the saw series."""
    (model, xs), known = _saw(), saw_known()
    read = {"datum": xs, "input": xs[:, 2 - inputs :]}
    given: dict[str, Any] = {"model": model, **SCALAR, **EXACT}
    chains = []
    for seed in range(study.seeds):
        factors = mlp_factors(seed, read["input"], NORMAL, width, recipe=recipe)
        key = jax.random.key(2000 + seed)
        if recipe == "default":
            steps = study.adam_steps
            first = global_local_vi(
                key, read, factors=factors, num_steps=steps, num_evaluations=min(20, steps), **given
            )
            second = global_local_vi(
                key, read, factors=first.factors, global_start=first.global_phi, optimizer="lbfgs",
                num_steps=2 * study.polish_steps, num_evaluations=min(5, study.polish_steps), **given,
            )  # fmt: skip
            chains.append([first, second])
        else:
            steps = study.saw_steps
            chains.append([
                global_local_vi(
                    key, read, factors=factors, num_steps=steps, num_evaluations=min(40, steps), schedule="constant",
                    **given,
                )
            ])  # fmt: skip
    part = f"saw, {inputs} input{'s' if inputs > 1 else ''}"
    rows = judged(
        chains, known.basin, known.shared, part=part, method=f"A-VI, {recipe}", num_data=len(xs), size=width,
        loss=lambda elbo: published_loss(elbo, len(xs)),
    )  # fmt: skip
    if recipe == "default" and inputs == 1 and width <= 6:
        affine = model.posterior(xs).linear_gap(np.column_stack([np.ones(len(xs)), np.asarray(xs)[:, 1]]))
        worst = max(r["value"] if r["value"] is not None else np.inf for r in rows if r["quantity"] == "gap, nats")
        over, what = worst - affine, "gap of the worst seed over the affine encoder's, nats"
        where = {"part": part, "method": "A-VI, default", "num_data": len(xs), "size": width}
        rows.append(row(**where, quantity=what, value=over, **at_most(0.1, over)))
    return rows


def _images(study: Study) -> jax.Array:
    if study.image_data != "digits":
        try:
            images = ag.data.load_fashion_mnist(binarisation="dynamic").train
            return jnp.asarray(images[: study.image_count], float)
        except ValueError:
            if study.image_data != "auto":
                raise
    return jnp.asarray(ag.data.load_digits(binarisation="none").train[: study.image_count] / 16, float)


def image(study: Study, method: str, width: int) -> Rows:
    """Return the ELBO a datum and the squared error of one method on images, with a decoder of Bayesian weights.

    There is no exact optimum here, and F-VI gets the same steps as the encoders.
    """
    xs = _images(study)
    n, pixels = xs.shape
    model = ag.models.bayesian_decoder(
        jax.random.key(0), latent_dim=study.image_latents, data_dim=pixels, width=study.image_decoder,
        noise_variance=0.01,
    )  # fmt: skip
    family = ag.families.MeanFieldNormal(study.image_latents)
    global_family = ag.families.MeanFieldNormal(model.global_dim)
    means = jax.flatten_util.ravel_pytree(model.network)[0]
    start = jnp.concatenate([means, jnp.full_like(means, -4.0)])
    where = {"part": "image", "method": method, "num_data": n, "size": width}
    rows, elbos = [], []
    for seed in range(study.image_seeds):
        if method == "A-VI":
            encoder = ag.encoders.mlp(jax.random.key(seed), pixels, family, width=width, depth=2)
            factors = amortized_factors(encoder, family)
        else:
            factors = free_factors(family, n) if method == "F-VI" else constant_factors(family)
        fit = global_local_vi(
            jax.random.key(3000 + seed), xs, model=model, global_family=global_family, family=family, factors=factors,
            global_start=start, batch_size=min(100, n), num_steps=study.image_steps,
            num_evaluations=min(20, study.image_steps), learning_rate=5e-3, **DRAWS_OF_THETA,
        )  # fmt: skip
        value = _image_elbo(jax.random.key(1), fit, xs, model, global_family, family)
        phis = jax.vmap(lambda i, x, fit=fit: fit.factors(i, x, fit.global_phi[: means.size]))(jnp.arange(n), xs)
        guess = jax.vmap(lambda phi, fit=fit: model.decode(fit.global_phi[: means.size], phi[: study.image_latents]))(
            phis
        )
        error = float(jnp.mean((guess - xs) ** 2))
        elbos.append(value / n)
        rows.append(row(**where, seed=seed, quantity="ELBO per datum, nats", value=value / n))
        rows.append(row(**where, seed=seed, quantity="mean squared error", value=error))
        seconds = np.cumsum(np.asarray(fit.trace.seconds))
        if seed == 0:
            rows += [
                row(
                    **where,
                    seed=0,
                    quantity="path, nats",
                    step=int(step),
                    value=float(elbo),
                    seconds=float(t),
                    visits=float(v),
                )
                for step, elbo, t, v in zip(fit.trace.step, fit.trace.elbo, seconds, fit.trace.data_visits, strict=True)
            ]
    return [*rows, row(**where, quantity="median ELBO per datum, nats", value=float(np.median(elbos)))]


@jax.jit
def _image_elbo(key: jax.Array, fit: Any, xs: Any, model: Any, global_family: Any, family: Any) -> Any:
    draws = Expectation(size=20, estimator="total")
    one = Expectation(size=1, estimator="total")
    return whole_elbo(
        key, fit.global_phi, fit.factors, xs, model=model, global_family=global_family, family=family,
        global_expectation=draws, local_expectation=one,
    )  # fmt: skip
