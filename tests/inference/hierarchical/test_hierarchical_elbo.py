"""The ELBO of global and local latents against exact posteriors, and its parts against the one-datum ELBO."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hierarchies import Nonlinear, scalar_regression

import amortgap as ag
from amortgap.expectations import CUBATURE, Expectation, nodes
from amortgap.families import Branch
from amortgap.inference import constant_factors, free_factors, hierarchical_elbo
from amortgap.models import fix_global
from amortgap.objectives import bound

NORMAL = ag.families.MeanFieldNormal(1)


def regression(key, n=3):
    model = ag.models.HierarchicalRegression(dim=2, noise_variance=0.5)
    return model, model.sample(key, n, 4)[2]


def parts(structure):
    """Optimal q of a structure: family of theta, of z, phi of theta and factors, from the exact posterior."""

    def make(model, posterior, xs):
        full, diagonal = ag.families.FullRankNormal(2), ag.families.MeanFieldNormal(2)
        if structure == "diagonal":
            scale = 1 / np.sqrt(np.diagonal(posterior.local_precision, axis1=1, axis2=2))
            local = np.concatenate([posterior.local_mean, np.log(scale)], axis=1)
            own = np.concatenate([posterior.global_mean, -0.5 * np.log(np.diag(posterior.global_precision))])
            return diagonal, diagonal, jnp.asarray(own), free_factors(diagonal, len(local), start=jnp.asarray(local))
        precision = posterior.global_precision if structure == "block" else posterior.schur()
        own = full.from_moments(jnp.asarray(posterior.global_mean), jnp.linalg.cholesky(np.linalg.inv(precision)))
        roots = np.linalg.cholesky(np.linalg.inv(posterior.local_precision))
        if structure == "block":
            local = jnp.stack(
                [full.from_moments(*map(jnp.asarray, pair)) for pair in zip(posterior.local_mean, roots, strict=True)]
            )
            return full, full, own, free_factors(full, len(local), start=local)
        branch = Branch(full, 2)
        rows = []
        for index in range(len(roots)):
            offset, slopes, covariance = model.branch_optimum(jax.tree.map(lambda leaf, i=index: leaf[i], xs))
            phi = full.from_moments(offset, jnp.linalg.cholesky(covariance))
            rows.append(jnp.concatenate([phi, slopes.ravel()]))
        return full, full, own, free_factors(branch, len(rows), start=jnp.stack(rows))

    return make


@pytest.mark.parametrize("structure", ["dense", "block", "diagonal"])
def test_at_the_optimum_of_each_structure_the_elbo_is_evidence_minus_its_kl(structure, key, x64):
    model, xs = regression(key)
    posterior = model.posterior(xs)
    global_family, family, phi, factors = parts(structure)(model, posterior, xs)
    given = {"model": model, "global_family": global_family, "family": family}
    rules = {"global_expectation": CUBATURE, "local_expectation": CUBATURE}
    found = float(hierarchical_elbo(None, phi, factors, xs, **given, **rules))
    assert found == pytest.approx(model.log_evidence_of_data(xs) - posterior.approximation_gap(structure), abs=1e-9)
    # Minibatches: the mean over all batches of two is the whole.
    batches = [
        hierarchical_elbo(None, phi, factors, xs, **given, **rules, rows=jnp.array(rows))
        for rows in itertools.combinations(range(3), 2)
    ]
    assert float(jnp.mean(jnp.array(batches))) == pytest.approx(found, abs=1e-9)
    assert np.std(batches) > 0.01
    # Monte Carlo, on both levels, is unbiased.
    draws = {"global_expectation": Expectation(size=4), "local_expectation": Expectation(size=2, estimator="total")}
    values = jax.jit(jax.vmap(lambda k: hierarchical_elbo(k, phi, factors, xs, **given, **draws)))(
        jax.random.split(key, 200)
    )
    error = float(jnp.std(values, ddof=1)) / np.sqrt(200)
    assert abs(float(jnp.mean(values)) - found) < 4 * error + 1e-9


def test_with_theta_fixed_the_local_part_is_the_sum_of_one_datum_elbos(x64):
    model, xs = scalar_regression(jax.random.key(0), 2)
    theta = jnp.array([0.4])
    # A q0 so narrow that its draws are theta, whose own terms are log prior and entropy.
    phi = jnp.array([0.4, -40.0])
    factors = free_factors(NORMAL, 2, start=jnp.array([[0.1, -0.5], [0.2, 0.3]]))
    given = {"model": model, "global_family": NORMAL, "family": NORMAL, "local_expectation": CUBATURE}
    fixed = fix_global(model, theta)
    each = jax.vmap(lambda phi, x: ag.cubature_elbo(phi, x, model=fixed, family=NORMAL))(factors.source, xs)
    exact = hierarchical_elbo(None, phi, factors, xs, **given, global_expectation=CUBATURE)
    exact -= NORMAL.entropy(phi) + model.log_prior(theta)
    assert float(exact) == pytest.approx(float(jnp.sum(each)), abs=1e-9)


@pytest.mark.slow
def test_local_vi_and_amortized_vi_at_fixed_theta_reach_the_newton_optimum(key):
    from amortgap.inference import local_optima

    model = fix_global(Nonlinear(), jnp.array([-0.3]))
    xs = jnp.array([[-2.0], [2.0]])
    best = local_optima(
        xs, NORMAL.standard()[None], model=model, family=NORMAL, expectation=Expectation("quadrature", 32)
    )
    assert bool(best.curved.all()) and float(best.decrement.max()) < 1e-5
    fit = ag.fit_local(key, xs, model=model, family=NORMAL, num_samples=512)
    values = jax.vmap(lambda phi, x: ag.quadrature_elbo(phi, x, model=model, family=NORMAL, num_nodes=32))(fit.phi, xs)
    np.testing.assert_allclose(values, best.elbo, atol=0.02)
    assert float((values - best.elbo).max()) < 1e-5
    encoder = ag.encoders.linear(key, 1, NORMAL, rank=1)
    given = {"estimator": "analytic_entropy", "num_steps": 60, "num_samples": 64, "num_evaluations": 2}
    trained = ag.amortized_vi(key, xs, model=model, family=NORMAL, encoder=encoder, optimizer="lbfgs", **given)
    phis = jax.vmap(trained.encoder)(xs)
    found = jax.vmap(lambda phi, x: ag.quadrature_elbo(phi, x, model=model, family=NORMAL, num_nodes=32))(phis, xs)
    # Two data, affine in x for both mean and log scale: the encoder can reach both optima.
    np.testing.assert_allclose(found, best.elbo, atol=0.1)


def test_quadrature_is_the_integral_and_agrees_with_cubature_where_both_are_exact(x64):
    model = fix_global(Nonlinear(), jnp.array([0.2]))
    phi, x = jnp.array([1.3, -0.4]), jnp.array([2.5])
    z = jnp.linspace(-8.0, 10.0, 20_001)[:, None]
    density = jnp.exp(jax.vmap(lambda point: NORMAL.log_prob(point, phi))(z))
    expected = jnp.sum(density * jax.vmap(lambda point: model.log_joint(point, x))(z)) * (z[1, 0] - z[0, 0])
    found = ag.quadrature_elbo(phi, x, model=model, family=NORMAL, num_nodes=64)
    assert float(found) == pytest.approx(float(expected + NORMAL.entropy(phi)), abs=1e-9)
    regression_model, groups = scalar_regression(jax.random.key(0), 1)
    linear, x = fix_global(regression_model, jnp.array([0.2])), jax.tree.map(lambda leaf: leaf[0], groups)
    both = [
        bound(None, phi, x, model=linear, family=NORMAL, expectation=rule)
        for rule in (CUBATURE, Expectation("quadrature", 3))
    ]
    assert float(both[0]) == pytest.approx(float(both[1]), abs=1e-12)
    full = ag.families.FullRankNormal(2)
    points, weights = nodes(
        jnp.array([1.0, -2.0, 0.3, -0.2, 0.5]), family=full, expectation=Expectation("quadrature", 4)
    )
    mean, root = full.moments(jnp.array([1.0, -2.0, 0.3, -0.2, 0.5]))
    np.testing.assert_allclose(weights @ points, mean, atol=1e-12)
    second = jnp.einsum("s,si,sj->ij", weights, points - mean[None], points - mean[None])
    np.testing.assert_allclose(second, root @ root.T, atol=1e-12)


def test_branch_moves_the_mean_and_nothing_else(x64):
    base = ag.families.MeanFieldNormal(2)
    branch = Branch(base, 3)
    assert branch.size == 4 + 6 and branch.latent_dim == 2
    w, theta = jnp.arange(10.0), jnp.array([1.0, -1.0, 2.0])
    slopes = w[4:].reshape(2, 3)
    np.testing.assert_allclose(branch.given(theta, w), jnp.concatenate([w[:2] + slopes @ theta, w[2:4]]))
    np.testing.assert_allclose(branch.given(theta, branch.standard()), base.standard())
    assert constant_factors(branch).source.shape == (10,)


@pytest.mark.parametrize("expectation", [CUBATURE, Expectation("quadrature", 4)])
def test_nodes_have_the_mean_and_the_covariance_of_q(key, expectation):
    family = ag.families.FullRankNormal(3)
    phi = jax.random.normal(key, (family.size,))
    points, weights = map(np.asarray, nodes(phi, family=family, expectation=expectation))
    mean, root = map(np.asarray, family.moments(phi))
    np.testing.assert_allclose(weights @ points, mean, atol=1e-5)
    covariance = (points - mean).T @ (weights[:, None] * (points - mean))
    np.testing.assert_allclose(covariance, root @ root.T, rtol=1e-4, atol=1e-5)
