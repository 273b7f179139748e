"""Gaps: exact arithmetic, calibrated standard errors, and nothing clipped."""

import dataclasses
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

import amortgap as ag
from amortgap.gaps import measure
from amortgap.objectives import elbo_draws

MODEL = ag.models.FactorAnalysis(
    loadings=jnp.array([[1.0, 0.9], [0.6, 1.2], [0.8, -0.5]]),
    mean=jnp.array([0.5, -1.0, 2.0]),
    noise_variance=jnp.array([0.5, 1.0, 0.3]),
)
FAMILY = ag.families.MeanFieldNormal(2)
XS = jax.vmap(lambda key: MODEL.sample(key)[1])(jax.random.split(jax.random.key(7), 6))
SCALE = jnp.diag(jnp.diag(MODEL.posterior_precision()) ** -0.5)
OPTIMUM = jax.vmap(lambda x: FAMILY.from_moments(MODEL.posterior_mean(x), SCALE))(XS)
SHIFTED = OPTIMUM + jnp.array([[0.3, -0.2, 0.1, 0.1]])


def local_fit(phi):
    zeros = jnp.zeros(len(phi))
    return ag.LocalFit(
        phi=phi,
        elbo=zeros,
        standard_error=zeros,
        start_elbo=zeros,
        suboptimality=zeros + 0.125,
        suboptimality_standard_error=zeros,
        horizon_gain=zeros,
        num_gradients=jnp.zeros(len(phi), int),
        num_steps=jnp.zeros(len(phi), int),
        converged=jnp.arange(len(phi)) != 4,
    )


ENCODER = ag.encoders.constant(jax.random.key(0), 3, FAMILY)


@pytest.fixture(scope="module")
def gaps():
    return ag.inference_gaps(
        jax.random.key(1), XS, model=MODEL, family=FAMILY, encoder=ENCODER, local=local_fit(OPTIMUM), num_samples=400
    )


def exact_elbo(phis):
    precision = MODEL.posterior_precision()
    mean, variance = phis[:, :2], jnp.exp(2 * phis[:, 2:])
    difference = mean - jax.vmap(MODEL.posterior_mean)(XS)
    kl = 0.5 * (
        variance @ jnp.diag(precision)
        - 2
        - jnp.log(variance).sum(1)
        - jnp.linalg.slogdet(precision)[1]
        + jnp.einsum("ni,ij,nj->n", difference, precision, difference)
    )
    return jax.vmap(MODEL.log_evidence)(XS) - kl


def test_gaps_are_those_of_the_closed_form_and_add_up(gaps):
    np.testing.assert_allclose(gaps.approximation + gaps.amortization, gaps.inference, atol=3e-6)
    encoded = jnp.broadcast_to(ENCODER.phi, OPTIMUM.shape)
    for have, want, error in [
        (gaps.log_evidence, jax.vmap(MODEL.log_evidence)(XS), 1e-6),
        (gaps.elbo_local, exact_elbo(OPTIMUM), gaps.elbo_local_standard_error),
        (gaps.elbo_amortized, exact_elbo(encoded), gaps.elbo_amortized_standard_error),
        (gaps.approximation, MODEL.approximation_gap(), gaps.elbo_local_standard_error),
        (gaps.amortization, exact_elbo(OPTIMUM) - exact_elbo(encoded), gaps.amortization_standard_error),
    ]:
        assert np.all(np.abs(have - want) < 5 * error + 1e-5)
    assert gaps.evidence_method == "exact"
    assert gaps.evidence_bias == "none"


def test_estimates_are_means_sums_and_errors_of_the_arrays(gaps):
    rows = gaps.estimates()
    for name in ("log_evidence", "elbo_local", "elbo_amortized", "approximation", "amortization", "inference"):
        values = np.asarray(getattr(gaps, name), np.float64)
        np.testing.assert_allclose(rows[name].mean, values.mean(), rtol=1e-4)
        np.testing.assert_allclose(rows[name].total, values.sum(), rtol=1e-4)
        np.testing.assert_allclose(rows[name].data_standard_error, values.std(ddof=1) / len(values) ** 0.5, rtol=1e-3)
    errors = np.asarray(gaps.amortization_standard_error)
    np.testing.assert_allclose(
        rows["amortization"].monte_carlo_standard_error, np.sqrt((errors**2).sum()) / len(errors), rtol=1e-5
    )


