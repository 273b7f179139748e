"""`diagnose` against exact gaps, and what it does when time is short."""

import dataclasses
import importlib
import itertools
import types

import exact_problems as exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import amortgap as ag
from amortgap.diagnosis import measure, remedies, trials
from amortgap.diagnosis.latents import coverage
from amortgap.diagnosis.records import Budget, Measured, Problem

# The function of this name hides its module.
home = importlib.import_module("amortgap.diagnosis.diagnose")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(measure, "BATCH", 20)


def run(name, **options):
    model, encoder, train, test = exact.problem(name)
    settings = {"remedies": (), "budget": 600.0} | options
    return ag.diagnose(jax.random.key(1), train, test, model=model, family=exact.FAMILY, encoder=encoder, **settings)


@pytest.fixture(scope="module")
def crippled():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "BATCH", 20)
        # A clock of its own: what is tried must not depend on how fast this machine is.
        ticks = itertools.count(0.0, 0.5)
        patch.setattr(home, "Budget", lambda seconds: Budget(seconds, lambda: next(ticks)))
        return run("amortization", remedies=("refine 5 steps", "refine 20 steps", "more training"))


def exact_gaps(name):
    """Mean approximation gap, and amortization gap of every datum of both parts."""
    model, encoder, train, test = exact.problem(name)
    precision = exact.precision(model)
    approximation = 0.5 * (np.sum(np.log(np.diag(precision))) - np.linalg.slogdet(precision)[1])

    def amortization(xs):
        errors = np.asarray(jax.vmap(encoder)(xs))[:, : exact.DIM] - exact.posterior_means(model, xs)
        return 0.5 * np.einsum("ni,ij,nj->n", errors, precision, errors)

    return approximation, amortization(train), amortization(test)


@pytest.mark.parametrize("name", ["healthy", "approximation", "generalization"])
def test_the_cause_is_named_and_gaps_are_exact(name):
    found = run(name)
    assert found.verdict.name == name
    approximation, train, test = exact_gaps(name)
    for part, exactly in ((found.train, train), (found.test, test)):
        assert sorted(part.rows) == list(range(len(exactly)))
        gaps = part.gaps
        for values, right, error in (
            (gaps.amortization, exactly[part.rows], gaps.amortization_standard_error),
            (gaps.approximation, approximation, gaps.elbo_local_standard_error),
        ):
            # Five standard errors for the largest of a hundred, and what local VI may leave.
            assert np.all(np.abs(np.asarray(values) - right) < 5 * np.asarray(error) + 0.012)
    assert found.generalization.mean == pytest.approx(test.mean() - train.mean(), abs=0.05)
    assert f"verdict: {name}" in found.summary()


def test_a_clean_bill_is_all_that_a_healthy_model_gets():
    found = run("healthy")
    assert [finding.name for finding in found.findings] == ["healthy"]
    assert not found.remedies[0].gain.mean > 0.02
    np.testing.assert_allclose(found.latents.encoder, found.latents.local, atol=0.03)
    # Latents of this model have precision 1 + 2 / 0.4, and vary with the data by the rest of a unit variance.
    np.testing.assert_allclose(found.latents.encoder, 1 - 1 / 6, atol=0.1)
    within = np.abs(found.coverage.share - found.coverage.levels)
    assert np.all(within < 4 * np.maximum(found.coverage.standard_error, 0.01))


def test_coverage_leaves_out_data_whose_own_weights_cannot_be_trusted(key):
    """However log p(x) was had: here it has no k-hat at all."""
    model = ag.models.from_log_joint(lambda z, x: -0.5 * jnp.sum((z - x) ** 2), latent_dim=2)
    xs = jnp.array([[0.0, 1.0], [2.0, -1.0], [1.0, 1.0], [0.5, -0.5]])
    posterior = jax.vmap(lambda x: exact.FAMILY.from_moments(x, jnp.eye(2)))(xs)
    narrow = exact.FAMILY.from_moments(xs[1], 0.3 * jnp.eye(2))
    richer = ag.families.FullRankNormal(2)

    def found(phis):
        problem = Problem(model, exact.FAMILY, None, xs, xs)
        proposal = jax.vmap(lambda phi: richer.from_moments(*exact.FAMILY.moments(phi)))(phis)
        none = jnp.full(4, -jnp.inf)
        measured = Measured(np.arange(4), None, none, none, posterior, phis, None, None, proposal)
        return coverage(key, measured, xs, problem)

    right, without = found(posterior), found(posterior.at[1].set(narrow))
    # Weights are constant: what is left is the noise of five hundred draws for the threshold and as many inside.
    noise = np.sqrt(2 * right.levels * (1 - right.levels) / 500 / 3)
    assert np.all(np.abs(without.share - right.levels) < 4 * noise)
    np.testing.assert_allclose(4 * right.share - 3 * without.share, right.levels, atol=4 * noise.max() * 3**0.5)
    assert np.all(right.standard_error > 0)


