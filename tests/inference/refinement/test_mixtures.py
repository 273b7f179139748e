"""Mixtures as families and as encoders, on a posterior with two modes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import amortgap as ag
from amortgap.inference.refinement.recursive_mixture import _assembled

KEY = jax.random.key(0)
I = ag.inference  # noqa: E741
BIMODAL = ag.models.MixturePrior(
    log_weights=jnp.log(jnp.array([0.6, 0.4])),
    centres=jnp.array([[-2.0], [2.0]]),
    scales=jnp.full((2, 1), 0.5),
    loadings=jnp.array([[0.3]]),
    mean=jnp.zeros(1),
    noise_variance=jnp.ones(1),
)


@pytest.mark.slow
def test_local_vi_from_starts_finds_both_modes_with_a_mixture():
    x, family = jnp.zeros(1), ag.families.MixtureOfNormals(1, 2)
    posterior = BIMODAL.posterior(x)
    exact = family.pack(posterior.log_weights, posterior.means, 0.5 * jnp.log(posterior.covariances[:, :, 0]))
    draws = ag.objectives.elbo_draws(KEY, exact, x, model=BIMODAL, family=family, num_samples=50)
    np.testing.assert_allclose(draws, BIMODAL.log_evidence(x), atol=1e-4)
    fit = I.local_vi_from_starts(
        KEY, x, model=BIMODAL, family=family, num_starts=4, spread=2.0, start_steps=200, num_steps=400, max_reruns=0
    )
    assert abs(BIMODAL.log_evidence(x) - fit.elbo) < 0.02 + 5 * fit.standard_error
    # One normal can hold one mode alone and loses about the log of its share.
    narrow = ag.families.MeanFieldNormal(1)
    single = ag.local_vi(KEY, x, model=BIMODAL, family=narrow)
    assert BIMODAL.log_evidence(x) - single.elbo > 0.2


def test_components_are_put_together_as_the_family_packs_them():
    # Each component: two means, two log scales, the log weight.
    parts = jnp.array([[1.0, 2.0, -1.0, -2.0, 0.3], [3.0, 4.0, -3.0, -4.0, 0.7]])
    family = ag.families.MixtureOfNormals(2, 2)
    packed = family.pack(parts[:, 4], parts[:, :2], parts[:, 2:4])
    np.testing.assert_allclose(_assembled(parts), packed)


@pytest.mark.slow
def test_recursive_mixture_adds_what_one_component_lacks():
    xs = jnp.linspace(-1, 1, 12)[:, None]
    settings = {"model": BIMODAL, "num_steps": 1000, "batch_size": 12, "learning_rate": 0.03}

    head = ag.families.FlowHead(1, 3)
    encoders = [ag.encoders.linear(key, 1, head, rank=1) for key in jax.random.split(KEY, 2)]
    one, two = (I.recursive_mixture(KEY, xs, **settings, encoders=encoders[:k]) for k in (1, 2))

    def gap(fit, k):
        family = ag.families.MixtureOfNormals(1, k)
        values = jax.vmap(
            lambda i, x: (
                BIMODAL.log_evidence(x)
                - ag.elbo(jax.random.fold_in(KEY, i), fit.encoder(x), x, model=BIMODAL, family=family, num_samples=500)
            )
        )(jnp.arange(12), xs)
        return float(values.mean())

    assert bool(one.converged) and bool(two.converged) and len(two.encoder.components) == 2
    assert gap(one, 1) > 0.2 and gap(two, 2) < 0.6 * gap(one, 1)
    assert two.encoder.num_weights == 2 * one.encoder.num_weights


@pytest.mark.slow
def test_recursive_mixture_on_factor_analysis_starts_at_the_closed_form_and_goes_below_it():
    # Strongly correlated, so that a second component has something to gain.
    model = ag.models.FactorAnalysis(
        loadings=jnp.array([[1.0, 0.9], [0.8, 1.1]]), mean=jnp.zeros(2), noise_variance=jnp.full(2, 0.3)
    )
    xs = jax.vmap(lambda key: model.sample(key)[1])(jax.random.split(jax.random.key(7), 30))
    settings = {"model": model, "num_steps": 3000, "batch_size": 30, "learning_rate": 0.03}

    head = ag.families.FlowHead(2, 5)
    encoders = [ag.encoders.linear(key, 2, head, rank=2) for key in jax.random.split(KEY, 2)]
    gaps, errors = [], []
    for k in (1, 2):
        fit = I.recursive_mixture(KEY, xs, **settings, encoders=encoders[:k])
        family = ag.families.MixtureOfNormals(2, k)
        draws = jax.vmap(
            lambda i, x, fit=fit, family=family: ag.objectives.elbo_draws(
                jax.random.fold_in(KEY, i), fit.encoder(x), x, model=model, family=family, num_samples=2000
            )
        )(jnp.arange(30), xs)
        left = np.asarray(jax.vmap(model.log_evidence)(xs))[:, None] - np.asarray(draws)
        gaps.append(left.mean())
        errors.append(np.sqrt(np.mean(left.var(axis=1)) / left.size))
    exact = float(model.approximation_gap())
    assert exact > 0.3
    # The best mean field encoder is affine, so that one component ends at the closed form.
    assert abs(gaps[0] - exact) < 0.02 * exact + 4 * errors[0]
    assert 4 * errors[1] < gaps[1] < 0.9 * exact
