"""The models of the experiment on when and why amortized VI reaches factorized VI, against dense linear algebra."""

import jax
import jax.numpy as jnp
import pytest
from exact_models import check_arrowhead_posterior


def saw(key):
    from studies.when_and_why.models import SawSeries

    series = jnp.cumsum(jax.random.normal(key, (6,)))
    return SawSeries(alpha=0.75, prior_variance=2.0), jnp.stack([series[:-1], series[1:]], axis=1)


def linear(key):
    from studies.when_and_why.models import LinearHierarchy

    return LinearHierarchy(tau=1.1, sigma=0.7, prior_variance=1.5), jax.random.normal(key, (5, 1))


@pytest.mark.parametrize("case", [saw, linear])
def test_posterior_is_the_one_of_the_log_joint(case, key, x64):
    check_arrowhead_posterior(*case(key))


def test_nonlinear_model_is_normalised_only_as_said(x64):
    from studies.when_and_why.models import NonlinearHierarchy

    theta, z = jnp.array([0.3]), jnp.array([0.7])
    x = jnp.linspace(-60.0, 60.0, 200_001)[:, None]
    for normalised in (True, False):
        model = NonlinearHierarchy(normalised=normalised)
        log = jax.vmap(lambda row, model=model: model.log_local(theta, z, row))(x)
        mass = float(jnp.sum(jnp.exp(log)) * (x[1, 0] - x[0, 0]))
        prior = float(jnp.exp(-0.5 * z[0] ** 2) / jnp.sqrt(2 * jnp.pi))
        assert mass == pytest.approx(prior * (1.0 if normalised else float(jnp.exp(jnp.cos(z[0])))), rel=1e-9)


def test_bayesian_decoder_is_a_normal_likelihood(key, x64):
    from studies.when_and_why.models import bayesian_decoder

    model = bayesian_decoder(key, latent_dim=2, data_dim=3, width=4, depth=1, noise_variance=0.5)
    assert model.global_dim == 2 * 4 + 4 + 4 * 3 + 3
    theta, z, x = jax.random.normal(key, (model.global_dim,)), jnp.array([0.3, -1.0]), jnp.array([0.1, 0.2, 0.3])
    mean = model.decode(theta, z)
    log_normal = jax.scipy.stats.norm.logpdf
    value = jnp.sum(log_normal(z)) + jnp.sum(log_normal(x, mean, jnp.sqrt(0.5)))
    assert float(model.log_local(theta, z, x)) == pytest.approx(float(value), abs=1e-12)
    assert float(model.log_prior(theta)) == pytest.approx(float(jnp.sum(log_normal(theta))), abs=1e-10)
