"""Local VI of a hierarchical NumPyro model with 1000 groups, beside NumPyro's own SVI.

    python experiments/benchmarks/numpyro_groups.py                    # preset default: a minute on two cores
    python experiments/benchmarks/numpyro_groups.py --preset smoke     # a minute, mostly compilation

Both sides get the same posterior of a group and the same normal family; ELBOs are compared on the same draws. NumPyro
is run in three ways: `SVI.run` for one group after the other, which traces the model anew each time; the loop of
`svi.update` alone, compiled once for all groups; and all groups in one plate. Compiling is left out of all but
`SVI.run`, where the program is found in a cache and tracing remains. The times of the three ways are no fair comparison
with `fit_local`: the rate and the number of steps of NumPyro are not tuned, and no practitioner calls `SVI.run` for
every group. Writes numpyro_groups.csv and numpyro_groups.json to OUT. Numbers to expect: 0.39 ms a group for
`fit_local`, with ELBOs within 0.01 nats of those of `SVI.run` (a goal); the diagnosis of an encoder for these groups in
21 s (goal 300 s).
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from amortgap.runtime import prepare_compiler

prepare_compiler()

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from figures_table import Output, row, write
from jax.flatten_util import ravel_pytree
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import amortgap as ag
from amortgap.sweep.config import parse_args

VISITS = 8
SPREAD = 0.7


@dataclasses.dataclass(frozen=True)
class Args(Output):
    """Sizes of the measurements."""

    groups: int = 1000
    """Groups of the model."""
    referee: int = 10
    """Groups on which NumPyro's SVI is run one by one, and on which ELBOs are compared."""
    svi_steps: int = 5000
    """Its steps, of Adam at 1e-2 with ten draws."""
    budget: float = 150.0
    """Seconds of the diagnosis."""


PRESETS = {"default": Args(), "smoke": Args(groups=40, referee=2, svi_steps=3000, budget=30.0)}


def counts(x: Any, y: Any) -> None:
    """Counts of several visits in every group, with a rate and a response to a covariate of its own."""
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    with numpyro.plate("groups", x.shape[0], dim=-2):
        rate = numpyro.sample("rate", dist.LogNormal(0.5, 0.8))
        slope = numpyro.sample("slope", dist.Normal(0.0, spread))
        with numpyro.plate("visits", x.shape[1], dim=-1):
            numpyro.sample("obs", dist.Poisson(rate * jnp.exp(slope * x)), obs=y)


def simulated(groups: int) -> dict[str, np.ndarray]:
    """Return data of the model."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(groups, VISITS)).astype(np.float32)
    rate = np.exp(0.5 + 0.8 * rng.normal(size=(groups, 1)))
    slope = SPREAD * rng.normal(size=(groups, 1))
    return {"x": x, "y": rng.poisson(rate * np.exp(slope * x)).astype(np.float32)}


def make_svi() -> SVI:
    """Return NumPyro's SVI of the model with its global latent substituted."""
    model = numpyro.handlers.substitute(counts, {"spread": jnp.asarray(SPREAD)})
    model = numpyro.handlers.block(model, hide=["spread"])
    return SVI(model, AutoNormal(model), numpyro.optim.Adam(1e-2), Trace_ELBO(num_particles=10))


def phis(params: dict[str, Any]) -> np.ndarray:
    """Return the variational parameters of all groups in SVI's parameters, [groups, size]."""
    columns = [params[f"{site}_auto_{what}"] for what in ("loc", "scale") for site in ("rate", "slope")]
    means_and_scales = np.stack([np.ravel(column) for column in columns], axis=1)
    return np.concatenate([means_and_scales[:, :2], np.log(means_and_scales[:, 2:])], axis=1)


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """Return what `run` gives, and the seconds it took."""
    began = time.perf_counter()
    found = jax.block_until_ready(run())
    return found, time.perf_counter() - began


class Referee(NamedTuple):
    """What NumPyro's SVI finds for the first groups, and the seconds a group in three ways of running it."""

    one_by_one: np.ndarray
    plate: np.ndarray
    seconds_run: float
    seconds_loop: float
    seconds_plate: float


