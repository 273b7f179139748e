"""Annealed importance sampling: exact values from both sides, its cost, its schedules, and a second implementation."""

import dataclasses
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import amortgap as ag
from amortgap.evidence import UnreliableEvidence, ais, linear_temperatures, sigmoid_temperatures
from amortgap.evidence.ais import make_settings, pilot_repeats, plan
from amortgap.evidence.hmc import Path, make_path, place, transition


def test_start_from_q_is_exact_where_q_is_the_posterior(factor_analysis, simulated, key):
    """Every ratio is then the constant p(x), whatever the transitions do."""
    family = ag.families.FullRankNormal(2)
    x = simulated.xs[3]
    posterior = factor_analysis.posterior(x)
    phi = family.from_moments(posterior.mean, jnp.linalg.cholesky(posterior.covariance))
    found = ag.log_evidence(
        key,
        x,
        model=factor_analysis,
        method="ais",
        family=family,
        phi=phi,
        start="q",
        num_temperatures=5,
        num_chains=4,
        num_leapfrog=2,
    )
    np.testing.assert_allclose(found.log_evidence, factor_analysis.log_evidence(x), rtol=5e-6)


@pytest.mark.parametrize("step_size", [0.3, None])
def test_a_temperature_costs_as_many_gradients_as_leapfrog_steps(key, step_size):
    calls = []

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Counted:
        latent_dim = 1

        def log_prior(self, z):
            return -0.5 * jnp.sum(z**2)

        def log_likelihood(self, z, x):
            jax.debug.callback(lambda z: calls.append(1), z)
            return -jnp.sum((z - x) ** 2)

        def log_joint(self, z, x):
            return self.log_prior(z) + self.log_likelihood(z, x)

        def sample(self, key):
            return jax.random.normal(key, (1,)), jnp.zeros(1)

    temperatures, chains, leapfrog, pilots = 6, 3, 4, 2
    found = ais(
        key,
        jnp.zeros(1),
        model=Counted(),
        num_temperatures=temperatures,
        num_chains=chains,
        num_leapfrog=leapfrog,
        num_pilots=pilots,
        step_size=step_size,
    )
    jax.block_until_ready(found.log_evidence)
    jax.effects_barrier()
    main = chains * (1 + leapfrog * (temperatures - 2))
    # The pilot run warms up for thirty transitions and makes some at every temperature up to the last.
    pilot = 0 if step_size else pilots * (1 + leapfrog * (30 + pilot_repeats(temperatures) * (temperatures - 1)))
    assert len(calls) == main + pilot


def test_a_pilot_starts_and_moves_by_keys_of_their_own(key, monkeypatch):
    starts, moves = [], []

    def record(where, draw_key):
        jax.debug.callback(lambda data: where.append(np.asarray(data).tobytes()), jax.random.key_data(draw_key))

    def sample(draw_key):
        record(starts, draw_key)
        return jnp.zeros(1)

    def stay(move_key, path, chain, beta, step_size, num_leapfrog):
        record(moves, move_key)
        return chain, jnp.ones(())

    monkeypatch.setattr(sys.modules["amortgap.evidence.ais"], "transition", stay)
    path = Path(sample=sample, log_base=jnp.sum, log_ratio=jnp.sum, scale=jnp.ones(1))
    settings, betas = make_settings(
        temperatures=None,
        schedule="linear",
        num_temperatures=5,
        num_chains=2,
        num_leapfrog=1,
        num_pilots=2,
        step_size=None,
    )
    plan(key, path, betas, settings)
    jax.effects_barrier()
    assert len(set(starts)) == 2 and len(set(moves)) == len(moves) == 2 * (30 + 4 * pilot_repeats(5))
    for data in starts:
        split = jax.random.split(jax.random.wrap_key_data(np.frombuffer(data, np.uint32)), 30)
        assert not {each.tobytes() for each in np.asarray(jax.random.key_data(split))} & set(moves)