def test_summary_holds_the_numbers(gaps):
    text = gaps.summary()
    for name, row in gaps.estimates().items():
        assert re.search(rf"^{name} +{float(row.mean):.4f} ", text, re.M)
        assert f"{float(row.monte_carlo_standard_error):.4f}" in text
    assert "log p(x) by exact (bias: none)" in text
    assert "5 of 6 data" in text
    assert "data [4]" in text
    assert "0.1250" in text


def test_a_negative_gap_is_shown_and_not_clipped():
    # Local fits worse than the encoder: an unfinished optimisation, which has to be seen.
    bad = ag.inference_gaps(
        jax.random.key(1),
        XS,
        model=MODEL,
        family=FAMILY,
        encoder=ENCODER,
        num_samples=50,
        local=local_fit(jnp.broadcast_to(ENCODER.phi, OPTIMUM.shape) + 2),
    )
    assert np.all(bad.amortization < -1)
    assert bad.estimates()["amortization"].mean < -1
    assert re.search(r"^amortization +-\d", bad.summary(), re.M)


def test_a_gap_below_its_noise_is_called_unresolved(gaps):
    assert gaps.resolved("inference")
    flat = dataclasses.replace(
        gaps, elbo_amortized=gaps.elbo_local + 1e-3, amortization_standard_error=jnp.full(gaps.elbo_local.shape, 0.1)
    )
    assert not flat.resolved("amortization")
    assert flat.estimates()["amortization"].mean < 0  # kept with its sign
    assert re.search(r"^not resolved from zero .*: .*amortization", flat.summary(), re.M)
    with pytest.raises(ValueError, match="'width'"):
        gaps.resolved("width")


def test_standard_errors_are_calibrated():
    """The spread over repetitions against the errors reported: n - 1 times their ratio is chi-square."""
    repetitions, near = 200, SHIFTED + jnp.array([[0.1, 0.0, 0.05, -0.05]])
    run = jax.jit(
        lambda key: ag.evaluate_bounds(
            key, jnp.stack([SHIFTED, near], 1), XS, model=MODEL, family=FAMILY, num_samples=120, block_size=50
        )
    )
    bounds = jax.vmap(run)(jax.random.split(jax.random.key(3), repetitions))
    spread = bounds.elbo.var(0, ddof=1)
    paired_spread = (bounds.elbo[..., 0] - bounds.elbo[..., 1]).var(0, ddof=1)
    # Means of 150 draws are not quite normal, so the limits are those of a tenth fewer degrees of freedom.
    freedom = 0.9 * (repetitions - 1)
    low, high = chi2(freedom).ppf([1e-6, 1 - 1e-6]) / freedom
    ratio = spread / jnp.mean(bounds.standard_error**2, 0)
    paired_ratio = paired_spread / jnp.mean(bounds.paired_standard_error[..., 1] ** 2, 0)
    for found in (ratio, paired_ratio):
        assert np.all((low < found) & (found < high)), found
    # Candidates that are close share most of their noise.
    assert np.all(paired_spread < 0.3 * spread.sum(1))
    want = jnp.stack([exact_elbo(SHIFTED), exact_elbo(near)], 1)
    assert np.all(np.abs(bounds.elbo.mean(0) - want) < 5 * jnp.sqrt(spread / repetitions))


def test_where_encoder_and_optimum_agree_the_shared_draws_leave_no_noise(key):
    same = local_fit(jnp.broadcast_to(ENCODER.phi, OPTIMUM.shape))
    gaps = ag.inference_gaps(key, XS, model=MODEL, family=FAMILY, encoder=ENCODER, local=same, num_samples=50)
    np.testing.assert_array_equal(gaps.amortization, 0)
    np.testing.assert_array_equal(gaps.amortization_standard_error, 0)
    assert np.all(gaps.elbo_amortized_standard_error > 0.01)


def test_local_fit_bounds_evidence_and_excess_have_keys_of_their_own(key, monkeypatch):
    seen = {}

    def watched(name):
        function = getattr(measure, name)

        def call(first, *args, **settings):
            seen[name] = jax.random.key_data(first).tolist()
            return function(first, *args, **settings)

        monkeypatch.setattr(measure, name, call)

    for name in ("fit_local", "evaluate", "estimate_of_data", "suboptimality_bounds"):
        watched(name)
    ag.inference_gaps(
        key,
        XS,
        model=MODEL,
        family=FAMILY,
        encoder=ENCODER,
        evidence_method="importance",
        num_samples=10,
        evidence_samples=10,
        optimum_samples=8,
        every_start=False,
    )
    assert len(seen) == len({tuple(value) for value in seen.values()}) == 4


