"""Local VI against closed-form optima, and its promises: no dependence on N, chunks or bad neighbours, no retracing."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

import amortgap as ag

FA = ag.models.FactorAnalysis(
    loadings=jnp.array([[1.0, 0.9], [0.6, 1.2], [0.8, -0.5]]),
    mean=jnp.array([0.5, -1.0, 2.0]),
    noise_variance=jnp.array([0.5, 1.0, 0.3]),
)
XS = jnp.asarray(np.random.default_rng(0).normal(size=(11, 3)) * 1.5, jnp.float32)
COUNTS = ag.models.PoissonGamma(shape=1.5, rate=0.8)
FAMILY, SCALAR = ag.families.MeanFieldNormal(2), ag.families.MeanFieldNormal(1)


def skewed(weights, z, x):
    """Three binary features with logits from two latents: a posterior that is far from normal."""
    logits = 2.5 * weights @ jnp.tanh(z) + weights @ z - 1.0
    return -0.5 * jnp.sum(z**2) - jnp.log(2 * jnp.pi) + jnp.sum(x * logits - jax.nn.softplus(logits))


WEIGHTS = jnp.array([[1.5, -0.7], [0.3, 1.8], [-1.0, 1.0]])
LOGISTIC = ag.models.from_log_joint(skewed, 2, params=WEIGHTS)
BITS = jnp.array([1.0, 1.0, 0.0])


def test_mean_field_optimum_of_factor_analysis(key):
    fit = ag.fit_local(key, XS, model=FA, family=FAMILY, tolerance=1e-3)
    precision = FA.posterior_precision()
    mean, log_scale = fit.phi[:, :2], fit.phi[:, 2:]
    # Nats lost to the optimum, exactly: closed form for a normal q and a normal posterior.
    optimum = jax.vmap(FA.posterior_mean)(XS)
    ratio = jnp.diag(precision)[None, :] * jnp.exp(2 * log_scale)
    lost = 0.5 * jnp.sum(ratio - 1 - jnp.log(ratio), 1)
    lost += 0.5 * jnp.einsum("ni,ij,nj->n", mean - optimum, precision, mean - optimum)
    assert lost.max() < 5e-3
    want = jax.vmap(FA.log_evidence)(XS) - FA.approximation_gap()
    assert FA.approximation_gap() > 0.02
    assert np.all(np.abs(fit.elbo - want) < 5 * fit.standard_error + 5e-3)


def test_full_rank_optimum_of_factor_analysis_is_the_posterior(key):
    family = ag.families.FullRankNormal(2)
    fit = ag.fit_local(key, XS, model=FA, family=family, num_steps=1500)
    # The bound has no noise there: what is missing to log p is all suboptimality.
    np.testing.assert_allclose(fit.elbo, jax.vmap(FA.log_evidence)(XS), atol=2e-3)
    means, scales = jax.vmap(family.moments)(fit.phi)
    np.testing.assert_allclose(means, jax.vmap(FA.posterior_mean)(XS), atol=2e-2)
    np.testing.assert_allclose(
        scales @ scales.transpose(0, 2, 1), jnp.broadcast_to(FA.posterior(XS[0]).covariance, (11, 2, 2)), atol=1e-2
    )
    assert fit.converged.all()


@pytest.mark.parametrize("method", ["natural_gradient", pytest.param("adam", marks=pytest.mark.slow)])
def test_optimum_of_poisson_gamma(key, method):
    xs = jnp.array([[0.0, 1.0], [1.0, 1.0], [7.0, 2.0], [40.0, 1.0]])
    fit = ag.fit_local(key, xs, model=COUNTS, family=SCALAR, method=method, tolerance=2e-3)
    alpha, beta = jax.vmap(COUNTS.posterior_parameters)(xs)
    optimum, _ = jax.vmap(COUNTS.normal_optimum)(xs)
    mean, variance = fit.phi[:, 0], jnp.exp(2 * fit.phi[:, 1])
    excess = mean + variance / 2 - jnp.log(alpha / beta)
    lost = -0.5 * jnp.log(alpha * variance) - alpha * (mean - optimum[:, 0]) + alpha * jnp.expm1(excess)
    assert np.all(lost < 1e-2)
    assert np.all(lost > -1e-4)
    want = jax.vmap(COUNTS.log_evidence)(xs) - jax.vmap(COUNTS.approximation_gap)(xs)
    assert np.all(np.abs(fit.elbo - want) < 5 * fit.standard_error + 1e-2)


def test_vmap_equals_the_loop_and_fit_local(key):
    xs = XS[:4]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(4))
    one = jax.jit(lambda k, x: ag.local_vi(k, x, model=FA, family=FAMILY, num_steps=50, warmup_steps=10))
    mapped = jax.jit(jax.vmap(one))(keys, xs)
    looped = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[one(*row) for row in zip(keys, xs, strict=True)])
    together = ag.fit_local(key, xs, model=FA, family=FAMILY, num_steps=50, warmup_steps=10)
    for fit in (mapped, together):
        np.testing.assert_allclose(fit.phi, looped.phi, atol=1e-4)
        np.testing.assert_allclose(fit.elbo, looped.elbo, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(fit.converged, looped.converged)


@pytest.mark.parametrize(("n", "chunk_size"), [(8, 500), (11, 4)])
def test_datum_7_does_not_depend_on_n_or_the_chunk_size(key, n, chunk_size):
    settings = {"model": FA, "family": FAMILY, "num_steps": 30, "warmup_steps": 10}
    want = ag.fit_local(key, XS, **settings)
    have = ag.fit_local(key, XS[:n], chunk_size=chunk_size, **settings)
    assert have.phi.shape == (n, 4)
    np.testing.assert_allclose(have.phi, want.phi[:n], atol=1e-5)
    np.testing.assert_allclose(have.elbo, want.elbo[:n], rtol=1e-5)
    assert np.ptp(want.phi[:, 0]) > 0.1  # data differ, so a mix-up would show


@pytest.mark.parametrize(
    "family",
    [FAMILY, pytest.param(ag.families.LowRankNormal(2, 1), marks=pytest.mark.slow)],
    ids=["natural_gradient", "adam"],
)
def test_never_worse_than_the_start(key, family):
    # One step from a start that is already optimal, and from a terrible one.
    posterior = FA.posterior(XS[0])
    good = family.from_moments(posterior.mean, jnp.linalg.cholesky(posterior.covariance))
    bad = family.standard() + 3
    fit = ag.fit_local(
        key, jnp.stack([XS[0], XS[0]]), model=FA, family=family, init=jnp.stack([good, bad]), num_steps=1
    )
    assert np.all(fit.elbo >= fit.start_elbo)
    # Of the offered start and the standard member the better one was taken.
    assert fit.start_elbo[1] > FA.log_joint(family.moments(bad)[0], XS[0])


def test_a_diverging_datum_is_reported_and_the_rest_kept(key):
    def broken_for_large_x(z, x):
        return jnp.where(x[0] > 100, jnp.nan, FA.log_joint(z, x))

    model = ag.models.from_log_joint(broken_for_large_x, 2)
    settings = {"family": FAMILY, "num_steps": 150, "warmup_steps": 50}
    fit = ag.fit_local(key, XS.at[3, 0].set(1000.0), model=model, **settings)
    assert np.flatnonzero(~fit.converged).tolist() == [3]
    assert np.isfinite(fit.phi).all()
    want = ag.fit_local(key, XS, model=FA, **settings)
    rest = np.arange(len(XS)) != 3
    np.testing.assert_allclose(fit.phi[rest], want.phi[rest], atol=1e-4)


def test_an_unfinished_fit_is_not_called_converged(key):
    fit = ag.fit_local(key, XS + 5, model=FA, family=FAMILY, num_steps=1, warmup_steps=0, max_reruns=0)
    assert not fit.converged.any()
    assert fit.suboptimality.min() > 0.01


def test_seeds_data_and_weights_of_one_shape_never_retrace(key):
    traces = []

    def counted(weights, z, x):
        traces.append(None)
        return skewed(weights, z, x)

    def fit(seed, shift, scale):
        model = ag.models.from_log_joint(counted, 2, params=WEIGHTS * scale)
        xs = jnp.tile(BITS, (3, 1)) * shift
        return ag.fit_local(jax.random.key(seed), xs, model=model, family=FAMILY, num_steps=3, num_samples=4)

    first = fit(0, 1.0, 1.0)
    once = len(traces)
    others = [fit(1, 1.0, 1.0), fit(0, 0.5, 1.0), fit(0, 1.0, 2.0)]
    assert once > 0
    assert len(traces) == once
    assert all(not np.allclose(first.phi, other.phi) for other in others)


@pytest.mark.parametrize(
    ("family", "guide"),
    [
        (FAMILY, AutoNormal),
        pytest.param(ag.families.FullRankNormal(2), AutoMultivariateNormal, marks=pytest.mark.slow),
    ],
    ids=["mean_field", "full_rank"],
)
def test_numpyro_reaches_the_same_optimum_on_a_nonlinear_model(key, family, guide):
    def model():
        z = numpyro.sample("z", numpyro.distributions.Normal(0, 1).expand([2]).to_event(1))
        logits = 2.5 * WEIGHTS @ jnp.tanh(z) + WEIGHTS @ z - 1.0
        numpyro.sample("x", numpyro.distributions.Bernoulli(logits=logits).to_event(1), obs=BITS)

    guide = guide(model)
    svi = SVI(model, guide, numpyro.optim.Adam(lambda step: 0.05 / (1 + step / 200)), Trace_ELBO(num_particles=8))
    result = svi.run(jax.random.key(1), 1500, progress_bar=False)
    prefix = "z_auto" if "z_auto_loc" in result.params else "auto"
    mean = result.params[f"{prefix}_loc"]
    scale_tril = jnp.diag(result.params["z_auto_scale"]) if prefix == "z_auto" else result.params["auto_scale_tril"]
    theirs = family.from_moments(mean, scale_tril)
    fit = ag.local_vi(key, BITS, model=LOGISTIC, family=family, num_steps=1500)
    assert fit.converged
    bounds = ag.evaluate_bounds(
        jax.random.key(2),
        jnp.stack([fit.phi, theirs, family.standard()])[None],
        BITS[None],
        model=LOGISTIC,
        family=family,
        num_samples=20_000,
    )
    ours_minus_theirs = bounds.elbo[0, 0] - bounds.elbo[0, 1]
    error = bounds.paired_standard_error[0]
    assert ours_minus_theirs > -4 * error[1] - 2e-3
    assert ours_minus_theirs < 4 * error[1] + 0.02
    assert bounds.elbo[0, 0] - bounds.elbo[0, 2] > 0.5  # there was something to gain
