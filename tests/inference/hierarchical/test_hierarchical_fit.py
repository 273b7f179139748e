"""Global and local VI against exact optima: factorized by Newton steps, amortized by L-BFGS and by Adam."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hierarchies import Nonlinear, scalar_regression

import amortgap as ag
from amortgap.expectations import CUBATURE, Expectation
from amortgap.families import Branch
from amortgap.inference import (
    amortized_factors,
    constant_factors,
    factorized_optimum,
    free_factors,
    global_local_vi,
    hierarchical_elbo,
    local_optima,
)

NORMAL = ag.families.MeanFieldNormal(1)
EXACT = {"global_expectation": CUBATURE, "local_expectation": CUBATURE}
FAMILIES = {"global_family": NORMAL, "family": NORMAL}


def test_factorized_optimum_is_the_exact_one(key, x64):
    model, xs = scalar_regression(key, 8)
    found = factorized_optimum(xs, model=model, starts=NORMAL.standard()[None], **FAMILIES)
    posterior = model.posterior(xs)
    np.testing.assert_allclose(found.global_phi[0], posterior.global_mean[0], atol=1e-5)
    np.testing.assert_allclose(found.local.phi[:, :1], posterior.local_mean, atol=1e-5)
    best = model.log_evidence_of_data(xs) - posterior.approximation_gap("diagonal")
    assert posterior.approximation_gap("diagonal") > 0.05
    assert float(found.elbo) == pytest.approx(best, abs=1e-8)
    assert float(found.decrement) < 1e-8 and float(found.change) < 1e-8 and bool(found.local.curved.all())


def test_lbfgs_reaches_the_exact_amortized_optima(key, x64):
    model, xs = scalar_regression(key, 8)
    posterior = model.posterior(xs)
    best = factorized_optimum(xs, model=model, starts=NORMAL.standard()[None], **FAMILIES).elbo
    means = xs.cross / xs.count[:, None]
    inputs = jnp.concatenate([means, means**2], axis=1)
    once, squared = ({"datum": xs, "input": inputs[:, :degree]} for degree in (1, 2))
    x = np.asarray(means)
    encoders = {
        0: (constant_factors(NORMAL), xs, np.ones((8, 1))),
        1: (amortized_factors(ag.encoders.linear(key, 1, NORMAL, rank=1), NORMAL), once, x ** np.arange(2)),
        2: (amortized_factors(ag.encoders.linear(key, 2, NORMAL, rank=1), NORMAL), squared, x ** np.arange(3)),
    }
    for degree, (factors, read, features) in encoders.items():
        fit = global_local_vi(
            key,
            read,
            model=model,
            factors=factors,
            optimizer="lbfgs",
            num_steps=80,
            num_evaluations=2,
            **FAMILIES,
            **EXACT,
        )
        assert bool(fit.finite)
        # Gradients of rounding size; the gap of the best affine encoder is zero.
        assert float(best - fit.elbo) == pytest.approx(posterior.linear_gap(features), abs=1e-6), degree
    assert posterior.linear_gap(x ** np.arange(2)) < 1e-12 < 0.1 < posterior.linear_gap(np.ones((8, 1)))


def test_adam_on_minibatches_finds_the_optimum_of_a_branch_and_vmap_is_a_loop(key):
    model = ag.models.HierarchicalRegression(dim=1)
    xs = model.sample(key, 6, 4)[2]
    factors = free_factors(Branch(NORMAL, 1), 6)
    given = {"model": model, "num_steps": 400, "batch_size": 3, "learning_rate": 0.1, "num_evaluations": 2, **FAMILIES}
    rules = {"global_expectation": Expectation(size=4), "evaluation": (CUBATURE, CUBATURE)}

    def fit(key):
        return global_local_vi(key, xs, factors=factors, **given, **rules)

    keys = jax.random.split(key, 2)
    stacked = jax.vmap(fit)(keys)
    alone = fit(keys[1])
    np.testing.assert_allclose(stacked.trace.elbo[1], alone.trace.elbo, rtol=1e-4)
    assert alone.trace.step.tolist() == [200, 400] and alone.trace.data_visits.tolist() == [600, 1200]
    assert float(alone.trace.seconds.min()) > 0
    # The dense posterior is in the branch family, so the optimum is the evidence; the last rate leaves some noise.
    short = model.log_evidence_of_data(xs) - np.asarray(stacked.elbo)
    assert (short > -1e-3).all() and (short < 0.1).all()


def test_multiple_starts_find_the_better_of_two_modes_and_extreme_data_stay_finite(x64):
    from amortgap.models import fix_global

    model = fix_global(Nonlinear(), jnp.array([-0.3]))
    xs = jnp.array([[24.0], [-30.0], [40.0], [1e4]])
    rule = Expectation("quadrature", 40)
    one = local_optima(xs, NORMAL.standard()[None], model=model, family=NORMAL, expectation=rule)
    starts = jnp.stack([jnp.array([mean, -1.0]) for mean in (-6.0, -3.0, 0.0, 3.0, 6.6)])
    many = local_optima(xs, starts, model=model, family=NORMAL, expectation=rule)
    assert np.isfinite(np.asarray(jnp.concatenate([one.phi, many.phi]))).all()
    assert (many.elbo - one.elbo > 0.2).all()
    fit = global_local_vi(
        jax.random.key(0),
        xs,
        model=Nonlinear(),
        factors=amortized_factors(
            ag.encoders.mlp(jax.random.key(1), 1, NORMAL, width=4, depth=1, standardize=xs), NORMAL
        ),
        local_expectation=rule,
        global_expectation=CUBATURE,
        num_steps=20,
        num_evaluations=2,
        **FAMILIES,
    )
    assert bool(fit.finite) and np.isfinite(np.asarray(fit.trace.elbo)).all()


@dataclasses.dataclass(frozen=True)
class Counted(Nonlinear):
    """The nonlinear model with a prior mean of theta as its weight, which says when it is traced."""

    centre: jax.Array
    say: Callable[[], None] = dataclasses.field(metadata={"static": True})

    def log_prior(self, theta):
        self.say()
        return -0.5 * jnp.sum((theta - self.centre) ** 2)


jax.tree_util.register_dataclass(Counted)


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs", "factorized"])
def test_seeds_data_and_weights_of_one_shape_never_retrace(optimizer):
    traces = []

    def say():
        traces.append(None)

    def fit(seed):
        key = jax.random.key(seed)
        model, xs = Counted(jnp.full(1, float(seed)), say), jax.random.normal(key, (5, 1))
        if optimizer == "factorized":
            return factorized_optimum(
                xs, model=model, starts=NORMAL.standard()[None], max_sweeps=2, tolerance=-1.0, **FAMILIES
            )
        factors = amortized_factors(ag.encoders.linear(key, 1, NORMAL, rank=1), NORMAL)
        return global_local_vi(
            key,
            xs,
            model=model,
            factors=factors,
            optimizer=optimizer,
            num_steps=6,
            num_evaluations=3,
            batch_size=None if optimizer == "lbfgs" else 2,
            **FAMILIES,
            **EXACT,
        )

    first = fit(1)
    once = len(traces)
    second = fit(2)
    assert 0 < once == len(traces)
    assert float(first.elbo) != float(second.elbo)


def bad(key, **changes):
    model, xs = scalar_regression(key, 8)
    given = {"model": model, "factors": constant_factors(NORMAL), "num_steps": 20, **FAMILIES, **changes}
    return global_local_vi(key, given.pop("xs", xs), **given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ag.models.PoissonGamma(shape=1.0, rate=1.0)}, "model must have a global part"),
        ({"global_family": None}, "global_family must have latent_dim = model.global_dim = 1, got None"),
        ({"global_family": ag.families.MeanFieldNormal(2)}, "global_dim = 1, got 2"),
        ({"batch_size": 9}, "batch_size must be a whole number, between 1 and 8, got 9"),
        ({"xs": scalar_regression(jax.random.key(0), 1)[1]}, "at least two data to amortize over, got N = 1"),
        ({"xs": jnp.ones((8, 2))}, "xs must be a GroupStatistics"),
        ({"factors": free_factors(NORMAL, 7)}, r"free factors must have shape \(8, 2\)"),
        ({"factors": constant_factors(Branch(NORMAL, 2))}, "global_dim = 1"),
        ({"factors": NORMAL}, "factors must be made by"),
        ({"optimizer": "lbfgs"}, "sticking_the_landing"),
        ({"optimizer": "lbfgs", "batch_size": 4, **EXACT}, "batch_size must be None"),
        ({"optimizer": "sgd"}, "optimizer must be one of"),
        ({"schedule": "step"}, "schedule must be one of"),
        ({"learning_rate": -1.0}, "learning_rate must be a positive number"),
        ({"global_start": jnp.zeros(3)}, "global_start must have shape"),
        ({"num_steps": 5}, "num_steps must be a whole number, at least 20"),
    ],
)
def test_bad_input_is_refused_before_anything_is_computed(changes, message, key, as_users_call):
    with pytest.raises(ValueError, match=message):
        bad(key, **changes)


def test_rules_that_cannot_serve_are_refused(key):
    model = ag.models.HierarchicalRegression(dim=4)
    xs, family = model.sample(key, 3, 5)[2], ag.families.MeanFieldNormal(4)
    given = {"model": model, "global_family": family, "family": family}
    with pytest.raises(ValueError, match="local_expectation: quadrature serves at most 3 dimensions, got 4"):
        global_local_vi(
            key, xs, factors=constant_factors(family), local_expectation=Expectation("quadrature", 4), **given
        )
    wide = ag.models.from_log_joint(lambda z, x: -jnp.sum(z**2), latent_dim=4)
    with pytest.raises(ValueError, match="at most 3 dimensions"):
        ag.quadrature_elbo(family.standard(), jnp.ones(1), model=wide, family=family)
    linear_model, data = scalar_regression(key, 8)
    with pytest.raises(ValueError, match=r"rows.shape\[0\] must be a whole number, between 1 and 8"):
        hierarchical_elbo(
            key,
            NORMAL.standard(),
            constant_factors(NORMAL),
            data,
            model=linear_model,
            rows=jnp.zeros(9, int),
            **FAMILIES,
        )
    with pytest.raises(ValueError, match="must be cubature or quadrature"):
        factorized_optimum(
            data, model=linear_model, starts=NORMAL.standard()[None], local_expectation=Expectation(), **FAMILIES
        )
    with pytest.raises(ValueError, match=r"starts must have shape \[S, size\]"):
        factorized_optimum(data, model=linear_model, starts=jnp.zeros((1, 3)), **FAMILIES)
    with pytest.raises(ValueError, match="method must be one of"):
        Expectation("exact")
    with pytest.raises(ValueError, match="theta must have shape"):
        ag.models.fix_global(linear_model, jnp.zeros(2))
    with pytest.raises(ValueError, match="length must be a whole number, at least 2"):
        ag.models.LinearGaussianChain(length=1, transition=0.5, process_variance=1.0, observation_variance=1.0)