def test_an_encoder_may_be_a_plain_function(key):
    def function(x):
        return ENCODER(x)

    given = {"model": MODEL, "family": FAMILY, "num_samples": 50, "local": local_fit(OPTIMUM)}
    one, other = (ag.inference_gaps(key, XS, encoder=encoder, **given) for encoder in (function, ENCODER))
    np.testing.assert_array_equal(one.amortization, other.amortization)
    given = {"model": MODEL, "family": FAMILY, "num_samples": 16, "num_steps": 4, "max_reruns": 0}
    one, other = (ag.fit_local(key, XS, encoder=encoder, **given) for encoder in (function, ENCODER))
    np.testing.assert_array_equal(one.phi, other.phi)


def test_a_plain_function_is_read_anew_at_every_call(key):
    weights = {"phi": OPTIMUM[0]}

    def function(x):
        return weights["phi"]

    given = {"model": MODEL, "family": FAMILY, "num_samples": 16, "num_steps": 1, "max_reruns": 0}
    first = ag.fit_local(key, XS[:2], encoder=function, **given)
    weights["phi"] = OPTIMUM[0] + jnp.array([9.0, 0.0, 0.0, 0.0])
    assert not np.allclose(ag.fit_local(key, XS[:2], encoder=function, **given).start_elbo, first.start_elbo)


def test_draws_are_shared_between_candidates_and_not_between_data(key):
    twice = jnp.stack([OPTIMUM, OPTIMUM], 1)
    same = ag.evaluate_bounds(key, twice, XS, model=MODEL, family=FAMILY, num_samples=50)
    np.testing.assert_array_equal(same.elbo[:, 0], same.elbo[:, 1])
    np.testing.assert_array_equal(same.paired_standard_error, np.zeros((6, 2)))
    one_datum = jnp.broadcast_to(XS[0], XS.shape)
    repeated = ag.evaluate_bounds(
        key, jnp.broadcast_to(twice[:1], twice.shape), one_datum, model=MODEL, family=FAMILY, num_samples=50
    )
    assert np.unique(np.asarray(repeated.elbo[:, 0])).size == 6


def test_evidence_of_data_is_exact_or_importance_sampled_and_says_so(key):
    exact = ag.evidence_of_data(key, XS, model=MODEL)
    np.testing.assert_allclose(exact.log_evidence, jax.vmap(MODEL.log_evidence)(XS), rtol=1e-6)
    sampled = ag.evidence_of_data(
        key, XS, model=MODEL, method="importance", family=FAMILY, phis=SHIFTED.at[:, 2:].add(0.2), num_samples=2000
    )
    assert np.all(sampled.standard_error > 0)
    assert np.all(np.abs(sampled.log_evidence - exact.log_evidence) < 5 * sampled.standard_error)
    assert sampled.bias == "lower bound"
    assert "importance" in sampled.method


def test_moments_of_blocks_are_those_of_all_draws_together(key):
    """Blocks of two draws: most of the variance is between blocks, which a sum within them would miss."""
    phis = jnp.stack([OPTIMUM[:1], SHIFTED[:1]], axis=1)
    found = ag.evaluate_bounds(key, phis, XS[:1], model=MODEL, family=FAMILY, num_samples=40, block_size=2)

    def draws(phi):
        keys = [jax.random.fold_in(jax.random.fold_in(key, 0), block) for block in range(20)]
        settings = {"model": MODEL, "family": FAMILY, "num_samples": 2, "estimator": "total"}
        return np.concatenate([elbo_draws(k, phi, XS[0], **settings) for k in keys]).astype(float)

    local, shifted = draws(OPTIMUM[0]), draws(SHIFTED[0])
    scale = 40**0.5
    np.testing.assert_allclose(found.elbo[0], [local.mean(), shifted.mean()], rtol=1e-5)
    np.testing.assert_allclose(
        found.standard_error[0], [local.std(ddof=1) / scale, shifted.std(ddof=1) / scale], rtol=1e-3
    )
    np.testing.assert_allclose(found.paired_standard_error[0, 1], (local - shifted).std(ddof=1) / scale, rtol=1e-3)


