"""What log p(x) costs on a 50-200-200-784 Bernoulli decoder: memory, rate against the floor, AIS against blackjax.

    python experiments/benchmarks/evidence.py                    # preset default: 51 s on two cores
    python experiments/benchmarks/evidence.py --preset smoke     # half a minute, mostly compilation

Needs the extra [bench], which is blackjax. Writes evidence.csv and evidence.json to OUT. All rates of
one comparison are measured in turns within this one run, and a ratio is the median over the turns.
Numbers to expect: temporary memory of IWAE-5000 on 1000 points 9 MiB; 0.47 of the rate that the decoder's matrix
products alone would allow (goal 0.5); exactly L gradients a temperature; AIS 1.38 times as fast as the same estimator
composed from blackjax (goal 1.15).
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time

import jax
import jax.numpy as jnp
from figures_table import Output, row, write
from timing import turns

import amortgap as ag
from amortgap.evidence import ais, linear_temperatures
from amortgap.sweep.config import parse_args

try:
    import blackjax
except ImportError as error:
    raise SystemExit("error: this benchmark compares with blackjax: pip install 'amortgap[bench]'") from error

SIZES = (50, 200, 200, 784)


@dataclasses.dataclass(frozen=True)
class Args(Output):
    """Sizes of the measurements."""

    points: int = 20
    """Data of the timed importance sampling; memory is taken for 1000."""
    draws: int = 5000
    """Draws a datum."""
    chains: int = 100
    """AIS chains a datum."""
    ais_points: int = 10
    """Data of AIS."""
    temperatures: int = 12
    """Temperatures of AIS; the transitions are two fewer."""
    leapfrog: int = 10
    """Leapfrog steps of a transition."""
    turns: int = 5
    """Times every alternative is timed."""


PRESETS = {
    "default": Args(),
    "smoke": Args(points=2, draws=100, chains=4, ais_points=2, temperatures=4, leapfrog=2, turns=1),
}


def importance_sampling(args: Args, model, family, xs) -> list[dict]:
    """Memory of a thousand points, and the rate against the decoder's matrix products alone."""
    key = jax.random.key(1)

    @jax.jit
    def iwae(phis, xs, model):
        return ag.evidence_of_data(
            key,
            xs,
            model=model,
            method="importance",
            family=family,
            phis=phis,
            num_samples=args.draws,
            devices=jax.devices()[:1],
        ).log_evidence

    compiled = iwae.lower(jnp.zeros((1000, family.size)), jnp.zeros((1000, SIZES[-1])), model).compile()
    analysis = compiled.memory_analysis()
    if analysis is None:
        raise RuntimeError("this backend does not say how much memory a compiled program takes")
    memory = analysis.temp_size_in_bytes / 2**20
    phis = jnp.zeros((args.points, family.size)).at[:, SIZES[0] :].set(-1.0)
    weights = [jax.random.normal(key, shape) / 10 for shape in itertools.pairwise(SIZES)]
    rows = 1000
    batch = jax.random.normal(key, (rows, SIZES[0]))
    blocks = max(1, args.points * args.draws // rows)

    @jax.jit
    def floor(batch):
        def step(carry, _):
            hidden = batch + carry
            for matrix in weights:
                hidden = hidden @ matrix
            return 1e-9 * hidden[0, 0], None

        return jax.lax.scan(step, jnp.zeros(()), None, length=blocks)[0]

    @jax.jit
    def forward(batch):
        def step(carry, _):
            values = jax.vmap(lambda z: model.log_likelihood(z, xs[0]))(batch + carry)
            return 1e-9 * values[0], None

        return jax.lax.scan(step, jnp.zeros(()), None, length=blocks)[0]

    taken = turns(
        {
            "iwae": lambda: iwae(phis, xs[: args.points], model),
            "floor": lambda: floor(batch),
            "forward": lambda: forward(batch),
        },
        args.turns,
    )
    share = statistics.median(f / t for f, t in zip(taken["floor"], taken["iwae"], strict=True))
    against = statistics.median(f / t for f, t in zip(taken["forward"], taken["iwae"], strict=True))
    rate = args.points * args.draws / statistics.median(taken["iwae"])
    return [
        row("temporary memory of IWAE, 1000 points", memory, "MiB", high=150),
        row("IWAE rate", rate, "draws/s"),
        row("IWAE rate over the rate of the decoder's matrix products", share, "share", low=0.5),
        row("IWAE rate over the rate of evaluating log p(x | z) alone", against, "share"),
    ]


def annealing(args: Args, model, xs) -> list[dict]:
    """AIS against the same estimator whose transitions come from blackjax, and gradients a temperature."""
    betas = linear_temperatures(args.temperatures)
    keys = jax.random.split(jax.random.key(2), args.ais_points)
    step = 0.05

    @jax.jit
    def ours(keys):
        def one(key, x):
            found = ais(
                key,
                x,
                model=model,
                temperatures=betas,
                step_size=step,
                num_leapfrog=args.leapfrog,
                num_chains=args.chains,
            )
            return found.log_evidence

        return jax.vmap(one)(keys, xs[: args.ais_points])

    kernel = blackjax.hmc.build_kernel()

    @jax.jit
    def theirs(keys):
        def chain(key, x):
            key_start, key_run = jax.random.split(key)

            def move(carry, level):
                z, log_weight = carry
                move_key, before, beta = level

                def density(z):
                    return model.log_prior(z) + beta * model.log_likelihood(z, x)

                log_weight = log_weight + (beta - before) * model.log_likelihood(z, x)
                state = blackjax.hmc.init(z, density)
                state, _ = kernel(move_key, state, density, step, jnp.ones(z.size), args.leapfrog)
                return (state.position, log_weight), None

            levels = (jax.random.split(key_run, betas.size - 2), betas[:-2], betas[1:-1])
            start = model.sample(key_start)[0]
            (z, log_weight), _ = jax.lax.scan(move, (start, jnp.zeros(())), levels)
            return log_weight + (betas[-1] - betas[-2]) * model.log_likelihood(z, x)

        def one(key, x):
            return jax.scipy.special.logsumexp(jax.vmap(chain, (0, None))(jax.random.split(key, args.chains), x))

        return jax.vmap(one)(keys, xs[: args.ais_points])

    taken = turns({"ours": lambda: ours(keys), "blackjax": lambda: theirs(keys)}, args.turns)
    ratio = statistics.median(b / o for o, b in zip(taken["ours"], taken["blackjax"], strict=True))
    transitions = args.ais_points * args.chains * (args.temperatures - 2)
    return [
        row(
            "AIS gradients a temperature over leapfrog steps",
            count_gradients(args) / args.leapfrog,
            "ratio",
            low=1,
            high=1,
        ),
        row("AIS rate", transitions * args.leapfrog / statistics.median(taken["ours"]), "gradients/s"),
        row("AIS rate over the blackjax composition", ratio, "ratio", low=1.15),
    ]


def count_gradients(args: Args) -> float:
    """Gradients of one chain a transition, counted by a callback inside the likelihood; the first position is apart."""
    calls: list[int] = []

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Counted:
        latent_dim = 1

        def log_prior(self, z):
            return -0.5 * jnp.sum(z**2)

        def log_likelihood(self, z, x):
            jax.debug.callback(lambda z: calls.append(1), z)
            return -jnp.sum((z - x) ** 2)

        def log_joint(self, z, x):
            return self.log_prior(z) + self.log_likelihood(z, x)

        def sample(self, key):
            return jax.random.normal(key, (1,)), jnp.zeros(1)

    found = ais(
        jax.random.key(0),
        jnp.zeros(1),
        model=Counted(),
        num_temperatures=args.temperatures,
        num_chains=2,
        num_leapfrog=args.leapfrog,
        step_size=0.3,
    )
    jax.block_until_ready(found.log_evidence)
    jax.effects_barrier()
    return (len(calls) / 2 - 1) / (args.temperatures - 2)


def main() -> None:
    """Measure and write the table."""
    args = parse_args(Args, presets=PRESETS, description=__doc__)
    began = time.perf_counter()
    key, key_data = jax.random.split(jax.random.key(0))
    model = ag.models.deep_latent_gaussian(key, latent_dim=SIZES[0], data_dim=SIZES[-1], width=SIZES[1], depth=2)
    family = ag.families.MeanFieldNormal(SIZES[0])
    xs = jax.vmap(lambda k: model.sample(k)[1])(jax.random.split(key_data, max(args.points, args.ais_points)))
    rows = [*importance_sampling(args, model, family, xs), *annealing(args, model, xs)]
    write(args.out, "evidence", rows, config=args, seconds=round(time.perf_counter() - began, 1))


if __name__ == "__main__":
    main()
