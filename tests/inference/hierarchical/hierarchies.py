"""Hierarchical models of the tests: a regression on scalars, and a record as users write them."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

import amortgap as ag


def scalar_regression(key, num_data):
    """A regression in groups of equal design, so that the optimal local means are affine in X'y; model and data."""
    keys = jax.random.split(key)
    z = 0.4 + jax.random.normal(keys[0], (num_data, 1))
    responses = z + 0.7 * jax.random.normal(keys[1], (num_data, 3))
    xs = ag.models.group_statistics(jnp.ones((num_data, 3, 1)), responses)
    return ag.models.HierarchicalRegression(dim=1, noise_variance=0.5), xs


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Nonlinear:
    """`z ~ N(0, 1)`, `x ~ N(theta + z (1 + sin z), exp(cos z)^2)`, theta flat; the posterior of z has several modes."""

    global_dim = 1
    latent_dim = 1

    def log_prior(self, theta):
        return jnp.zeros((), theta.dtype)

    def log_local(self, theta, z, x):
        return jnp.sum(norm.logpdf(z) + norm.logpdf(x, theta + z * (1 + jnp.sin(z)), jnp.exp(jnp.cos(z))))