def test_errors_of_evidence_enter_its_two_gaps_and_the_bounds_only_where_they_are_proven(gaps):
    errors = jnp.linspace(0.1, 0.6, 6)
    rough = dataclasses.replace(gaps, log_evidence_standard_error=errors, evidence_bias="numerical")
    rows = rough.estimates()
    for name, own in (
        ("approximation", gaps.elbo_local_standard_error),
        ("inference", gaps.elbo_amortized_standard_error),
    ):
        want = np.sqrt(np.sum(np.asarray(errors) ** 2 + np.asarray(own) ** 2)) / 6
        np.testing.assert_allclose(rows[name].monte_carlo_standard_error, want, rtol=1e-4)
    np.testing.assert_array_equal(rows["amortization"], gaps.estimates()["amortization"])
    for bias, proven in (("numerical", False), ("none", True)):
        ends = dataclasses.replace(rough, evidence_bias=bias).bounds()["inference"]
        assert [end.proven for end in ends] == [proven, proven]


def test_each_end_of_a_sandwich_keeps_its_own_error():
    zeros = jnp.zeros(6)
    sandwich = ag.evidence.EvidenceBounds(
        lower=zeros - 9,
        upper=zeros,
        lower_standard_error=zeros + 0.1,
        upper_standard_error=zeros + 0.4,
        acceptance=zeros,
        proven=True,
        method="made up",
    )
    gaps = ag.inference_gaps(
        jax.random.key(1),
        XS,
        model=MODEL,
        family=FAMILY,
        encoder=ENCODER,
        local=local_fit(OPTIMUM),
        evidence=sandwich,
        num_samples=20,
    )
    lower, upper = gaps.bounds()["log_evidence"]
    np.testing.assert_allclose([lower.standard_error[0], upper.standard_error[0]], [0.1, 0.4])


def test_candidates_of_other_data_are_refused(key):
    phis = jnp.stack([OPTIMUM, SHIFTED], axis=1)
    given = {"model": MODEL, "family": FAMILY}
    for wrong in (phis[:4], phis[:, 0], phis[..., :3]):
        with pytest.raises(ValueError, match=r"phis must have shape \[N, candidates, size\] = \[6, candidates, 4\]"):
            inspect.unwrap(ag.evaluate_bounds)(key, wrong, XS, **given)
    with pytest.raises(ValueError, match="block_size must be a whole number"):
        ag.evaluate_bounds(key, phis, XS, block_size=0, **given)
    few = ag.evaluate_bounds(key, phis, XS, num_samples=20, chunk_size=4, **given)
    host = inspect.unwrap(ag.evaluate_bounds)(
        key, np.asarray(phis), np.asarray(XS), num_samples=20, chunk_size=4, **given
    )
    np.testing.assert_array_equal(few.elbo, host.elbo)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"evidence_method": "exakt"}, "evidence_method must be one of .* got 'exakt'"),
        (
            {
                "evidence_method": "quadrature",
                "model": ag.models.from_log_joint(MODEL.log_joint, latent_dim=4),
                "family": ag.families.MeanFieldNormal(4),
                "encoder": lambda x: jnp.zeros(8),
            },
            "latent dimensions up to 3",
        ),
        (
            {"evidence_method": "exact", "model": ag.models.from_log_joint(MODEL.log_joint, latent_dim=2)},
            "log_evidence",
        ),
        (
            {"evidence_method": "ais", "model": ag.models.from_log_joint(MODEL.log_joint, latent_dim=2)},
            "start 'prior' needs model.log_prior, .* LogJoint has",
        ),
        ({"evidence_samples": 1}, "evidence_samples must be a whole number, at least 2, got 1"),
        ({"local": local_fit(OPTIMUM[:3])}, r"local.phi must have shape \[N, size\] = \(6, 4\)"),
        ({"evidence": ag.evidence.exact(XS[0], model=MODEL)}, r"evidence must hold 6 values, got shape \(\)"),
        (
            {
                "family": ag.families.MixtureOfNormals(2, 2),
                "optimum_samples": 64,
                "encoder": lambda x: ag.families.MixtureOfNormals(2, 2).standard(),
            },
            "optimum_samples: fixed noise needs",
        ),
    ],
)
def test_nothing_is_fitted_before_everything_is_checked(monkeypatch, key, change, message):
    def never(*args, **kwargs):
        raise AssertionError("local VI ran before the arguments were judged")

    monkeypatch.setattr("amortgap.gaps.measure.fit_local", never)
    with pytest.raises(ValueError, match=message):
        ag.inference_gaps(key, XS, **({"model": MODEL, "family": FAMILY, "encoder": ENCODER} | change))
