# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # The idea in pictures
#
# Variational inference approximates the posterior $p(z \mid x)$ of a latent $z$ given **one** datum $x$. Why then do some
# texts write the approximation $q(z)$ and others $q_\phi(z \mid x)$? Both are right, about two different problems:
#
# * **Local**: for every datum $x_i$ a density $q_{\phi_i}(z)$ of its own, $\sum_i \min_{\phi_i} \mathrm{KL}(q_{\phi_i}(z) \,\|\,
#   p(z \mid x_i))$. The datum is fixed while $\phi_i$ is sought, so nothing in $q$ need mention it; the dependence on $x_i$
#   hides in the index $i$.
# * **Amortized**: one function $x \mapsto \phi$, the encoder, is sought for all data at once,
#   $\min_\phi \sum_i \mathrm{KL}(q_\phi(z \mid x_i) \,\|\, p(z \mid x_i))$. Now $x$ is an argument and must be written.
#
# A third object is often called $q(z)$ too: the **aggregated posterior** $\frac1N \sum_i q_\phi(z \mid x_i)$. It is an
# approximation to no posterior at all, but to the prior. Here all of them are drawn, beside the exact posterior.
#
# (The question is an old one: <https://ai.stackexchange.com/questions/33802>.) Everything below is two-dimensional, so that the truth can be computed on a grid.

# %%
import os

from amortgap.runtime import prepare_compiler

prepare_compiler()  # keeps compiled programs between runs; before jax is imported

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import amortgap as ag
from amortgap.figures import PALETTE, style

SMOKE = "AMORTGAP_SMOKE" in os.environ  # the tests run every notebook with fewer steps
STEPS = 200 if SMOKE else 3000

# %% [markdown]
# ## A model
#
# $z \sim N(0, I)$ in two dimensions, and the datum is a bent image of it, $x \mid z \sim N(f(z), \tfrac14 I)$ with
# $f(z) = (z_1, \; z_2 + \tfrac12 z_1^2)$. Any such model is one function of one latent and one datum.

# %%
NOISE = 0.5


def bent(z):
    return jnp.array([z[0], z[1] + 0.5 * z[0] ** 2])


def log_joint(z, x):
    log_prior = jax.scipy.stats.norm.logpdf(z).sum()
    return log_prior + jax.scipy.stats.norm.logpdf(x, bent(z), NOISE).sum()


model = ag.models.from_log_joint(log_joint, latent_dim=2)
family = ag.families.MeanFieldNormal(2)  # q: independent normals, phi = [mean, log scale]

key_z, key_x = jax.random.split(jax.random.key(0))
zs = jax.random.normal(key_z, (500, 2))
xs = jax.vmap(bent)(zs) + NOISE * jax.random.normal(key_x, (500, 2))

# %% [markdown]
# ## Local VI: one problem for every datum
#
# `fit_local` solves the problem of every datum and says, for each, how much may be left to gain. The optimal parameters
# differ from datum to datum, in their scales too: that is why they carry an index.

# %%
local = ag.fit_local(jax.random.key(1), xs, model=model, family=family)
chosen = np.argsort(np.asarray(xs[:, 0]))[[25, 250, 475]]  # a small, a middling and a large x_1
for i in chosen:
    mean, log_scale = np.split(np.asarray(local.phi[i]), 2)
    print(f"x = {np.asarray(xs[i]).round(2)}: mean {mean.round(2)}, scale {np.exp(log_scale).round(2)}", end="; ")
    print("certified" if local.converged[i] else "not certified")

# %% [markdown]
# ## Amortized VI: one function for all data
#
# The smallest encoder is affine: $\phi = W x + b$. The larger has two hidden layers. Both are trained on the sum of the
# same one-datum objectives.

# %%
encoders = {
    "affine encoder": ag.encoders.linear(jax.random.key(2), 2, family, rank=2),
    "two hidden layers": ag.encoders.mlp(jax.random.key(2), 2, family, width=32, depth=2),
}
fits = {
    name: ag.amortized_vi(
        jax.random.key(3), xs, model=model, family=family, encoder=encoder, num_steps=STEPS, learning_rate=1e-2
    )
    for name, encoder in encoders.items()
}

