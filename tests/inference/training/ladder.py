"""A factor analysis model whose best encoders are known in closed form, for the tests of training."""

import jax
import jax.numpy as jnp

import amortgap as ag

MODEL = ag.models.FactorAnalysis(
    loadings=jnp.array([[1.0, 0.9], [0.6, 1.2], [0.8, -0.5]]),
    mean=jnp.array([0.5, -1.0, 2.0]),
    noise_variance=jnp.array([0.5, 1.0, 0.3]),
)
FAMILY = ag.families.FullRankNormal(2)
MEAN_FIELD = ag.families.MeanFieldNormal(2)
XS = jax.vmap(lambda key: MODEL.sample(key)[1])(jax.random.split(jax.random.key(7), 60))
TINY = {"num_steps": 8, "num_evaluations": 4, "batch_size": 5}


def exact_gap(family, encoder):
    """Nats per datum that an encoder loses to the local optimum: normals against normals, in closed form."""
    precision = MODEL.posterior_precision()
    phis = jax.vmap(encoder)(XS)
    means, scales = jax.vmap(family.moments)(phis)
    difference = means - jax.vmap(MODEL.posterior_mean)(XS)
    covariances = scales @ scales.transpose(0, 2, 1)
    trace = jnp.einsum("ij,nji->n", precision, covariances)
    log_det = jnp.linalg.slogdet(precision)[1] + jnp.linalg.slogdet(covariances)[1]
    kl = 0.5 * (trace - 2 - log_det + jnp.einsum("ni,ij,nj->n", difference, precision, difference))
    optimum = MODEL.approximation_gap() if family is MEAN_FIELD else 0.0
    return float(jnp.mean(kl - optimum))


def make(family, rank, key):
    if rank == 0:
        return ag.encoders.constant(key, 3, family)
    return ag.encoders.linear(key, 3, family, rank=rank, standardize=XS)
