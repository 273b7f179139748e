"""Local VI on posteriors of two modes: every start followed to its end, and the best end kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import amortgap as ag
from amortgap.inference.local.records import LocalFit, keep_better

# Modes many standard deviations apart: the best normal in one of them loses the log of its share. The standard member
# lies over the greater one but is so wide that an encoder which is right about the lesser one has the larger ELBO.
MODEL = ag.models.MixturePrior(
    log_weights=jnp.log(jnp.array([0.9, 0.1])),
    centres=jnp.array([[0.0], [4.0]]),
    scales=jnp.full((2, 1), 0.15),
    loadings=jnp.array([[0.3]]),
    mean=jnp.zeros(1),
    noise_variance=jnp.ones(1),
)
FAMILY = ag.families.MeanFieldNormal(1)
XS = jnp.array([[0.5], [0.6], [0.7]])
POSTERIOR = jax.vmap(MODEL.posterior)(XS)
EVIDENCE = jax.vmap(MODEL.log_evidence)(XS)
GIVEN = {"model": MODEL, "family": FAMILY}
GREATER, LESSER = (
    jax.vmap(lambda mean, cov: FAMILY.from_moments(mean, jnp.sqrt(cov)))(
        POSTERIOR.means[:, k], POSTERIOR.covariances[:, k]
    )
    for k in (0, 1)
)


def lesser_mode(x):
    """An encoder that is right about the lesser mode."""
    posterior = MODEL.posterior(x)
    return FAMILY.from_moments(posterior.means[1], jnp.sqrt(posterior.covariances[1]))


def is_in_mode(fit, k, rows=slice(None)):
    expected = (EVIDENCE + POSTERIOR.log_weights[:, k])[rows]
    return np.all(np.abs(fit.elbo - expected) < 0.02 + 5 * fit.standard_error)


def test_the_best_start_may_lead_to_the_lesser_mode_and_every_start_does_not(key):
    best_start = ag.fit_local(key, XS, init=LESSER, **GIVEN)
    assert is_in_mode(best_start, 1) and best_start.converged.all()
    every = ag.fit_local(key, XS, init=LESSER, every_start=True, **GIVEN)
    assert is_in_mode(every, 0) and every.converged.all()
    np.testing.assert_allclose(every.phi[:, 0], POSTERIOR.means[:, 0, 0], atol=0.05)
    # What was kept is the run from the standard member; what both took is counted.
    cold = ag.fit_local(jax.random.split(key)[1], XS, **GIVEN)
    np.testing.assert_array_equal(every.phi, cold.phi)
    assert np.all(every.num_gradients - cold.num_gradients >= 400)
    assert np.all(every.num_steps - cold.num_steps >= 200)


def test_starts_of_encoder_and_init_are_both_followed(key):
    two = ag.fit_local(key, XS, encoder=lesser_mode, every_start=True, **GIVEN)
    three = ag.fit_local(key, XS, init=GREATER, encoder=lesser_mode, every_start=True, **GIVEN)
    assert is_in_mode(two, 0) and is_in_mode(three, 0)
    assert np.all(three.num_gradients > two.num_gradients)


def test_one_datum_follows_every_row_of_its_starts(key):
    init = jnp.stack([LESSER[0], LESSER[0] + 0.1])
    assert is_in_mode(ag.local_vi(key, XS[0], init=init, **GIVEN), 1, 0)
    fit = ag.local_vi(key, XS[0], init=init, every_start=True, **GIVEN)
    assert is_in_mode(fit, 0, 0) and fit.phi.shape == (FAMILY.size,)
    alone = ag.local_vi(key, XS[0], every_start=True, **GIVEN)
    np.testing.assert_array_equal(alone.phi, ag.local_vi(key, XS[0], **GIVEN).phi)


@pytest.mark.parametrize("every_start", [True, False])
def test_gaps_count_what_the_lesser_mode_costs(key, every_start):
    gaps = ag.inference_gaps(key, XS, encoder=lesser_mode, every_start=every_start, num_samples=400, **GIVEN)
    ends = POSTERIOR.log_weights[:, 0 if every_start else 1]
    np.testing.assert_allclose(gaps.amortization, ends - POSTERIOR.log_weights[:, 1], atol=0.1)
    np.testing.assert_allclose(gaps.approximation, -ends, atol=0.1)


def fits(elbo, standard_error, converged, number):
    n = len(elbo)
    numbers = jnp.full(n, float(number))
    return LocalFit(
        phi=jnp.full((n, 2), float(number)),
        elbo=jnp.asarray(elbo),
        standard_error=jnp.asarray(standard_error),
        start_elbo=numbers,
        suboptimality=numbers,
        suboptimality_standard_error=numbers,
        horizon_gain=numbers,
        num_steps=jnp.full(n, 10 * number),
        num_gradients=jnp.full(n, 20 * number),
        converged=jnp.asarray(converged),
    )


def test_a_second_fit_is_kept_only_where_it_is_better_beyond_noise_and_tolerance():
    nan, inf = np.nan, np.inf
    cases = [  # first elbo, error, converged; second elbo, error, converged; which is kept
        (0.0, 0.0, True, 0.05, 0.0, True, 1),  # within the tolerance
        (0.0, 0.0, True, 0.2, 0.0, True, 2),
        (0.0, 0.1, True, 0.4, 0.1, True, 1),  # within three joint errors
        (0.0, 0.1, True, 0.5, 0.1, True, 2),
        (0.0, 0.0, True, 5.0, 0.0, False, 2),  # better, and said not to have converged
        (0.0, 0.0, False, 0.05, 0.0, True, 2),  # larger, and it alone converged
        (0.0, 0.0, False, -0.05, 0.0, True, 1),
        (0.0, 0.0, False, -0.5, 0.0, True, 1),
        (0.0, 0.0, False, 0.05, 0.0, False, 1),
        (nan, nan, False, -9.0, 0.1, False, 2),
        (-inf, nan, False, -9.0, 0.1, True, 2),
        (-9.0, 0.1, True, nan, nan, False, 1),
        (nan, nan, False, nan, nan, False, 1),
    ]
    columns = list(zip(*cases, strict=True))
    kept = keep_better(fits(*columns[:3], 1), fits(*columns[3:6], 2), tolerance=0.1)
    np.testing.assert_array_equal(kept.start_elbo, columns[6])
    np.testing.assert_array_equal(kept.phi, np.stack([columns[6]] * 2, 1))
    np.testing.assert_array_equal(kept.num_steps, 30)
    np.testing.assert_array_equal(kept.num_gradients, 60)