def test_a_crippled_encoder_is_named_and_what_it_ignores(crippled):
    assert crippled.verdict.name == "amortization"
    assert any("ignores latents [1]" in finding.text for finding in crippled.findings)
    assert crippled.latents.encoder[1] < 0.01 < crippled.latents.local[1]
    test = exact_gaps("amortization")[2]
    estimates = crippled.test.gaps.estimates()["amortization"]
    assert float(estimates.mean) == pytest.approx(
        test.mean(), abs=5 * float(estimates.monte_carlo_standard_error) + 0.01
    )
    # Too narrow where it does not look: the posterior lies outside of its regions too often.
    assert crippled.coverage.share[2] < crippled.coverage.levels[2] - 4 * crippled.coverage.standard_error[2]
    assert crippled.verdict.status == "proven"


def test_remedies_are_ranked_by_what_they_bring(crippled):
    tried = [remedy for remedy in crippled.remedies if not remedy.limit]
    gains = {remedy.name: remedy for remedy in crippled.remedies}
    assert {remedy.name for remedy in tried} == {"refine 5 steps", "refine 20 steps", "more training"}
    means = [float(remedy.gain.mean) for remedy in tried]
    assert means == sorted(means, reverse=True)
    _, _, test = exact_gaps("amortization")
    limit = gains["best encoder of this family"]
    assert limit.limit and float(limit.gain.mean) == pytest.approx(test.mean(), rel=0.1)
    # The posterior is independent: full rank can buy no more, and nothing can exceed the limit.
    assert float(gains["best full-rank normals"].gain.mean) == pytest.approx(float(limit.gain.mean), abs=0.05)
    assert max(means) < float(limit.gain.mean) + 0.05
    # Twenty natural-gradient steps on a quadratic arrive; the trained weights start from the half-blind ones.
    assert float(gains["refine 20 steps"].gain.mean) > 0.9 * test.mean()
    assert float(gains["more training"].gain.mean) > 0.5 * test.mean()
    assert gains["refine 5 steps"].gradients == 20
    assert gains["more training"].parameters == exact.D * exact.DIM + exact.D + exact.DIM


def test_little_time_measures_the_first_of_the_same_data_and_tries_nothing(crippled, monkeypatch):
    ticks = itertools.count(0.0, 8.0)
    monkeypatch.setattr(home, "Budget", lambda seconds: Budget(seconds, lambda: next(ticks)))
    found = run("amortization", budget=30.0, remedies=("refine 5 steps", "wider encoder"))
    for part, whole in ((found.train, crippled.train), (found.test, crippled.test)):
        assert len(part.rows) == 20 < len(whole.rows)
        np.testing.assert_array_equal(part.rows, whole.rows[:20])
        np.testing.assert_allclose(part.gaps.amortization, whole.gaps.amortization[:20], atol=1e-5)
    assert [name for name, why in found.skipped if "no time left" in why] == ["refine 5 steps", "wider encoder"]


