"""Mixtures, enumerated and constrained families, and what all families share, against quadrature and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp
from scipy import integrate, stats
from scipy.special import gammaln

import amortgap as ag
from amortgap.protocols import has_full_support

F = ag.families
PLANE = [F.CouplingFlow(2, 2, 4), F.AutoregressiveFlow(2, 2, 4), F.MixtureOfNormals(2, 3)]


LINE = [F.AutoregressiveFlow(1, 2, 4, 1), F.MixtureOfNormals(1, 2), F.ConstrainedNormal(1, "positive")]


def some_phi(family, seed=0, size=0.5):
    return jnp.asarray(np.random.default_rng(seed).normal(size=family.size) * size)


def name_of(family):
    return f"{family.name}_{family.latent_dim}"


@pytest.mark.parametrize("family", LINE, ids=name_of)
def test_density_on_the_line_integrates_to_one(family, x64):
    phi = some_phi(family)
    log_prob = jax.jit(lambda z: family.log_prob(z[None], phi))
    low, high = (1e-12, 3e3) if isinstance(family, F.ConstrainedNormal) else (-30.0, 30.0)
    total, error = integrate.quad(lambda z: float(jnp.exp(log_prob(z))), low, high, limit=200, points=[0.5, 2.0, 20.0])
    assert total == pytest.approx(1.0, abs=1e-6 + 10 * error)


@pytest.mark.parametrize("family", PLANE, ids=name_of)
def test_density_on_the_plane_integrates_to_one(family, x64):
    phi = some_phi(family)
    axis = np.linspace(-30, 30, 1501)
    points = jnp.asarray(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2))
    density = jnp.exp(jax.jit(jax.vmap(lambda z: family.log_prob(z, phi)))(points))
    # The trapezoidal rule converges geometrically for smooth densities that vanish at the border.
    assert float(density.sum()) * (axis[1] - axis[0]) ** 2 == pytest.approx(1.0, abs=1e-4)


EXTENDS = [F.CouplingFlow(2, 2, 4), F.AutoregressiveFlow(2, 2, 4), F.MixtureOfNormals(2, 3)]


@pytest.mark.parametrize("family", EXTENDS, ids=name_of)
def test_richer_families_contain_the_mean_field(family, x64):
    mean, root = jnp.array([0.3, -1.0]), jnp.diag(jnp.array([0.5, 2.0]))
    narrow = F.MeanFieldNormal(2)
    z = jnp.array([0.1, 0.4])
    inside = family.log_prob(z, family.from_moments(mean, root))
    np.testing.assert_allclose(inside, narrow.log_prob(z, narrow.from_moments(mean, root)), rtol=1e-10)


FIXED = [F.CouplingFlow(3, 2, 4, 2), F.AutoregressiveFlow(3, 2, 5, 2), F.AuxiliaryFlow(3, 2, 2, 4, 2)]


def test_mixture_of_one_is_the_mean_field_and_more_contain_fewer(x64):
    one, narrow = F.MixtureOfNormals(2, 1), F.MeanFieldNormal(2)
    phi = some_phi(one)
    z = jnp.array([0.1, 0.4])
    np.testing.assert_allclose(one.log_prob(z, phi), narrow.log_prob(z, phi[1:]), rtol=1e-12)
    two, three = F.MixtureOfNormals(2, 2), F.MixtureOfNormals(2, 3)
    log_weights, means, log_scales = two.unpack(some_phi(two))
    again = jnp.concatenate([log_weights, log_weights[-1:]]) - jnp.log(jnp.array([1.0, 2.0, 2.0]))
    wider = three.pack(again, jnp.concatenate([means, means[-1:]]), jnp.concatenate([log_scales, log_scales[-1:]]))
    np.testing.assert_allclose(three.log_prob(z, wider), two.log_prob(z, some_phi(two)), rtol=1e-12)


@pytest.mark.slow
def test_richer_family_never_has_the_larger_gap(key):
    # A correlated normal posterior: the mean field loses `approximation_gap`, the flow that contains it loses less.
    model = ag.models.FactorAnalysis(
        loadings=jnp.array([[1.0, 0.9], [0.9, 1.0]]), mean=jnp.zeros(2), noise_variance=0.2 * jnp.ones(2)
    )
    x = jnp.array([1.0, -0.5])
    posterior = model.posterior(x)
    optimum = posterior.mean, jnp.diag(1 / jnp.sqrt(jnp.diag(posterior.precision)))
    assert float(model.approximation_gap()) > 0.3
    for family in (F.CouplingFlow(2, 2, 4), F.AuxiliaryFlow(2, 1, 2, 4)):
        start = family.from_moments(*optimum)
        fit = ag.local_vi(key, x, model=model, family=family, init=start, num_steps=300, max_reruns=0)
        gap = float(model.log_evidence(x) - fit.elbo)
        assert gap < float(model.approximation_gap()) + 5 * float(fit.standard_error)
        assert gap > -5 * float(fit.standard_error)
        if isinstance(family, F.CouplingFlow):
            # A linear map suffices: a coupling flow holds every normal of two dimensions up to the limits of its nets.
            assert gap < 0.1 * float(model.approximation_gap())


def test_draws_of_the_mixture_have_its_moments(key):
    family = F.MixtureOfNormals(2, 3)
    phi, n = some_phi(family, size=1.0).astype(jnp.float32), 20_000
    zs, log_qs = jax.jit(jax.vmap(family.sample_and_log_prob, (0, None)))(jax.random.split(key, n), phi)
    log_weights, means, log_scales = family.unpack(phi)
    mean = jnp.exp(log_weights) @ means
    variance = jnp.exp(log_weights) @ (jnp.exp(2 * log_scales) + means**2) - mean**2
    assert np.all(np.abs(zs.mean(0) - mean) < 5 * jnp.sqrt(variance / n))
    fourth = ((zs - mean[None]) ** 4).mean(0)
    assert np.all(np.abs(zs.var(0) - variance) < 5 * jnp.sqrt((fourth - variance**2) / n))
    np.testing.assert_allclose(log_qs, jax.vmap(family.log_prob, (0, None))(zs, phi), rtol=1e-4, atol=1e-4)


def test_implicit_gradient_of_the_mixture_is_unbiased(key, x64):
    # E[f(z)] of f(z) = z_1 z_2 + z_1^3 in closed form, its gradient by autodiff, weights included.
    family, n = F.MixtureOfNormals(2, 2), 100_000
    phi = some_phi(family, 1)

    def exact(phi):
        log_weights, means, log_scales = family.unpack(phi)
        part = means[:, 0] * means[:, 1] + means[:, 0] ** 3 + 3 * means[:, 0] * jnp.exp(2 * log_scales[:, 0])
        return jnp.exp(log_weights) @ part

    def draw(key, phi):
        z, _ = family.sample_and_log_prob(key, phi)
        return z[0] * z[1] + z[0] ** 3

    draws = jax.jit(jax.vmap(jax.grad(draw, argnums=1), (0, None)))(jax.random.split(key, n), phi)
    error = draws.std(0) / n**0.5
    assert np.all(np.abs(draws.mean(0) - jax.grad(exact)(phi)) < 5 * error)
    assert np.abs(jax.grad(exact)(phi)[:2]).min() > 10 * np.asarray(error)[:2].max(), "the weights would go untested"


def test_enumerated_elbo_is_the_sum_and_is_met_at_the_posterior(key, x64):
    table = jnp.log(jnp.array([0.1, 0.2, 0.05]))
    model = ag.models.from_log_joint(lambda z, x: z @ table + x, latent_dim=3)
    family, x = F.Categorical(3), jnp.asarray(0.3)
    evidence = logsumexp(table) + x
    draws = ag.objectives.elbo_draws(key, table, x, model=model, family=family, num_samples=4)
    np.testing.assert_allclose(draws, evidence, rtol=1e-12)
    phi = jnp.array([1.0, 0.0, -1.0])
    q = jax.nn.softmax(phi)
    elbo = ag.elbo(key, phi, x, model=model, family=family, num_samples=1)
    np.testing.assert_allclose(elbo, q @ (table + x - jnp.log(q)), rtol=1e-12)
    np.testing.assert_allclose(family.entropy(phi), stats.entropy(q), rtol=1e-12)
    gradient = jax.grad(lambda phi: ag.elbo(key, phi, x, model=model, family=family, num_samples=1))(table)
    np.testing.assert_allclose(gradient, 0, atol=1e-12)
    bounds = jax.vmap(lambda k: ag.iw_bound(k, phi, x, model=model, family=family, num_samples=5))(
        jax.random.split(key, 4000)
    )
    assert elbo < bounds.mean() < evidence
    weights = jnp.exp(bounds - evidence)
    assert abs(weights.mean() - 1) < 5 * weights.std() / 4000**0.5


def test_log_normal_posterior_meets_the_closed_form_of_poisson_gamma(key, x64):
    # lambda ~ Gamma(a, b), x ~ Poisson(t lambda), q log-normal: KL* is the remainder of Stirling's series.
    a, b, x = 1.5, 1.0, 5.0
    alpha, beta = a + x, b + 1.0

    def log_joint(z, x):
        rate = z[0]
        return (a - 1) * jnp.log(rate) - b * rate + x * jnp.log(rate) - rate

    model = ag.models.from_log_joint(log_joint, latent_dim=1)
    family = F.ConstrainedNormal(1, "positive")
    best = jnp.array([np.log(alpha / beta) - 0.5 / alpha, -0.5 * np.log(alpha)])
    draws = ag.objectives.elbo_draws(key, best, jnp.asarray(x), model=model, family=family, num_samples=20_000)

    evidence = gammaln(alpha) - alpha * np.log(beta)
    kl = gammaln(alpha) - (alpha - 0.5) * np.log(alpha) + alpha - 0.5 * np.log(2 * np.pi)
    assert abs(evidence - draws.mean() - kl) < 5 * draws.std() / 20_000**0.5
    assert kl > 5 * draws.std() / 20_000**0.5, "the closed form would go untested"


def test_constrained_family_takes_numpyro_transforms(x64):
    from numpyro.distributions import biject_to, constraints

    family = F.ConstrainedNormal(1, biject_to(constraints.interval(-1.0, 2.0)))
    phi = some_phi(family)
    total, _ = integrate.quad(lambda z: float(jnp.exp(family.log_prob(jnp.array([z]), phi))), -1 + 1e-9, 2 - 1e-9)
    assert total == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(ValueError, match="bijector must map every coordinate on its own"):
        F.ConstrainedNormal(2, biject_to(constraints.simplex))


BAD = [
    (lambda: F.CouplingFlow(1), "latent_dim must be at least 2 to be split into two halves, got 1"),
    (lambda: F.MixtureOfNormals(2, 0), "num_components must be a whole number, at least 1, got 0"),
    (lambda: F.Categorical(0), "num_categories must be a whole number, at least 1, got 0"),
    (lambda: F.CouplingFlow(2, 0), "num_layers must be"),
    (lambda: F.AutoregressiveFlow(2, 1, 0), "width must be"),
    (lambda: F.AuxiliaryFlow(2, 0), "aux_dim must be"),
    (lambda: F.AuxiliaryFlow(2, 1, 1), "num_layers must be a whole number, at least 2, got 1"),
    (lambda: F.FixedWeights(F.CouplingFlow(2, 2, 4), jnp.zeros(3)), r"weights must have shape \(36,\), got \(3,\)"),
    (lambda: F.FixedWeights(F.MeanFieldNormal(2), jnp.zeros(3)), "flow must have a head, got MeanFieldNormal"),
    (lambda: F.ConstrainedNormal(2, "magic"), "bijector must be one of 'positive', 'unit_interval', got 'magic'"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=range(len(BAD)))
def test_impossible_families_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


EVERYWHERE = [F.MeanFieldNormal(2), F.FullRankNormal(2), F.LowRankNormal(2, 1), *PLANE]


@pytest.mark.parametrize("family", EVERYWHERE, ids=name_of)
def test_density_of_a_family_of_full_support_is_positive_far_out(family, x64):
    assert has_full_support(family)
    zs = 8 * jnp.asarray(np.random.default_rng(0).normal(size=(50, 2)))
    assert np.isfinite(jax.vmap(lambda z: family.log_prob(z, some_phi(family)))(zs)).all()


def test_full_support_is_that_of_the_flow_and_no_claim_of_constrained_or_discrete_families():
    assert all(has_full_support(F.FixedWeights(flow, jnp.zeros(flow.size - flow.head.size))) for flow in FIXED)
    assert not has_full_support(F.ConstrainedNormal(2, "positive")) and not has_full_support(F.Categorical(2))