def test_transition_leaves_its_density_invariant(factor_analysis, simulated):
    """Chains that start in the posterior are still there after five transitions at a coarse step."""
    x = simulated.xs[0]
    path = make_path(factor_analysis, x, start="prior", family=None, phi=None)
    posterior = factor_analysis.posterior(x)
    root = jnp.linalg.cholesky(posterior.covariance)

    @jax.jit
    @jax.vmap
    def run(key):
        chain = place(path, posterior.mean + root @ jax.random.normal(key, (2,)))

        def move(chain, k):
            chain, accepted = transition(k, path, chain, jnp.ones(()), jnp.asarray(0.8), 2)
            return chain, accepted

        chain, accepted = jax.lax.scan(move, chain, jax.random.split(jax.random.fold_in(key, 1), 5))
        return jnp.linalg.solve(root, chain.z - posterior.mean), jnp.mean(accepted)

    whitened, accepted = run(jax.random.split(jax.random.key(3), 20_000))
    assert 0.2 < float(jnp.mean(accepted)) < 0.95
    assert float(jnp.max(jnp.abs(jnp.mean(whitened, axis=0)))) < 4 / 20_000**0.5
    assert float(jnp.max(jnp.abs(whitened.T @ whitened / 20_000 - jnp.eye(2)))) < 4 * (2 / 20_000) ** 0.5


def test_short_steps_of_chains_scaled_by_q_are_nearly_all_accepted(factor_analysis, simulated):
    """The error of a leapfrog trajectory falls with the square of the step; a force of another scale spoils that."""
    x = simulated.xs[0]
    family, posterior = ag.families.MeanFieldNormal(2), factor_analysis.posterior(x)
    phi = family.from_moments(posterior.mean, jnp.diag(jnp.array([0.2, 0.3])))
    path = make_path(factor_analysis, x, start="q", family=family, phi=phi)
    assert float(jnp.max(path.scale)) < 0.5

    def accepted(k):
        chain = place(path, path.sample(jax.random.fold_in(k, 1)))
        return transition(k, path, chain, jnp.asarray(0.5), jnp.asarray(0.1), 5)[1]

    assert float(jnp.mean(jax.vmap(accepted)(jax.random.split(jax.random.key(3), 500)))) > 0.99


def test_schedules():
    np.testing.assert_allclose(linear_temperatures(5), [0, 0.25, 0.5, 0.75, 1])
    sigmoid = np.asarray(sigmoid_temperatures(9))
    steps = np.diff(sigmoid)
    assert sigmoid[0] == 0 and sigmoid[-1] == 1 and np.all(steps > 0)
    assert steps[0] < steps[4] and np.allclose(steps, steps[::-1], atol=1e-6)


