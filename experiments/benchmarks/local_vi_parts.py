"""The parts of `local_vi.py`: rates, runs to tolerance, the published procedure, the encoder sweep, start-up, GPU."""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from figures_table import Requirement
from local_vi_methods import Method, methods
from local_vi_sharded import gradient_flops, kernel, matmuls
from local_vi_workload import Study, Workload
from timing import turns

import amortgap as ag
from amortgap.gaps import evaluate_bounds

Row = dict[str, Any]


def row(
    part: str,
    method: str,
    quantity: str,
    value: float | None,
    *,
    steps: int = 0,
    error: float | None = None,
    low: float | None = None,
    high: float | None = None,
) -> Row:
    """Return one row of the table; a value that was not measured is neither met nor missed."""
    return {
        "part": part,
        "method": method,
        "steps": steps,
        "quantity": quantity,
        "value": None if value is None or not np.isfinite(value) else float(value),
        "standard_error": error,
        "low": low,
        "high": high,
        "met": None if value is None else Requirement(low, high).met(value),
    }


def subset(workload: Workload, method: Method, study: Study) -> Workload:
    """Return the data that a method fits."""
    count = min(study.slow_points, study.points) if method.one_by_one else study.points
    return workload._replace(xs=workload.xs[:count], init=workload.init[:count])


def rates(study: Study, workload: Workload) -> list[Row]:
    """Gradients a second of all rows in turns, against the plain loop and against matrix products alone."""
    calls: dict[str, Callable[[], Any]] = {}
    amount: dict[str, float] = {}
    compiling: dict[str, float] = {}
    for name, method in methods(study.latent_dim).items():
        part = subset(workload, method, study)
        steps = study.rate_steps * (5 if method.one_by_one else 1)
        call = method.prepare(part, steps)
        calls[name], compiling[name] = call.run, call.compile_seconds
        amount[name] = method.gradients(steps) * len(part.xs)
    sizes = (study.latent_dim, study.width, study.width, workload.xs.shape[1])
    calls["matrix products"], amount["matrix products"] = matmuls(sizes, study.rate_steps)
    square = jax.random.normal(jax.random.key(3), (2048, 2048))
    product = jax.jit(lambda a: a @ a)
    calls["sgemm 2048"], amount["sgemm 2048"] = lambda: product(square), 2 * 2048**3 / gradient_flops(sizes)
    # Already warm from their preparation, and seconds long.
    slow = frozenset(name for name, method in methods(study.latent_dim).items() if method.one_by_one) | {"fit_local"}
    taken = turns(calls, study.turns, once=slow)
    rate = {name: [amount[name] / seconds for seconds in found] for name, found in taken.items()}

    def against(name: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(rate[name], rate[other], strict=False))

    rows = [row("rate", name, "gradients per second", statistics.median(found)) for name, found in rate.items()]
    rows += [row("start-up", name, "seconds to compile", seconds) for name, seconds in compiling.items() if seconds]
    for name in calls:
        goal = 1.15 if name == "natural gradient" else None
        rows.append(row("rate", name, "rate over plain Adam's", against(name, "plain Adam"), low=goal))
        rows.append(row("rate", name, "share of the rate of matrix products", against(name, "matrix products")))
    return rows


def sharded(study: Study, cores: list[int]) -> list[Row]:
    """The same rates with data sharded over one device a core, in a process of its own, which sets their number."""
    number = len(cores) or os.cpu_count() or 1
    # Compiled with all optimisation: here only the rate counts.
    flags = f"--xla_force_host_platform_device_count={number} --xla_cpu_multi_thread_eigen=false"
    command = [sys.executable, str(Path(__file__).with_name("local_vi_sharded.py"))]
    command += [str(n) for n in (study.rate_steps, 3 * study.turns, study.latent_dim, study.width, *cores)]
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout)
    name = "natural gradient, sharded"
    return [
        row("rate", name, "devices", found["devices"]),
        row("rate", name, "gradients per second", found["rate"]),
        row("rate", name, "share of the rate of matrix products", found["share"], low=0.85),
        row("rate", name, "share of the rate of sgemm 2048", found["square_share"]),
    ]


