"""The defaults of local VI on unlike models: they neither diverge nor stop short, whatever the posterior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import amortgap as ag

RNG = np.random.default_rng(5)


def loading_spread():
    """Factor analysis with d = 50 whose posterior is strongly correlated: a spread of loadings in a random basis."""
    rotation, _ = np.linalg.qr(RNG.normal(size=(50, 50)))
    return 1.5 * RNG.normal(size=(80, 50)) * np.geomspace(2, 0.2, 50) @ rotation


def condition_1e4():
    """Loadings that give the posterior precision eigenvalues from 1 to 10^4 in a random basis, at unit noise."""
    rotation, _ = np.linalg.qr(RNG.normal(size=(50, 50)))
    columns, _ = np.linalg.qr(RNG.normal(size=(80, 50)))
    return columns * np.sqrt(np.geomspace(1, 1e4, 50) - 1) @ rotation


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loadings", "noise"),
    [(loading_spread(), RNG.uniform(0.3, 2, 80)), (condition_1e4(), np.ones(80))],
    ids=["spread of loadings", "condition 1e4"],
)
def test_fifty_correlated_dimensions_from_the_prior_within_1000_gradients(key, loadings, noise):
    model = ag.models.FactorAnalysis(
        loadings=jnp.asarray(loadings, jnp.float32), mean=jnp.zeros(80), noise_variance=jnp.asarray(noise, jnp.float32)
    )
    xs = RNG.normal(size=(10, 50)) @ loadings.T + RNG.normal(size=(10, 80)) * np.sqrt(noise)
    fit = ag.fit_local(key, xs.astype(np.float32), model=model, family=ag.families.MeanFieldNormal(50))
    precision = np.eye(50) + loadings.T @ (loadings / noise[:, None])
    mean, log_scale = np.split(np.asarray(fit.phi, np.float64), 2, axis=1)
    away = mean - np.linalg.solve(precision, loadings.T @ (xs / noise).T).T
    ratio = np.diag(precision) * np.exp(2 * log_scale)
    lost = 0.5 * (np.einsum("ni,ij,nj->n", away, precision, away) + np.sum(ratio - 1 - np.log(ratio), axis=1))
    assert np.all(lost < 0.01)
    assert fit.converged.all()
    assert fit.num_gradients.max() <= 1000


def decoder(data_dim, width, depth, latent_dim, activation):
    """A decoder trained for a moment, so that posteriors are neither the prior nor those of random weights."""
    if data_dim == 64:
        xs = jnp.asarray(ag.data.load_digits().train[:600])
    else:
        shapes = jax.random.normal(jax.random.key(4), (6, data_dim))
        xs = (jax.random.normal(jax.random.key(5), (600, 6)) @ shapes > 0).astype(jnp.float32)
    family = ag.families.MeanFieldNormal(latent_dim)
    model = ag.models.deep_latent_gaussian(
        jax.random.key(0), latent_dim=latent_dim, data_dim=data_dim, width=width, depth=depth, activation=activation
    )
    encoder = ag.encoders.mlp(jax.random.key(1), data_dim, family, width=64, depth=1)
    fit = ag.train_vae(
        jax.random.key(2), xs, model=model, family=family, encoder=encoder, num_steps=1500, num_evaluations=2
    )
    return fit.model, xs[:20], fit.encoder


def schools(z, x):
    """Five measured effects with standard errors x[5:], around a common mean z[0], with log spread z[1]."""
    mean, log_spread, effects = z[0], z[1], z[2:]
    prior = -0.5 * (mean / 5) ** 2 - 0.5 * log_spread**2
    spread = -0.5 * jnp.sum((effects - mean) ** 2) * jnp.exp(-2 * log_spread) - 5 * log_spread
    return prior + spread - 0.5 * jnp.sum(((x[:5] - effects) / x[5:]) ** 2)


def case(name):
    if name == "digits decoder":
        return decoder(64, 32, 1, 8, "elu")
    if name == "28 x 28 decoder":
        return decoder(784, 64, 2, 20, "relu")
    if name == "hierarchical":
        effects = jax.random.normal(jax.random.key(6), (20, 5)) * 3 + 2
        errors = jnp.tile(jnp.array([[0.5, 1.0, 1.0, 2.0, 4.0]]), (20, 1))
        return ag.models.from_log_joint(schools, 7), jnp.concatenate([effects, errors], axis=1), None
    counts = jnp.array([0.0, 0, 1, 2, 5, 12, 40, 150, 1000, 5000])[:, None]
    return ag.models.PoissonGamma(shape=jnp.asarray(0.7), rate=jnp.asarray(0.5)), counts, None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits decoder", "28 x 28 decoder", "hierarchical", "Poisson-Gamma"])
def test_defaults_reach_what_a_long_run_of_adam_reaches(key, name):
    model, xs, encoder = case(name)
    family = ag.families.MeanFieldNormal(model.latent_dim)
    cold = ag.fit_local(key, xs, model=model, family=family)
    fits = [cold] if encoder is None else [cold, ag.fit_local(key, xs, model=model, family=family, encoder=encoder)]
    long = ag.fit_local(key, xs, model=model, family=family, init=cold.phi, method="adam", num_steps=6000, max_reruns=0)
    for fit in fits:
        bounds = ag.evaluate_bounds(
            jax.random.key(8), jnp.stack([fit.phi, long.phi], axis=1), xs, model=model, family=family, num_samples=4000
        )
        missing = bounds.elbo[:, 1] - bounds.elbo[:, 0]
        assert np.isfinite(fit.phi).all()
        assert np.all(missing < 0.03 + 4 * bounds.paired_standard_error[:, 1]), missing.max()
        assert fit.converged.mean() >= 0.9
        assert np.all(fit.elbo >= fit.start_elbo)
