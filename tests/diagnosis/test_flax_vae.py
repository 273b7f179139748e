"""A VAE trained elsewhere, with plain flax and optax, in sickness and in health."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import amortgap as ag

D = 2
FAMILY = ag.families.MeanFieldNormal(D)
pytestmark = pytest.mark.slow


class Encoder(nnx.Module):
    def __init__(self, width, rngs):
        self.first = nnx.Linear(64, width, rngs=rngs)
        self.second = nnx.Linear(width, width, rngs=rngs)
        self.mean, self.log_variance = nnx.Linear(width, D, rngs=rngs), nnx.Linear(width, D, rngs=rngs)

    def __call__(self, x):
        hidden = nnx.elu(self.second(nnx.elu(self.first(x))))
        return self.mean(hidden), self.log_variance(hidden)


class Decoder(nnx.Module):
    def __init__(self, rngs):
        self.logits = nnx.Linear(D, 64, rngs=rngs)

    def __call__(self, z):
        return self.logits(z)


class DeepDecoder(nnx.Module):
    def __init__(self, rngs):
        self.hidden, self.logits = nnx.Linear(D, 64, rngs=rngs), nnx.Linear(64, 64, rngs=rngs)

    def __call__(self, z):
        return self.logits(nnx.elu(self.hidden(z)))


class VAE(nnx.Module):
    def __init__(self, width, rngs):
        self.encoder, self.decoder = Encoder(width, rngs), Decoder(rngs)


def loss(encoder, decoder, key, x):
    mean, log_variance = encoder(x)
    z = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)
    reconstruction = optax.sigmoid_binary_cross_entropy(decoder(z), x).sum(-1)
    return (reconstruction + 0.5 * (mean**2 + jnp.exp(log_variance) - 1 - log_variance).sum(-1)).mean()


def train(vae, xs, steps, rate, *, decoder_too):
    """Train as everybody does; a frozen decoder stays what it is."""
    trained = vae if decoder_too else vae.encoder
    optimizer = nnx.Optimizer(trained, optax.adam(optax.cosine_decay_schedule(rate, steps)), wrt=nnx.Param)
    of = (lambda vae, *rest: loss(vae.encoder, vae.decoder, *rest)) if decoder_too else None

    @nnx.jit
    def step(trained, decoder, optimizer, key, x):
        if of is not None:
            gradients = nnx.grad(of)(trained, key, x)
        else:
            gradients = nnx.grad(loss)(trained, decoder, key, x)
        optimizer.update(trained, gradients)

    rng = np.random.default_rng(0)
    for number in range(steps):
        rows = rng.choice(len(xs), min(100, len(xs)), replace=False)
        step(trained, vae.decoder, optimizer, jax.random.key(number), xs[rows])
    return vae


@pytest.fixture(scope="module")
def digits():
    data = ag.data.load_digits()
    return jnp.asarray(data.train), jnp.asarray(data.test)


@pytest.fixture(scope="module")
def healthy(digits):
    return train(VAE(64, nnx.Rngs(0)), digits[0], 4000, 3e-3, decoder_too=True)


def brought(vae):
    model = ag.models.DeepLatentGaussian.from_modules(vae.decoder, latent_dim=D, data_dim=64)
    return model, ag.encoders.from_module(vae.encoder, FAMILY, data_shape=(64,))


def diagnosed(model, encoder, train, test):
    return ag.diagnose(
        jax.random.key(5),
        train,
        test,
        model=model,
        family=FAMILY,
        encoder=encoder,
        budget=600.0,
        max_data=300,
        tolerance=0.15,
        remedies=("refine 20 steps",),
    )


def test_a_healthy_model_gets_a_clean_bill_and_matches_inference_gaps(healthy, digits):
    model, encoder = brought(healthy)
    found = diagnosed(model, encoder, *digits)
    assert found.verdict.name == "healthy", found.summary()
    xs = digits[1][found.test.rows]
    gaps = ag.inference_gaps(
        jax.random.key(6), xs, model=model, family=FAMILY, encoder=encoder, evidence_method="quadrature"
    )
    for name in ("approximation", "amortization", "inference"):
        ours, theirs = found.test.gaps.estimates()[name], gaps.estimates()[name]
        error = np.hypot(float(ours.monte_carlo_standard_error), float(theirs.monte_carlo_standard_error))
        assert float(ours.mean) == pytest.approx(float(theirs.mean), abs=4 * error + 0.01)


def test_a_crippled_encoder_is_named(healthy, digits):
    crippled = VAE(2, nnx.Rngs(1))
    crippled.decoder = healthy.decoder
    train(crippled, digits[0], 2000, 1e-2, decoder_too=False)
    found = diagnosed(*brought(crippled), *digits)
    assert found.verdict.name == "amortization", found.summary()
    assert found.remedies[0].name == "refine 20 steps" and float(found.remedies[0].gain.mean) > 0.1


def test_an_overfitted_encoder_is_named(digits):
    few = digits[0][:200]
    overfitted = VAE(128, nnx.Rngs(2))
    overfitted.decoder = DeepDecoder(nnx.Rngs(4))
    train(overfitted, few, 4000, 3e-3, decoder_too=True)
    found = diagnosed(*brought(overfitted), few, digits[1])
    assert found.verdict.name == "generalization", found.summary()


def test_a_wrong_family_is_named(digits):
    # Latents that the decoder mixes until their posterior is as correlated as can be.
    rng = np.random.default_rng(0)
    vae = VAE(64, nnx.Rngs(3))
    direction = rng.normal(size=64)
    kernel = np.stack([direction, direction + 0.1 * rng.normal(size=64)]).astype(np.float32)
    vae.decoder.logits.kernel[...] = jnp.asarray(kernel)
    vae.decoder.logits.bias[...] = jnp.zeros(64)
    model, _ = brought(vae)
    _, xs = ag.diagnostics.simulate(jax.random.key(8), model=model, num_data=1500)
    train(vae, xs[:1200], 3000, 3e-3, decoder_too=False)
    model, encoder = brought(vae)
    found = diagnosed(model, encoder, xs[:1200], xs[1200:])
    assert found.verdict.name == "approximation", found.summary()
    limit = next(remedy for remedy in found.remedies if remedy.name == "best full-rank normals")
    assert float(limit.gain.mean) > 0.2
