"""Entropy warm-up of VAE training: the weight of the entropy and its schedule."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import amortgap as ag

MODEL = ag.models.FactorAnalysis(
    loadings=jnp.array([[1.0, 0.9], [0.6, 1.2], [0.8, -0.5]]),
    mean=jnp.array([0.5, -1.0, 2.0]),
    noise_variance=jnp.array([0.5, 1.0, 0.3]),
)
MEAN_FIELD = ag.families.MeanFieldNormal(2)
XS = jax.vmap(lambda key: MODEL.sample(key)[1])(jax.random.split(jax.random.key(7), 60))


@pytest.mark.parametrize("estimator", ["total", "analytic_entropy", "sticking_the_landing"])
def test_entropy_counts_for_its_weight(key, estimator):
    phi, x = jnp.array([0.3, -0.2, -0.5, 0.1]), XS[0]
    given = {"model": MODEL, "num_samples": 6, "estimator": estimator}
    noise = jax.random.normal(key, (6, 2))
    joint = jnp.mean(jax.vmap(lambda e: MODEL.log_joint(MEAN_FIELD.transform(e, phi), x))(noise))
    whole = ag.elbo(key, phi, x, family=MEAN_FIELD, **given)
    for weight in (0.0, 0.3, 1.0):
        value = ag.elbo(key, phi, x, family=MEAN_FIELD, entropy_weight=weight, **given)
        np.testing.assert_allclose(value, weight * whole + (1 - weight) * joint, rtol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_enumeration_weighs_by_the_probabilities_whatever_the_weight_of_the_entropy(key, x64, weight):
    table, phi = jnp.log(jnp.array([0.1, 0.2, 0.05])), jnp.array([1.0, 0.0, -1.0])
    model = ag.models.from_log_joint(lambda z, x: z @ table + x, latent_dim=3)
    q = jax.nn.softmax(phi)
    found = ag.elbo(
        key,
        phi,
        jnp.asarray(0.3),
        model=model,
        family=ag.families.Categorical(3),
        num_samples=1,
        entropy_weight=weight,
    )
    np.testing.assert_allclose(found, q @ (table + 0.3 - weight * jnp.log(q)), rtol=1e-12)


def test_warming_up_the_entropy_narrows_q_at_first(key):
    vae = ag.models.deep_latent_gaussian(key, latent_dim=2, data_dim=3, width=1, depth=0, likelihood="gaussian")
    encoder = ag.encoders.linear(key, 3, MEAN_FIELD, rank=1)
    given = {"model": vae, "family": MEAN_FIELD, "encoder": encoder, "num_steps": 40, "num_evaluations": 2}
    with_it, without = (
        ag.train_vae(key, XS, entropy_warmup=steps, learning_rate=0.1, batch_size=10, **given) for steps in (40, 0)
    )
    scales = [jax.vmap(fit.encoder)(XS)[:, 2:].mean() for fit in (with_it, without)]
    assert scales[0] < scales[1] - 0.1
    with pytest.raises(ValueError, match="entropy_warmup must be a whole number, between 0 and 40, got 41"):
        ag.train_vae(key, XS, entropy_warmup=41, **given)


def test_entropy_is_warmed_up_once_not_once_a_round(key):
    """Far off the optimum at a rate of zero: the entropy's weight is 0, 1/4, 2/4, 3/4 in four rounds of one step."""
    family = ag.families.MeanFieldNormal(2)
    encoder = ag.encoders.constant(key, 3, family)
    # Scales of exp(-20): no noise is left, and the entropy is -40 nats and a constant.
    encoder = dataclasses.replace(encoder, phi=jnp.array([0.3, -0.2, -20.0, -20.0]))
    settings = {
        "num_steps": 4,
        "num_evaluations": 4,
        "batch_size": 1,
        "learning_rate": 1e-30,
        "estimator": "analytic_entropy",
    }
    model = ag.models.deep_latent_gaussian(key, latent_dim=2, data_dim=3, width=2, depth=1)
    batch = ag.train_vae(
        key, (XS[:1] > 0) * 1.0, model=model, family=family, encoder=encoder, entropy_warmup=4, **settings
    ).trace.batch_elbo
    entropy = -40 + 2 * 0.5 * np.log(2 * np.pi * np.e)
    np.testing.assert_allclose(np.diff(batch), entropy / 4, rtol=1e-3)