def test_a_short_rest_of_time_goes_to_the_first_remedies_as_much_as_they_need(key, crippled, monkeypatch):
    now, given = [0.0], []

    def trial(takes):
        def run(key, context, seconds):
            given.append(seconds)
            now[0] += takes
            raise trials.NotTried("a stand-in")

        return run

    takes = dict(zip(remedies.REMEDIES, (1.0, 1.0, 6.0, 6.0, 6.0, 6.0), strict=True))
    monkeypatch.setattr(remedies, "TRIALS", {name: trial(seconds) for name, seconds in takes.items()})
    context = trials.TrialContext(problem=None, test=crippled.test, xs=None, budget=Budget(9.0, lambda: now[0]))
    _, skipped = remedies.try_remedies(key, context, names=remedies.REMEDIES, seconds=9.0, progress=lambda step: None)
    assert given == [2.0, 2.0, 6.0]
    late = [name for name, why in skipped if why == "no time left: 1.0 s, and it takes 6 at least"]
    assert late == ["training with simulated data", "wider encoder", "full-rank encoder"]
    # With plenty of time the shares are even.
    now[0], given[:] = 0.0, []
    remedies.try_remedies(key, context, names=remedies.REMEDIES[:3], seconds=90.0, progress=lambda step: None)
    assert given == [30.0, 44.5, 88.0]


def test_refinement_that_throws_data_off_is_not_kept():
    # From so wide a start on exp(z) the first steps are not finite, or far worse.
    model = ag.models.from_log_joint(lambda z, x: jnp.sum(x * z - jnp.exp(z) - 0.5 * z**2), latent_dim=2)
    xs = jnp.ones((6, 2))
    encoded = jnp.where(jnp.arange(6)[:, None] < 3, jnp.array([[8.0, 8, 1, 1]]), jnp.array([[0.0, 0, -0.5, -0.5]]))
    context = trials.TrialContext(
        Problem(model, exact.FAMILY, None, xs, xs), types.SimpleNamespace(encoded=encoded), xs, Budget(60.0)
    )
    done = remedies.TRIALS["refine 20 steps"](jax.random.key(0), context, 1.0)
    before, after = (
        ag.evaluate_bounds(jax.random.key(1), phis[:, None], xs, model=model, family=exact.FAMILY).elbo[:, 0]
        for phis in (encoded, done.phis)
    )
    assert np.all(np.isfinite(done.phis))
    assert np.all(after >= before - 0.05)


def test_remedies_that_do_not_apply_say_why():
    model, _, train, test = exact.problem("healthy")
    opaque = ag.models.from_log_joint(model.log_joint, latent_dim=exact.DIM)
    found = ag.diagnose(
        jax.random.key(1),
        train[:20],
        test[:20],
        model=opaque,
        family=ag.families.FullRankNormal(exact.DIM),
        encoder=lambda x: jnp.zeros(ag.families.FullRankNormal(exact.DIM).size),
        budget=600.0,
        remedies=("more training", "training with simulated data", "full-rank encoder"),
    )
    why = dict(found.skipped)
    assert "no weights" in why["more training"]
    assert "has no `sample`" in why["training with simulated data"]
    assert "full rank" in why["full-rank encoder"]
    line = Problem(ag.models.PoissonGamma(shape=1.0, rate=1.0), ag.families.MeanFieldNormal(1), None, None, None)
    with pytest.raises(trials.NotTried, match="one latent dimension it is the same family"):
        remedies.TRIALS["full-rank encoder"](
            jax.random.key(0), trials.TrialContext(line, None, None, Budget(60.0)), 1.0
        )


def test_training_that_the_time_hardly_allows_is_not_tried():
    model, encoder, train, test = exact.problem("healthy")
    ticks = itertools.count(0.0, 1.0)
    problem = Problem(model, exact.FAMILY, encoder, train, test)
    context = trials.TrialContext(problem, None, test, Budget(600.0, lambda: next(ticks)))
    with pytest.raises(trials.NotTried, match=r"the time allows \d+ steps of training, too few to tell"):
        remedies.TRIALS["more training"](jax.random.key(0), context, 4.0)


def refused(message, **changes):
    model, encoder, train, test = exact.problem("healthy")
    settings = {"model": model, "family": exact.FAMILY, "encoder": encoder, "xs_train": train, "xs_test": test}
    settings |= changes
    with pytest.raises(ValueError, match=message):
        ag.diagnose(
            settings.pop("key", jax.random.key(0)), settings.pop("xs_train"), settings.pop("xs_test"), **settings
        )


