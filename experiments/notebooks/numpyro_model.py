# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Your NumPyro model
#
# A model with a plate over data has one posterior for every member of the plate. `from_numpyro` takes out that one-datum model,
# so that local VI, encoders and gaps work on it as on any other. Here: eight schools, where the answer is known, then a mixed
# model of counts with many groups, an encoder for it, and what the encoder loses.

# %%
import os
from dataclasses import dataclass
from typing import Any

from amortgap.runtime import prepare_compiler

prepare_compiler()  # keeps compiled programs between runs; before jax is imported

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import amortgap as ag

SMOKE = "AMORTGAP_SMOKE" in os.environ  # the tests run every notebook with fewer steps
GROUPS = 60 if SMOKE else 600

# %% [markdown]
# ## Eight schools with fixed globals
#
# Given the mean and spread of all schools, each school's effect has a normal posterior, and the evidence of the eight is a
# sum of normal densities.

# %%
SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], np.float32)
EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], np.float32)


def schools(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("schools", len(sigma)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("obs", dist.Normal(theta, sigma), obs=y)


data = {"sigma": SIGMA, "y": EFFECTS}
model = ag.models.from_numpyro(schools, data, local_plate="schools", condition={"mu": 4.0, "tau": 5.0})
family = ag.families.MeanFieldNormal(model.latent_dim)
fit = ag.fit_local(jax.random.key(0), model.data, model=model, family=family)
exactly = dist.Normal(4.0, np.sqrt(25 + SIGMA**2)).log_prob(EFFECTS)
print("ELBO of local VI:     ", np.asarray(fit.elbo).round(3))
print("exact log p(y_i):     ", np.asarray(exactly).round(3))
print(
    "posterior mean, school 1:", float(model.unpack(fit.phi[0, :1], jax.tree.map(lambda a: a[0], model.data))["theta"])
)

# %% [markdown]
# The two rows agree: the posterior is normal, so the ELBO reaches the evidence.
#
# ## Many groups, an amortized answer
#
# Counts of several visits in each group, with a group's own rate and its own response to a covariate. Both latents of a group
# are packed into one vector; the rate is positive and is handled in log scale, with its Jacobian.

# %%
VISITS = 6


def counts(x, y):
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    with numpyro.plate("groups", x.shape[0], dim=-2):
        rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
        slope = numpyro.sample("slope", dist.Normal(0.0, spread))
        with numpyro.plate("visits", x.shape[1], dim=-1):
            numpyro.sample("obs", dist.Poisson(rate * jnp.exp(slope * x)), obs=y)


rng = np.random.default_rng(1)
x = rng.normal(size=(GROUPS, VISITS)).astype(np.float32)
rates, slopes = rng.gamma(2.0, 1.0, (GROUPS, 1)), 0.7 * rng.normal(size=(GROUPS, 1))
y = rng.poisson(rates * np.exp(slopes * x)).astype(np.float32)
model = ag.models.from_numpyro(counts, {"x": x, "y": y}, local_plate="groups", condition={"spread": 0.7})
print("latents of one group:", model.sites)

# %% [markdown]
# An encoder reads one group's data, `x` and `y`, as a row of numbers, and says `phi`.

# %%
family = ag.families.FullRankNormal(model.latent_dim)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GroupEncoder:
    """A multilayer perceptron of a group's covariates and log counts."""

    network: Any

    def __call__(self, group):
        return self.network(jnp.concatenate([group["x"].ravel(), jnp.log1p(group["y"]).ravel()]))


encoder = GroupEncoder(ag.encoders.mlp(jax.random.key(1), 2 * VISITS, family, width=64, depth=2))
train, test = (
    jax.tree.map(lambda a, part=part: a[part], model.data) for part in (slice(0, None, 2), slice(1, None, 2))
)
trained = ag.amortized_vi(
    jax.random.key(2), train, model=model, family=family, encoder=encoder, num_steps=200 if SMOKE else 4000
)
for name, groups in (("trained on", train), ("held out", test)):
    gaps = ag.inference_gaps(jax.random.key(3), groups, model=model, family=family, encoder=trained.encoder)
    print(f"groups {name}:", gaps.summary(), sep="\n", end="\n\n")

# %% [markdown]
# On the groups it was trained on the encoder is close to local VI; on others it loses more: 300 groups are few for this
# network. That growth is the generalization part of the amortization gap. `ag.diagnose` tells such causes apart and tries
# remedies; the notebook `flax_vae` shows it.
