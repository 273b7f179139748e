"""Amortized VI against the closed-form capacity ladder of factor analysis, and the promises of the training loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ladder import FAMILY, MEAN_FIELD, MODEL, TINY, XS, exact_gap, make

import amortgap as ag
from amortgap.inference.training import rounds


def train(key, family, encoder, **settings):
    settings = {
        "num_steps": 2400,
        "batch_size": 20,
        "learning_rate": 3e-2,
        "antithetic": True,
        "num_samples": 2,
        "num_evaluations": 6,
        **settings,
    }
    return ag.amortized_vi(key, XS, model=MODEL, family=family, encoder=encoder, **settings)


@pytest.mark.parametrize(("family", "rank"), [(FAMILY, 2), (FAMILY, 1), (MEAN_FIELD, 0)])
def test_trained_encoders_reach_the_closed_form_ladder(key, family, rank):
    fit = train(key, family, make(family, rank, key))
    want = MODEL.rank_gap(XS, rank)
    # Never below the optimum, by definition; above it only by what training left.
    assert -1e-5 < exact_gap(family, fit.encoder) - want < 1e-3
    gaps = ag.inference_gaps(
        jax.random.key(5),
        XS,
        model=MODEL,
        family=family,
        encoder=fit.encoder,
        num_samples=200,
        local=exact_local_fit(family),
    ).estimates()["amortization"]
    assert abs(gaps.mean - want) < 3 * gaps.monte_carlo_standard_error + 1e-3
    if rank < 2:
        assert want > 0.1


def exact_local_fit(family):
    """The closed-form optimum in the clothes of a LocalFit, so that the encoder alone is judged."""
    scale_tril = (
        jnp.diag(jnp.diag(MODEL.posterior_precision()) ** -0.5)
        if family is MEAN_FIELD
        else jnp.linalg.cholesky(MODEL.posterior(XS[0]).covariance)
    )
    phi = jax.vmap(lambda x: family.from_moments(MODEL.posterior_mean(x), scale_tril))(XS)
    zeros = jnp.zeros(len(XS))
    return ag.LocalFit(
        phi=phi,
        elbo=zeros,
        standard_error=zeros,
        start_elbo=zeros,
        suboptimality=zeros,
        suboptimality_standard_error=zeros,
        horizon_gain=zeros,
        num_gradients=jnp.zeros(len(XS), int),
        num_steps=jnp.zeros(len(XS), int),
        converged=jnp.ones(len(XS), bool),
    )


def test_constant_encoder_of_poisson_gamma_reaches_the_pooled_optimum(key):
    model, family = ag.models.PoissonGamma(shape=1.5, rate=0.8), ag.families.MeanFieldNormal(1)
    xs = jnp.array([[0.0], [1.0], [2.0], [6.0]])
    fit = ag.amortized_vi(
        key,
        xs,
        model=model,
        family=family,
        encoder=ag.encoders.constant(key, 1, family),
        num_steps=2400,
        learning_rate=3e-2,
        num_samples=8,
        num_evaluations=4,
        batch_size=4,
        antithetic=True,
    )
    alpha, beta = 1.5 + xs[:, 0], 1.8
    mean, variance = fit.encoder.phi[0], jnp.exp(2 * fit.encoder.phi[1])
    # E_q of the log joint is known: sum over data of the gap to each datum's own optimum.
    optimum = jnp.log(alpha / beta) - 0.5 / alpha
    excess = mean + variance / 2 - jnp.log(alpha / beta)
    gap = jnp.mean(-0.5 * jnp.log(alpha * variance) - alpha * (mean - optimum) + alpha * jnp.expm1(excess))

    def h(a):
        return a * jnp.log(a) - 0.5 * jnp.log(a)

    pooled = jnp.mean(h(alpha)) - h(jnp.mean(alpha))
    assert pooled > 0.1
    assert -1e-5 < gap - pooled < 2e-3


def test_seeds_under_vmap_equal_single_runs():
    keys = jax.random.split(jax.random.key(3), 2)

    def run(key):
        return ag.amortized_vi(
            key,
            XS[:12],
            model=MODEL,
            family=MEAN_FIELD,
            encoder=ag.encoders.mlp(key, 3, MEAN_FIELD, width=2, depth=1),
            **TINY,
        )

    together, alone = jax.vmap(run)(keys), [run(key) for key in keys]
    for seed in range(2):
        for have, want in zip(jax.tree.leaves(together), jax.tree.leaves(alone[seed]), strict=True):
            np.testing.assert_allclose(have[seed], want, atol=1e-3, rtol=1e-4)
    assert not np.allclose(*together.trace.elbo)


def test_trace_change_and_the_best_encoder_are_what_they_say(key):
    # Validated on other data than it is trained on, so that the best evaluation is not the last.
    encoder = ag.encoders.constant(key, 3, MEAN_FIELD)
    fit = ag.amortized_vi(
        key,
        XS + 4,
        model=MODEL,
        family=MEAN_FIELD,
        encoder=encoder,
        validation=XS,
        num_steps=60,
        num_evaluations=6,
        batch_size=20,
        learning_rate=0.1,
        eval_samples=64,
    )
    assert fit.trace.step.tolist() == [10, 20, 30, 40, 50, 60]
    assert fit.trace.elbo.shape == fit.trace.batch_elbo.shape == (6,)
    np.testing.assert_allclose(fit.change, fit.trace.elbo[-1] - fit.trace.elbo[2], atol=1e-4)
    assert fit.change_standard_error > 0
    assert bool(fit.finite)
    fresh = ag.evaluate_bounds(
        jax.random.key(8), jax.vmap(fit.encoder)(XS)[:, None], XS, model=MODEL, family=MEAN_FIELD, num_samples=500
    )
    error = np.sqrt(np.sum(fresh.standard_error**2)) / len(XS) * (1 + (500 / 64) ** 0.5)
    assert abs(fresh.elbo.mean() - fit.trace.elbo.max()) < 5 * error
    assert fit.trace.elbo.max() - fit.trace.elbo[-1] > 10 * error


def test_a_model_that_breaks_leaves_the_last_good_encoder(key):
    broken = ag.models.from_log_joint(lambda z, x: jnp.log(-jnp.abs(x[0]) - 1.0) + 0 * z[0], 2)
    encoder = ag.encoders.mlp(key, 3, MEAN_FIELD, width=2, depth=1)
    fit = ag.amortized_vi(key, XS[:12], model=broken, family=MEAN_FIELD, encoder=encoder, **TINY)
    assert not bool(fit.finite)
    for have, want in zip(jax.tree.leaves(fit.encoder), jax.tree.leaves(encoder), strict=True):
        np.testing.assert_array_equal(have, want)


@pytest.mark.parametrize("n", [1, 3])
def test_fewer_data_than_a_batch(key, n):
    fit = ag.amortized_vi(
        key, XS[:n], model=MODEL, family=MEAN_FIELD, encoder=ag.encoders.constant(key, 3, MEAN_FIELD), **TINY
    )
    assert np.isfinite(fit.trace.elbo).all()
    assert np.isfinite(fit.change_standard_error)


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_one_program_serves_all_rounds(key, optimizer):
    before = rounds.run_round._cache_size()
    encoder = ag.encoders.mlp(key, 3, MEAN_FIELD, width=3, depth=1)
    ag.amortized_vi(key, XS[:11], model=MODEL, family=MEAN_FIELD, encoder=encoder, optimizer=optimizer, **TINY)
    assert rounds.run_round._cache_size() == before + 1


@pytest.mark.slow
def test_train_vae_with_an_affine_decoder_approaches_the_maximum_likelihood_of_factor_analysis(key):
    # One factor behind three features: the likelihood has a proper maximum inside the parameter space.
    true = ag.models.FactorAnalysis(
        loadings=jnp.array([[1.0], [-0.8], [0.6]]), mean=jnp.arange(3.0), noise_variance=jnp.array([0.5, 0.7, 1.0])
    )
    xs = jax.vmap(lambda key: true.sample(key)[1])(jax.random.split(jax.random.key(7), 200))
    family = ag.families.MeanFieldNormal(1)
    vae = ag.models.deep_latent_gaussian(key, latent_dim=1, data_dim=3, width=1, depth=0, likelihood="gaussian")
    encoder = ag.encoders.linear(key, 3, family, rank=1, standardize=xs)
    fit = ag.train_vae(
        key,
        xs,
        model=vae,
        family=family,
        encoder=encoder,
        num_steps=3000,
        batch_size=40,
        learning_rate=2e-2,
        num_evaluations=4,
        num_samples=2,
        antithetic=True,
    )
    decoder = fit.model.decoder
    learned = ag.models.FactorAnalysis(
        loadings=jax.jacobian(decoder)(jnp.zeros(1)),
        mean=decoder(jnp.zeros(1)),
        noise_variance=jnp.exp(fit.model.likelihood.log_noise_variance),
    )
    best = ag.models.fit_factor_analysis(key, xs, latent_dim=1, num_steps=1000, min_noise_variance=1e-4)
    reached = jax.vmap(learned.log_evidence)(xs).mean()
    assert -0.01 < reached - best.log_evidence[-1] < 1e-4
    uncorrelated = ag.models.FactorAnalysis(loadings=jnp.zeros((3, 1)), mean=xs.mean(0), noise_variance=xs.var(0))
    assert reached > jax.vmap(uncorrelated.log_evidence)(xs).mean() + 0.1
    # The ELBO of the trace is that of its model, and nearly tight: the posterior is in the family.
    assert abs(fit.trace.elbo.max() - reached) < 0.05


def test_every_round_trains_on_new_noise_and_is_evaluated_on_the_same(key):
    """At a rate of zero nothing moves: what changes from round to round is the noise alone."""
    encoder = ag.encoders.constant(key, 3, MEAN_FIELD)
    settings = {"num_steps": 4, "num_evaluations": 4, "batch_size": 1, "learning_rate": 1e-30}
    trace = ag.amortized_vi(key, XS[:1], model=MODEL, family=MEAN_FIELD, encoder=encoder, **settings).trace
    np.testing.assert_array_equal(trace.elbo, trace.elbo[0])
    assert len(set(np.asarray(trace.batch_elbo).tolist())) == 4


def test_every_round_sees_minibatches_of_its_own(key):
    # One step a round, one datum a step: weights of data that no round has drawn stay as they were.
    n, family = 40, ag.families.MeanFieldNormal(1)

    def table(weights, x):
        return x @ weights

    fit = ag.amortized_vi(
        key,
        jnp.eye(n),
        model=ag.models.from_log_joint(lambda z, x: -0.5 * jnp.sum((z - 3.0) ** 2), 1),
        family=family,
        encoder=jax.tree_util.Partial(table, jnp.zeros((n, 2))),
        num_steps=20,
        num_evaluations=20,
        batch_size=1,
    )
    seen = np.flatnonzero(np.any(fit.encoder.args[0] != 0, axis=1)).size
    # Of 40 data, 20 draws with replacement hold 16 different ones on average, and fewer than ten almost never.
    assert 10 <= seen <= 20