# %% [markdown]
# ## The picture
#
# Grey: the exact posterior, by its density on a grid. Black: local VI. Blue and orange: what the two encoders say of the
# same datum.

# %%
side = np.linspace(-3.2, 3.2, 121)
grid = np.stack(np.meshgrid(side, side, indexing="xy"), axis=-1).reshape(-1, 2)
points = jnp.asarray(grid, jnp.float32)
exact = {int(i): np.asarray(jax.vmap(log_joint, (0, None))(points, xs[i])) for i in chosen}


def ellipse(ax, phi, **how):
    """Draw the region of one standard deviation, which holds 39 % of q."""
    angle = np.linspace(0, 2 * np.pi, 100)
    mean, scale = np.asarray(phi[:2]), np.exp(np.asarray(phi[2:]))
    ax.plot(mean[0] + scale[0] * np.cos(angle), mean[1] + scale[1] * np.sin(angle), **how)


colours = dict(zip(encoders, (PALETTE["mean_field"], PALETTE["full_rank"]), strict=True))
with style():
    figure, axes = plt.subplots(1, 3, figsize=(6.75, 2.5), sharex=True, sharey=True, layout="constrained")
    for ax, i in zip(axes, chosen, strict=True):
        density = np.exp(exact[int(i)] - exact[int(i)].max()).reshape(len(side), -1)
        ax.contourf(side, side, density, levels=[0.05, 0.2, 0.4, 0.6, 0.8, 1.01], cmap="Greys")
        ellipse(ax, local.phi[i], color=PALETTE["local"], label="local VI")
        for name, fit in fits.items():
            ellipse(ax, fit.encoder(xs[i]), color=colours[name], linestyle="--", label=name)
        ax.set(title=f"x = ({float(xs[i, 0]):.1f}, {float(xs[i, 1]):.1f})", xlabel="$z_1$")
    axes[0].set_ylabel("$z_2$")
    axes[0].legend(loc="lower left")
    plt.show()

# %% [markdown]
# The posterior is bent where $x_1$ is large, and an axis-parallel normal cannot follow: that is the **approximation gap**,
# which local VI has too. What an encoder loses on top is its **amortization gap**. Both in nats, with their errors:

# %%
for name, fit in fits.items():
    gaps = ag.inference_gaps(jax.random.key(4), xs, model=model, family=family, encoder=fit.encoder, local=local)
    print(name, gaps.summary(), sep="\n", end="\n\n")

# %% [markdown]
# The larger encoder all but closes the amortization gap, because the optimal $\phi_i$ are a smooth function of $x_i$ here. It
# cannot touch the approximation gap: that belongs to the family.
#
# ## And the aggregated posterior?
#
# Averaged over the data, $q_\phi(z \mid x_i)$ must look like the prior if the model fits the data, however far from the prior
# each of its members is.

# %%
aggregate = ag.aggregate_posterior(xs, family=family, encoder=fits["two hidden layers"].encoder)
density = np.exp(np.asarray(jax.lax.map(aggregate.log_prob, points)))
with style():
    figure, ax = plt.subplots(figsize=(2.6, 2.5), layout="constrained")
    ax.contourf(side, side, density.reshape(len(side), -1), levels=6, cmap="Greys")
    angle = np.linspace(0, 2 * np.pi, 100)
    for radius in (1, 2):
        ax.plot(radius * np.cos(angle), radius * np.sin(angle), color=PALETTE["full_rank"], linewidth=0.9)
    ax.set(title="aggregated posterior; circles: the prior", xlabel="$z_1$", ylabel="$z_2$")
    plt.show()

# %% [markdown]
# ## In short
#
# | written | is | depends on the datum |
# | --- | --- | --- |
# | $q_{\phi_i}(z)$ | the answer to the problem of datum $i$ | through the index of $\phi_i$ |
# | $q_\phi(z \mid x)$ | what one encoder says of any datum | through the argument $x$ |
# | $\frac1N \sum_i q_\phi(z \mid x_i)$ | the mixture of all of them | not at all: compare it with the prior |
