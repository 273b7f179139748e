"""A factor analysis model small enough for every test, with the gap of any mean field normal in closed form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import amortgap as ag

KEY = jax.random.key(0)
FA = ag.models.FactorAnalysis(
    loadings=jnp.array([[1.0, 0.3], [0.5, 1.0], [-0.4, 0.8]]),
    mean=jnp.zeros(3),
    noise_variance=jnp.array([0.5, 1, 0.7]),
)
XS = jax.vmap(lambda k: FA.sample(k)[1])(jax.random.split(jax.random.key(7), 40))
FAMILY = ag.families.MeanFieldNormal(2)
PRECISION = np.asarray(FA.posterior_precision())
CONSTANT = ag.encoders.constant(KEY, 3, FAMILY)


def exact_gap(phi, x):
    """KL(q || posterior) minus its minimum over mean field normals, in closed form."""
    mean, log_scale = np.split(np.asarray(phi, np.float64), 2)
    ratio = np.diag(PRECISION) * np.exp(2 * log_scale)
    left = mean - np.asarray(FA.posterior_mean(x))
    return 0.5 * np.sum(ratio - 1 - np.log(ratio)) + 0.5 * left @ PRECISION @ left


def affine_encoder(scale=0.5):
    """An encoder that shrinks the posterior mean, so that its gap is known and positive."""
    encoder = ag.encoders.linear(KEY, 3, FAMILY, rank=2)
    gain = np.linalg.solve(PRECISION, (np.asarray(FA.loadings) / np.asarray(FA.noise_variance)[:, None]).T)
    leaves, structure = jax.tree.flatten(encoder.network)
    b1, k1, b2, k2 = leaves
    new = [jnp.zeros_like(b1), jnp.asarray(scale * gain.T, k1.dtype), jnp.zeros_like(b2), jnp.eye(2, 4, dtype=k2.dtype)]
    return dataclasses.replace(encoder, network=jax.tree.unflatten(structure, new))


SETTINGS = {"model": FA, "family": FAMILY}
