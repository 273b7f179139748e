"""Optimisers of amortized VI: L-BFGS, Adam's rates, optax transformations, and the draws that each step takes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ladder import FAMILY, MEAN_FIELD, MODEL, TINY, XS, exact_gap, make

import amortgap as ag
from amortgap.inference.training import per_datum, rounds


@pytest.mark.parametrize(("family", "rank"), [(FAMILY, 1), (MEAN_FIELD, 2)])
def test_lbfgs_with_cubature_meets_the_closed_form_ladder_to_float_precision(key, family, rank):
    fit = ag.amortized_vi(
        key,
        XS,
        model=MODEL,
        family=family,
        encoder=make(family, rank, key),
        optimizer="lbfgs",
        estimator="cubature",
        num_steps=80,
        num_evaluations=4,
    )
    assert abs(exact_gap(family, fit.encoder) - MODEL.rank_gap(XS, rank)) < 2e-5
    assert fit.finite
    assert abs(fit.change) < 1e-3


@pytest.mark.slow
def test_lbfgs_on_fixed_draws_raises_the_elbo_and_runs_under_vmap(key):
    encoders = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[make(FAMILY, 2, k) for k in jax.random.split(key, 2)])
    settings = {"optimizer": "lbfgs", "num_steps": 12, "num_evaluations": 2, "num_samples": 8, "antithetic": True}

    def run(encoder):
        return ag.amortized_vi(key, XS, model=MODEL, family=FAMILY, encoder=encoder, **settings)

    fits = jax.vmap(run)(encoders)
    one = run(jax.tree.map(lambda leaf: leaf[1], encoders))
    np.testing.assert_allclose(fits.trace.elbo[1], one.trace.elbo, rtol=1e-2)
    starts = [exact_gap(FAMILY, jax.tree.map(lambda leaf, i=i: leaf[i], encoders)) for i in range(2)]
    ends = [exact_gap(FAMILY, jax.tree.map(lambda leaf, i=i: leaf[i], fits.encoder)) for i in range(2)]
    assert all(end < start for start, end in zip(starts, ends, strict=True))
    assert exact_gap(FAMILY, one.encoder) < 0.3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "sgd"}, "optimizer must be one of .*'sgd'"),
        (
            {"optimizer": optax.adam},
            "or an optax.GradientTransformation, got function",
        ),
        (
            {"optimizer": optax.adam(1e-3), "learning_rate": 1e-3},
            "learning_rate must be None where",
        ),
        (
            {"optimizer": "lbfgs", "estimator": "sticking_the_landing"},
            "estimator must be one of .*'sticking_the_landing'",
        ),
        ({"optimizer": "lbfgs", "devices": jax.devices()}, "devices must be None"),
        ({"estimator": "cubature"}, "estimator must be one of .*'cubature'"),
    ],
)
def test_estimator_and_optimizer_must_fit(key, settings, message, as_users_call):
    with pytest.raises(ValueError, match=message):
        ag.amortized_vi(key, XS, model=MODEL, family=FAMILY, encoder=make(FAMILY, 1, key), **settings)


def test_an_optax_transformation_takes_its_own_steps_on_the_tree_of_the_weights(key):
    """Gradients of mean and log scale are one throughout: plain ascent moves by the sum of its rates."""
    family = ag.families.MeanFieldNormal(2)

    @jax.tree_util.register_pytree_with_keys_class
    class Dictionary(dict):
        def __call__(self, x):
            return jnp.concatenate([self["mean"], self["log_scale"]])

        def tree_flatten_with_keys(self):
            return [(jax.tree_util.DictKey(name), self[name]) for name in sorted(self)], tuple(sorted(self))

        @classmethod
        def tree_unflatten(cls, names, leaves):
            return cls(zip(names, leaves, strict=True))

    def frozen(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: "log_scale" in jax.tree_util.keystr(path), params)

    optimizer = optax.chain(optax.sgd(optax.linear_schedule(0.0, 0.3, 3)), optax.masked(optax.set_to_zero(), frozen))
    start = Dictionary(mean=jnp.zeros(2), log_scale=jnp.zeros(2))
    fit = ag.amortized_vi(
        key,
        jnp.zeros((1, 1)),
        model=ag.models.from_log_joint(lambda z, x: jnp.sum(z), 2),
        family=family,
        encoder=start,
        num_steps=4,
        num_evaluations=4,
        batch_size=1,
        estimator="analytic_entropy",
        optimizer=optimizer,
    )
    np.testing.assert_allclose(fit.encoder["mean"], 0.0 + 0.1 + 0.2 + 0.3, rtol=1e-5)
    np.testing.assert_array_equal(fit.encoder["log_scale"], 0.0)


def test_adam_moves_by_its_rate_and_by_a_third_of_it_in_the_second_cycle(key):
    # The gradients of mean and log scale are one throughout, and so are Adam's steps but for the rate.
    steps, rate, family = 40, 0.01, ag.families.MeanFieldNormal(1)
    fit = ag.amortized_vi(
        key,
        jnp.zeros((1, 1)),
        model=ag.models.from_log_joint(lambda z, x: jnp.sum(z), 1),
        family=family,
        encoder=jax.tree_util.Partial(lambda phi, x: phi, jnp.zeros(2)),
        num_steps=2 * steps,
        num_evaluations=4,
        batch_size=1,
        learning_rate=rate,
        estimator="analytic_entropy",
        antithetic=True,
        num_samples=2,
        eval_samples=4000,
    )
    number = np.arange(1, steps + 1)
    cycle = np.sum(0.5 * (1 + np.cos(np.pi * number / (steps + 1))) * np.minimum(1, number / (steps // 10)))
    np.testing.assert_allclose(fit.encoder.args[0], rate * cycle * (1 + 1 / 3), rtol=1e-4)
    # The ELBO is the mean plus the log scale plus a constant: the second cycle gains the lesser part.
    np.testing.assert_allclose(fit.trace.elbo[3] - fit.trace.elbo[1], 2 * rate * cycle / 3, atol=0.02)


def test_minibatches_and_draws_have_keys_of_their_own(key, monkeypatch):
    orders, draws = [], []
    batches, mean = rounds.minibatches, per_datum.mean_over_rows

    def recorded_batches(order_key, *sizes):
        orders.append(order_key)
        return batches(order_key, *sizes)

    def recorded_mean(function, rows, devices):
        draws.append(rows[0])
        return mean(function, rows, devices)

    monkeypatch.setattr(rounds, "minibatches", recorded_batches)
    monkeypatch.setattr(per_datum, "mean_over_rows", recorded_mean)
    with jax.disable_jit():
        ag.amortized_vi(key, XS, model=MODEL, family=FAMILY, encoder=make(FAMILY, 1, key), **TINY)

    def names(keys):
        return {data.tobytes() for data in np.asarray(jax.random.key_data(keys)).reshape(-1, 2)}

    steps, batch = TINY["num_steps"], TINY["batch_size"]
    noise = names(jnp.concatenate(draws))
    assert len(noise) == steps * batch and len(names(jnp.stack(orders))) == TINY["num_evaluations"]
    # What the key of an order would give is nobody's noise.
    assert not noise & set().union(*(names(jax.random.split(order, steps * batch)) for order in orders))