def test_adaptive_schedule_evens_out_the_conditional_effective_sample_size(factor_analysis, simulated, key):
    """The variance of l along the path of factor analysis is known, so the rate of a step can be computed exactly."""
    x = simulated.xs[0]
    path = make_path(factor_analysis, x, start="prior", family=None, phi=None)

    def spread(beta):
        # l(z) = constant + g' z - 1/2 z' H z under N(m, S), S^-1 = I + beta H, m = beta S g.
        scaled = factor_analysis.loadings / factor_analysis.noise_variance[:, None]
        hessian, slope = scaled.T @ factor_analysis.loadings, scaled.T @ (x - factor_analysis.mean)
        covariance = jnp.linalg.inv(jnp.eye(2) + beta * hessian)
        gradient = slope - hessian @ (beta * covariance @ slope)
        square = covariance @ hessian
        return jnp.sqrt(gradient @ covariance @ gradient + 0.5 * jnp.trace(square @ square))

    def rates(betas):
        middle = 0.5 * (betas[1:] + betas[:-1])
        return np.asarray(jnp.diff(betas) * jax.vmap(spread)(middle))

    settings, start = make_settings(
        temperatures=None,
        schedule="adaptive",
        num_temperatures=40,
        num_chains=2,
        num_leapfrog=3,
        num_pilots=64,
        step_size=None,
    )
    adapted = rates(jax.jit(lambda k: plan(k, path, start, settings).temperatures)(key))
    linear = rates(linear_temperatures(40))
    assert adapted.max() / adapted.min() < 2.5
    assert linear.max() / linear.min() > 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_temperatures": 1}, "num_temperatures must be a whole number, at least 2, got 1"),
        ({"temperatures": [0.0]}, r"at least two numbers in one row, got shape \(1,\)"),
        ({"temperatures": [0.0, 0.5, 0.5, 1.0]}, "must increase strictly from 0 to 1"),
        ({"temperatures": [0.1, 1.0]}, "must increase strictly from 0 to 1"),
        ({"temperatures": [0.0, 0.9]}, "must increase strictly from 0 to 1"),
        ({"schedule": "cubic"}, "schedule must be one of 'linear', 'sigmoid', 'adaptive', got 'cubic'"),
        ({"start": "q"}, "start 'q' needs a distribution to start from"),
        ({"start": "posterior"}, "start must be one of 'prior', 'q'"),
        ({"num_chains": 1}, "num_chains must be a whole number, at least 2"),
        ({"step_size": -1.0}, "step_size must be a positive number"),
        ({"step_size": 0.1, "schedule": "adaptive"}, "needs the pilot run"),
    ],
)
@pytest.mark.usefixtures("as_users_call")
def test_bad_input_is_refused_by_name(factor_analysis, key, change, message):
    with pytest.raises(ValueError, match=message):
        ag.log_evidence(key, jnp.zeros(3), model=factor_analysis, method="ais", **change)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Threshold:
    """A standard normal latent; the likelihood is one above x and zero below, so that `p(x) = Phi(-x)`."""

    latent_dim = 1

    def log_prior(self, z):
        return -0.5 * z[0] ** 2 - 0.5 * jnp.log(2 * jnp.pi)

    def log_likelihood(self, z, x):
        return jnp.where(z[0] > x[0], 0.0, -jnp.inf)

    def log_joint(self, z, x):
        return self.log_prior(z) + self.log_likelihood(z, x)

    def sample(self, key):
        return jax.random.normal(key, (1,)), jnp.zeros(1)


@pytest.mark.slow
def test_adaptive_temperatures_leave_the_weights_unbiased(factor_analysis, simulated, key):
    """They are fixed by a pilot run of other chains: `E[w] = p(x)` over one hundred and twenty data."""
    found = ag.evidence_of_data(
        key,
        simulated.xs,
        model=factor_analysis,
        method="ais",
        schedule="adaptive",
        num_temperatures=8,
        num_chains=8,
        num_leapfrog=3,
    )
    difference = np.asarray(found.log_evidence - jax.vmap(factor_analysis.log_evidence)(simulated.xs))
    ratio = np.exp(difference)
    assert abs(ratio.mean() - 1) < 4 * ratio.std(ddof=1) / ratio.size**0.5
    assert difference.mean() < 0


def test_a_log_joint_alone_has_no_prior_to_start_from(key):
    model = ag.models.from_log_joint(lambda z, x: -jnp.sum(z**2), latent_dim=1)
    with pytest.raises(ValueError, match=r"start 'prior' needs model.log_prior, .* which LogJoint has; use start 'q'"):
        ais(key, jnp.zeros(1), model=model)


