"""Intervals of gaps against closed forms: the sandwich of the local optimum, the table, and their coverage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import amortgap as ag
from amortgap.evidence import EvidenceBounds, suboptimality_bound, suboptimality_bound_of_data
from amortgap.gaps import Bound, estimate
from amortgap.inference import LocalFit


def local_fit(phis):
    """A fit that claims nothing but its phi."""
    zeros = jnp.zeros(phis.shape[0])
    return LocalFit(phis, *[zeros] * 6, zeros.astype(int), zeros.astype(int), zeros == 0)


@pytest.fixture(scope="module")
def measured(factor_analysis, simulated, optima):
    """Gaps of an encoder that halves the posterior mean, measured at local fits that are 0.05 off in every mean."""

    def encoder(x):
        scale = jnp.diag(jnp.diag(factor_analysis.posterior_precision()) ** -0.5)
        return ag.families.MeanFieldNormal(2).from_moments(0.5 * factor_analysis.posterior_mean(x), scale)

    off = optima.at[:, :2].add(0.05)
    return ag.inference_gaps(
        jax.random.key(1),
        simulated.xs,
        model=factor_analysis,
        family=ag.families.MeanFieldNormal(2),
        encoder=encoder,
        local=local_fit(off),
        num_samples=200,
        optimum_samples=128,
    )


def test_bounds_enclose_the_closed_forms(factor_analysis, simulated, measured):
    precision = factor_analysis.posterior_precision()
    approximation = float(factor_analysis.approximation_gap())
    means = 0.5 * jax.vmap(factor_analysis.posterior_mean)(simulated.xs)
    amortization = float(0.5 * jnp.mean(jnp.sum((means @ precision) * means, axis=1)))
    truth = {
        "approximation": approximation,
        "amortization": amortization,
        "inference": approximation + amortization,
    }
    for name, value in truth.items():
        low, high = measured.interval(name, 0.999)
        assert low < value < high, name
        assert high - low < 0.25, name
    # The fit is off by 1/2 d' Lambda d, so an interval from the fit alone would miss the truth.
    shift = jnp.full(2, 0.05)
    miss = float(0.5 * shift @ precision @ shift)
    excess = measured.suboptimality_bound
    assert float(jnp.mean(excess.value)) > miss
    assert excess.proven


def test_excess_falls_with_the_number_of_draws_and_is_nothing_less_than_zero(factor_analysis, simulated, optima, key):
    family = ag.families.MeanFieldNormal(2)
    few, many = (
        suboptimality_bound_of_data(key, optima, simulated.xs, model=factor_analysis, family=family, num_samples=n)
        for n in (32, 512)
    )
    assert float(jnp.min(few.value)) >= 0 and float(jnp.min(many.value)) >= -1e-5
    # 1/n: sixteen times the draws; the spread over 120 data leaves the ratio known to about 15 %.
    assert 8 < float(jnp.mean(few.value) / jnp.mean(many.value)) < 32


def test_excess_equals_a_grid_search_over_the_same_noise(key):
    """One latent, both parameters of q on a grid: nothing beats what L-BFGS found."""
    model = ag.models.PoissonGamma(shape=jnp.array(1.5), rate=jnp.array(0.7))
    family = ag.families.MeanFieldNormal(1)
    x, phi = jnp.array([3.0]), jnp.array([0.6, -0.6])
    found = suboptimality_bound(key, phi, x, model=model, family=family, num_samples=16, num_replicates=2)
    best = []
    for replicate in jax.random.split(key, 2):
        half = jax.random.normal(replicate, (8, 1))
        noise = jnp.concatenate([half, -half])

        def objective(candidate, noise=noise):
            def value(e):
                z = family.transform(e, candidate)
                return model.log_joint(z, x) - family.log_prob(z, candidate)

            return jnp.mean(jax.vmap(value)(noise))

        grid = jnp.stack(jnp.meshgrid(jnp.linspace(0, 1.6, 161), jnp.linspace(-2, 0.5, 251)), -1).reshape(-1, 2)
        best.append(float(jnp.max(jax.lax.map(objective, grid, batch_size=2000)) - objective(phi)))
    np.testing.assert_allclose(found.value, np.mean(best), atol=2e-4)
    np.testing.assert_allclose(found.standard_error, np.std(best, ddof=1) / 2**0.5, atol=2e-4)


@pytest.mark.parametrize("outside", [-jnp.inf, jnp.nan])
def test_excess_bounds_nothing_where_a_draw_at_the_fit_has_no_log_joint(key, outside):
    model = ag.models.from_log_joint(lambda z, x: jnp.where(z[0] > 2.0, outside, -0.5 * jnp.sum(z**2)), latent_dim=1)
    found = suboptimality_bound(
        key, jnp.zeros(2), jnp.zeros(1), model=model, family=ag.families.MeanFieldNormal(1), num_samples=512
    )
    assert jnp.isposinf(found.value) and jnp.isposinf(found.standard_error)


def test_only_concave_models_with_normal_families_are_proven(factor_analysis, mixture, key):
    def proven(model, family):
        found = []

        def trace():
            found.append(suboptimality_bound(key, family.standard(), model.sample(key)[1], model=model, family=family))
            return found[0].value

        jax.eval_shape(trace)
        return found[0].proven

    assert proven(factor_analysis, ag.families.FullRankNormal(2))
    assert not proven(factor_analysis, ag.families.LowRankNormal(2, 1))
    assert not proven(mixture, ag.families.MeanFieldNormal(1))


def make_gaps(**changes):
    row = jnp.array([1.0, 2.0, 3.0])
    fields = {
        "log_evidence": row + 1,
        "elbo_local": row,
        "elbo_amortized": row - 0.5,
        "log_evidence_standard_error": row * 0 + 0.03,
        "elbo_local_standard_error": row * 0 + 0.04,
        "elbo_amortized_standard_error": row * 0,
        "amortization_standard_error": row * 0 + 0.01,
        "converged": row > 0,
        "suboptimality": row * 0,
        "evidence_method": "test",
        "evidence_bias": "lower bound",
    }
    return ag.Gaps(**(fields | changes))


def test_sides_without_a_bound_stay_open():
    gaps = make_gaps()
    assert gaps.bounds()["approximation"] == (None, None)
    assert gaps.interval("inference")[1] == np.inf and gaps.interval("amortization")[1] == np.inf
    assert np.isclose(gaps.interval("inference")[0], 1.5 - 1.959964 * 0.03 / 3**0.5)
    with pytest.raises(ValueError, match="name must be one of"):
        gaps.interval("gap")


def test_proof_and_errors_carry_through_the_arithmetic():
    ones = jnp.ones(3)
    gaps = make_gaps(
        evidence_upper=Bound(jnp.array([2.5, 3.5, 4.5]), 0.05 * ones, False),
        suboptimality_bound=Bound(0.2 * ones, 0.03 * ones, True),
    )
    lower, upper = gaps.bounds()["approximation"]
    np.testing.assert_allclose(lower.value, 0.8, rtol=1e-5)
    np.testing.assert_allclose(lower.standard_error, (0.03**2 + 0.04**2 + 0.03**2) ** 0.5, rtol=1e-5)
    np.testing.assert_allclose(upper.value, 1.5, rtol=1e-5)
    assert lower.proven and not upper.proven
    table = gaps.summary()
    row = next(line for line in table.splitlines() if line.startswith("approximation"))
    assert row.split()[-2].endswith("p") and row.split()[-1].endswith("h")
    assert "SE (data)" in table and "SE (draws)" in table


def test_a_sandwich_serves_as_evidence(factor_analysis, simulated, optima):
    xs = simulated.xs[:4]
    value = jax.vmap(factor_analysis.log_evidence)(xs)
    bounds = EvidenceBounds(
        lower=value - 0.1,
        upper=value + 0.1,
        lower_standard_error=0 * value,
        upper_standard_error=0 * value,
        acceptance=0 * value,
        proven=False,
        method="made up",
    )
    gaps = ag.inference_gaps(
        jax.random.key(0),
        xs,
        model=factor_analysis,
        family=ag.families.MeanFieldNormal(2),
        encoder=lambda x: jnp.zeros(4),
        local=local_fit(optima[:4]),
        evidence=bounds,
        num_samples=10,
    )
    lower, upper = gaps.bounds()["inference"]
    np.testing.assert_allclose(upper.value - lower.value, 0.2, rtol=1e-4)
    assert lower.proven and not upper.proven


def test_data_without_evidence_are_named_in_the_table():
    gaps = make_gaps(
        log_evidence=jnp.array([1.0, -jnp.inf, 2.0]), log_evidence_standard_error=jnp.array([0.1, jnp.inf, 0.1])
    )
    table = gaps.summary()
    assert "log_evidence is not finite for 1 data: [1]" in table
    assert "nan" not in table


def test_intervals_of_a_mean(key):
    values = jax.random.normal(key, (2000, 9)) + 3
    inside = [low < 3 < high for low, high in (estimate(row, 0 * row).interval(0.9) for row in values)]
    assert abs(np.mean(inside) - 0.9) < 4 * (0.09 / 2000) ** 0.5
    row = estimate(jnp.zeros(4), jnp.ones(4))
    np.testing.assert_allclose(row.interval(over="draws"), (-0.979982, 0.979982), rtol=1e-5)
    with pytest.raises(ValueError, match="over must be 'data' or 'draws'"):
        row.interval(over="chains")
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        row.interval(1.5)


def test_two_encoders_are_compared_on_the_same_data(key):
    """The noise that both share cancels: the paired error is the spread of the differences."""
    shared = 5 * jax.random.normal(key, (400,))
    own = 0.1 * jax.random.normal(jax.random.fold_in(key, 1), (400,))
    found = ag.gaps.paired_difference(shared + own + 0.3, shared)
    np.testing.assert_allclose(found.data_standard_error, 0.1 / 20, rtol=0.15)
    assert abs(float(found.mean) - 0.3) < 4 * float(found.data_standard_error)
    # Errors that were not given are unknown, not zero.
    assert np.isnan(found.monte_carlo_standard_error)


def test_difference_of_the_gaps_of_two_encoders_is_the_closed_form(factor_analysis, simulated, key):
    """One encoder shortens the posterior mean, the other shifts it; both keep the best scales."""
    family = ag.families.MeanFieldNormal(2)
    precision = factor_analysis.posterior_precision()
    scale = jnp.diag(jnp.diag(precision) ** -0.5)

    def short(x):
        return family.from_moments(0.7 * factor_analysis.posterior_mean(x), scale)

    def shifted(x):
        return family.from_moments(factor_analysis.posterior_mean(x) + 0.2, scale)

    def compare(first, second):
        return ag.compare_encoders(
            key, simulated.xs, model=factor_analysis, family=family, first=first, second=second, num_samples=50
        )

    means = jax.vmap(factor_analysis.posterior_mean)(simulated.xs)
    of_short = 0.5 * 0.3**2 * jnp.sum((means @ precision) * means, axis=1)
    of_shifted = 0.5 * 0.2**2 * jnp.sum(precision)
    truth = of_short - of_shifted
    found = compare(short, shifted)
    assert abs(float(found.mean - jnp.mean(truth))) < 4 * float(found.monte_carlo_standard_error) < 0.1
    # The variance over data is that of the true difference plus that of the draws.
    expected = jnp.hypot(jnp.std(truth, ddof=1) / 120**0.5, found.monte_carlo_standard_error)
    np.testing.assert_allclose(found.data_standard_error, expected, rtol=0.2)
    np.testing.assert_allclose(compare(shifted, short).mean, -found.mean, rtol=1e-5)
    same = compare(short, short)
    assert same.mean == 0 and same.monte_carlo_standard_error == 0
    with pytest.raises(ValueError, match=r"second is no encoder of this family.*family.size = 4, got \(3,\)"):
        compare(short, lambda x: x)


def test_intervals_of_all_gaps_hold_the_truth_as_often_as_they_say(factor_analysis, key):
    """Three hundred data sets of 100 data, an encoder that shortens the mean, the optimum in closed form."""
    sets, size = 300, 100
    family = ag.families.MeanFieldNormal(2)
    precision = factor_analysis.posterior_precision()
    scale = jnp.diag(jnp.diag(precision) ** -0.5)
    xs = ag.diagnostics.simulate(key, model=factor_analysis, num_data=sets * size).xs
    means = jax.vmap(factor_analysis.posterior_mean)(xs)

    def encoder(x):
        return family.from_moments(0.7 * factor_analysis.posterior_mean(x), 1.2 * scale)

    gaps = ag.inference_gaps(
        jax.random.fold_in(key, 1),
        xs,
        model=factor_analysis,
        family=family,
        encoder=encoder,
        local=local_fit(jax.vmap(lambda mean: family.from_moments(mean, scale))(means)),
        num_samples=40,
    )
    spread = 0.5 * 2 * (1.2**2 - 1 - 2 * np.log(1.2))
    exact = {
        "approximation": jnp.full(xs.shape[0], factor_analysis.approximation_gap()),
        "amortization": 0.5 * 0.3**2 * jnp.sum((means @ precision) * means, axis=1) + spread,
    }
    exact["inference"] = exact["approximation"] + exact["amortization"]
    # E[m' Lambda m] = tr(Lambda - I), since Cov(m) = I - Lambda^-1.
    population = {"approximation": exact["approximation"][0]}
    population["amortization"] = 0.5 * 0.3**2 * (jnp.trace(precision) - 2) + spread
    population["inference"] = population["approximation"] + population["amortization"]
    found = jax.device_get(
        [jax.tree.map(lambda leaf, n=n: leaf[n * size : (n + 1) * size], gaps).estimates() for n in range(sets)]
    )
    for name, truth in exact.items():
        of_sets = np.asarray(truth).reshape(sets, size).mean(axis=1)
        for over, targets in (("data", np.full(sets, population[name])), ("draws", of_sets)):
            ends = [each[name].interval(0.95, over=over) for each in found]
            share = np.mean([low <= t <= high for (low, high), t in zip(ends, targets, strict=True)])
            assert abs(share - 0.95) < 4 * (0.95 * 0.05 / sets) ** 0.5, (name, over, share)
