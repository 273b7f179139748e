"""Training objectives of encoders and the conditioning gap against exact answers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_fa import CONSTANT, FA, FAMILY, KEY, PRECISION, SETTINGS, XS, affine_encoder, exact_gap

import amortgap as ag
from amortgap.gaps import conditioning_gap

I = ag.inference  # noqa: E741


@pytest.mark.slow
def test_doubly_reparameterised_gradient_is_unbiased_and_silent_at_the_posterior(x64):
    model = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), FA)
    x, full = XS[0].astype(jnp.float64), ag.families.FullRankNormal(2)
    posterior = model.posterior(x)
    settings = {"model": model, "family": full, "num_samples": 3}
    double, plain = (I.iwae_objective(**settings, doubly_reparameterised=d) for d in (True, False))
    best = full.from_moments(posterior.mean, jnp.linalg.cholesky(posterior.covariance))

    def gradient(objective, phi):
        return jax.vmap(jax.grad(lambda k, p: objective(k, lambda x: p, x), argnums=1), (0, None))(
            jax.random.split(KEY, 20_000), phi
        )

    np.testing.assert_allclose(gradient(double, best)[:50], 0, atol=1e-9)
    phi = best + 0.3
    have, want = gradient(double, phi), gradient(plain, phi)
    error = (have.std(0) + want.std(0)) / 20_000**0.5
    assert np.all(np.abs(have.mean(0) - want.mean(0)) < 4 * error)
    assert np.abs(want.mean(0)).max() > 10 * error.max()
    key = jax.random.key(3)
    zs, log_q = jax.vmap(lambda k: full.sample_and_log_prob(k, phi))(jax.random.split(key, 3))
    bound = np.logaddexp.reduce(jax.vmap(lambda z: model.log_joint(z, x))(zs) - log_q) - np.log(3)
    np.testing.assert_allclose(double(key, lambda x: phi, x), bound, rtol=1e-12)


def test_sleep_is_stationary_at_the_moments_of_the_posterior():
    # Forward KL: posterior means, and marginal variances, where the ELBO would have 1 / Lambda_jj.
    objective, n = I.sleep_objective(**SETTINGS), 40_000
    marginal = 0.5 * jnp.log(jnp.diag(jnp.linalg.inv(jnp.asarray(PRECISION))))

    def value(shift, key):
        return objective(key, lambda x: jnp.concatenate([FA.posterior_mean(x), marginal]) + shift, XS[0])

    gradients = jax.vmap(jax.grad(value), (None, 0))(jnp.zeros(4), jax.random.split(KEY, n))
    assert np.all(np.abs(gradients.mean(0)) < 5 * gradients.std(0) / n**0.5)
    reverse = -0.5 * np.log(np.diag(PRECISION))
    assert np.abs(reverse - marginal).min() > 0.005
    moved = jnp.concatenate([jnp.zeros(2), jnp.asarray(reverse - marginal)])
    elsewhere = jax.vmap(jax.grad(value), (None, 0))(moved, jax.random.split(KEY, n))
    assert np.any(np.abs(elsewhere.mean(0)) > 5 * elsewhere.std(0) / n**0.5)


def test_objectives_are_the_elbos_they_say():
    encoder, x, n = affine_encoder(), XS[0], 4000
    keys = jax.random.split(KEY, n)

    def mean(objective):
        draws = jax.vmap(lambda k: objective(k, encoder, x))(keys)
        return float(draws.mean()), float(draws.std()) / n**0.5

    def exact(phi, x):
        return float(FA.log_evidence(x) - FA.approximation_gap()) - exact_gap(phi, x)

    plain, error = mean(I.elbo_objective(**SETTINGS))
    assert abs(plain - exact(encoder(x), x)) < 5 * error
    noise, error = mean(I.denoising_objective(**SETTINGS, noise_scale=2.0))
    # The ELBO is quadratic in the mean, which noise on x moves by an affine map: half the trace is lost.
    jacobian = np.asarray(jax.jacobian(encoder)(x))[:2]
    lost = 0.5 * 2.0**2 * np.trace(jacobian.T @ PRECISION @ jacobian)
    assert abs(noise - (exact(encoder(x), x) - lost)) < 5 * error
    assert lost > 5 * error
    half, error = mean(I.reverse_half_asleep_objective(**SETTINGS))
    simulated = jax.vmap(lambda k: FA.sample(k)[1])(jax.random.split(jax.random.key(5), 2000))
    asleep = np.array([exact(encoder(s), s) for s in simulated[:400]])
    assert abs(half - 0.5 * exact(encoder(x), x) - 0.5 * asleep.mean()) < 5 * (error + 0.5 * asleep.std() / 400**0.5)


def test_weight_normalised_encoder_has_units_of_one_norm():
    inner = ag.encoders.mlp(KEY, 3, FAMILY, width=4, depth=1)
    encoder = ag.encoders.WeightNormEncoder(inner, 0.8)
    x = jnp.array([0.3, -1.0, 0.5])
    scaled = dataclasses.replace(
        inner, network=jax.tree.map(lambda leaf: 3.0 * leaf if leaf.ndim == 2 else leaf, inner.network)
    )
    np.testing.assert_allclose(encoder(x), ag.encoders.WeightNormEncoder(scaled, 0.8)(x), rtol=1e-5)
    _, k1, _, k2 = jax.tree.leaves(inner.network)
    k1, k2 = (0.8 * k / jnp.linalg.norm(k, axis=0, keepdims=True) for k in (k1, k2))
    np.testing.assert_allclose(encoder(x), jax.nn.elu(x @ k1) @ k2, rtol=1e-5)


def test_train_encoder_reaches_the_closed_form():
    fit = I.train_encoder(
        KEY,
        XS,
        model=FA,
        encoder=ag.encoders.linear(KEY, 3, FAMILY, rank=2),
        objective=I.elbo_objective(**SETTINGS, num_samples=4),
        num_steps=1500,
        batch_size=40,
        learning_rate=0.03,
    )
    gaps = [exact_gap(fit.encoder(x), x) for x in XS]
    assert bool(fit.finite) and np.mean(gaps) < 0.01
    before = [exact_gap(CONSTANT(x), x) for x in XS]
    assert np.mean(before) > 0.3


def test_every_step_of_training_draws_anew():
    settings = {"num_steps": 6, "batch_size": 1, "learning_rate": 1e-30}
    fit = I.train_encoder(KEY, XS[:1], encoder=CONSTANT, objective=I.elbo_objective(**SETTINGS), **settings)
    assert len(set(np.asarray(fit.trace.batch_elbo).tolist())) == 6


def test_conditioning_gap_is_what_the_best_restricted_encoder_loses():
    floor = float(FA.conditioning_gap([0, 2]))
    # The mean over many data of the KL's mean part at E[m | x_S], by Monte Carlo from the definition.
    xs = jax.vmap(lambda k: FA.sample(k)[1])(jax.random.split(KEY, 20_000))
    means = np.asarray(jax.vmap(FA.posterior_mean)(xs))
    seen = np.asarray(xs)[:, [0, 2]]
    fitted = seen @ np.linalg.lstsq(seen, means, rcond=None)[0]
    losses = 0.5 * np.einsum("ni,ij,nj->n", means - fitted, PRECISION, means - fitted)
    assert abs(losses.mean() - floor) < 5 * losses.std() / 20_000**0.5
    assert float(FA.conditioning_gap([0, 1, 2])) == pytest.approx(0, abs=1e-5)
    signal = np.asarray(FA.loadings).T @ np.diag(1 / np.asarray(FA.noise_variance)) @ np.asarray(FA.loadings)
    assert float(FA.conditioning_gap([])) == pytest.approx(0.5 * np.trace(signal), rel=1e-5)
    assert 0 < floor < float(FA.conditioning_gap([0])) < float(FA.conditioning_gap([]))


def test_conditioning_gap_of_a_filter_on_a_chain(x64):
    # The encoder of step t that sees only the past: the gap of one step of an autoregression, by the general formula.
    length, phi, q, r = 8, 0.8, 0.5, 0.7
    prior = np.diag(np.full(length, (1 + phi**2) / q)) - (phi / q) * (np.eye(length, k=1) + np.eye(length, k=-1))
    prior[0, 0] = prior[-1, -1] = 1 / q
    precision, covariance = prior + np.eye(length) / r, np.linalg.inv(prior)
    of_x = covariance + r * np.eye(length)
    gain = np.linalg.inv(precision) / r
    t = 4
    spread, cross = gain @ of_x @ gain.T, gain @ of_x
    past = conditioning_gap(
        jnp.asarray(precision[t : t + 1, t : t + 1]),
        jnp.asarray(spread[t : t + 1, t : t + 1]),
        jnp.asarray(cross[t : t + 1, : t + 1]),
        jnp.asarray(of_x[: t + 1, : t + 1]),
    )
    # Directly: E[m_t | past] is the filter mean, and Var(m_t | past) = filter variance - smoother variance.
    kept = np.s_[: t + 1]
    filter_variance = np.linalg.inv(np.linalg.inv(covariance[kept, kept]) + np.eye(t + 1) / r)[t, t]
    smoother_variance = np.linalg.inv(precision)[t, t]
    np.testing.assert_allclose(past, 0.5 * precision[t, t] * (filter_variance - smoother_variance), rtol=1e-9)
    assert float(past) > 0.01
