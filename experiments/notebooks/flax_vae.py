# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Your flax VAE
#
# A variational autoencoder trained with plain flax and optax, the way one does, and then the question that training does not
# answer: how many nats does its encoder lose, why, and what would help? `ag.diagnose` answers in a minute.

# %%
import os

from amortgap.runtime import prepare_compiler

prepare_compiler()  # keeps compiled programs between runs; before jax is imported

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import amortgap as ag

SMOKE = "AMORTGAP_SMOKE" in os.environ  # the tests run every notebook with fewer steps
EPOCHS = 2 if SMOKE else 60
LATENTS = 4

digits = ag.data.load_digits()  # 8 x 8 images, binary
train, test = np.asarray(digits.train), np.asarray(digits.test)

# %% [markdown]
# ## Training, without this package


# %%
class Encoder(nnx.Module):
    def __init__(self, width, rngs):
        self.hidden = nnx.Linear(64, width, rngs=rngs)
        self.mean = nnx.Linear(width, LATENTS, rngs=rngs)
        self.log_variance = nnx.Linear(width, LATENTS, rngs=rngs)

    def __call__(self, x):
        hidden = nnx.relu(self.hidden(x))
        return self.mean(hidden), self.log_variance(hidden)


class Decoder(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(LATENTS, 64, rngs=rngs)
        self.logits = nnx.Linear(64, 64, rngs=rngs)

    def __call__(self, z):
        return self.logits(nnx.relu(self.hidden(z)))


class VAE(nnx.Module):
    def __init__(self, width, rngs):
        self.encoder, self.decoder = Encoder(width, rngs), Decoder(rngs)


def loss(vae, key, x):
    mean, log_variance = vae.encoder(x)
    z = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)
    reconstruction = optax.sigmoid_binary_cross_entropy(vae.decoder(z), x).sum(-1)
    kl = 0.5 * (mean**2 + jnp.exp(log_variance) - 1 - log_variance).sum(-1)
    return (reconstruction + kl).mean()


@nnx.jit
def epoch(vae, optimizer, key, batches):
    def step(carry, inputs):
        vae, optimizer = carry
        key, x = inputs
        value, gradients = nnx.value_and_grad(loss)(vae, key, x)
        optimizer.update(vae, gradients)
        return (vae, optimizer), value

    keys = jax.random.split(key, batches.shape[0])
    scan = nnx.scan(step, in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    return scan((vae, optimizer), (keys, batches))[1].mean()


vae = VAE(width=8, rngs=nnx.Rngs(0))  # a small encoder
optimizer = nnx.Optimizer(vae, optax.adam(3e-3), wrt=nnx.Param)
rng = np.random.default_rng(0)
for number in range(EPOCHS):
    order = rng.permutation(len(train))[: len(train) // 50 * 50].reshape(-1, 50)
    value = epoch(vae, optimizer, jax.random.key(number), jnp.asarray(train[order]))
print(f"negative ELBO after {EPOCHS} epochs: {float(value):.2f} nats per image")

# %% [markdown]
# ## Bringing it
#
# The modules are taken as they are, trained weights included. The encoder's two outputs are the mean and the log variance of a
# mean-field normal.

# %%
family = ag.families.MeanFieldNormal(LATENTS)
model = ag.models.DeepLatentGaussian.from_modules(vae.decoder, latent_dim=LATENTS, data_dim=64)
encoder = ag.encoders.from_module(vae.encoder, family, data_shape=(64,))

# %% [markdown]
# ## The diagnosis
#
# Gaps on training and held-out images with certified local optima, what the causes are, and every remedy tried for a few
# seconds on the held-out images.

# %%
diagnosis = ag.diagnose(
    jax.random.key(1),
    train,
    test,
    model=model,
    family=family,
    encoder=encoder,
    budget=80.0,
    max_data=50 if SMOKE else 300,
    remedies=("refine 5 steps",) if SMOKE else None,
)
print(diagnosis.summary())

# %% [markdown]
# `diagnosis.to_html("diagnosis.html")` writes the same as a report with figures; from a shell, `amortgap diagnose problem.py` does
# all of it for a file that defines `make_problem()`.
#
# The numbers are there to be used: `diagnosis.test.gaps` holds every datum, `diagnosis.worst` the ones to look at first.

# %%
gaps = diagnosis.test.gaps
for i in diagnosis.worst[:3]:
    print(
        f"held-out image {diagnosis.test.rows[i]}: approximation {float(gaps.approximation[i]):.2f}, "
        f"amortization {float(gaps.amortization[i]):.2f} nats"
    )
