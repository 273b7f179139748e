"""Wrong calls are refused by a ValueError that names the argument and the value; odd but right data work."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import amortgap as ag

pytestmark = pytest.mark.usefixtures("as_users_call")

KEY = jax.random.key(0)
FA = ag.models.FactorAnalysis(
    loadings=jnp.array([[1.0, 0], [0.5, 1], [0, 1]]), mean=jnp.zeros(3), noise_variance=jnp.ones(3)
)
COUNTS = ag.models.PoissonGamma(shape=1.0, rate=1.0)
PIXELS = ag.models.deep_latent_gaussian(KEY, latent_dim=2, data_dim=3, width=2, depth=1)
GROUPS = ag.models.HierarchicalRegression(dim=2)
FAMILY = ag.families.MeanFieldNormal(2)
ENCODER = ag.encoders.constant(KEY, 3, FAMILY)
XS = np.ones((4, 3), np.float32)


def spoiled(value, row=2):
    xs = XS.copy()
    xs[row, 1] = value
    return xs


def model(**changed):
    fields = {"loadings": np.ones((3, 2)), "mean": np.zeros(3), "noise_variance": np.ones(3)}
    return ag.models.FactorAnalysis(**{**fields, **changed})


def elbo(key=KEY, phi=None, x=XS[0], model=FA, family=FAMILY, num_samples=2, **settings):
    phi = jnp.zeros(4) if phi is None else phi
    return ag.elbo(key, phi, x, model=model, family=family, num_samples=num_samples, **settings)


def fit_local(key=KEY, xs=XS, model=FA, family=FAMILY, **settings):
    return ag.fit_local(key, xs, model=model, family=family, **settings)


def local_vi(key=KEY, x=XS[0], model=FA, family=FAMILY, **settings):
    return ag.local_vi(key, x, model=model, family=family, **settings)


def evidence(method, key=KEY, x=XS[0], model=FA, family=FAMILY, **settings):
    given = {"family": family, "phi": jnp.zeros(4)} if method != "exact" else {}
    return ag.log_evidence(key, x, model=model, method=method, **given, **settings)


def bidirectional(key=KEY, x=XS[0], model=FA, **settings):
    return ag.evidence.bidirectional(key, x, model=model, **settings)


def suboptimality_bound(key=KEY, x=XS[0], model=FA, family=FAMILY, **settings):
    return ag.evidence.suboptimality_bound(key, jnp.zeros(4), x, model=model, family=family, **settings)


ESTIMATES = [*(partial(evidence, method) for method in ag.evidence.METHODS), bidirectional, suboptimality_bound]


def amortized(key=KEY, xs=XS, model=FA, family=FAMILY, encoder=ENCODER, **settings):
    return ag.amortized_vi(key, xs, model=model, family=family, encoder=encoder, **settings)


def gaps(key=KEY, xs=XS, model=FA, family=FAMILY, encoder=ENCODER, **settings):
    return ag.inference_gaps(key, xs, model=model, family=family, encoder=encoder, **settings)


DEEP = {"latent_dim": 2, "data_dim": 3, "width": 2, "depth": 1}


def em(key=KEY, xs=XS, latent_dim=2, **settings):
    return ag.models.fit_factor_analysis(key, xs, latent_dim=latent_dim, **settings)


ENTRANCES = [fit_local, amortized, gaps, em]
CALLS = [
    # Data.
    *[(lambda f=f: f(xs=spoiled(np.nan)), r"xs holds 1 NaN or infinite entries, in rows 2") for f in ENTRANCES],
    *[(lambda f=f: f(xs=spoiled(np.inf, 0)), r"xs holds 1 NaN or infinite entries, in rows 0") for f in ENTRANCES],
    *[(lambda f=f: f(xs=np.ones((0, 3))), r"xs has no rows, got shape \(0, 3\)") for f in ENTRANCES],
    *[(lambda f=f: f(xs=np.ones((4, 5))), r"xs must have shape \[N, 3\], got \(4, 5\)") for f in ENTRANCES[:3]],
    *[(lambda f=f: f(xs=np.ones(3)), r"xs must have shape \[N, 3\], got \(3,\)") for f in ENTRANCES[:3]],
    *[(lambda f=f: f(xs=np.full((4, 3), 2**25 + 1)), r"float32 cannot hold exactly, .* 33554433") for f in ENTRANCES],
    *[(lambda f=f: f(xs=np.array([["a", "b", "c"]])), r"xs must be an array of numbers, got .*<U1") for f in ENTRANCES],
    *[(lambda f=f: f(xs=XS + 1j), r"xs must be an array of numbers, got dtype complex64") for f in ENTRANCES],
    *[(lambda f=f: f(xs={}), r"xs holds no arrays") for f in ENTRANCES],
    (lambda: em(xs=np.ones(3)), r"xs must have shape \[N, D\], got \(3,\)"),
    (lambda: amortized(validation=spoiled(np.nan)), r"validation holds 1 NaN"),
    (lambda: amortized(validation=np.ones((4, 2))), r"validation must have shape \[N, 3\]"),
    (lambda: fit_local(xs={"a": np.ones(3), "b": np.ones(2)}), r"xs must hold arrays that share their first axis"),
    (lambda: fit_local(model=PIXELS, xs=spoiled(1.5)), r"xs must lie in \[0, 1\], got values in \[1, 1.5\]"),
    (lambda: fit_local(model=PIXELS, xs=spoiled(-1.0)), r"xs must lie in \[0, 1\], got values in \[-1, 1\]"),
    (
        lambda: ag.fit_local(KEY, np.array([[1.5]]), model=COUNTS, family=ag.families.MeanFieldNormal(1)),
        r"xs\[:, 0\] \(counts\) must hold whole numbers, got 1.5",
    ),
    (
        lambda: ag.fit_local(KEY, np.array([[-1.0]]), model=COUNTS, family=ag.families.MeanFieldNormal(1)),
        r"xs\[:, 0\] \(counts\) must lie in \[0, infinity\]",
    ),
    (
        lambda: ag.fit_local(KEY, np.array([[1.0, 0.0]]), model=COUNTS, family=ag.families.MeanFieldNormal(1)),
        r"xs\[:, 1\] \(exposures\) must be positive, got 0",
    ),
    (
        lambda: ag.fit_local(KEY, np.ones((2, 3)), model=COUNTS, family=ag.families.MeanFieldNormal(1)),
        r"xs must have shape \[N, 2\], got \(2, 3\)",
    ),
    # One datum.
    *[(lambda f=f: f(x=np.ones(1)), r"x must be one datum .* got \(1, 1\)") for f in (elbo, local_vi, *ESTIMATES)],
    *[
        (lambda f=f: f(x=np.ones((4, 3))), r"x must be one datum .* got \(1, 4, 3\)")
        for f in (elbo, local_vi, *ESTIMATES)
    ],
    *[(lambda f=f: f(x=XS[0] * np.nan), r"x holds 3 NaN or infinite entries") for f in (elbo, local_vi, *ESTIMATES)],
    # Keys.
    *[
        (lambda f=f: f(key=jax.random.PRNGKey(0)), r"made by jax.random.key\(seed\), got an array of uint32")
        for f in (elbo, local_vi, *ENTRANCES)
    ],
    *[
        (lambda f=f: f(key=jax.random.split(KEY, 3)), r"one key, got an array of keys of shape \(3,\)")
        for f in (elbo, local_vi, *ENTRANCES)
    ],
    *[
        (lambda f=f: f(key=0), r"key must be a typed key made by jax.random.key\(seed\), got int")
        for f in (elbo, local_vi, *ENTRANCES)
    ],
    (lambda: ag.encoders.mlp(jax.random.PRNGKey(0), 3, FAMILY), r"key must be a typed key"),
    *[(lambda f=f: f(key=XS), r"float32 and shape \(4, 3\); the key is the first argument") for f in ENTRANCES],
    # Counts and settings.
    *[
        (lambda f=f: f(num_samples=0), r"num_samples must be a whole number, at least \d, got 0")
        for f in (elbo, local_vi, fit_local, amortized, gaps)
    ],
    *[
        (lambda f=f: f(num_samples=1.5), r"num_samples must be a whole number, at least \d, got 1.5")
        for f in (elbo, local_vi, fit_local, amortized)
    ],
    (lambda: ag.iw_bound(KEY, jnp.zeros(4), XS[0], model=FA, family=FAMILY, num_samples=0), r"num_samples .* got 0"),
    (lambda: elbo(estimator="magic"), r"estimator must be one of 'sticking_the_landing', .* got 'magic'"),
    (lambda: elbo(num_samples=3, antithetic=True), r"antithetic draws need an even num_samples .* num_samples = 3"),
    (lambda: elbo(phi=SimpleNamespace(phi=jnp.zeros(4))), r"got SimpleNamespace; its parameters are its `phi`"),
    (lambda: elbo(model=SimpleNamespace(model=FA)), r"which SimpleNamespace lacks; its trained model is its attribute"),
    (lambda: elbo(phi=jnp.zeros(5)), r"phi must have shape \(4,\), the family's size, got \(5,\)"),
    (lambda: local_vi(init=jnp.zeros(5)), r"init must have shape \[size\] or \[starts, size\], size 4, got \(1, 5\)"),
    (lambda: local_vi(method="magic"), r"method must be one of .* got 'magic'"),
    (lambda: local_vi(tolerance=-1.0), r"tolerance must be a positive number, got -1.0"),
    (lambda: fit_local(init=jnp.zeros((3, 4))), r"init must have shape \[N, size\] = \(4, 4\), got \(3, 4\)"),
    (lambda: fit_local(chunk_size=0), r"chunk_size must be a whole number, at least 1, got 0"),
    (lambda: amortized(learning_rate=0.0), r"learning_rate must be a positive number, got 0.0"),
    (lambda: amortized(batch_size=0), r"batch_size must be a whole number, at least 1, got 0"),
    (lambda: amortized(num_steps=5, num_evaluations=20), r"num_steps must be a whole number, at least 20, got 5"),
    (lambda: amortized(estimator="magic"), r"estimator must be one of"),
    (lambda: em(min_noise_variance=0.0), r"min_noise_variance must be a positive number, got 0.0"),
    (lambda: em(latent_dim=4), r"latent_dim must be a whole number, between 1 and 3, got 4"),
    # Sizes that do not fit together.
    *[
        (lambda f=f: f(family=ag.families.MeanFieldNormal(5)), r"model.latent_dim = 2 and family.latent_dim = 5")
        for f in (elbo, local_vi, fit_local, amortized, gaps)
    ],
    *[
        (lambda f=f: f(encoder=ag.encoders.constant(KEY, 7, FAMILY)), r"encoder .* shape \(7,\), got \(3,\)")
        for f in (fit_local, amortized, gaps)
    ],
    *[
        (
            lambda f=f: f(encoder=SimpleNamespace(encoder=ENCODER)),
            "encoder must be a function of one datum, got SimpleNamespace; "
            "its trained encoder is its attribute `encoder`",
        )
        for f in (fit_local, amortized, gaps)
    ],
    (lambda: amortized(encoder=lambda x: jnp.zeros(4)), r"encoder must hold weights to train, .* got a plain function"),
    (
        lambda: ag.semi_amortized_vi(KEY, XS, model=FA, family=FAMILY, encoder=lambda x: jnp.zeros(4), refine_steps=1),
        r"encoder must hold weights to train",
    ),
    *[
        (lambda f=f: f(encoder=jnp.zeros(4)), r"encoder must be a function of one datum, got \w+$")
        for f in (fit_local, amortized, gaps)
    ],
    *[
        (
            lambda f=f: f(encoder=ag.encoders.constant(KEY, 3, ag.families.FullRankNormal(2))),
            r"encoder must return one vector of family.size = 4, got \(5,\)",
        )
        for f in (fit_local, amortized, gaps)
    ],
    # Models.
    (lambda: model(noise_variance=np.array([1.0, 0, 1])), r"noise_variance must be positive, got 0 in entry 1"),
    (lambda: model(noise_variance=np.array([1.0, 1, -2])), r"noise_variance must be positive, got -2 in entry 2"),
    (lambda: model(noise_variance=np.array([1.0, 1, np.nan])), r"noise_variance holds 1 NaN"),
    (lambda: model(noise_variance=0.5), r"with no axis empty, got \[3, 2\], \[3\], \[\]"),
    (lambda: model(mean=np.zeros(4)), r"\[D, d\], \[D\], \[D\] with no axis empty, got \[3, 2\], \[4\]"),
    (lambda: model(loadings=np.ones(3)), r"must have the shapes \[D, d\], \[D\], \[D\] .*, got \[3\], \[3\], \[3\]"),
    (lambda: model(loadings=np.full((3, 2), np.inf)), r"loadings holds 6 NaN or infinite entries"),
    (lambda: model(loadings=None), r"loadings must be an array of numbers"),
    (lambda: ag.models.PoissonGamma(shape=0.0, rate=1.0), "shape must be positive, got 0"),
    (lambda: ag.models.PoissonGamma(shape=1.0, rate=np.nan), "rate holds 1 NaN or infinite"),
    (lambda: ag.models.Binomial(0), r"total_count must be a whole number, at least 1, got 0"),
    (lambda: ag.models.Gaussian(np.nan), r"log_noise_variance must be finite, got nan"),
    (lambda: ag.models.from_log_joint("text", 2), r"fn must be a function \(z, x\) -> scalar, got str"),
    (lambda: ag.models.from_log_joint(lambda z, x: 0.0, 0), r"latent_dim must be a whole number, at least 1, got 0"),
    (lambda: FA.rank_gap(jnp.asarray(XS), 3), r"rank must be a whole number, between 0 and 2, got 3"),
    *[
        (
            lambda n=n: ag.models.deep_latent_gaussian(KEY, **{**DEEP, n: -1}),
            rf"{n} must be a whole number, at least \d, got -1",
        )
        for n in ("latent_dim", "data_dim", "width", "depth")
    ],
    (
        lambda: ag.models.deep_latent_gaussian(KEY, **DEEP, likelihood="poisson"),
        r"likelihood must be one of 'bernoulli', 'gaussian', got 'poisson'",
    ),
    *[
        (lambda f=f: f(model=GROUPS), r"log_joint\(z, x\), which HierarchicalRegression lacks; .* ag.models.fix_global")
        for f in (elbo, local_vi)
    ],
    (lambda: ag.models.fix_global(GROUPS, [1.0]), r"theta must have shape \(2,\)"),
    # Families and encoders.
    (lambda: ag.families.MeanFieldNormal(0), r"latent_dim must be a whole number, at least 1, got 0"),
    (lambda: ag.families.FullRankNormal(-2), r"latent_dim must be a whole number, at least 1, got -2"),
    (lambda: ag.families.LowRankNormal(3, 0), r"rank must be a whole number, between 1 and 3, got 0"),
    (lambda: ag.families.LowRankNormal(3, 4), r"rank must be a whole number, between 1 and 3, got 4"),
    (lambda: ag.encoders.linear(KEY, 3, FAMILY, rank=-1), r"rank must be a whole number, between 0 and 2, got -1"),
    (lambda: ag.encoders.linear(KEY, 3, FAMILY, rank=3), r"rank must be a whole number, between 0 and 2, got 3"),
    (lambda: ag.encoders.constant(0, 3, FAMILY), r"key must be a typed key made by jax.random.key\(seed\), got int"),
    (lambda: ag.encoders.mlp(KEY, 3, FAMILY, width=0), r"width must be a whole number, at least 1, got 0"),
    (lambda: ag.encoders.mlp(KEY, 3, FAMILY, depth=-1), r"depth must be a whole number, at least 0, got -1"),
    (lambda: ag.encoders.mlp(KEY, 0, FAMILY), r"in_dim must be a whole number, at least 1, got 0"),
    (lambda: ag.encoders.mlp(KEY, 3, FAMILY, activation="magic"), r"activation must be one of .* got 'magic'"),
    (lambda: ag.encoders.mlp(KEY, 3, FAMILY, standardize=spoiled(np.nan)), r"standardize holds 1 NaN"),
    (lambda: ag.encoders.mlp(KEY, 3, FAMILY, standardize=np.ones((4, 2))), r"standardize .* \[N, 3\], got \(4, 2\)"),
    (lambda: ag.encoders.stack_padded([]), r"encoders must hold at least one encoder, got none"),
    # Evidence and data sets.
    (lambda: ag.log_evidence(KEY, XS[0], model=PIXELS, method="exact"), r"method 'exact' needs model.log_evidence"),
    (lambda: ag.log_evidence(KEY, XS[0], model=PIXELS, family=FAMILY), r"family and phi belong together"),
    (lambda: ag.log_evidence(KEY, XS[0], model=PIXELS, start="q"), r"method 'auto' does not take start; it takes"),
    (lambda: ag.log_evidence(None, XS[0], model=PIXELS, method="ais"), r"key must be a typed key .* got NoneType"),
    (lambda: ag.log_evidence(KEY, XS[0], model=PIXELS, method="magic"), r"method must be one of"),
    (lambda: ag.data.load_digits(binarisation="magic"), r"binarisation must be one of 'threshold', 'fixed', 'none'"),
    (lambda: ag.data.load_digits(test_fraction=1.0), r"test_fraction must lie between 0 and 1, got 1.0"),
]


@pytest.mark.parametrize(("call", "message"), CALLS, ids=range(len(CALLS)))
def test_wrong_calls_are_refused_before_compiling(call, message, monkeypatch):
    def compiled(*_, **__):
        raise AssertionError("compiled before the input was checked")

    # Nothing but the checks may run: neither the optimisers' scan nor a map over data.
    monkeypatch.setattr(jax.lax, "scan", compiled)
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, bool, np.float64])
def test_whole_numbers_and_booleans_are_converted_where_exact(dtype):
    xs = (np.arange(12).reshape(4, 3) % 2).astype(dtype)
    settings = {"num_steps": 3, "warmup_steps": 2, "num_samples": 4}
    fit = fit_local(xs=xs, model=PIXELS, **settings)
    same = fit_local(xs=xs.astype(np.float32), model=PIXELS, **settings)
    np.testing.assert_array_equal(fit.phi, same.phi)
    np.testing.assert_array_equal(elbo(x=xs[1], model=PIXELS), elbo(x=xs[1].astype(np.float32), model=PIXELS))


def test_parameters_of_models_may_be_lists_and_whole_numbers():
    listed = ag.models.FactorAnalysis(loadings=[[1, 0], [0, 1]], mean=[0, 0], noise_variance=[1, 2])
    assert listed.loadings.dtype == jnp.float32
    listed = ag.models.fix_global(GROUPS, [1, 2])
    group = GROUPS.sample(KEY, 1, 3)[2]
    assert listed.log_joint(jnp.ones(2), jax.tree.map(lambda leaf: leaf[0], group)).shape == ()
    assert ag.models.PoissonGamma(shape=2, rate=np.int64(3)).rate.dtype == jnp.float32


@pytest.mark.parametrize(
    "xs",
    [np.zeros((4, 3)), np.ones((4, 3)), np.zeros((1, 3)), np.eye(3)[:1]],
    ids=["all_zero", "constant", "one_zero_row", "one_row"],
)
def test_constant_rows_and_pixels_and_one_row_give_finite_results(xs):
    encoder = ag.encoders.mlp(KEY, 3, FAMILY, width=2, depth=1, standardize=xs)
    np.testing.assert_array_equal(encoder.spread, np.ones(3))
    fit = amortized(xs=xs, encoder=encoder, num_steps=4, num_evaluations=2, model=PIXELS)
    assert bool(fit.finite)
    local = fit_local(xs=xs, model=PIXELS, encoder=fit.encoder, num_steps=3, num_samples=4)
    assert local.phi.shape == (len(xs), 4)
    assert np.isfinite(local.elbo).all()
    assert np.isfinite(fit.trace.elbo).all()


def test_a_printed_fit_shows_counts_of_weights_and_no_graphs():
    encoder = ag.encoders.mlp(KEY, 3, FAMILY, width=2, depth=1)
    fit = amortized(xs=XS, encoder=encoder, num_steps=4, num_evaluations=2, model=PIXELS)
    text = repr(fit)
    assert f"<{encoder.num_weights} weights>" in text
    assert "GraphDef" not in text and "nnx" not in text


def test_a_nearly_constant_pixel_is_not_blown_up():
    xs = np.stack([np.linspace(0, 1, 50), 1 + 1e-6 * np.linspace(0, 1, 50), np.zeros(50)], 1).astype(np.float32)
    encoder = ag.encoders.mlp(KEY, 3, FAMILY, width=2, depth=1, standardize=xs)
    np.testing.assert_allclose(encoder.spread, [xs[:, 0].std(), 1, 1], rtol=1e-5)
