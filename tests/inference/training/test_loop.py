"""The training loop: the best parameters, steps left out, fixed draws, early stops, and the certificate."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from amortgap.inference.training import loop, rounds, schedules
from amortgap.inference.training.certificate import encoder_certificate
from amortgap.inference.training.per_datum import PerDatum


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Noise:
    """Draws of mean 1/9 and variance 1/17 - 1/81, whatever the parameters."""

    def __call__(self, key, params, x, step):
        return jax.random.uniform(key) ** 8 + 0 * jnp.sum(params), jnp.zeros((), int)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Parabola:
    """`-|params - x|^2`, and NaN for a datum of minus one."""

    def __call__(self, key, params, x, step):
        value = -jnp.sum((params - x) ** 2)
        return jnp.where(x[0] == -1, jnp.nan, value), jnp.zeros((), int)


def run(key, objective, data, **settings):
    settings = {"optimizer": loop.ADAM, "learning_rate": 0.1, "num_steps": 8, "num_evaluations": 4, **settings}
    return loop.fit(key, jnp.zeros(1), PerDatum(objective, objective), data, **settings)


def test_full_batches_give_every_datum_draws_of_its_own(key):
    found = run(key, Noise(), jnp.zeros((400, 3)), optimizer=loop.LBFGS, learning_rate=None, num_steps=2)
    # Means of 400 draws; few single ones are near it.
    np.testing.assert_allclose(found.trace.batch_elbo, 1 / 9, atol=0.05)
    np.testing.assert_allclose(found.trace.elbo, 1 / 9, atol=0.05)
    assert not np.allclose(found.trace.batch_elbo, found.trace.elbo)


def test_steps_that_are_not_finite_are_left_out_and_counted(key):
    # One datum a step: every epoch of four steps meets the bad datum once.
    data = jnp.array([[1.0], [1.0], [1.0], [-1.0]])
    found = run(key, Parabola(), data, validation=jnp.ones((2, 1)), batch_size=1, num_steps=16)
    assert found.trace.num_skipped.tolist() == [1, 1, 1, 1] and not bool(found.finite)
    assert np.isfinite(found.trace.elbo).all() and np.isfinite(found.trace.batch_elbo).all()
    clean = run(key, Parabola(), data[:3], validation=jnp.ones((2, 1)), batch_size=1, num_steps=16)
    assert bool(clean.finite) and clean.trace.num_skipped.tolist() == [0, 0, 0, 0]
    assert 0.3 < found.params[0] < 1.0 and 0.3 < clean.params[0] < 1.0


def test_after_a_value_that_is_not_finite_training_goes_on_from_the_best_with_a_fresh_optimiser():
    best, fresh, old, new = jnp.array([1.0]), jnp.array([0.0]), jnp.array([7.0]), jnp.array([3.0])
    nothing = jnp.full(2, -jnp.inf)
    state = rounds.State(best, old, best, jnp.asarray(-1.0), nothing, nothing, jnp.asarray(True))
    for elbo, taken, params, memory in (
        (jnp.nan, True, best, fresh),
        (-2.0, False, best, fresh),
        (0.0, True, new, old),
    ):
        after = rounds.end_round(
            state, new, old, taken=jnp.array([taken]), values=jnp.full(2, elbo), fresh=fresh, half_done=False
        )
        assert (after.params, after.memory) == (params, memory)
        assert bool(after.finite) == (elbo == 0.0)


def test_an_optimiser_with_a_line_search_counts_the_data_it_visits(key):
    found = run(key, Parabola(), jnp.ones((5, 1)), optimizer=loop.LBFGS, learning_rate=None)
    assert np.all(found.trace.data_visits >= 2 * 5) and np.all(found.trace.data_visits % 5 == 0)
    adam = run(key, Parabola(), jnp.ones((5, 1)), batch_size=3)
    assert adam.trace.data_visits.tolist() == [6, 6, 6, 6]


def test_a_stop_ends_training_where_it_is_called(key):
    seen = []

    def stop(row):
        seen.append(int(row.step))
        return len(seen) == 3

    found = run(key, Parabola(), jnp.ones((5, 1)), batch_size=3, stop=stop)
    assert seen == found.trace.step.tolist() == [2, 4, 6] and int(found.num_steps) == 6
    # The end of the first half is met, so that the change is known.
    np.testing.assert_allclose(found.change, found.trace.elbo[2] - found.trace.elbo[1], rtol=1e-5)


def test_the_change_has_the_error_of_a_mean_of_paired_differences(key):
    # Between the two ends x moves from a to b: every datum changes by (a - x)^2 - (b - x)^2.
    data = jnp.array([[1.0], [2.0], [4.0], [8.0]])
    found = run(key, Parabola(), data, batch_size=4, stop=lambda row: False)
    halves = run(key, Parabola(), data, batch_size=4, stop=lambda row: int(row.step) == 4)
    ends = [halves.params[0], found.params[0]]
    changes = [(ends[0] - x) ** 2 - (ends[1] - x) ** 2 for x in np.asarray(data)[:, 0]]
    np.testing.assert_allclose(found.change, np.mean(changes), rtol=1e-4)
    np.testing.assert_allclose(found.change_standard_error, np.std(changes, ddof=1) / 2, rtol=1e-4)


def test_schedules_are_a_cosine_with_a_ramp_twice():
    number = np.arange(200)
    cycle = 0.5 * (1 + np.cos(np.pi * (number + 1) / 201)) * np.minimum(1, (number + 1) / 20)
    np.testing.assert_allclose([schedules.warmup_cosine(200)(n) for n in number], cycle, rtol=1e-4, atol=1e-7)
    both = jax.vmap(schedules.two_cycles(400))(jnp.arange(400))
    np.testing.assert_allclose(both, np.concatenate([cycle, cycle / 3]), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(schedules.cosine(7, 200), 0.5 * (1 + np.cos(np.pi * 8 / 201)), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "finite", "converged"),
    [(0.01, 0.004, True, True), (0.01, 0.006, True, False), (-0.03, 0.0, True, False), (0.0, 0.0, False, False)],
)
def test_certificate_asks_for_little_left_with_its_error(change, error, finite, converged):
    found = encoder_certificate(jnp.asarray(change), jnp.asarray(error), jnp.asarray(finite), tolerance=0.02)
    assert bool(found.converged) == converged
    assert float(found.suboptimality) == pytest.approx(change) and float(found.standard_error) == pytest.approx(error)


def test_optimisers_see_one_vector_or_the_tree(key):
    seen = []

    def init(params):
        seen.append(jax.tree.structure(params))
        return optax.EmptyState()

    spy = optax.GradientTransformation(init, lambda updates, state, params=None: (updates, state))
    params = {"a": jnp.zeros(1), "b": jnp.zeros(2)}

    @jax.tree_util.register_dataclass
    @dataclass(frozen=True)
    class Sum:
        def __call__(self, key, params, x, step):
            return -jnp.sum(params["a"]) - jnp.sum(params["b"] ** 2), jnp.zeros((), int)

    for flat in (True, False):
        seen.clear()
        found = loop.fit(
            key,
            params,
            PerDatum(Sum(), Sum()),
            jnp.ones((3, 1)),
            optimizer=spy,
            learning_rate=0.1,
            num_steps=2,
            num_evaluations=2,
            batch_size=2,
            flat=flat,
        )
        assert seen[0] == jax.tree.structure(jnp.zeros(1) if flat else params)
        assert jax.tree.structure(found.params) == jax.tree.structure(params)