def test_bad_input_is_refused_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr(home, "measure", lambda *args, **kwargs: pytest.fail("measured"))
    test = exact.problem("healthy")[3]
    refused("budget must be at least 30 seconds, got 5", budget=5.0)
    refused("budget must be a positive number", budget=float("nan"))
    refused("tolerance must be a positive number, got 0", tolerance=0.0)
    refused("max_data must be a whole number, at least 2, got 1", max_data=1)
    refused("remedies must be one of 'refine 5 steps', .*got 'prayer'", remedies=("prayer",))
    refused("typed key", key=jax.random.PRNGKey(0))
    refused("xs_test must hold at least two data.*got 1", xs_test=test[:1])
    refused("xs_test must have shape", xs_test=test[:, :3])
    refused("same latent dimension", family=ag.families.MeanFieldNormal(3))
    refused(r"family.size = 4, got \(3,\)", encoder=lambda x: x[:3])
    refused("encoder returns values that are not finite", encoder=lambda x: jnp.full(4, jnp.nan))
    refused(r"image_shape must be .*got \(3, 3\)", image_shape=(3, 3))

    def bad_model(function):
        return ag.models.from_log_joint(function, latent_dim=exact.DIM)

    refused("must return one scalar", model=bad_model(lambda z, x: z))
    refused("log_joint is not finite at a draw", model=bad_model(lambda z, x: jnp.log(-jnp.abs(z[0]) - 1) + x[0]))
    refused(
        "xs_train and xs_test must hold data of one shape",
        model=bad_model(lambda z, x: -jnp.sum(z**2)),
        xs_test=test[:, :3],
        encoder=lambda x: jnp.zeros(4),
    )


def test_images_are_told_from_vectors():
    guess = home._image_shape
    assert guess(jnp.zeros((3, 784)), None) == (28, 28)
    assert guess(jnp.zeros((3, 16)), None) is None
    assert guess(jnp.zeros((3, 8, 5)), None) == (8, 5)
    assert guess(jnp.zeros((3, 12)), (2, 2, 3)) == (2, 2, 3)
    assert guess({"a": jnp.zeros((3, 64)), "b": jnp.zeros(3)}, None) is None


def test_findings_weigh_errors():
    found = run("approximation")
    estimate = found.test.gaps.estimates()["approximation"]
    from amortgap.diagnosis.findings import findings

    def names(tolerance):
        return [
            (f.name, f.status)
            for f in findings(found.train, found.test, found.generalization, found.latents, tolerance)
        ]

    assert names(0.1)[0] == ("approximation", "proven")
    close = float(estimate.mean) + float(estimate.data_standard_error)
    assert ("approximation", "not resolved") in names(close)
    assert names(10.0)[0][0] == "healthy"
    late = dataclasses.replace(found.test.gaps, converged=jnp.zeros_like(found.test.gaps.converged))
    doubtful = found.test._replace(gaps=late, evidence_k=np.full(len(found.test.rows), 0.9))
    said = findings(found.train, doubtful, found.generalization, found.latents, 0.1)
    assert {"local optima", "evidence"} <= {finding.name for finding in said}
    errors = jnp.zeros(len(found.test.rows)).at[0].set(0.2)
    coarse = dataclasses.replace(found.test.gaps, log_evidence_standard_error=errors, evidence_bias="numerical")
    said = findings(found.train, found.test._replace(gaps=coarse), found.generalization, found.latents, 0.1)
    (grid,) = (finding for finding in said if finding.name == "evidence")
    assert "does not resolve the posterior of 1 of" in grid.text and grid.status == "not resolved"


def test_a_remedy_that_fails_does_not_take_the_measurements_along(monkeypatch):
    def broken(key, context, seconds):
        raise FloatingPointError("the model's own\nsecond line")

    monkeypatch.setitem(remedies.TRIALS, "more training", broken)
    found = run("healthy", remedies=("more training",))
    assert dict(found.skipped)["more training"] == "it failed: FloatingPointError: the model's own"
    assert np.isfinite(found.test.gaps.amortization).all()


def test_a_gap_that_is_not_finite_does_not_hide_behind_the_other_part():
    from amortgap.diagnosis.findings import findings

    found = run("healthy")
    for broken in (jnp.nan, jnp.inf):
        gaps = dataclasses.replace(found.train.gaps, elbo_amortized=found.train.gaps.elbo_amortized.at[0].set(-broken))
        said = findings(found.train._replace(gaps=gaps), found.test, found.generalization, found.latents, 0.1)
        assert ("amortization", "not resolved") in {(finding.name, finding.status) for finding in said}
