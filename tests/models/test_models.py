"""Models against dense normals, quadrature, scikit-learn and automatic differentiation."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import sklearn.decomposition
from scipy.stats import bernoulli, binom, multivariate_normal, nbinom, norm

import amortgap as ag

RNG = np.random.default_rng(0)
# Correlated columns, so that mean field has something to lose.
W = RNG.normal(size=(4, 2)) @ np.array([[1.2, 1.0], [0.0, 1.0]])
B, PSI = RNG.normal(size=4), np.array([0.3, 1.0, 0.5, 2.0])
X = RNG.normal(size=4) * 2


def factor_analysis():
    return ag.models.FactorAnalysis(loadings=jnp.asarray(W), mean=jnp.asarray(B), noise_variance=jnp.asarray(PSI))


def factor_data(n=60, seed=1):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 2)) @ W.T + B + rng.normal(size=(n, 4)) * np.sqrt(PSI)


# Factor analysis ------------------------------------------------------------------------------------------------------


def test_factor_analysis_is_one_dense_normal(x64):
    model = factor_analysis()
    joint_mean = np.concatenate([np.zeros(2), B])
    joint = np.block([[np.eye(2), W.T], [W, W @ W.T + np.diag(PSI)]])
    z = np.array([0.4, -1.1])
    want = multivariate_normal(joint_mean, joint).logpdf(np.concatenate([z, X]))
    np.testing.assert_allclose(model.log_joint(jnp.asarray(z), jnp.asarray(X)), want, rtol=1e-12)
    np.testing.assert_allclose(model.log_evidence(jnp.asarray(X)), multivariate_normal(B, joint[2:, 2:]).logpdf(X))
    # Conditioning of the dense joint.
    gain = joint[:2, 2:] @ np.linalg.inv(joint[2:, 2:])
    posterior = model.posterior(jnp.asarray(X))
    np.testing.assert_allclose(posterior.mean, gain @ (X - B), rtol=1e-10)
    np.testing.assert_allclose(posterior.covariance, np.eye(2) - gain @ joint[2:, :2], rtol=1e-10)
    np.testing.assert_allclose(posterior.precision @ posterior.covariance, np.eye(2), atol=1e-12)


def test_approximation_gap_is_the_minimum_over_scales(x64):
    model = factor_analysis()
    precision = np.asarray(model.posterior_precision())

    def kl(log_scale):
        variance = np.exp(2 * log_scale)
        return 0.5 * (np.diag(precision) @ variance - 2 - np.log(variance).sum() - np.linalg.slogdet(precision)[1])

    found = scipy.optimize.minimize(kl, np.zeros(2), tol=1e-12)
    np.testing.assert_allclose(model.approximation_gap(), found.fun, atol=1e-9)
    assert model.approximation_gap() > 0.01
    orthogonal = ag.models.FactorAnalysis(
        loadings=jnp.array([[1.0, 1], [1, -1]]), mean=jnp.zeros(2), noise_variance=jnp.ones(2)
    )
    np.testing.assert_allclose(orthogonal.approximation_gap(), 0, atol=1e-12)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_rank_gap_is_the_minimum_over_bottleneck_maps(rank, x64):
    model, xs, held_out = factor_analysis(), factor_data(20), factor_data(9, seed=5)
    means = np.asarray(jax.vmap(model.posterior_mean)(jnp.asarray(xs)))
    precision = np.asarray(model.posterior_precision())

    held_out_means = np.asarray(jax.vmap(model.posterior_mean)(jnp.asarray(held_out)))

    def gap(weights, xs=xs, means=means):
        a, b, c = weights[: 4 * rank].reshape(4, rank), weights[4 * rank : -2].reshape(rank, 2), weights[-2:]
        lost = xs @ a @ b + c - means
        return 0.5 * np.einsum("ni,ij,nj->", lost, precision, lost) / len(xs)

    starts = np.random.default_rng(2).normal(size=(4, 6 * rank + 2))
    best = min((scipy.optimize.minimize(gap, start, tol=1e-12) for start in starts), key=lambda found: found.fun)
    np.testing.assert_allclose(model.rank_gap(jnp.asarray(xs), rank), best.fun, atol=1e-7)
    np.testing.assert_allclose(
        model.rank_gap(jnp.asarray(xs), rank, held_out=jnp.asarray(held_out)),
        gap(best.x, held_out, held_out_means),
        atol=1e-5,
    )


def test_population_rank_gap_is_half_the_tail_of_the_signal_to_noise_eigenvalues():
    model, n = factor_analysis(), 20_000
    xs = jax.vmap(lambda key: model.sample(key)[1])(jax.random.split(jax.random.key(1), n))
    values = np.linalg.eigvalsh((W / PSI[:, None]).T @ W)[::-1]
    for rank in (0, 1):
        # Each tail value is a sample variance of n normals: relative error sqrt(2 / n).
        np.testing.assert_allclose(model.rank_gap(xs, rank), 0.5 * values[rank:].sum(), rtol=5 * (2 / n) ** 0.5)


def test_em_reaches_the_maximum_likelihood_of_scikit_learn_and_never_falls(key, x64):
    xs = factor_data(300)
    fit = ag.models.fit_factor_analysis(key, xs, latent_dim=2, num_steps=5000, min_noise_variance=1e-6)
    peer = sklearn.decomposition.FactorAnalysis(2, tol=1e-12, max_iter=20_000, svd_method="lapack").fit(xs)
    # EM converges linearly, and on these data the likelihood is nearly flat in one direction: 500 steps are too few.
    np.testing.assert_allclose(fit.log_evidence[-1], peer.score(xs), atol=5e-5)
    assert np.all(np.diff(fit.log_evidence) > -1e-12)
    np.testing.assert_allclose(fit.log_evidence[-1], jax.vmap(fit.model.log_evidence)(jnp.asarray(xs)).mean())
    covariance = fit.model.loadings @ fit.model.loadings.T + jnp.diag(fit.model.noise_variance)
    np.testing.assert_allclose(covariance, peer.get_covariance(), atol=2e-3)


def test_em_keeps_constant_pixels_and_one_row_proper(key):
    xs = factor_data(50).astype(np.float32)
    xs[:, 1], xs[:, 3] = 0.0, 7.0
    fit = ag.models.fit_factor_analysis(key, xs, latent_dim=2, num_steps=100)
    np.testing.assert_allclose(fit.model.noise_variance[jnp.array([1, 3])], 1e-2, rtol=1e-6)
    np.testing.assert_allclose(fit.model.mean[jnp.array([1, 3])], [0, 7], rtol=1e-6)
    single = ag.models.fit_factor_analysis(key, xs[:1], latent_dim=2, num_steps=10)
    assert np.isfinite(fit.log_evidence).all()
    assert np.isfinite(single.log_evidence).all()


def test_samples_have_the_covariance_of_the_model():
    model, n = factor_analysis(), 20_000
    zs, xs = jax.vmap(model.sample)(jax.random.split(jax.random.key(2), n))
    covariance = W @ W.T + np.diag(PSI)
    error = np.sqrt((np.outer(np.diag(covariance), np.diag(covariance)) + covariance**2) / n)
    assert np.all(np.abs(np.cov(xs.T) - covariance) < 5 * error)
    assert np.all(np.abs(np.mean(xs, 0) - B) < 5 * np.sqrt(np.diag(covariance) / n))
    cross = np.asarray(zs).T @ (np.asarray(xs) - B) / n
    assert np.all(np.abs(cross - W.T) < 5 * np.sqrt((np.diag(covariance)[None, :] + W.T**2) / n))


def test_gradients_of_records_are_records(x64):
    # A gradient of a variance may be negative: the checks of the constructor must not see it.
    model = factor_analysis()
    gradient = jax.grad(lambda m: m.log_evidence(jnp.asarray(X)))(model)
    step = 1e-6
    shifted = ag.models.FactorAnalysis(
        loadings=model.loadings, mean=model.mean, noise_variance=model.noise_variance.at[1].add(step)
    )
    slope = (shifted.log_evidence(jnp.asarray(X)) - model.log_evidence(jnp.asarray(X))) / step
    np.testing.assert_allclose(gradient.noise_variance[1], slope, rtol=1e-4)
    assert (gradient.noise_variance < 0).any()
    shapes = jax.eval_shape(lambda: model)
    assert shapes.loadings.shape == (4, 2)


# Poisson-Gamma --------------------------------------------------------------------------------------------------------

A, RATE = 1.5, 0.8


def poisson_gamma():
    return ag.models.PoissonGamma(shape=A, rate=RATE)


@pytest.mark.parametrize(("count", "exposure"), [(0, 1.0), (3, 1.0), (12, 2.5)])
def test_poisson_gamma_evidence_is_negative_binomial_and_the_integral_of_the_joint(count, exposure, x64):
    model, x = poisson_gamma(), jnp.array([count, exposure])
    want = nbinom(A, RATE / (RATE + exposure)).logpmf(count)
    np.testing.assert_allclose(model.log_evidence(x), want, rtol=1e-12)
    integral, _ = scipy.integrate.quad(lambda z: float(jnp.exp(model.log_joint(jnp.array([z]), x))), -15, 8, limit=200)
    np.testing.assert_allclose(np.log(integral), want, rtol=1e-7)
    if exposure == 1:
        np.testing.assert_allclose(model.log_evidence(x[:1]), want, rtol=1e-12)


@pytest.mark.parametrize(("alpha", "committed"), [(1.5, 0.054814), (2.5, 0.033163), (6.5, 0.012810), (41.5, 0.002008)])
def test_nearest_normal_of_poisson_gamma(alpha, committed, x64):
    model = poisson_gamma()
    x = jnp.array([alpha - A, 1.3])
    beta = RATE + 1.3
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()

    def kl(mean, log_scale):
        # KL(q || p) by Gauss-Hermite, the posterior of z = log rate written out.
        z = mean + np.exp(log_scale) * nodes
        log_p = alpha * np.log(beta) - scipy.special.gammaln(alpha) + alpha * z - beta * np.exp(z)
        return weights @ (-0.5 * nodes**2 - 0.5 * np.log(2 * np.pi) - log_scale - log_p)

    found = scipy.optimize.minimize(
        lambda v: kl(*v),
        [np.log(alpha / beta), -0.5 * np.log(alpha)],
        method="Nelder-Mead",
        options={"xatol": 1e-9, "fatol": 1e-13},
    )
    mean, scale = model.normal_optimum(x)
    np.testing.assert_allclose([mean[0], np.log(scale[0])], found.x, atol=1e-5)
    np.testing.assert_allclose(model.approximation_gap(x), found.fun, atol=1e-8)
    np.testing.assert_allclose(model.approximation_gap(x), committed, atol=6e-7)


def test_poisson_gamma_samples_follow_the_evidence():
    model, n = poisson_gamma(), 20_000
    _, counts = jax.vmap(model.sample)(jax.random.split(jax.random.key(3), n))
    for count in range(4):
        share = np.exp(float(model.log_evidence(jnp.array([float(count)]))))
        assert abs(np.mean(np.asarray(counts) == count) - share) < 5 * (share * (1 - share) / n) ** 0.5


# Likelihoods and the deep model ---------------------------------------------------------------------------------------

LOGITS = np.array([-3.0, 0.2, 1.7])
LIKELIHOODS = [
    (ag.models.Bernoulli(), np.array([0.0, 1, 1]), lambda x: bernoulli(1 / (1 + np.exp(-LOGITS))).logpmf(x)),
    (ag.models.Binomial(16), np.array([0.0, 9, 16]), lambda x: binom(16, 1 / (1 + np.exp(-LOGITS))).logpmf(x)),
    (
        ag.models.Gaussian(jnp.log(jnp.array([0.5, 2, 1]))),
        np.array([0.3, -1, 2]),
        lambda x: norm(LOGITS, np.sqrt([0.5, 2, 1])).logpdf(x),
    ),
    (ag.models.Gaussian(0.4), np.array([0.3, -1, 2]), lambda x: norm(LOGITS, np.exp(0.2)).logpdf(x)),
]


@pytest.mark.parametrize(("likelihood", "x", "peer"), LIKELIHOODS, ids=["bernoulli", "binomial", "normal", "shared"])
def test_likelihoods_are_those_of_scipy_and_so_are_their_draws(likelihood, x, peer):
    logits = jnp.asarray(LOGITS, jnp.float32)
    np.testing.assert_allclose(likelihood.log_prob(logits, jnp.asarray(x, jnp.float32)), peer(x).sum(), rtol=2e-5)
    n = 4000
    draws = np.asarray(jax.vmap(likelihood.sample, (0, None))(jax.random.split(jax.random.key(4), n), logits))
    # Differences of exact log densities at draws and at x have a mean that the score identity fixes: E grad = 0.
    scores = np.asarray(jax.vmap(jax.grad(likelihood.log_prob), (None, 0))(logits, jnp.asarray(draws)))
    assert np.all(np.abs(scores.mean(0)) < 5 * scores.std(0) / n**0.5)
    # ... and Var grad = -E Hessian.
    information = -np.diag(jax.hessian(likelihood.log_prob)(logits, jnp.asarray(x, jnp.float32)))
    squares = scores**2
    assert np.all(np.abs(squares.mean(0) - information) < 5 * squares.std(0) / n**0.5 + 1e-6)


def test_stated_derivatives_are_those_of_softplus(x64):
    logits, x = jnp.array([-40.0, -2.0, 0.0, 3.0, 50.0]), jnp.array([0.0, 0.3, 1.0, 5.0, 2.0])
    total = jnp.full(5, 5.0)

    def plain(logits):
        return jnp.sum(x * logits - total * jax.nn.softplus(logits))

    def stated(logits):
        return jnp.sum(ag.models.likelihoods.logistic_log_mass(logits, x, total))

    np.testing.assert_allclose(stated(logits), plain(logits), rtol=1e-14)
    # The sigmoid is right to the last digit of one.
    np.testing.assert_allclose(jax.grad(stated)(logits), jax.grad(plain)(logits), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(jax.hessian(stated)(logits), jax.hessian(plain)(logits), rtol=1e-12, atol=1e-15)


def test_deep_latent_gaussian_without_hidden_layers_is_factor_analysis(key, x64):
    deep = ag.models.deep_latent_gaussian(
        key, latent_dim=2, data_dim=4, width=1, depth=0, likelihood=ag.models.Gaussian(jnp.log(jnp.asarray(PSI)))
    )
    kernel, bias = jax.jacobian(deep.decoder)(jnp.zeros(2)), deep.decoder(jnp.zeros(2))
    flat = ag.models.FactorAnalysis(loadings=kernel, mean=bias, noise_variance=jnp.asarray(PSI))
    z = jnp.array([0.3, -2.0])
    np.testing.assert_allclose(deep.log_joint(z, jnp.asarray(X)), flat.log_joint(z, jnp.asarray(X)), rtol=1e-12)


def test_deep_latent_gaussian_is_prior_times_likelihood_of_the_decoder(key, x64):
    model = ag.models.deep_latent_gaussian(key, latent_dim=2, data_dim=3, width=4, depth=2, activation="tanh")
    z, x = jnp.array([0.3, -2.0]), np.array([0.0, 1, 1])
    layers = model.decoder.weights["layers"]
    h = np.asarray(z)
    for index in range(3):
        weights = layers[index]
        h = h @ np.asarray(weights["kernel"][...]) + np.asarray(weights["bias"][...])
        h = np.tanh(h) if index < 2 else h
    want = norm.logpdf(z).sum() + bernoulli(1 / (1 + np.exp(-h))).logpmf(x).sum()
    np.testing.assert_allclose(model.log_joint(z, jnp.asarray(x)), want, rtol=1e-12)
    draw_z, draw_x = model.sample(key)
    assert draw_z.shape == (2,)
    assert set(np.asarray(draw_x).tolist()) <= {0.0, 1.0}


# Any log joint --------------------------------------------------------------------------------------------------------


def test_a_log_joint_with_a_stated_shape_refuses_a_batch(key):
    def fn(z, x):
        return norm_logpdf(z).sum() + norm_logpdf(x - z[0]).sum()

    norm_logpdf, family, xs = jax.scipy.stats.norm.logpdf, ag.families.MeanFieldNormal(1), jnp.ones((5, 3))
    phi = family.standard()
    stated, open_ = (ag.models.from_log_joint(fn, 1, data_shape=shape) for shape in ((3,), None))
    one = ag.elbo(key, phi, xs[0], model=stated, family=family, num_samples=3)
    np.testing.assert_array_equal(one, ag.elbo(key, phi, xs[0], model=open_, family=family, num_samples=3))
    assert ag.fit_local(key, xs[:2], model=stated, family=family, num_steps=2, max_reruns=0).phi.shape == (2, 2)
    for wrong in (xs, {"x": xs[0]}):
        with pytest.raises(ValueError, match=r"x must be one datum, an array of shape \(3,\), got"):
            ag.elbo(key, phi, wrong, model=stated, family=family, num_samples=3)
    with pytest.raises(ValueError, match="data_shape must be a whole number, at least 1, got -1"):
        ag.models.from_log_joint(fn, 1, data_shape=(-1,))
    with pytest.raises(ValueError, match=r"data_shape must be a shape such as \(784,\), got 3"):
        inspect.unwrap(ag.models.from_log_joint)(fn, 1, data_shape=3)


def test_from_log_joint_with_and_without_params():
    def fn(params, z, x):
        return -0.5 * jnp.sum((params["scale"] * z - x["value"]) ** 2)

    params, z, x = {"scale": jnp.float32(2)}, jnp.array([1.0, 2.0]), {"value": jnp.array([0.0, 1.0])}
    given = ag.models.from_log_joint(fn, 2, params=params)
    closed = ag.models.from_log_joint(lambda z, x: fn(params, z, x), latent_dim=2)
    assert given.log_joint(z, x) == closed.log_joint(z, x) == -0.5 * (4 + 9)
    gradient = jax.grad(lambda model: model.log_joint(z, x))(given)
    np.testing.assert_allclose(gradient.params["scale"], -(2 * 1 + 3 * 2))
    with pytest.raises(ValueError, match=r"must return one scalar, got shape \(2,\)"):
        ag.models.from_log_joint(lambda z, x: z, 2).log_joint(z, x)


@pytest.mark.parametrize("likelihood", ["bernoulli", ag.models.Binomial(4)], ids=["bernoulli", "binomial"])
def test_bounds_can_be_differentiated_with_respect_to_the_data(key, x64, likelihood):
    model = ag.models.deep_latent_gaussian(key, latent_dim=2, data_dim=3, width=4, depth=1, likelihood=likelihood)
    output, x = model.decoder(jnp.array([0.3, -1.0])), jnp.array([0.2, 0.5, 0.9])

    def value(x):
        return model.likelihood.log_prob(output, x)

    step = 1e-5 * jnp.eye(3)
    differences = (jax.vmap(value)(x[None] + step) - jax.vmap(value)(x[None] - step)) / 2e-5
    np.testing.assert_allclose(jax.grad(value)(x), differences, rtol=1e-6)


def test_a_decoder_that_would_broadcast_is_refused():
    given = {"likelihood": ag.models.Bernoulli(), "latent_dim": 2}
    with pytest.raises(
        ValueError, match=r"decoder must return one array of shape \[data_dim\] = \(5,\), got \[\(1,\)\]"
    ):
        ag.models.DeepLatentGaussian(decoder=lambda z: z[:1], data_dim=5, **given)
    with pytest.raises(ValueError, match="latent_dim must be a whole number"):
        ag.models.DeepLatentGaussian(decoder=lambda z: z, data_dim=2, **(given | {"latent_dim": -2}))
    with pytest.raises(ValueError, match="must have the shapes"):
        jax.jit(
            lambda mean: ag.models.FactorAnalysis(loadings=jnp.ones((3, 2)), mean=mean, noise_variance=jnp.ones(3))
        )(jnp.zeros(1))
