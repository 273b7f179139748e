# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # The exact ladder
#
# How much does an encoder of limited capacity lose? On factor analysis the answer is a formula. The posterior mean is linear
# in the datum, $m(x) = M (x - b)$, so an affine encoder whose bottleneck has rank $r$ can follow only $r$ of its directions. By
# Eckart and Young, the best one loses
#
# $$\text{amortization gap of rank } r = \tfrac12 \sum_{j > r} s_j^2,$$
#
# nats per datum, with $s_j$ the singular values of $\Lambda^{1/2} M (X - b)^\top / \sqrt N$ and $\Lambda$ the posterior precision.
# So measured gaps can be laid on a known curve, and anything wrong with the measurement shows.

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
RANKS = (1, 4) if SMOKE else (1, 2, 3, 4, 5, 6)
STEPS = 40 if SMOKE else 300

# %% [markdown]
# ## A model fitted to digits
#
# Factor analysis with six latents, fitted by EM to 8 x 8 images. It knows its own evidence and posterior.

# %%
digits = ag.data.load_digits(binarisation="none")
train, test = digits.train, digits.test
model = ag.models.fit_factor_analysis(jax.random.key(0), train, latent_dim=6).model
family = ag.families.FullRankNormal(6)  # contains the posterior: the approximation gap is zero
print(f"{train.shape[0]} training and {test.shape[0]} held-out images of {train.shape[1]} pixels")

# %% [markdown]
# ## Climbing the ladder
#
# Every encoder is trained on the exact ELBO (the log joint is quadratic in z, so that a cubature rule integrates it without
# noise) by L-BFGS, and measured like any other encoder: with draws, against local VI. Rank zero is a constant: one $\phi$ for
# all data.


# %%
def measured(encoder):
    fit = ag.amortized_vi(
        jax.random.key(2),
        train,
        model=model,
        family=family,
        encoder=encoder,
        optimizer="lbfgs",
        estimator="cubature",
        num_steps=STEPS,
        num_evaluations=2,
    )
    gaps = ag.inference_gaps(
        jax.random.key(3), train, model=model, family=family, encoder=fit.encoder, local=local, num_samples=200
    )
    return gaps.estimates()["amortization"]


local = ag.fit_local(jax.random.key(1), train, model=model, family=family)
key = jax.random.key(4)
ladder = {0: measured(ag.encoders.constant(key, 64, family))}
for rank in RANKS:
    ladder[rank] = measured(ag.encoders.linear(key, 64, family, rank=rank, standardize=train))
curve = [float(model.rank_gap(jnp.asarray(train), rank)) for rank in range(7)]
for rank, gap in ladder.items():
    error = float(gap.monte_carlo_standard_error)
    print(f"rank {rank}: measured {float(gap.mean):.4f} +- {error:.4f}, known {curve[rank]:.4f} nats per image")

# %%
with style():
    figure, ax = plt.subplots(figsize=(4.2, 2.6), layout="constrained")
    ax.plot(range(7), curve, color=PALETTE["exact"], label="half the tail of squared singular values")
    ranks = np.array(list(ladder))
    means = np.array([float(gap.mean) for gap in ladder.values()])
    errors = np.array([2 * float(gap.monte_carlo_standard_error) for gap in ladder.values()])
    ax.errorbar(ranks, means, yerr=errors, color=PALETTE["full_rank"], marker="s", linestyle="none", label="measured")
    ax.set(xlabel="rank of the encoder", ylabel="amortization gap (nats per image)")
    ax.legend()
    plt.show()

# %% [markdown]
# ## What a poor family costs, exactly
#
# With independent normals instead, even local VI loses something: $\tfrac12 (\sum_j \log \Lambda_{jj} - \log \det \Lambda)$, for
# every datum the same.

# %%
mean_field = ag.families.MeanFieldNormal(6)
few = jnp.asarray(train[:100])
best = ag.fit_local(jax.random.key(5), few, model=model, family=mean_field)
evidence = jax.vmap(model.log_evidence)(few)
bounds = ag.evaluate_bounds(jax.random.key(6), best.phi[:, None], few, model=model, family=mean_field)
print(f"measured {float((evidence - bounds.elbo[:, 0]).mean()):.4f}, known {float(model.approximation_gap()):.4f} nats")
