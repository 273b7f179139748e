"""Refinement, learned optimisers, mixtures of encoders and training objectives against exact answers."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_fa import CONSTANT, FA, FAMILY, KEY, SETTINGS, XS, affine_encoder, exact_gap

import amortgap as ag

I = ag.inference  # noqa: E741


@pytest.mark.parametrize("optimizer", ["natural", "sgd", "adam"])
def test_refinement_starts_at_the_encoder_and_its_gap_falls_with_every_step(optimizer):
    rate = {"natural": 0.5, "sgd": 0.05, "adam": 0.05}[optimizer]
    encoder = affine_encoder()
    for x in XS[:2]:
        # The cubature rule is exact here: no noise, so that every step must gain.
        found = I.refine(
            KEY, encoder(x), x, **SETTINGS, num_steps=6, num_samples=0, learning_rate=rate, optimizer=optimizer
        )
        gaps = [exact_gap(phi, x) for phi in found.path]
        np.testing.assert_array_equal(found.path[0], encoder(x))
        np.testing.assert_array_equal(found.path[-1], found.phi)
        assert all(later < before for before, later in itertools.pairwise(gaps))
        assert gaps[0] > 0.05 and int(found.num_bad) == 0


def test_one_natural_step_is_newtons_times_the_rate():
    """Means move by rate s^2 Lambda (mu - m) towards a normal posterior, log scales by rate (1 - Lambda_ii s^2) / 2."""
    phi = jnp.array([0.4, -0.3, -0.2, 0.5])
    moved = I.refine(
        KEY, phi, XS[0], **SETTINGS, num_steps=1, num_samples=0, learning_rate=0.2, optimizer="natural"
    ).phi
    precision = FA.posterior_precision()
    variance = jnp.exp(2 * phi[2:])
    mean = phi[:2] + 0.2 * variance * (precision @ (FA.posterior_mean(XS[0]) - phi[:2]))
    log_scale = phi[2:] + 0.2 * 0.5 * (1 - jnp.diag(precision) * variance)
    np.testing.assert_allclose(moved, jnp.concatenate([mean, log_scale]), rtol=1e-4, atol=1e-5)


def test_natural_refinement_reaches_the_closed_form():
    x = XS[0]
    found = I.refine(
        KEY, jnp.zeros(4), x, **SETTINGS, num_steps=40, num_samples=0, learning_rate=0.5, optimizer="natural"
    )
    assert exact_gap(found.phi, x) < 1e-5


def test_no_steps_return_the_start():
    found = I.refine(KEY, jnp.ones(4), XS[0], **SETTINGS, num_steps=0)
    np.testing.assert_array_equal(found.phi, jnp.ones(4))
    assert found.path.shape == (1, 4)


def breaking(z, x):
    # Infinite slope for data marked by a large first entry, ordinary for the others.
    return -0.5 * jnp.sum((z - x[:2]) ** 2) + jnp.where(x[2] > 0, jnp.inf, 0.0) * z[0]


def test_steps_that_are_not_finite_are_left_out_and_counted():
    model = ag.models.from_log_joint(breaking, latent_dim=2)
    bad = I.refine(KEY, jnp.zeros(4), jnp.array([1.0, 1, 1]), model=model, family=FAMILY, num_steps=3)
    assert int(bad.num_bad) == 3
    np.testing.assert_array_equal(bad.phi, jnp.zeros(4))
    good = I.refine(KEY, jnp.zeros(4), jnp.array([1.0, 1, 0]), model=model, family=FAMILY, num_steps=3)
    assert int(good.num_bad) == 0 and np.all(good.phi[:2] > 0)


@pytest.mark.parametrize("differentiate_steps", [True, False])
def test_inner_steps_that_are_not_finite_are_reported_and_do_not_spread(differentiate_steps):
    model = ag.models.from_log_joint(breaking, latent_dim=2)
    xs = jnp.concatenate([jnp.ones((6, 2)), jnp.zeros((6, 1))], axis=1)
    marked = xs.at[0, 2].set(1.0)
    settings = {"model": model, "family": FAMILY, "encoder": CONSTANT, "refine_steps": 2}
    settings |= {"differentiate_steps": differentiate_steps, "num_steps": 20, "batch_size": 6, "learning_rate": 0.02}
    clean = I.semi_amortized_vi(KEY, xs, **settings)
    assert bool(clean.finite) and int(clean.trace.num_bad.sum()) == 0
    assert np.all(clean.encoder.phi[:2] > 0.05)
    spoiled = I.semi_amortized_vi(KEY, marked, **settings)
    # Two inner steps of one datum at each of twenty steps; the datum itself has no finite ELBO, so no step is taken.
    # Looking through them, the bound after the steps is looked at too.
    assert int(spoiled.trace.num_bad.sum()) == (60 if differentiate_steps else 40)
    assert not bool(spoiled.finite)
    np.testing.assert_array_equal(spoiled.encoder.phi, CONSTANT.phi)


def cliff(z, x):
    # Nothing is wrong near the start; a long step takes the marked datum to where nothing is finite.
    return jnp.where((x[2] > 0) & (jnp.abs(z[0]) > 3), jnp.nan, -0.5 * jnp.sum((z - x[:2]) ** 2))


def test_a_datum_whose_inner_steps_fail_trains_on_its_own_elbo():
    model = ag.models.from_log_joint(cliff, latent_dim=2)
    narrow = dataclasses.replace(CONSTANT, phi=jnp.array([0.0, 0.0, -1.0, -1.0]))
    x = jnp.ones((1, 3))
    fit = I.semi_amortized_vi(
        KEY,
        x,
        model=model,
        family=FAMILY,
        encoder=narrow,
        refine_steps=2,
        refine_rate=10.0,
        num_steps=20,
        batch_size=1,
        learning_rate=0.02,
        num_samples=32,
    )
    assert bool(fit.finite) and int(fit.trace.num_bad.min()) >= 1
    assert np.all(fit.encoder.phi[:2] > 0.05)


@pytest.mark.parametrize("num_samples", [0, 2, 3])
@pytest.mark.parametrize("optimizer", ["sgd", "natural"])
def test_gradient_through_refinement_is_that_of_finite_differences(x64, num_samples, optimizer):
    """By draws too: an estimator that stops gradients would lose a term of every step's own derivative."""
    model = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), FA)
    x, start = XS[0].astype(jnp.float64), jnp.array([0.3, -0.2, 0.1, -0.4])

    def refined(start):
        phi = I.refine(
            KEY,
            start,
            x,
            model=model,
            family=FAMILY,
            num_steps=3,
            num_samples=num_samples,
            learning_rate=0.1,
            optimizer=optimizer,
        ).phi
        return ag.cubature_elbo(phi, x, model=model, family=FAMILY)

    gradient = jax.grad(refined)(start)
    step = 1e-5 * np.eye(4)
    numeric = [(refined(start + e) - refined(start - e)) / 2e-5 for e in step]
    np.testing.assert_allclose(gradient, numeric, rtol=1e-6)
    direct = jax.grad(lambda phi: ag.cubature_elbo(phi, x, model=model, family=FAMILY))(start)
    assert np.abs(gradient - direct).max() > 0.05, "a gradient that stops at the steps would pass"


