"""Local VI of a hierarchical NumPyro model with 1000 groups, against NumPyro's own SVI run for every group.

    python experiments/benchmarks/numpyro_groups.py                    # preset default: 77 s on two cores
    python experiments/benchmarks/numpyro_groups.py --preset smoke     # a minute, mostly compilation

Both sides get the same one-group posterior and the same normal family; ELBOs are compared on the same draws. Times per
group are taken after compilation, which is given apart. Writes numpyro_groups.csv and numpyro_groups.json to
results/benchmarks; the exit status is 1 if a goal is missed. Numbers to expect: `fit_local` a thousand times faster a
group than `SVI.run` (goal 50), within 0.01 nats of it; the whole diagnosis of an encoder for these groups in a minute
(goal under five).
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

from amortgap.runtime import prepare_compiler

prepare_compiler()

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from figures_table import row, write
from jax.flatten_util import ravel_pytree
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import amortgap as ag
from amortgap.sweep.config import parse_args

VISITS = 8
SPREAD = 0.7


@dataclasses.dataclass(frozen=True)
class Args:
    """Sizes of the measurements."""

    out: Path = Path("results/benchmarks")
    """Folder of the results."""
    groups: int = 1000
    """Groups of the model."""
    referee: int = 10
    """Groups on which NumPyro's SVI is run, one by one."""
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


def referee(args: Args, data: dict[str, np.ndarray]) -> tuple[np.ndarray, float]:
    """Return the variational parameters that SVI ends at for the first groups, and the seconds of the later ones each.

    What a user writes: the model on the data of one group, its global latent substituted.
    """
    model = numpyro.handlers.substitute(counts, {"spread": jnp.asarray(SPREAD)})
    model = numpyro.handlers.block(model, hide=["spread"])
    found, times = [], []
    for group in range(args.referee):
        row = {name: jnp.asarray(value[group : group + 1]) for name, value in data.items()}
        guide = AutoNormal(model)
        svi = SVI(model, guide, numpyro.optim.Adam(1e-2), Trace_ELBO(num_particles=10))
        began = time.perf_counter()
        params = svi.run(jax.random.key(group), args.svi_steps, progress_bar=False, x=row["x"], y=row["y"]).params
        params = jax.block_until_ready(params)
        times.append(time.perf_counter() - began)
        means = [params["rate_auto_loc"], params["slope_auto_loc"]]
        scales = [params["rate_auto_scale"], params["slope_auto_scale"]]
        found.append(np.concatenate([np.ravel(means), np.log(np.ravel(scales))]))
    return np.stack(found), float(np.median(times[1:]))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GroupEncoder:
    """A multilayer perceptron of the covariates and log counts of a group."""

    network: Any

    def __call__(self, group: Any) -> jax.Array:
        """Return phi of one group."""
        return self.network(ravel_pytree({"x": group["x"], "y": jnp.log1p(group["y"])})[0])


def main() -> int:
    """Measure, write the table, and return 1 if a goal is missed."""
    args = parse_args(Args, presets=PRESETS, description=__doc__)
    began = time.perf_counter()
    data = simulated(args.groups)
    model = ag.models.from_numpyro(counts, data, local_plate="groups", condition={"spread": SPREAD})
    if model.sites != ("rate", "slope"):
        raise ValueError(f"latents are {model.sites}, not in the order in which SVI's are read")
    family = ag.families.MeanFieldNormal(model.latent_dim)
    times = []
    for repeat in range(3):
        start = time.perf_counter()
        fit = jax.block_until_ready(ag.fit_local(jax.random.key(repeat), model.data, model=model, family=family))
        times.append(time.perf_counter() - start)
    ours = min(times[1:])
    theirs, seconds = referee(args, data)
    few = jax.tree.map(lambda leaf: leaf[: args.referee], model.data)
    both = jnp.stack([fit.phi[: args.referee], jnp.asarray(theirs, jnp.float32)], axis=1)
    bounds = ag.evaluate_bounds(jax.random.key(9), both, few, model=model, family=family, num_samples=20_000)
    difference = np.asarray(bounds.elbo[:, 0] - bounds.elbo[:, 1])
    half = args.groups // 2
    train, test = (jax.tree.map(lambda leaf, p=p: leaf[p], model.data) for p in (slice(half), slice(half, None)))
    encoder = GroupEncoder(ag.encoders.mlp(jax.random.key(1), 2 * VISITS, family, width=32, depth=1))
    fitted = ag.amortized_vi(jax.random.key(2), train, model=model, family=family, encoder=encoder, num_steps=2000)
    start = time.perf_counter()
    diagnosis = ag.diagnose(
        jax.random.key(3), train, test, model=model, family=family, encoder=fitted.encoder, budget=args.budget,
        max_data=half,
    )  # fmt: skip
    diagnosed = time.perf_counter() - start
    rows = [
        row("fit_local of all groups, compiled", ours, "s"),
        row("fit_local, compilation", times[0] - ours, "s"),
        row("groups certified to 0.01 nats", float(fit.converged.mean()), "share"),
        row("fit_local a group", 1e3 * ours / args.groups, "ms"),
        row("SVI.run a group", 1e3 * seconds, "ms"),
        row("SVI.run a group against fit_local", seconds * args.groups / ours, "times", low=50),
        row("ELBO of fit_local minus SVI, least of the groups", difference.min(), "nats", low=-0.01),
        row("ELBO of fit_local minus SVI, mean", difference.mean(), "nats"),
        row("standard error of that mean over draws", _error(bounds), "nats"),
        row("diagnosis of an encoder", diagnosed, "s", high=300),
    ]
    write(args.out, "numpyro_groups", rows, config=args, seconds=round(time.perf_counter() - began, 1))
    print(diagnosis.summary())
    return int(any(found["met"] is False for found in rows))


def _error(bounds: Any) -> float:
    return float(np.sqrt(np.sum(np.asarray(bounds.paired_standard_error[:, 1]) ** 2)) / len(bounds.elbo))


if __name__ == "__main__":
    sys.exit(main())
