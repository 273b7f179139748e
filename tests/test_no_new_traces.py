"""A second call of a fitter with another seed, other data and other weights of the same shapes traces nothing.

A one-datum function that is not compiled, such as `elbo`, is traced by whoever compiles it, and has no row here.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import pytest

import amortgap as ag

FAMILY = ag.families.MeanFieldNormal(1)
TRAINING = {"num_steps": 2, "batch_size": 3}
WEIGHING = {"method": "importance", "num_samples": 64}
LOCAL = {"num_steps": 8, "num_samples": 8, "max_reruns": 0}
TRACES = []


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Model:
    """`z ~ N(0, 1)`, `x ~ N(weight z, I)`, up to constants, which notes every time that jax traces it.

    `row` keeps programs of one row of the table from serving another.
    """

    weight: jax.Array
    row: str = field(metadata={"static": True})
    latent_dim: int = field(default=1, metadata={"static": True})
    global_dim: int = field(default=1, metadata={"static": True})

    def log_joint(self, z, x):
        TRACES.append("log_joint")
        return -0.5 * jnp.sum(z**2) - 0.5 * jnp.sum((x - self.weight * z) ** 2)

    def sample(self, key):
        TRACES.append("sample")
        z, noise = jnp.split(jax.random.normal(key, (3,)), [1])
        return z, self.weight * z + noise

    def log_prior(self, theta):
        TRACES.append("log_prior")
        return -0.5 * jnp.sum(theta**2)

    def log_local(self, theta, z, x):
        TRACES.append("log_local")
        return -0.5 * jnp.sum((z - theta) ** 2) - 0.5 * jnp.sum((x - self.weight * z) ** 2)


def encoder_of(family=FAMILY):
    return ag.encoders.linear(jax.random.key(9), 2, family, rank=1)


def amortized(key, xs, model, encoder, **settings):
    return ag.amortized_vi(
        key, xs, model=model, family=FAMILY, encoder=encoder, num_evaluations=2, **TRAINING | settings
    )


def objective(make, **settings):
    def run(key, xs, model, encoder):
        built = make(model=model, family=FAMILY, **settings)
        return ag.train_encoder(key, xs, encoder=encoder, objective=built, model=model, **TRAINING)

    return run


def recursive(key, xs, model, encoder):
    heads = [ag.encoders.linear(key, 2, ag.families.FlowHead(1, 3), rank=1) for key in jax.random.split(key, 2)]
    return ag.recursive_mixture(key, xs, model=model, encoders=heads, num_samples=2, **TRAINING)


def semi(key, xs, model, encoder, **settings):
    return ag.semi_amortized_vi(
        key, xs, model=model, family=FAMILY, encoder=encoder, refine_steps=1, **TRAINING, **settings
    )


def evidence(key, xs, model, encoder):
    phis = jax.vmap(encoder)(xs)
    return ag.evidence_of_data(key, xs, model=model, family=FAMILY, phis=phis, **WEIGHING)


def global_local(key, xs, model, encoder):
    factors = ag.inference.amortized_factors(encoder, FAMILY)
    return ag.global_local_vi(
        key, xs, model=model, global_family=FAMILY, family=FAMILY, factors=factors, num_steps=2, num_evaluations=2
    )


def gaps(key, xs, model, encoder):
    # With the local fit and the evidence of the caller: both have rows of their own.
    local = ag.fit_local(key, xs, model=model, family=FAMILY, **LOCAL)
    found = ag.evidence_of_data(key, xs, model=model, family=FAMILY, phis=local.phi, num_samples=64)
    return ag.inference_gaps(
        key, xs, model=model, family=FAMILY, encoder=encoder, local=local, evidence=found, num_samples=8
    )


I = ag.inference  # noqa: E741
FITTERS = {
    "amortized_vi": amortized,
    "amortized_vi, lbfgs": lambda *args: amortized(*args, optimizer="lbfgs"),
    "train_vae": lambda key, xs, model, encoder: ag.train_vae(
        key, xs, model=model, family=FAMILY, encoder=encoder, num_evaluations=2, **TRAINING
    ),
    "train_vae_aggressively": lambda key, xs, model, encoder: ag.train_vae_aggressively(
        key, xs, model=model, family=FAMILY, encoder=encoder, inner_steps=2, **TRAINING
    ),
    "train_encoder, ELBO": objective(I.elbo_objective),
    "train_encoder, IWAE": objective(I.iwae_objective, num_samples=2),
    "train_encoder, sleep": objective(I.sleep_objective),
    "semi_amortized_vi": semi,
    "semi_amortized_vi, model too": lambda *args: semi(*args, train_model=True, differentiate_steps=False),
    "iterative_amortized_vi": lambda key, xs, model, encoder: ag.iterative_amortized_vi(
        key, xs, model=model, family=FAMILY, num_iterations=2, width=2, **TRAINING
    ),
    "recursive_mixture": recursive,
    "fit_local": lambda key, xs, model, encoder: ag.fit_local(key, xs, model=model, family=FAMILY, **LOCAL),
    "fit_local, from encoder": lambda key, xs, model, encoder: ag.fit_local(
        key, xs, model=model, family=FAMILY, encoder=encoder, **LOCAL
    ),
    "local_vi": lambda key, xs, model, encoder: ag.local_vi(key, xs[0], model=model, family=FAMILY, **LOCAL),
    "local_vi_from_starts": lambda key, xs, model, encoder: ag.local_vi_from_starts(
        key, xs[0], model=model, family=FAMILY, num_starts=2, start_steps=2, **LOCAL
    ),
    "refine": lambda key, xs, model, encoder: ag.refine(
        key, encoder(xs[0]), xs[0], model=model, family=FAMILY, num_steps=2
    ),
    "buffered_bound": lambda key, xs, model, encoder: ag.buffered_bound(
        key, encoder(xs[0]), xs[0], model=model, family=FAMILY, num_steps=2
    ),
    "global_local_vi": global_local,
    "evidence_of_data": evidence,
    "bidirectional_of_data": lambda key, xs, model, encoder: ag.evidence.bidirectional_of_data(
        key,
        xs,
        model=model,
        family=FAMILY,
        phis=jax.vmap(encoder)(xs),
        start="q",
        num_temperatures=3,
        num_chains=2,
        num_leapfrog=1,
        num_pilots=2,
    ),
    "suboptimality_bound_of_data": lambda key, xs, model, encoder: ag.evidence.suboptimality_bound_of_data(
        key, jax.vmap(encoder)(xs), xs, model=model, family=FAMILY
    ),
    "evaluate_bounds": lambda key, xs, model, encoder: ag.evaluate_bounds(
        key, jax.vmap(encoder)(xs)[:, None], xs, model=model, family=FAMILY, num_samples=8
    ),
    "inference_gaps": gaps,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FITTERS)
def test_second_call_traces_nothing(name):
    encoder = encoder_of()
    xs = jnp.array([[0.5, -0.2], [1.0, 0.4], [-0.7, 0.3], [0.1, 0.9]])
    TRACES.clear()
    jax.block_until_ready(FITTERS[name](jax.random.key(0), xs, Model(jnp.asarray(0.8), name), encoder))
    assert TRACES, "the model was not traced"
    TRACES.clear()
    others = jax.tree.map(lambda leaf: leaf + 0.1, encoder)
    jax.block_until_ready(FITTERS[name](jax.random.key(1), xs + 0.3, Model(jnp.asarray(1.1), name), others))
    assert not TRACES