def referee(args: Args, data: dict[str, np.ndarray]) -> Referee:
    """Run NumPyro's SVI group by group, with the loop compiled once, and on all groups in one plate."""
    given = {name: jnp.asarray(value) for name, value in data.items()}
    rows: list[dict[str, Any]] = [
        {name: value[group : group + 1] for name, value in given.items()} for group in range(args.referee)
    ]

    def user(group: int) -> Any:
        return make_svi().run(jax.random.key(group), args.svi_steps, progress_bar=False, **rows[group]).params

    def loop(data: dict[str, Any]) -> Callable[..., Any]:
        svi = make_svi()
        # What the automatic guide learns of the model must not be learnt inside the compiled loop.
        svi.init(jax.random.key(0), **data)

        def run(key: jax.Array, data: dict[str, Any]) -> Any:
            state = svi.init(key, **data)
            state = jax.lax.fori_loop(0, args.svi_steps, lambda _, state: svi.update(state, **data)[0], state)
            return svi.get_params(state)

        return jax.jit(run).lower(jax.random.key(0), data).compile()

    user(0)
    one_by_one = [timed(partial(user, group)) for group in range(args.referee)]
    single, whole = loop(rows[0]), loop(given)
    alone = [timed(partial(single, jax.random.key(group), row))[1] for group, row in enumerate(rows)]
    plate, seconds_plate = timed(partial(whole, jax.random.key(0), given))
    return Referee(
        np.concatenate([phis(params) for params, _ in one_by_one]),
        phis(plate)[: args.referee],
        float(np.median([seconds for _, seconds in one_by_one])),
        float(np.median(alone)),
        seconds_plate / args.groups,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GroupEncoder:
    """A multilayer perceptron of the covariates and log counts of a group."""

    network: Any

    def __call__(self, group: Any) -> jax.Array:
        """Return phi of one group."""
        return self.network(ravel_pytree({"x": group["x"], "y": jnp.log1p(group["y"])})[0])


def main() -> int:
    """Measure and write the table; a goal that is missed is said there."""
    args = parse_args(Args, presets=PRESETS, description=__doc__)
    began = time.perf_counter()
    data = simulated(args.groups)
    model = ag.models.from_numpyro(counts, data, local_plate="groups", condition={"spread": SPREAD})
    if model.sites != ("rate", "slope"):
        raise ValueError(f"latents are {model.sites}, not in the order in which SVI's are read")
    family = ag.families.MeanFieldNormal(model.latent_dim)
    fits = [
        timed(partial(ag.fit_local, jax.random.key(repeat), model.data, model=model, family=family))
        for repeat in range(6)
    ]
    fit, first = fits[0]
    ours = float(np.median([seconds for _, seconds in fits[1:]]))
    theirs = referee(args, data)
    few = jax.tree.map(lambda leaf: leaf[: args.referee], model.data)
    ends = jnp.stack([fit.phi[: args.referee], jnp.asarray(theirs.one_by_one), jnp.asarray(theirs.plate)], axis=1)
    bounds = ag.evaluate_bounds(jax.random.key(9), ends, few, model=model, family=family, num_samples=20_000)
    difference, of_plate = np.asarray(bounds.elbo[:, :1] - bounds.elbo[:, 1:]).T
    half = args.groups // 2
    train, test = (jax.tree.map(lambda leaf, p=p: leaf[p], model.data) for p in (slice(half), slice(half, None)))
    encoder = GroupEncoder(ag.encoders.mlp(jax.random.key(1), 2 * VISITS, family, width=32, depth=1))
    fitted = ag.amortized_vi(jax.random.key(2), train, model=model, family=family, encoder=encoder, num_steps=2000)
    start = time.perf_counter()
    diagnosis = ag.diagnose(
        jax.random.key(3),
        train,
        test,
        model=model,
        family=family,
        encoder=fitted.encoder,
        budget=args.budget,
        max_data=half,
    )
    diagnosed = time.perf_counter() - start
    rows = [
        row("fit_local of all groups, compiled", ours, "s"),
        row("fit_local, compilation", first - ours, "s"),
        row("groups certified to 0.01 nats", float(fit.converged.mean()), "share"),
        row("fit_local a group", 1e3 * ours / args.groups, "ms"),
        row("SVI.run a group", 1e3 * theirs.seconds_run, "ms"),
        row("SVI's loop alone a group", 1e3 * theirs.seconds_loop, "ms"),
        row("SVI's loop alone a group against fit_local", theirs.seconds_loop * args.groups / ours, "times"),
        row("SVI of all groups in one plate, a group", 1e3 * theirs.seconds_plate, "ms"),
        row("SVI in one plate against fit_local", theirs.seconds_plate * args.groups / ours, "times"),
        row("groups on which ELBOs are compared", args.referee, "groups"),
        row("ELBO of fit_local minus SVI, least of the groups", difference.min(), "nats", low=-0.01),
        row("ELBO of fit_local minus SVI, mean", difference.mean(), "nats"),
        row("standard error of that mean over draws", _error(bounds), "nats"),
        row("ELBO of fit_local minus SVI in one plate, mean", of_plate.mean(), "nats"),
        row("diagnosis of an encoder", diagnosed, "s", high=300),
    ]
    write(args.out, "numpyro_groups", rows, config=args, seconds=round(time.perf_counter() - began, 1))
    print(diagnosis.summary())
    return 0


def _error(bounds: Any) -> float:
    return float(np.sqrt(np.sum(np.asarray(bounds.paired_standard_error[:, 1]) ** 2)) / len(bounds.elbo))


if __name__ == "__main__":
    sys.exit(main())
