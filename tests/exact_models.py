"""Small models whose log p(x) is known exactly, and approximate posteriors for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import amortgap as ag


@pytest.fixture(scope="session")
def factor_analysis():
    """Two latents, three features, correlated posterior."""
    loadings = jnp.array([[1.0, 0.5], [0.3, -1.2], [0.8, 0.9]])
    return ag.models.FactorAnalysis(
        loadings=loadings, mean=jnp.array([0.5, -0.2, 0.1]), noise_variance=jnp.array([0.4, 0.7, 0.5])
    )


@pytest.fixture(scope="session")
def mixture():
    """One latent, one feature, two separate posterior modes for data in between."""
    return ag.models.MixturePrior(
        log_weights=jnp.log(jnp.array([0.3, 0.7])),
        centres=jnp.array([[-2.0], [1.5]]),
        scales=jnp.array([[0.4], [0.6]]),
        loadings=jnp.array([[0.5]]),
        mean=jnp.array([0.2]),
        noise_variance=jnp.array([0.8]),
    )


@pytest.fixture(scope="session")
def simulated(factor_analysis):
    """One hundred and twenty data of the factor analysis with their latents."""
    return ag.diagnostics.simulate(jax.random.key(7), model=factor_analysis, num_data=120)


@pytest.fixture(scope="session")
def optima(factor_analysis, simulated):
    """Mean field optima of `simulated` in closed form."""
    family = ag.families.MeanFieldNormal(2)
    scale = jnp.diag(jnp.diag(factor_analysis.posterior_precision()) ** -0.5)
    return jax.vmap(lambda x: family.from_moments(factor_analysis.posterior_mean(x), scale))(simulated.xs)


def dense_posterior(model, xs):
    """Mean, precision and log evidence of theta and all z, from the derivatives of a log joint that is quadratic."""
    k, d = model.global_dim, model.latent_dim
    n = jax.tree.leaves(xs)[0].shape[0]

    def log_joint(u):
        local = jax.vmap(model.log_local, (None, 0, 0))(u[:k], u[k:].reshape(n, d), xs)
        return model.log_prior(u[:k]) + jnp.sum(local)

    zero = jnp.zeros(k + n * d)
    precision = -np.asarray(jax.hessian(log_joint)(zero))
    mean = np.linalg.solve(precision, np.asarray(jax.grad(log_joint)(zero)))
    evidence = log_joint(jnp.asarray(mean)) + 0.5 * (mean.size * np.log(2 * np.pi) - np.linalg.slogdet(precision)[1])
    return mean, precision, float(evidence)


def check_arrowhead_posterior(model, xs):
    """Compare the posterior and the gaps of a normal hierarchy with dense linear algebra."""
    k, d = model.global_dim, model.latent_dim
    mean, precision, _ = dense_posterior(model, xs)
    posterior = model.posterior(xs)
    np.testing.assert_allclose(np.concatenate([posterior.global_mean, posterior.local_mean.ravel()]), mean, atol=1e-10)
    assert posterior.log_det() == pytest.approx(np.linalg.slogdet(precision)[1], abs=1e-9)
    half = 0.5 * np.linalg.slogdet(precision)[1]
    diagonal = 0.5 * np.log(np.diag(precision)).sum() - half
    assert posterior.approximation_gap("diagonal") == pytest.approx(diagonal, abs=1e-9)
    blocks = [precision[:k, :k], *(precision[k + i : k + i + d, k + i : k + i + d] for i in range(0, mean.size - k, d))]
    block = 0.5 * sum(np.linalg.slogdet(part)[1] for part in blocks) - half
    assert posterior.approximation_gap("block") == pytest.approx(block, abs=1e-9)
    assert posterior.approximation_gap("dense") == 0
    # Generalised least squares with the whole design matrix written out.
    features = np.column_stack([np.ones(len(posterior.local_mean)), np.arange(len(posterior.local_mean)) ** 2.0])
    design = np.zeros((mean.size, k + 2 * d))
    design[:k, :k] = np.eye(k)
    design[k:, k:] = np.kron(features, np.eye(d))
    beta = np.linalg.solve(design.T @ precision @ design, design.T @ precision @ mean)
    off = design @ beta - mean
    assert posterior.linear_gap(features) == pytest.approx(0.5 * off @ precision @ off, abs=1e-9)
    with pytest.raises(ValueError, match="one row for each"):
        posterior.linear_gap(features[:-1])