def blackjax_ais(key, x, model, betas, step_size, num_leapfrog, num_chains):
    """The same estimator with the transitions of blackjax."""
    import blackjax

    kernel = blackjax.hmc.build_kernel()

    def one(chain_key):
        key_start, key_run = jax.random.split(chain_key)

        def move(carry, level):
            z, log_weight = carry
            move_key, before, beta = level

            def density(z):
                return model.log_prior(z) + beta * model.log_likelihood(z, x)

            log_weight = log_weight + (beta - before) * model.log_likelihood(z, x)
            state = blackjax.hmc.init(z, density)
            state, _ = kernel(move_key, state, density, step_size, jnp.ones(z.size), num_leapfrog)
            return (state.position, log_weight), None

        levels = (jax.random.split(key_run, betas.size - 2), betas[:-2], betas[1:-1])
        (z, log_weight), _ = jax.lax.scan(move, (model.sample(key_start)[0], jnp.zeros(())), levels)
        return log_weight + (betas[-1] - betas[-2]) * model.log_likelihood(z, x)

    log_weights = jax.vmap(one)(jax.random.split(key, num_chains))
    return jax.scipy.special.logsumexp(log_weights) - jnp.log(float(num_chains)), log_weights


@pytest.mark.slow
def test_matches_blackjax_and_quadrature_on_a_nonlinear_decoder(key):
    model = ag.models.deep_latent_gaussian(key, latent_dim=2, data_dim=6, width=5, depth=1, activation="tanh")
    _, x = model.sample(jax.random.key(5))
    truth = float(ag.log_evidence(key, x, model=model, method="quadrature").log_evidence)
    betas = linear_temperatures(30)
    ours = jax.jit(lambda k: ais(k, x, model=model, temperatures=betas, step_size=0.5, num_leapfrog=4, num_chains=400))(
        jax.random.key(1)
    )
    theirs, log_weights = jax.jit(
        partial(blackjax_ais, model=model, betas=betas, step_size=0.5, num_leapfrog=4, num_chains=400)
    )(jax.random.key(2), x)
    weights = np.exp(np.asarray(log_weights) - float(theirs))
    their_error = weights.std(ddof=1) / 400**0.5
    assert abs(float(ours.log_evidence - theirs)) < 4 * np.hypot(float(ours.standard_error), their_error)
    assert abs(float(ours.log_evidence) - truth) < 4 * float(ours.standard_error)


@pytest.mark.parametrize(
    ("temperatures", "message"),
    [
        ([0.0, 0.6, 0.5, 1.0], "must increase strictly from 0 to 1"),
        ([0.0, 0.5], "must increase strictly from 0 to 1"),
        ([[0.0, 1.0]], r"at least two numbers in one row, got shape \(1, 2\)"),
    ],
)
@pytest.mark.usefixtures("as_users_call")
def test_bad_temperatures_are_refused_over_data_too(factor_analysis, simulated, key, temperatures, message):
    """The functions over data compile what they call, where values can hide."""
    with pytest.raises(ValueError, match=message):
        ag.evidence_of_data(key, simulated.xs, model=factor_analysis, method="ais", temperatures=temperatures)
    with pytest.raises(ValueError, match=message):
        ag.evidence_bounds(key, simulated.xs, model=factor_analysis, temperatures=temperatures)


@pytest.mark.slow
def test_likelihoods_of_zero_weigh_nothing_and_data_out_of_reach_are_named(key):
    xs = jnp.array([[0.0], [100.0], [1.0]])
    settings = {"model": Threshold(), "num_temperatures": 5, "num_chains": 500, "num_leapfrog": 2}
    with pytest.warns(UnreliableEvidence, match=r"log p\(x\) is -inf, every weight is zero: 1 of 3 data, \[1\]"):
        found = ag.evidence_of_data(key, xs, method="ais", **settings)
    exact = stats.norm.logsf(np.asarray(xs)[:, 0])
    for i in (0, 2):
        assert abs(float(found.log_evidence[i]) - exact[i]) < 4 * float(found.standard_error[i]) < 0.5
    assert np.isneginf(found.log_evidence[1]) and np.isposinf(found.standard_error[1])
    with pytest.warns(UnreliableEvidence) as told:
        bounds = ag.evidence_bounds(key, xs, num_warmup=5, **settings)
    assert "the lower bound is -inf, every weight is zero: 1 of 3 data, [1]" in {str(each.message) for each in told}
    assert np.isneginf(bounds.lower[1]) and np.all(np.isfinite(bounds.lower[jnp.array([0, 2])]))
