"""Flax modules of users, nnx and linen, as decoders and encoders of one datum."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import amortgap as ag

D = 2
IMAGE = (4, 3, 1)
FAMILY = ag.families.MeanFieldNormal(D)


class NnxEncoder(nnx.Module):
    def __init__(self, rngs, outputs=D):
        self.conv = nnx.Conv(1, 3, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(36, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.mean, self.log_variance = (nnx.Linear(36, outputs, rngs=rngs) for _ in range(2))

    def __call__(self, images):
        hidden = nnx.relu(self.conv(images)).reshape(images.shape[0], -1)
        hidden = self.drop(self.norm(hidden))
        return self.mean(hidden), self.log_variance(hidden)


class NnxDecoder(nnx.Module):
    def __init__(self, rngs):
        self.first, self.second = nnx.Linear(D, 8, rngs=rngs), nnx.Linear(8, 12, rngs=rngs)

    def __call__(self, z):
        return self.second(nnx.tanh(self.first(z))).reshape(-1, *IMAGE)


class LinenEncoder(linen.Module):
    train: bool = False

    @linen.compact
    def __call__(self, x):
        hidden = linen.BatchNorm(use_running_average=not self.train)(jnp.tanh(linen.Dense(5)(x)))
        hidden = linen.Dropout(0.5, deterministic=not self.train)(hidden)
        return linen.Dense(D)(hidden), jax.nn.softplus(linen.Dense(D)(hidden))


class LinenDecoder(linen.Module):
    @linen.compact
    def __call__(self, z):
        return linen.Dense(12)(jnp.tanh(linen.Dense(8)(z)))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 2, (6, *IMAGE)).astype(np.float32)


def nnx_vae():
    rngs = nnx.Rngs(0)
    encoder, decoder = NnxEncoder(rngs), NnxDecoder(rngs)
    encoder.eval()
    # Averages of a batch norm that has been trained.
    encoder.norm.mean[...] = 0.3 * jnp.arange(36.0)
    return encoder, decoder


def linen_vae():
    key = jax.random.key(0)
    encoder, decoder = LinenEncoder(), LinenDecoder()
    return encoder, encoder.init(key, jnp.zeros((1, 12))), decoder, decoder.init(key, jnp.zeros((1, D)))


def test_nnx_modules_compute_as_their_owner_runs_them(images):
    encoder, decoder = nnx_vae()
    ours = ag.encoders.from_module(encoder, FAMILY, data_shape=IMAGE)
    mean, log_variance = encoder(jnp.asarray(images))
    flat = jnp.asarray(images.reshape(len(images), -1))
    expected = np.concatenate([mean, 0.5 * log_variance], axis=1)
    np.testing.assert_allclose(jax.vmap(ours)(flat), expected, rtol=1e-5, atol=1e-6)
    assert ours.num_weights == sum(leaf.size for leaf in jax.tree.leaves(nnx.state(encoder, nnx.Param)))
    model = ag.models.DeepLatentGaussian.from_modules(decoder, latent_dim=D, data_dim=12)
    z = jnp.array([0.3, -1.0])
    logits = decoder(z[None]).ravel()
    log_likelihood = jnp.sum(flat[0] * logits - jnp.logaddexp(0.0, logits))
    np.testing.assert_allclose(model.log_likelihood(z, jnp.asarray(flat[0])), log_likelihood, rtol=1e-5)


@pytest.mark.parametrize("second", ["scale", "variance", "log_scale", "log_variance"])
def test_linen_modules_compute_as_their_owner_runs_them(second, images):
    encoder, variables, decoder, weights = linen_vae()
    ours = ag.encoders.from_module(encoder, FAMILY, data_shape=(12,), scale_output=second, variables=variables)
    flat = jnp.asarray(images.reshape(len(images), -1))
    mean, out = encoder.apply(variables, flat)
    log_scale = {"scale": jnp.log(out), "variance": 0.5 * jnp.log(out), "log_scale": out, "log_variance": out / 2}
    expected = np.concatenate([mean, log_scale[second]], axis=1)
    np.testing.assert_allclose(jax.vmap(ours)(flat), expected, rtol=1e-5, atol=1e-6)
    model = ag.models.DeepLatentGaussian.from_modules(
        decoder, latent_dim=D, data_dim=12, likelihood="gaussian", variables=weights
    )
    z = jnp.array([0.3, -1.0])
    np.testing.assert_allclose(model.decoder(z), decoder.apply(weights, z[None])[0], rtol=1e-6)
    assert ours.num_weights == sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def test_module_of_one_output_is_phi_of_any_family():
    family = ag.families.FullRankNormal(D)
    module = nnx.Linear(3, family.size, rngs=nnx.Rngs(0))
    encoder = ag.encoders.from_module(module, family, data_shape=(3,))
    x = jnp.array([1.0, 2.0, -1.0])
    np.testing.assert_allclose(encoder(x), module(x), rtol=1e-6)


def test_modules_train_and_are_measured(key, images):
    # Only parameters move: the averages of the batch norm and the keys of the dropout stay what they were.
    encoder, decoder = nnx_vae()
    model = ag.models.DeepLatentGaussian.from_modules(decoder, latent_dim=D, data_dim=12)
    ours = ag.encoders.from_module(encoder, FAMILY, data_shape=IMAGE)
    flat = jnp.asarray(images.reshape(len(images), -1))
    fit = ag.amortized_vi(key, flat, model=model, family=FAMILY, encoder=ours, num_steps=30, batch_size=3)
    assert fit.trace.elbo[-1] > fit.trace.elbo[0] or float(fit.change) > 0
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), ours.module.weights, fit.encoder.module.weights)
    assert max(jax.tree.leaves(moved)) > 1e-3
    np.testing.assert_array_equal(encoder.norm.mean[...], 0.3 * jnp.arange(36.0))
    with warnings.catch_warnings():
        # The decoder was never trained: that it can be measured is what matters here.
        warnings.simplefilter("ignore", ag.evidence.UnreliableEvidence)
        gaps = ag.inference_gaps(key, flat, model=model, family=FAMILY, encoder=fit.encoder, num_samples=50)
    assert np.all(np.isfinite(gaps.inference))


class Stateful(nnx.Module):
    def __init__(self):
        self.calls = nnx.Variable(jnp.zeros(()))
        self.linear = nnx.Linear(3, 2 * D, rngs=nnx.Rngs(0))

    def __call__(self, x):
        self.calls[...] = self.calls[...] + 1
        return self.linear(x)


def bring(module, shape=(12,), **options):
    return ag.encoders.from_module(module, FAMILY, data_shape=shape, **options)


def training_linen():
    encoder = LinenEncoder(train=True)
    return encoder, encoder.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, jnp.zeros((1, 12)))


def test_modules_that_do_not_fit_are_refused():
    encoder, variables, decoder, weights = linen_vae()
    training = nnx_vae()[0]
    training.train()
    late, late_variables = training_linen()
    wide = NnxEncoder(nnx.Rngs(0), outputs=3)
    wide.eval()
    cases = [
        (lambda: bring(lambda x: x), "module must be a flax nnx or linen module, got function"),
        (lambda: bring(encoder), "module is a linen module, which holds no weights.*got none"),
        (lambda: bring(encoder, variables={"batch_stats": {}}), r"with 'params', got collections \['batch_stats'\]"),
        (lambda: bring(encoder, (7,), variables=variables), r"cannot be run on a batch of shape \(1, 7\)"),
        (lambda: bring(training, IMAGE), r"module changes its own state .*call module.eval\(\) first"),
        (lambda: bring(late, variables=late_variables), "module changes its own state .*evaluation mode"),
        (lambda: bring(Stateful(), (3,)), "module changes its own state"),
        (lambda: bring(nnx_vae()[0], (4, 4, 1)), r"cannot be run on a batch of shape \(1, 4, 4, 1\)"),
        (lambda: bring(nnx_vae()[0], IMAGE)(jnp.zeros(IMAGE[::-1])), "one datum must have shape"),
        (lambda: bring(wide, IMAGE), r"family.latent_dim = 2 entries for one datum, got \[\(3,\), \(3,\)\]"),
        (lambda: bring(nnx.Linear(3, 5, rngs=nnx.Rngs(0)), (3,)), r"family.size = 4 entries .*got \[\(5,\)\]"),
        (lambda: bring(encoder, variables=variables, scale_output="precision"), "scale_output must be one of"),
        (
            lambda: ag.encoders.from_module(nnx_vae()[0], ag.families.FullRankNormal(D), data_shape=IMAGE),
            "two outputs are the phi of a MeanFieldNormal, not of a FullRankNormal",
        ),
        (
            lambda: ag.models.DeepLatentGaussian.from_modules(decoder, latent_dim=D, data_dim=13, variables=weights),
            r"decoder must return one array of data_dim = 13 entries for one z, got \[\(12,\)\]",
        ),
        (
            lambda: ag.models.DeepLatentGaussian.from_modules(decoder, latent_dim=3, data_dim=12, variables=weights),
            "decoder cannot be run on a batch of shape",
        ),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