@pytest.mark.slow
def test_semi_amortized_training_lowers_the_gap_after_refinement():
    refinement = {"refine_rate": 0.3, "refine_samples": 0, "refine_optimizer": "natural"}
    fit = I.semi_amortized_vi(
        KEY,
        XS,
        **SETTINGS,
        encoder=CONSTANT,
        refine_steps=2,
        num_steps=300,
        batch_size=40,
        num_samples=4,
        learning_rate=0.03,
        **refinement,
    )
    assert bool(fit.finite)

    def gap_after(encoder, steps):
        refined = jax.vmap(
            lambda x: (
                I.refine(
                    KEY,
                    encoder(x),
                    x,
                    **SETTINGS,
                    num_steps=steps,
                    num_samples=0,
                    learning_rate=0.3,
                    optimizer="natural",
                ).path
            )
        )(XS)
        return [
            np.mean([exact_gap(phi, x) for phi, x in zip(refined[:, k], XS, strict=True)]) for k in range(steps + 1)
        ]

    trained, untrained = gap_after(fit.encoder, 4), gap_after(CONSTANT, 4)
    assert trained[2] < untrained[2]
    assert all(later < before for before, later in itertools.pairwise(trained))


def test_buffered_bound_is_the_evidence_where_its_start_is_the_posterior():
    """Sticking the landing has no noise there: no step moves phi, and every weight is p(x)."""
    family, posterior = ag.families.FullRankNormal(2), FA.posterior(XS[0])
    phi = family.from_moments(posterior.mean, jnp.linalg.cholesky(posterior.covariance))
    for seed in range(3):
        found = I.buffered_bound(jax.random.key(seed), phi, XS[0], model=FA, family=family, num_steps=5)
        np.testing.assert_allclose(found, FA.log_evidence(XS[0]), rtol=1e-5)


