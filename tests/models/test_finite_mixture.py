"""Finite mixtures with enumerated latents against scipy and the closed forms of categorical inference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import amortgap as ag

KEY = jax.random.key(0)
CENTRES = np.array([[0.0, 1.0], [1.5, -0.5], [-1.0, -1.0]])
LOG_WEIGHTS = np.log([0.5, 0.3, 0.2])
SHARED = np.array([[1.0, 0.3], [0.3, 0.8]])
FAMILY = ag.families.Categorical(3)


def mixture(equal=True):
    scales = np.ones(3) if equal else np.array([1.0, 2.0, 0.5])
    covariances = jnp.asarray(scales[:, None, None] * SHARED)
    return ag.models.FiniteMixture(log_weights=LOG_WEIGHTS, centres=CENTRES, covariances=covariances)


def data(n=30):
    return jax.vmap(lambda k: mixture().sample(k)[1])(jax.random.split(KEY, n))


def test_evidence_and_posterior_are_those_of_scipy(x64):
    for equal, scales in ((True, [1, 1, 1]), (False, [1, 2, 0.5])):
        model, x = mixture(equal), np.array([0.4, -0.7])
        parts = [multivariate_normal(c, s * SHARED).logpdf(x) for c, s in zip(CENTRES, scales, strict=True)]
        joints = LOG_WEIGHTS + np.array(parts)
        np.testing.assert_allclose(model.log_evidence(jnp.asarray(x)), logsumexp(joints), rtol=1e-10)
        np.testing.assert_allclose(model.posterior(jnp.asarray(x)), joints - logsumexp(joints), rtol=1e-9)
        np.testing.assert_allclose(model.log_joint(jnp.eye(3)[1], jnp.asarray(x)), joints[1], rtol=1e-10)


def test_every_draw_of_the_elbo_at_the_posterior_is_the_evidence(x64):
    model, x = mixture(False), jnp.array([0.4, -0.7])
    draws = ag.objectives.elbo_draws(KEY, model.posterior(x), x, model=model, family=FAMILY, num_samples=3)
    np.testing.assert_allclose(draws, model.log_evidence(x), rtol=1e-12)


def test_softmax_affine_encoder_has_no_gap_where_covariances_are_shared(x64):
    xs = data().astype(jnp.float64)

    def gap(model, matrix, offset):
        return np.array(
            [
                model.log_evidence(x) - ag.elbo(KEY, matrix @ x + offset, x, model=model, family=FAMILY, num_samples=1)
                for x in xs
            ]
        )

    model = mixture()
    np.testing.assert_allclose(gap(model, *model.affine_log_odds()), 0, atol=1e-10)
    assert gap(mixture(False), *model.affine_log_odds()).mean() > 0.05
    with pytest.raises(ValueError, match="covariances must all be equal"):
        mixture(False).affine_log_odds()


def test_constant_encoder_meets_the_pooled_closed_form(x64):
    model, xs = mixture(), data().astype(jnp.float64)
    best = jnp.mean(jax.vmap(model.posterior)(xs), axis=0)

    def mean_gap(phi):
        bounds = jax.vmap(lambda x: ag.elbo(KEY, phi, x, model=model, family=FAMILY, num_samples=1))(xs)
        return jnp.mean(jax.vmap(model.log_evidence)(xs) - bounds)

    np.testing.assert_allclose(mean_gap(best), model.constant_gap(xs), rtol=1e-10)
    np.testing.assert_allclose(jax.grad(mean_gap)(best), 0, atol=1e-10)
    assert float(model.constant_gap(xs)) > 0.1


def test_samples_have_the_responsibilities_of_the_model():
    zs, xs = jax.vmap(mixture().sample)(jax.random.split(KEY, 20_000))
    log_r = jax.vmap(mixture().posterior)(xs)
    left = np.asarray(zs - jnp.exp(log_r))
    # E[z - r(x)] = 0 and E[(z - r(x)) x] = 0 by the definition of a posterior.
    moments = np.concatenate([left, left * np.asarray(xs)[:, :1]], axis=1)
    assert np.all(np.abs(moments.mean(0)) < 5 * moments.std(0) / 20_000**0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"log_weights": np.zeros(0), "centres": np.zeros((0, 2)), "covariances": np.zeros((0, 2, 2))},
            "with no axis empty, got",
        ),
        ({"covariances": np.stack([SHARED, -SHARED, SHARED])}, "covariances must be positive definite"),
        ({"centres": CENTRES * np.nan}, "centres holds 6 NaN"),
    ],
)
def test_impossible_mixtures_are_refused(change, message):
    fields = {"log_weights": LOG_WEIGHTS, "centres": CENTRES, "covariances": np.stack([SHARED] * 3)}
    with pytest.raises(ValueError, match=message):
        ag.models.FiniteMixture(**{**fields, **change})
