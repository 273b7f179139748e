"""The rows of `local_vi.py`: ways to fit q to every datum, each as users would write it, all from the same start."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from local_vi_workload import Workload
from numpyro.infer import SVI, Trace_ELBO

import amortgap as ag
from amortgap.inference.local.natural_gradient import ascend
from amortgap.inference.local.records import pairs_per_datum
from amortgap.inference.training.schedules import cosine

# Decoder rows in one call, at most: what suits every vectorised row here.
ROWS = 1000
NUM_SAMPLES = 256

# Programs by function and shape: the number of steps is an argument of theirs wherever it can be.
_COMPILED: dict[Any, Any] = {}


class Call(NamedTuple):
    """A prepared run: call it to fit; `compile_seconds` is what making it took."""

    run: Callable[[], jax.Array]
    compile_seconds: float


class Method(NamedTuple):
    """One row.

    Attributes:
      prepare: from workload and number of steps to a Call that returns phi of every datum.
      gradients: gradients of the log joint a datum in a run of so many steps.
      one_by_one: whether it fits one point after the other, so that few points have to do.
    """

    prepare: Callable[[Workload, int], Call]
    gradients: Callable[[int], int]
    one_by_one: bool = False


def chunk_of(n: int, rows_each: int) -> int:
    """Return the largest chunk that divides n data and has at most `ROWS` decoder rows."""
    return max(size for size in range(1, min(n, max(1, ROWS // rows_each)) + 1) if n % size == 0)


def ahead(function: Any, workload: Workload, rows_each: int, *more: Any) -> Call:
    """Compile `function(key, model, xs, init, *more)` for one chunk, and return the run over all of them."""
    n = workload.xs.shape[0]
    size = chunk_of(n, rows_each)
    parts = [(workload.xs[i : i + size], workload.init[i : i + size]) for i in range(0, n, size)]
    key = jax.random.key(11)
    began = time.perf_counter()
    if (name := (function, parts[0][0].shape)) not in _COMPILED:
        _COMPILED[name] = jax.jit(function).lower(key, workload.model, *parts[0], *more).compile()
    compiled, seconds = _COMPILED[name], time.perf_counter() - began

    def run() -> jax.Array:
        found = [compiled(jax.random.fold_in(key, i), workload.model, *p, *more) for i, p in enumerate(parts)]
        return jax.block_until_ready(jnp.concatenate(found))

    return Call(run, seconds)


def natural_gradient(workload: Workload, steps: int) -> Call:
    """The steps of `fit_local` alone, without choice of stages and certificate."""
    return ahead(partial(_natural, steps), workload, 2)


def _natural(steps: int, key: Any, model: Any, xs: Any, init: Any) -> jax.Array:
    def one(noise: jax.Array, x: jax.Array, phi: jax.Array) -> jax.Array:
        mean, log_scale = jnp.split(phi, 2)
        gradient = jax.grad(lambda z: -model.log_joint(z, x))
        mean, scale = ascend(noise, gradient, mean, jnp.exp(log_scale), warmup_steps=0).end
        return jnp.concatenate([mean, jnp.log(scale)])

    noises = jax.random.normal(key, (len(xs), steps, init.shape[1] // 2))
    return jax.vmap(one)(noises, xs, init)


def fit_local(workload: Workload, steps: int) -> Call:
    """The library as it is called, the choice of stages and the certificate included; nothing is taken up again."""

    def run() -> jax.Array:
        fit = ag.fit_local(
            jax.random.key(12),
            workload.xs,
            model=workload.model,
            family=workload.family,
            init=workload.init,
            num_steps=steps,
            num_samples=NUM_SAMPLES,
            max_reruns=0,
            devices=jax.devices()[:1],
        )
        return jax.block_until_ready(fit.phi)

    began = time.perf_counter()
    run()
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    run()
    return Call(run, max(0.0, seconds - (time.perf_counter() - began)))


def fit_local_gradients(latent_dim: int, steps: int) -> int:
    """Gradients a datum, the certificate's among them."""
    pairs = pairs_per_datum(ag.families.MeanFieldNormal(latent_dim), NUM_SAMPLES)
    return 2 * steps + 2 * pairs


def tuned_adam(workload: Workload, steps: int) -> Call:
    """Adam on antithetic pairs, 3e-2 with a cosine to zero, and the gradients of the library's likelihood."""
    return ahead(_tuned, workload, 2, jnp.asarray(steps))


def _tuned(key: Any, model: Any, xs: Any, init: Any, steps: Any) -> jax.Array:
    def bound(phi: jax.Array, noise: jax.Array, x: jax.Array) -> jax.Array:
        mean, log_scale = jnp.split(phi, 2)
        points = jnp.stack([mean + jnp.exp(log_scale) * noise, mean - jnp.exp(log_scale) * noise])
        return jnp.mean(jax.vmap(lambda z: model.log_likelihood(z, x))(points)) - _divergence(mean, log_scale)

    return _adam(key, xs, init, bound, steps, lambda index: 3e-2 * cosine(index, steps))


def plain_adam(workload: Workload, steps: int) -> Call:
    """Adam at 1e-3, one draw a step, `vmap` and a loop, and softplus differentiated by jax."""
    return ahead(_plain, workload, 1, jnp.asarray(steps))