def to_tolerance(study: Study, workload: Workload) -> list[Row]:
    """Runs of every method to growing horizons, and the time at which the mean ELBO is within a tolerance of the best.

    The best is the largest mean ELBO of all runs and of a long reference fit, on common draws.
    """
    horizons = {
        "natural gradient": study.natural_horizons,
        "fit_local": study.fit_horizons,
        "tuned Adam": study.adam_horizons,
        "plain Adam": study.plain_horizons,
        "NumPyro plate": study.plain_horizons,
        "Python loop": study.loop_horizons,
        "NumPyro SVI.run": study.loop_horizons,
    }
    known = methods(study.latent_dim)
    reference = known["natural gradient"].prepare(workload, study.reference_steps).run()
    runs: dict[tuple[str, int], tuple[jax.Array, float]] = {}
    for turn in range(study.tolerance_turns):
        # In turns from short to long; the least of several times is the one that least else disturbed.
        for place in range(max(map(len, horizons.values()))):
            for name, steps in horizons.items():
                if place >= len(steps) or (turn and name not in ("natural gradient", "tuned Adam")):
                    continue
                call = known[name].prepare(subset(workload, known[name], study), steps[place])
                began = time.perf_counter()
                phi = call.run()
                spent = 1e3 * (time.perf_counter() - began) / len(phi)
                before = runs.get((name, steps[place]), (phi, np.inf))[1]
                runs[name, steps[place]] = phi, min(spent, before)

    # As users call it: default steps, and data that miss the tolerance are taken up again.
    whole = partial(ag.fit_local, jax.random.key(12), workload.xs, model=workload.model, family=workload.family)
    jax.block_until_ready(whole(init=workload.init, devices=jax.devices()[:1]))
    began = time.perf_counter()
    fit = jax.block_until_ready(whole(init=workload.init, devices=jax.devices()[:1]))
    spent = 1e3 * (time.perf_counter() - began) / len(fit.phi)
    name = "fit_local, defaults, reruns included"
    rows = [
        row("tolerance", name, "milliseconds per point", spent),
        row("tolerance", name, "gradients per point", float(jnp.mean(fit.num_gradients))),
        row("tolerance", name, "share of data converged", float(jnp.mean(fit.converged))),
        row("tolerance", name, "mean stated suboptimality, nats", float(jnp.mean(fit.suboptimality))),
    ]
    curves: dict[str, list[tuple[float, float]]] = {name: [(0.0, np.inf)] for name in horizons}
    for slow in (False, True):
        names = [name for name in runs if known[name[0]].one_by_one == slow]
        count = len(runs[names[0]][0])
        phis = [reference[:count], workload.init[:count], fit.phi[:count], *(runs[name][0] for name in names)]
        gaps, errors = score(study, workload, phis)
        if not slow:
            rows.append(row("tolerance", "start", "gap to the best, nats", gaps[1], error=errors[1]))
            rows.append(row("tolerance", name, "gap to the best, nats", gaps[2], error=errors[2]))
        for found, gap, error in zip(names, gaps[3:], errors[3:], strict=True):
            method, steps = found
            curves[method].append((runs[found][1], gap))
            made = known[method].gradients(steps)
            rows.append(row("tolerance", method, "gradients per point", made, steps=steps))
            rows.append(row("tolerance", method, "milliseconds per point", runs[found][1], steps=steps))
            rows.append(row("tolerance", method, "gap to the best, nats", gap, steps=steps, error=error))
    for tolerance in (0.05, 0.01):
        needed = {name: crossing(curve, tolerance) for name, curve in curves.items()}
        what = f"milliseconds per point to {tolerance} nats"
        rows += [row("tolerance", name, what, time) for name, time in needed.items()]
        for name in ("natural gradient", "fit_local"):
            # Where Adam never arrives, the time of its longest run stands for the time it needs, to its advantage.
            theirs = min(needed["tuned Adam"], curves["tuned Adam"][-1][0])
            goal = 0.25 if name == "natural gradient" else None
            what = f"time to {tolerance} nats over tuned Adam's"
            rows.append(row("tolerance", name, what, needed[name] / theirs, high=goal))
    return rows


def score(study: Study, workload: Workload, phis: list[jax.Array]) -> tuple[list[float], list[float]]:
    """Return the mean nats of every fit below the best of them, with the standard error of its paired difference."""
    count = len(phis[0])
    bounds = evaluate_bounds(
        jax.random.key(21),
        jnp.stack(phis, axis=1),
        workload.xs[:count],
        model=workload.model,
        family=workload.family,
        num_samples=study.eval_samples,
    )
    means = np.asarray(jnp.mean(bounds.elbo, axis=0), np.float64)
    errors = np.sqrt(np.sum(np.asarray(bounds.paired_standard_error, np.float64) ** 2, axis=0)) / count
    return list(means.max() - means), list(errors)