def test_buffered_bound_is_unbiased_for_the_evidence_and_above_the_elbo():
    x, phi = XS[0], affine_encoder()(XS[0])
    n = 4000
    keys = jax.random.split(KEY, n)

    def bounds(steps):
        return jax.vmap(
            lambda k: I.buffered_bound(k, phi, x, **SETTINGS, num_steps=steps, learning_rate=0.05, optimizer="natural")
        )(keys)

    values = bounds(4)
    weights = jnp.exp(values - FA.log_evidence(x))
    assert abs(weights.mean() - 1) < 5 * weights.std() / n**0.5
    elbos = bounds(0)
    exact = FA.log_evidence(x) - FA.approximation_gap() - exact_gap(phi, x)
    assert abs(elbos.mean() - exact) < 5 * elbos.std() / n**0.5
    assert values.mean() - elbos.mean() > 5 * (values.std() + elbos.std()) / n**0.5
    assert values.mean() < FA.log_evidence(x) + 5 * values.std() / n**0.5


def test_iterative_training_states_the_mean_elbo_of_its_iterations():
    fit = I.iterative_amortized_vi(
        KEY, XS, **SETTINGS, num_iterations=3, width=4, num_steps=2, num_samples=400, learning_rate=1e-9
    )
    path = jax.vmap(fit.encoder.path)(XS)[:, 1:].reshape(-1, FAMILY.size)
    data = jnp.repeat(XS, 3, axis=0)
    bounds = jax.vmap(lambda phi, x: ag.cubature_elbo(phi, x, **SETTINGS))(path, data)
    # The 400 draws of a datum serve all of its iterations.
    error = 5 * float(jnp.std(bounds) + 2) / (400 * len(XS)) ** 0.5
    np.testing.assert_allclose(fit.trace.batch_elbo, jnp.mean(bounds), atol=error)


@pytest.mark.slow
def test_iterative_inference_beats_every_direct_encoder_of_its_size():
    # Forty features, two latents: a direct encoder of no more weights has a bottleneck of one, whose gap is known.
    rng = np.random.default_rng(1)
    model = ag.models.FactorAnalysis(
        loadings=jnp.asarray(0.4 * rng.normal(size=(40, 2)), jnp.float32),
        mean=jnp.zeros(40),
        noise_variance=jnp.ones(40),
    )
    xs = jax.vmap(lambda k: model.sample(k)[1])(jax.random.split(KEY, 60))
    fit = I.iterative_amortized_vi(
        KEY,
        xs,
        model=model,
        family=FAMILY,
        num_iterations=4,
        width=4,
        num_steps=1500,
        batch_size=60,
        num_samples=2,
        learning_rate=0.02,
    )
    one, two = (ag.encoders.linear(KEY, 40, FAMILY, rank=rank).num_weights for rank in (1, 2))
    assert one < fit.encoder.num_weights < two
    phis = jax.vmap(fit.encoder)(xs)
    gap = np.mean(
        [
            float(
                model.log_evidence(x) - model.approximation_gap() - ag.cubature_elbo(phi, x, model=model, family=FAMILY)
            )
            for phi, x in zip(phis, xs, strict=True)
        ]
    )
    assert bool(fit.finite)
    assert gap < 0.5 * float(model.rank_gap(xs, 1))
    path = jax.vmap(fit.encoder.path)(xs[:3])
    np.testing.assert_allclose(path[:, -1], phis[:3], rtol=1e-5)


