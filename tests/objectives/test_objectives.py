"""The bounds against identities: no variance at the posterior, log p minus KL elsewhere."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp

import amortgap as ag
from amortgap.expectations import ESTIMATORS
from amortgap.objectives import elbo_draws

MODEL = ag.models.FactorAnalysis(
    loadings=jnp.array([[1.0, 0.4], [-0.3, 1.2], [0.8, 0.5]]),
    mean=jnp.array([0.5, -1.0, 2.0]),
    noise_variance=jnp.array([0.5, 1.0, 0.3]),
)
FAMILY = ag.families.FullRankNormal(2)
X = jnp.array([1.5, -0.2, 0.7])
PHI = jnp.array([0.4, -0.5, -0.6, -0.2, 0.3])  # no optimum of anything


def exact_phi():
    posterior = MODEL.posterior(X)
    return FAMILY.from_moments(posterior.mean, jnp.linalg.cholesky(posterior.covariance))


@jax.jit
def kl_to_posterior(phi):
    """KL between two normals, written out from the definition of phi."""
    tril = jnp.array([[jnp.exp(phi[2]), 0.0], [phi[4], jnp.exp(phi[3])]])
    posterior = MODEL.posterior(X)
    difference = phi[:2] - posterior.mean
    log_det = jnp.linalg.slogdet(posterior.precision)[1] + 2 * (phi[2] + phi[3])
    trace = jnp.sum(posterior.precision * (tril @ tril.T))
    return 0.5 * (trace - 2 - log_det + difference @ posterior.precision @ difference)


SETTINGS = ("num_samples", "estimator", "antithetic")
draw = jax.jit(partial(elbo_draws, model=MODEL, family=FAMILY), static_argnames=SETTINGS)
elbo = jax.jit(partial(ag.elbo, model=MODEL, family=FAMILY), static_argnames=SETTINGS)
iw_bound = jax.jit(partial(ag.iw_bound, model=MODEL, family=FAMILY), static_argnames="num_samples")


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("estimator", ["sticking_the_landing", "total"])
def test_at_the_exact_posterior_every_draw_is_log_p(key, estimator, antithetic):
    draws = draw(key, exact_phi(), X, num_samples=100, estimator=estimator, antithetic=antithetic)
    assert draws.shape == (50 if antithetic else 100,)
    np.testing.assert_allclose(draws, MODEL.log_evidence(X), rtol=1e-5)


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_mean_is_log_p_minus_kl(key, estimator, antithetic):
    draws = draw(key, PHI, X, num_samples=20_000, estimator=estimator, antithetic=antithetic)
    error = draws.std(ddof=1) / draws.size**0.5
    want = MODEL.log_evidence(X) - kl_to_posterior(PHI)
    assert kl_to_posterior(PHI) > 20 * error  # a bound that forgets the KL would show
    assert abs(draws.mean() - want) < 5 * error


@pytest.mark.parametrize("family", [FAMILY, ag.families.MeanFieldNormal(2), ag.families.LowRankNormal(2, rank=1)])
def test_cubature_is_exact_for_a_quadratic_log_joint(key, family):
    phi = 0.5 * jax.random.normal(key, (family.size,))
    mean, scale_tril = family.moments(phi)
    full = FAMILY.from_moments(mean, scale_tril)
    value = ag.cubature_elbo(phi, X, model=MODEL, family=family)
    np.testing.assert_allclose(value, MODEL.log_evidence(X) - kl_to_posterior(full), rtol=1e-5)


def test_cubature_needs_a_family_with_transform_and_entropy():
    with pytest.raises(ValueError, match=r"family.transform and family.entropy, SampleOnly lacks one"):
        ag.cubature_elbo(PHI, X, model=MODEL, family=SampleOnly())
    with pytest.raises(ValueError, match=r"phi must have shape \(5,\)"):
        ag.cubature_elbo(PHI[:3], X, model=MODEL, family=FAMILY)


def test_draws_are_independent_and_elbo_is_their_mean(key):
    draws = draw(key, PHI, X, num_samples=4000)
    assert np.unique(np.asarray(draws)).size > 3900
    correlation = np.corrcoef(draws[:-1], draws[1:])[0, 1]
    assert abs(correlation) < 5 / 4000**0.5
    np.testing.assert_allclose(elbo(key, PHI, X, num_samples=4000), draws.mean(), rtol=1e-6)
    assert elbo(jax.random.key(1), PHI, X, num_samples=4000) != draws.mean()


@partial(jax.jit, static_argnames=("estimator", "antithetic"))
def gradients(phi, *, estimator, antithetic=False):
    def gradient(key):
        return jax.grad(elbo, argnums=1)(key, phi, X, num_samples=2, estimator=estimator, antithetic=antithetic)

    return jax.vmap(gradient)(jax.random.split(jax.random.key(2), 4000))


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradients_are_unbiased(estimator, antithetic):
    want = -jax.grad(kl_to_posterior)(PHI)
    found = gradients(PHI, estimator=estimator, antithetic=antithetic)
    error = found.std(0, ddof=1) / len(found) ** 0.5
    # An antithetic pair is exact for a linear gradient: its error is rounding alone.
    assert np.all(np.abs(found.mean(0) - want) < 5 * error + 1e-4)


def test_mirrored_noise_makes_the_gradient_of_the_mean_exact_on_a_quadratic():
    mirrored = gradients(PHI, estimator="analytic_entropy", antithetic=True)[:, :2]
    assert np.ptp(mirrored, axis=0).max() < 1e-4
    assert np.ptp(gradients(PHI, estimator="analytic_entropy")[:, :2], axis=0).min() > 1


def test_sticking_the_landing_has_no_gradient_noise_at_the_posterior():
    assert np.abs(gradients(exact_phi(), estimator="sticking_the_landing")).max() < 1e-4
    assert np.abs(gradients(exact_phi(), estimator="total")).max() > 0.1
    assert np.abs(gradients(exact_phi(), estimator="analytic_entropy")).max() > 0.1


def test_importance_weighted_bound_is_the_log_of_the_mean_weight(key):
    draws = draw(key, PHI, X, num_samples=50, estimator="total")
    bound = iw_bound(key, PHI, X, num_samples=50)
    np.testing.assert_allclose(bound, np.log(np.mean(np.exp(np.asarray(draws, np.float64)))), rtol=1e-5)
    np.testing.assert_allclose(iw_bound(key, PHI, X, num_samples=1), elbo(key, PHI, X, num_samples=1), rtol=1e-6)


def test_importance_weighted_bound_rises_from_the_elbo_to_log_p(key):
    # The covariance of this proposal dominates the posterior's, so that weights have a variance.
    wide = PHI.at[2:4].set(0.3)
    draws = draw(key, wide, X, num_samples=2**14, estimator="total")
    means, errors = [], []
    for samples in (1, 4, 16, 256):
        bounds = logsumexp(draws.reshape(-1, samples), axis=1) - np.log(samples)
        means.append(float(bounds.mean()))
        errors.append(float(bounds.std(ddof=1) / bounds.size**0.5))
    assert np.all(np.diff(means) > 0)
    assert abs(means[0] - (MODEL.log_evidence(X) - kl_to_posterior(wide))) < 5 * errors[0]
    assert abs(means[-1] - MODEL.log_evidence(X)) < 5 * errors[-1] + 0.02
    bound = jax.vmap(lambda k: iw_bound(k, wide, X, num_samples=16))(jax.random.split(jax.random.key(5), 1024))
    assert abs(bound.mean() - means[2]) < 5 * np.hypot(bound.std() / 32, errors[2])


class SampleOnly:
    """The least that a family may be: no noise to mirror, no entropy."""

    latent_dim, size = FAMILY.latent_dim, FAMILY.size
    standard, sample_and_log_prob = staticmethod(FAMILY.standard), staticmethod(FAMILY.sample_and_log_prob)
    log_prob = staticmethod(FAMILY.log_prob)


def test_a_family_that_only_samples_is_enough(key):
    settings = {"model": MODEL, "family": SampleOnly(), "num_samples": 100}
    draws = jax.jit(partial(elbo_draws, **settings))(key, exact_phi(), X)
    np.testing.assert_allclose(draws, np.full(100, MODEL.log_evidence(X)), rtol=1e-5)
    elsewhere = jax.jit(partial(elbo_draws, **settings, estimator="total"))(key, PHI, X)
    assert np.unique(np.asarray(elsewhere)).size == 100
    for refused in ({"antithetic": True}, {"estimator": "analytic_entropy"}):
        with pytest.raises(ValueError, match="SampleOnly"):
            ag.elbo(key, PHI, X, **settings, **refused)


def test_the_weight_of_every_latent_is_p_of_x_at_the_posterior_and_p_over_q_elsewhere():
    for z in (jnp.zeros(FAMILY.latent_dim), jnp.full(FAMILY.latent_dim, 2.0)):
        weigh = partial(ag.log_weight, z, X, model=MODEL, family=FAMILY)
        np.testing.assert_allclose(weigh(exact_phi()), MODEL.log_evidence(X), rtol=1e-5)
        np.testing.assert_allclose(weigh(PHI), MODEL.log_joint(z, X) - FAMILY.log_prob(z, PHI), rtol=1e-6)
        np.testing.assert_allclose(weigh(PHI, log_q=jnp.zeros(())), MODEL.log_joint(z, X), rtol=1e-6)
    with pytest.raises(ValueError, match="z must be one latent of shape"):
        ag.log_weight(jnp.zeros(FAMILY.latent_dim + 1), X, PHI, model=MODEL, family=FAMILY)


def test_a_family_or_model_without_a_required_part_is_refused_by_the_name_of_the_part(key, as_users_call):
    class NoSampler:
        latent_dim, size = FAMILY.latent_dim, FAMILY.size

    with pytest.raises(ValueError, match="family must have standard, sample_and_log_prob, which NoSampler lacks"):
        ag.elbo(key, PHI, X, model=MODEL, family=NoSampler(), num_samples=1)
    with pytest.raises(ValueError, match="family must be an instance, got the class MeanFieldNormal"):
        ag.elbo(key, PHI, X, model=MODEL, family=ag.families.MeanFieldNormal, num_samples=1)


def test_jit_and_vmap_give_what_the_loop_gives(key):
    xs = jnp.stack([X, -X, 2 * X])
    phis = jnp.stack([PHI, -PHI, 0 * PHI])
    keys = jax.random.split(key, 3)

    def one(key, phi, x):
        return ag.elbo(key, phi, x, model=MODEL, family=FAMILY, num_samples=8)

    looped = jnp.stack([one(*row) for row in zip(keys, phis, xs, strict=True)])
    np.testing.assert_allclose(jax.jit(jax.vmap(one))(keys, phis, xs), looped, rtol=1e-5)