def crossing(curve: list[tuple[float, float]], tolerance: float) -> float:
    """Return the milliseconds at which the gap reaches the tolerance, on a log-log line; infinite if never."""
    for (before, high), (after, low) in itertools.pairwise(curve):
        if low <= tolerance:
            if not np.isfinite(high) or before <= 0 or low <= 0:
                return after
            share = np.log(high / tolerance) / np.log(high / low)
            return float(before * (after / before) ** share)
    return np.inf


def published(study: Study, workload: Workload) -> list[Row]:
    """Adam at 1e-3 from the prior, one q an image, 100 draws a step, until 11 windows of 100 steps brought nothing.

    Start, rate, number of draws and stop test, which the batch shares, are those of the code of Cremer, Li and Duvenaud
    ("Inference suboptimality in variational autoencoders", 2018). Kinder to Adam than either of their two codes: one
    spends its draws on a hundred copies of q, the other has fifty, and both estimate the divergence that has a closed
    form here. `experiments/studies/cremer2018/estimators.py` is what they did; a step costs the same. The library fits
    the same points from the prior as well.
    """
    count = min(study.published_points, study.points)
    xs, adam = workload.xs[:count], optax.adam(1e-3)
    phi = jnp.zeros((count, 2 * study.latent_dim))
    window = jax.jit(partial(_published_window, adam, study.published_samples, study.published_window))
    state, best, bad, steps = adam.init(phi), -np.inf, 0, 0
    key = jax.random.key(31)
    window(key, workload.model, xs, phi, state)
    began = time.perf_counter()
    while bad <= study.published_patience:
        phi, state, value = window(jax.random.fold_in(key, steps), workload.model, xs, phi, state)
        steps += study.published_window
        bad, best = (0, float(value)) if float(value) > best else (bad + 1, best)
    theirs = 1e3 * (time.perf_counter() - began) / count

    def ours(points: jax.Array) -> ag.LocalFit:
        fit = ag.fit_local(jax.random.key(32), points, model=workload.model, family=workload.family)
        return jax.block_until_ready(fit)

    ours(workload.xs)
    began = time.perf_counter()
    fit = ours(workload.xs)
    mine = 1e3 * (time.perf_counter() - began) / len(workload.xs)
    means, errors = score(study, workload, [fit.phi[:count], phi])
    name = f"Adam at 1e-3, {study.published_samples} draws, window stop"
    return [
        row("published", name, "points", count),
        row("published", name, "steps", steps),
        row("published", name, "gradients per point", steps * study.published_samples),
        row("published", name, "milliseconds per point", theirs),
        row("published", "fit_local from the prior", "milliseconds per point", mine),
        row("published", "fit_local from the prior", "share of data converged", float(jnp.mean(fit.converged))),
        row("published", "fit_local from the prior", "times as fast", theirs / mine, low=500.0),
        # At least equal, as far as the draws of the comparison can tell.
        row(
            "published",
            "fit_local from the prior",
            "ELBO above that of Adam, nats",
            means[1] - means[0],
            error=errors[1],
            low=-2 * errors[1],
        ),
    ]