def test_aggressive_training_moves_the_decoder_only_at_every_last_inner_step():
    model = ag.models.deep_latent_gaussian(KEY, latent_dim=2, data_dim=3, width=2, depth=1)
    xs = (XS[:8] > 0).astype(jnp.float32)
    settings = {"model": model, "family": FAMILY, "encoder": CONSTANT, "inner_steps": 4, "batch_size": 8}
    two, four = (I.train_vae_aggressively(KEY, xs, num_steps=n, **settings) for n in (2, 4))
    same = [bool((a == b).all()) for a, b in zip(jax.tree.leaves(two.model), jax.tree.leaves(model), strict=True)]
    moved = [bool((a != b).any()) for a, b in zip(jax.tree.leaves(four.model), jax.tree.leaves(model), strict=True)]
    assert all(same) and any(moved)
    assert np.abs(two.encoder.phi).max() > 0


def semi(**changed):
    settings = {"model": FA, "family": FAMILY, "encoder": CONSTANT, "refine_steps": 1, "num_steps": 2}
    return I.semi_amortized_vi(KEY, XS, **{**settings, **changed})


BAD = [
    (lambda: I.refine(KEY, jnp.zeros(4), XS[0], **SETTINGS, num_steps=-1), "num_steps must be .* at least 0, got -1"),
    (lambda: I.refine(KEY, jnp.zeros(3), XS[0], **SETTINGS, num_steps=1), r"phi must have shape \(4,\)"),
    (
        lambda: I.refine(
            KEY, jnp.zeros(5), XS[0], model=FA, family=ag.families.FullRankNormal(2), num_steps=1, optimizer="natural"
        ),
        "optimizer 'natural' needs a mean field normal",
    ),
    (lambda: semi(refine_steps=-1), "refine_steps must be .* at least 0, got -1"),
    (lambda: semi(encoder=lambda x: x), r"encoder must return one vector of family.size = 4, got \(3,\)"),
    (lambda: I.buffered_bound(KEY, jnp.zeros(4), XS[0], **SETTINGS, num_steps=-1), "num_steps must be"),
    (lambda: I.iterative_amortized_vi(KEY, XS, **SETTINGS, num_iterations=0), "num_iterations must be"),
    (lambda: I.recursive_mixture(KEY, XS, model=FA, encoders=()), "encoders must hold at least one encoder, got none"),
    (lambda: I.denoising_objective(**SETTINGS, noise_scale=0.0), "noise_scale must be a positive number"),
    (lambda: I.iwae_objective(model=FA, family=ag.families.AuxiliaryFlow(2, 1), num_samples=2), "need family.log_prob"),
    (lambda: ag.encoders.WeightNormEncoder(CONSTANT, 1.0), "encoder must have a network"),
    (lambda: FA.conditioning_gap([0, 0]), "observed must be distinct coordinates below 3"),
    (
        lambda: ag.gaps.conditioning_gap(jnp.eye(2), jnp.eye(3), jnp.ones((2, 1)), jnp.eye(1)),
        "precision, mean_covariance",
    ),
    (lambda: I.iwae_objective(model=FA, family=ag.families.Categorical(2), num_samples=2), "carry no gradient"),
    *[
        (
            lambda o=o: o(model=FA, family=ag.families.FullRankNormal(2))(KEY, CONSTANT, XS[0]),
            r"phi must have shape \(5,\)",
        )
        for o in (partial(I.iwae_objective, num_samples=2), I.sleep_objective)
    ],
    (
        lambda: I.train_encoder(KEY, XS, encoder=lambda x: jnp.zeros(4), objective=I.elbo_objective(**SETTINGS)),
        "encoder must hold weights to train",
    ),
    (
        lambda: I.recursive_mixture(KEY, XS, model=FA, encoders=[lambda x: jnp.zeros(5)]),
        "encoder must hold weights to train",
    ),
    (lambda: I.local_vi_from_starts(KEY, XS[0], **SETTINGS, num_starts=0), "num_starts must be"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=range(len(BAD)))
def test_wrong_calls_are_refused(call, message, as_users_call):
    with pytest.raises(ValueError, match=message):
        call()