def _plain(key: Any, model: Any, xs: Any, init: Any, steps: Any) -> jax.Array:
    return _adam(key, xs, init, partial(_plain_bound, model), steps, lambda index: 1e-3)


def _plain_bound(model: Any, phi: jax.Array, noise: jax.Array, x: jax.Array) -> jax.Array:
    mean, log_scale = jnp.split(phi, 2)
    logits = model.decoder(mean + jnp.exp(log_scale) * noise)
    return jnp.sum(x * logits - jax.nn.softplus(logits)) - _divergence(mean, log_scale)


def _divergence(mean: jax.Array, log_scale: jax.Array) -> jax.Array:
    """KL divergence from the prior in closed form, which leaves less noise than a draw of it."""
    return 0.5 * jnp.sum(mean**2 + jnp.exp(2 * log_scale) - 1 - 2 * log_scale)


def _adam(key: Any, xs: Any, init: Any, bound: Any, steps: Any, rate: Any) -> jax.Array:
    adam = optax.scale_by_adam()

    def step(index: jax.Array, carry: Any) -> Any:
        phi, state = carry
        noise = jax.random.normal(jax.random.fold_in(key, index), (len(xs), init.shape[1] // 2))
        update, state = adam.update(jax.vmap(jax.grad(bound))(phi, noise, xs), state)
        return phi + rate(index) * jnp.asarray(update), state

    return jax.lax.fori_loop(0, steps, step, (init, adam.init(init)))[0]


def python_loop(workload: Workload, steps: int) -> Call:
    """Plain Adam, one point after the other, a jitted step called from Python."""
    adam = optax.adam(1e-3)

    @jax.jit
    def step(model: Any, phi: jax.Array, state: Any, key: Any, x: jax.Array) -> Any:
        key, key_noise = jax.random.split(key)
        noise = jax.random.normal(key_noise, (phi.size // 2,))
        gradient = jax.grad(lambda phi: -_plain_bound(model, phi, noise, x))(phi)
        update, state = adam.update(gradient, state)
        return phi + jnp.asarray(update), state, key

    def run(steps: int = steps) -> jax.Array:
        found = []
        for x, phi in zip(workload.xs, workload.init, strict=True):
            state, key = adam.init(phi), jax.random.key(13)
            for _ in range(steps):
                phi, state, key = step(workload.model, phi, state, key, x)
            found.append(phi)
        return jax.block_until_ready(jnp.stack(found))

    began = time.perf_counter()
    run(1)
    return Call(run, time.perf_counter() - began)


def _numpyro(model: Any) -> SVI:
    """Mean field SVI for a batch of data; the decoder is a constant of the numpyro model."""

    def generate(xs: jax.Array, init: jax.Array) -> None:
        with numpyro.plate("data", len(xs)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([init.shape[1] // 2]).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=jax.vmap(model.decoder)(z)).to_event(1), obs=xs)

    def guide(xs: jax.Array, init: jax.Array) -> None:
        loc, log_scale = jnp.split(init, 2, axis=1)
        loc = numpyro.param("loc", loc)
        scale = numpyro.param("scale", jnp.exp(log_scale), constraint=dist.constraints.positive)
        with numpyro.plate("data", len(xs)):
            numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return SVI(generate, guide, numpyro.optim.Adam(1e-3), Trace_ELBO())


def numpyro_plate(workload: Workload, steps: int) -> Call:
    """NumPyro with all data in a plate, `svi.update` in a jitted loop."""
    return ahead(_plate, workload, 1, jnp.asarray(steps))


def _plate(key: Any, model: Any, xs: Any, init: Any, steps: Any) -> jax.Array:
    svi = _numpyro(model)
    state = svi.init(key, xs, init)
    params: Any = svi.get_params(jax.lax.fori_loop(0, steps, lambda _, s: svi.update(s, xs, init)[0], state))
    return jnp.concatenate([params["loc"], jnp.log(params["scale"])], axis=1)


def numpyro_run(workload: Workload, steps: int) -> Call:
    """NumPyro's `SVI.run` for one point after the other; every call compiles anew, and users wait for it."""

    def run() -> jax.Array:
        found = []
        for row in range(len(workload.xs)):
            svi = _numpyro(workload.model)
            part = workload.xs[row : row + 1], workload.init[row : row + 1]
            params: Any = svi.run(jax.random.key(14), steps, *part, progress_bar=False).params
            found.append(jnp.concatenate([params["loc"], jnp.log(params["scale"])], axis=1))
        return jax.block_until_ready(jnp.concatenate(found))

    return Call(run, 0.0)


def methods(latent_dim: int) -> dict[str, Method]:
    """Return the rows by name."""
    return {
        "natural gradient": Method(natural_gradient, lambda steps: 2 * steps),
        "fit_local": Method(fit_local, partial(fit_local_gradients, latent_dim)),
        "tuned Adam": Method(tuned_adam, lambda steps: 2 * steps),
        "plain Adam": Method(plain_adam, lambda steps: steps),
        "NumPyro plate": Method(numpyro_plate, lambda steps: steps),
        "Python loop": Method(python_loop, lambda steps: steps, one_by_one=True),
        "NumPyro SVI.run": Method(numpyro_run, lambda steps: steps, one_by_one=True),
    }