def _published_window(adam: Any, samples: int, steps: int, key: Any, model: Any, xs: Any, phi: Any, state: Any) -> Any:
    def loss(phi: jax.Array, key: jax.Array) -> jax.Array:
        mean, log_scale = jnp.split(phi, 2, axis=1)
        noise = jax.random.normal(key, (samples, *mean.shape))
        logits = jax.vmap(jax.vmap(model.decoder))(mean[None] + jnp.exp(log_scale)[None] * noise)
        likelihood = jnp.sum(xs[None] * logits - jax.nn.softplus(logits), axis=2)
        divergence = 0.5 * jnp.sum(mean**2 + jnp.exp(2 * log_scale) - 1 - 2 * log_scale, axis=1)
        return -jnp.sum(jnp.mean(likelihood, axis=0) - divergence)

    def step(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        phi, state = carry
        value, gradient = jax.value_and_grad(loss)(phi, key)
        update, state = adam.update(gradient, state)
        return (phi + jnp.asarray(update), state), -value / len(xs)

    (phi, state), values = jax.lax.scan(step, (phi, state), jax.random.split(key, steps))
    return phi, state, jnp.mean(values)


def encoder_sweep(study: Study, workload: Workload) -> list[Row]:
    """Seeds vmapped, small widths padded to one shape: seconds to compile and to run, and the number of programs."""
    small = [width for width in study.widths if width <= study.padded_to]
    groups = [small, *([width] for width in study.widths if width > study.padded_to)]
    traced: list[int] = []

    @jax.jit
    def train(keys: Any, xs: Any, model: Any, encoders: Any) -> Any:
        traced.append(1)
        return jax.vmap(
            lambda key, encoder: (
                ag.amortized_vi(
                    key,
                    xs,
                    model=model,
                    family=workload.family,
                    encoder=encoder,
                    num_steps=study.sweep_steps,
                    num_evaluations=2,
                ).encoder
            )
        )(keys, encoders)

    compiling = running = making = 0.0
    for group in filter(None, groups):
        began = time.perf_counter()
        keys = jax.random.split(jax.random.key(group[0]), len(group) * study.seeds)
        encoders = ag.encoders.stack_padded(
            [
                ag.encoders.mlp(key, workload.xs.shape[1], workload.family, width=width, depth=1)
                for key, width in zip(keys, np.repeat(group, study.seeds).tolist(), strict=True)
            ]
        )
        jax.block_until_ready(encoders)
        making += time.perf_counter() - began
        args = keys, workload.xs, workload.model, encoders
        began = time.perf_counter()
        compiled = train.lower(*args).compile()
        compiling += time.perf_counter() - began
        began = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        running += time.perf_counter() - began
    shapes = len([group for group in groups if group])
    name = f"{len(study.widths)} widths x {study.seeds} seeds"
    return [
        row("encoder sweep", name, "seconds to make the encoders", making),
        row("encoder sweep", name, "seconds to compile", compiling),
        row("encoder sweep", name, "seconds to run", running),
        row("encoder sweep", name, "share of compiling", compiling / (compiling + running), high=0.4),
        row("encoder sweep", name, "compiled programs", len(traced), high=float(shapes)),
    ]


def start_up(_study: Study, _workload: Workload) -> list[Row]:
    """Seconds of a process that only imports the package."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import amortgap"], check=True)
    return [row("start-up", "amortgap", "seconds to import", time.perf_counter() - began)]


def gpu(study: Study, workload: Workload) -> list[Row]:
    """Points a second to 0.01 nats on a GPU, and the share of the rate of matrix products; empty rows without one."""
    quantities = ("points per second to 0.01 nats", "share of the rate of matrix products")
    if jax.default_backend() != "gpu":
        print("GPU row skipped: jax finds no GPU here", file=sys.stderr)
        return [row("GPU", "fit_local", quantity, None) for quantity in quantities]
    xs = jnp.tile(workload.xs, (-(-study.gpu_points // len(workload.xs)), 1))[: study.gpu_points]
    init = jnp.tile(workload.init, (-(-study.gpu_points // len(workload.init)), 1))[: study.gpu_points]

    def fit() -> ag.LocalFit:
        key, model, family = jax.random.key(41), workload.model, workload.family
        return jax.block_until_ready(ag.fit_local(key, xs, model=model, family=family, init=init, chunk_size=2500))

    sizes = (study.latent_dim, study.width, study.width, xs.shape[1])
    calls, amount = {}, {}
    calls["kernel"], amount["kernel"] = kernel(workload.model, study.gpu_points, study.rate_steps)
    calls["products"], amount["products"] = matmuls(sizes, study.rate_steps, rows=2 * study.gpu_points)
    calls["fit"] = fit
    taken = turns(calls, study.turns)
    rate = study.gpu_points / statistics.median(taken["fit"])
    share = statistics.median(
        p * amount["kernel"] / (k * amount["products"]) for k, p in zip(taken["kernel"], taken["products"], strict=True)
    )
    return [
        row("GPU", "fit_local", quantities[0], rate * float(jnp.mean(fit().converged)), low=2000.0),
        row("GPU", "natural gradient", quantities[1], share),
    ]


PARTS: dict[str, Callable[[Study, Workload], list[Row]]] = {
    "start-up": start_up,
    "rate": rates,
    "tolerance": to_tolerance,
    "published": published,
    "encoder-sweep": encoder_sweep,
    "gpu": gpu,
}
