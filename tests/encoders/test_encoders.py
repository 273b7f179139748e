"""Encoders of images, sequences, groups and random features: exact curves, invariances and wrong calls."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import amortgap as ag

KEY = jax.random.key(0)
E = ag.encoders


def mean_field(d):
    return ag.families.MeanFieldNormal(d)


@pytest.fixture(scope="module")
def factor_analysis():
    rng = np.random.default_rng(0)
    model = ag.models.FactorAnalysis(
        loadings=jnp.asarray(rng.normal(size=(6, 3)), jnp.float32), mean=jnp.zeros(6), noise_variance=jnp.ones(6)
    )
    xs = jax.vmap(lambda k: model.sample(k)[1])(jax.random.split(jax.random.key(1), 60))
    return model, xs


def test_residual_layers_add_their_input():
    plain, residual = (E.mlp(KEY, 4, mean_field(2), width=3, depth=2, residual=r) for r in (False, True))
    x = jnp.arange(4.0)
    leaves = jax.tree.leaves(residual.network)
    (b1, k1), (b2, k2), (b3, k3) = zip(leaves[::2], leaves[1::2], strict=True)
    first = jax.nn.elu(x @ k1 + b1)
    np.testing.assert_allclose(residual(x), (first + jax.nn.elu(first @ k2 + b2)) @ k3 + b3, rtol=1e-5)
    np.testing.assert_allclose(plain(x), jax.nn.elu(first @ k2 + b2) @ k3 + b3, rtol=1e-5)


def test_activations_are_names_or_functions():
    x, image = jnp.arange(4.0), jnp.ones((4, 4, 1))
    named, given = (E.mlp(KEY, 4, mean_field(2), width=3, depth=1, activation=a) for a in ("tanh", jnp.tanh))
    np.testing.assert_array_equal(named(x), given(x))
    named, given = (E.conv(KEY, (4, 4, 1), mean_field(2), channels=(2,), activation=a) for a in ("relu", jax.nn.relu))
    np.testing.assert_array_equal(named(image), given(image))
    gelu = E.mlp(KEY, 4, mean_field(2), width=3, depth=1, activation=jax.nn.gelu)
    bias, kernel, offset, matrix = jax.tree.leaves(gelu.network)
    np.testing.assert_allclose(gelu(x), jax.nn.gelu(x @ kernel + bias) @ matrix + offset, rtol=1e-6)


def test_affine_encoder_of_rank_zero_is_the_constant_one():
    x, family = jnp.arange(4.0), mean_field(2)
    encoder = E.linear(KEY, 4, family, rank=0)
    assert isinstance(encoder, E.ConstantEncoder) and encoder.num_weights == family.size
    np.testing.assert_array_equal(encoder(x), E.constant(None, 4, family)(x))


def test_weights_are_counted_without_the_constants_of_the_data():
    family = ag.families.CouplingFlow(2, 1, 3)
    head = E.mlp(KEY, 4, family.head, width=3, depth=1, standardize=np.eye(4))
    assert head.num_weights == 4 * 3 + 3 + 3 * 4 + 4
    shared = E.shared_flow(head, family)
    assert shared.num_weights == head.num_weights + shared.weights.size
    assert E.WeightNormEncoder(head, 1.0).num_weights == head.num_weights
    assert E.random_features(KEY, 4, family, num_features=3).num_weights == 4 * family.size


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3)])
def test_convolutional_encoder_reads_images_and_rows(shape):
    family = mean_field(2)
    encoder = E.conv(KEY, shape, family, channels=(2, 3))
    image = jax.random.normal(KEY, shape)
    np.testing.assert_array_equal(encoder(image), encoder(image.ravel()))
    assert encoder(image).shape == (family.size,)
    fan = (shape[0] // 4) ** 2 * 3
    assert encoder.num_weights == 9 * shape[2] * 2 + 2 + 9 * 2 * 3 + 3 + (fan + 1) * family.size
    moved = jax.grad(lambda image: encoder(image)[0])(image)
    assert np.count_nonzero(moved) > 0.9 * moved.size


def chain(length=12, phi=0.8, q=0.5, r=0.7):
    """Dense precision of the prior of an autoregression and of its posterior given z + noise."""
    prior = np.diag(np.full(length, (1 + phi**2) / q)) - (phi / q) * (np.eye(length, k=1) + np.eye(length, k=-1))
    prior[0, 0] = 1 / q  # stationary start: 1 / (q / (1 - phi^2)) + phi^2 / q
    prior[-1, -1] = 1 / q
    return prior, prior + np.eye(length) / r


def sequences(number, length=12, r=0.7):
    prior, precision = chain(length)
    rng = np.random.default_rng(3)
    z = rng.multivariate_normal(np.zeros(length), np.linalg.inv(prior), size=number)
    xs = z + r**0.5 * rng.normal(size=z.shape)
    return prior, precision, xs, xs @ np.linalg.inv(precision) / r


def window_features(xs, w):
    """All steps of all sequences, [N T, 2 w + 2], the constant first."""
    padded = np.pad(xs, ((0, 0), (w, w)))
    columns = [padded[:, k : k + xs.shape[1]].ravel() for k in range(2 * w + 1)]
    return np.stack([np.ones(xs.size), *columns], axis=1)


def exact_window(xs, means, precision, w):
    """Generalised least squares: gap = 1/(2N) sum_i (M_i b - m_i)' L (M_i b - m_i), best b."""
    n, length = xs.shape
    root = np.linalg.cholesky(precision).T
    design = np.einsum("st,ntk->nsk", root, window_features(xs, w).reshape(n, length, -1)).reshape(n * length, -1)
    target = (means @ root.T).ravel()
    best = np.linalg.lstsq(design, target, rcond=None)[0]
    return best, 0.5 * np.sum((design @ best - target) ** 2) / n


def mean_part(phis, means, precision):
    left = np.asarray(phis)[:, : means.shape[1]] - means
    return 0.5 * np.einsum("nt,ts,ns->n", left, precision, left).mean()


def chain_model(prior, r=0.7):
    matrix = jnp.asarray(prior)

    def log_joint(z, x):
        return -0.5 * z @ matrix @ z - 0.5 * jnp.sum((x - z) ** 2) / r

    return ag.models.from_log_joint(log_joint, latent_dim=len(prior))


def summed_elbo(encoder, xs, prior, family):
    model = chain_model(prior)
    return jnp.sum(jax.vmap(lambda x: ag.cubature_elbo(encoder(x), x, model=model, family=family))(xs))


def loaded(template, rows):
    """A network (or a stack of them) with these affine means, the constant first, and log scales zero."""
    _, kernel = jax.tree.leaves(template)
    rows = jnp.asarray(rows, kernel.dtype)
    pair = (
        jnp.stack([rows[..., 0], jnp.zeros_like(rows[..., 0])], -1),
        jnp.stack([rows[..., 1:], jnp.zeros_like(rows[..., 1:])], -1),
    )
    return jax.tree.unflatten(jax.tree.structure(template), pair)


@pytest.mark.parametrize("w", range(4))
def test_window_encoder_is_optimal_exactly_at_the_least_squares_weights(w, x64):
    prior, precision, xs, means = sequences(8)
    family, data = mean_field(12), jnp.asarray(xs)
    best, exact = exact_window(xs, means, precision, w)
    encoder = E.window(KEY, 12, 1, family, reach=w)
    encoder = dataclasses.replace(encoder, network=loaded(encoder.network, best))
    np.testing.assert_allclose(mean_part(jax.vmap(encoder)(data), means, precision), exact, rtol=1e-9)
    bias, kernel = jax.tree.leaves(jax.grad(summed_elbo)(encoder, data, prior, family).network)
    np.testing.assert_allclose(bias[0], 0, atol=1e-8)
    np.testing.assert_allclose(kernel[:, 0], 0, atol=1e-8)
    assert exact > 1e-3, "no finite window reaches zero"


@pytest.mark.slow
def test_trained_window_encoder_lies_on_the_least_squares_curve(x64):
    prior, precision, xs, means = sequences(8)
    family, model = mean_field(12), chain_model(prior)
    for w in (0, 1, 2):
        encoder = E.window(KEY, 12, 1, family, reach=w)
        fit = ag.amortized_vi(
            KEY,
            jnp.asarray(xs),
            model=model,
            family=family,
            encoder=encoder,
            optimizer="lbfgs",
            estimator="cubature",
            num_steps=120,
            num_evaluations=2,
        )
        gap = mean_part(jax.vmap(fit.encoder)(jnp.asarray(xs)), means, precision)
        exact = exact_window(xs, means, precision, w)[1]
        assert exact * (1 - 1e-9) <= gap < 1.01 * exact


def test_window_curve_of_the_long_chain_falls_and_stays_above_zero():
    _, precision, xs, means = sequences(1, length=60)
    gaps = [exact_window(xs, means, precision, w)[1] for w in (0, 1, 2, 3, 5)]
    assert 8 < gaps[0] < 30 and gaps[-1] < 0.1
    assert all(0 < later < before for before, later in itertools.pairwise(gaps))


def test_free_ends_see_what_they_miss():
    # Edge steps with weights of their own reach a smaller gap than shared ones, whatever the interior does.
    _, precision, xs, means = sequences(40)
    w, length = 2, 12
    shared = exact_window(xs, means, precision, w)[1]
    features = window_features(xs, w).reshape(40, length, -1)
    edges = [*range(w), *range(length - w, length)]
    wide = np.zeros((40, length, (1 + len(edges)) * features.shape[2]))
    for t in range(length):
        block = 1 + edges.index(t) if t in edges else 0
        wide[:, t, block * features.shape[2] : (block + 1) * features.shape[2]] = features[:, t]
    root = np.linalg.cholesky(precision).T
    design = np.einsum("st,ntk->nsk", root, wide).reshape(40 * length, -1)
    target = (means @ root.T).ravel()
    best = np.linalg.lstsq(design, target, rcond=None)[0]
    free = 0.5 * np.sum((design @ best - target) ** 2) / 40
    assert free < 0.5 * shared
    # The encoder with these weights has these means.
    encoder = E.window(KEY, length, 1, mean_field(length), reach=w, free_ends=True)
    blocks = best.reshape(1 + len(edges), -1)

    encoder = dataclasses.replace(
        encoder, network=loaded(encoder.network, blocks[0]), ends=loaded(encoder.ends, blocks[1:])
    )
    phis = jax.vmap(encoder)(jnp.asarray(xs, jnp.float32))
    np.testing.assert_allclose(mean_part(phis, means, precision), free, rtol=1e-3)


def test_recurrent_encoder_sees_the_whole_sequence_from_every_step():
    encoder = E.recurrent(KEY, 5, 2, mean_field(10), width=3)
    x = jax.random.normal(KEY, (5, 2))
    jacobian = np.asarray(jax.jacobian(encoder)(x)[:10]).reshape(5, 2, 5, 2)
    assert np.all(np.abs(jacobian).sum(axis=(1, 3)) > 0)
    # Reading is causal in each direction: alone, the forward unit sees nothing of later steps.
    blind = E.window(KEY, 5, 2, mean_field(10), reach=1)
    local = np.abs(np.asarray(jax.jacobian(blind)(x)[:10]).reshape(5, 2, 5, 2)).sum(axis=(1, 3))
    np.testing.assert_array_equal(local > 0, np.abs(np.subtract.outer(np.arange(5), np.arange(5))) <= 1)


def test_deep_set_ignores_order_and_padding():
    encoder = E.deep_set(KEY, 2, mean_field(3), width=4, summary=3)
    rows = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    groups = E.pad_groups([rows, rows[:2]])
    phis = jax.vmap(encoder)(groups)
    np.testing.assert_allclose(phis[0], encoder(E.Group(jnp.asarray(rows[::-1]), jnp.ones(4))), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(phis[1], encoder(E.Group(jnp.asarray(rows[:2]), jnp.ones(2))), rtol=1e-5, atol=1e-6)
    # The number of observations is seen: a posterior narrows with it.
    twice = encoder(E.Group(jnp.asarray(np.tile(rows, (2, 1))), jnp.ones(8)))
    assert np.abs(twice - phis[0]).max() > 1e-3
    spoiled = groups._replace(values=groups.values.at[1, 2:].set(1e6))
    np.testing.assert_allclose(jax.vmap(encoder)(spoiled), phis, rtol=1e-6)


def test_adaptive_encoder_starts_as_its_shared_encoder_and_can_be_modulated():
    encoder = E.instance_adaptive(KEY, 3, mean_field(2), width=4, depth=2, hyper_width=3)
    x = jnp.array([0.3, -1.0, 2.0])
    first, second, last = encoder.layers
    np.testing.assert_allclose(encoder(x), last(jax.nn.elu(second(jax.nn.elu(first(x))))), rtol=1e-6)
    moved = jax.grad(lambda e: e(x)[0])(encoder)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(moved.hyper)) > 0


def test_shared_flow_weights_are_those_of_phi(x64):
    family = ag.families.CouplingFlow(2, 2, 3, 2)
    encoder = E.shared_flow(E.mlp(KEY, 4, family.head, width=3, depth=1), family)
    encoder = dataclasses.replace(encoder, weights=jnp.arange(encoder.weights.size) / 50.0)
    phi = encoder(jnp.ones(4))
    np.testing.assert_array_equal(phi[family.head.size :], encoder.weights)
    z, log_q = family.sample_and_log_prob(KEY, phi)
    np.testing.assert_allclose(family.log_prob(z, phi), log_q, rtol=1e-9)
    # The context moves the flow of one datum, the weights staying the same.
    other = phi.at[4:6].add(1.0)
    assert abs(family.log_prob(z, other) - log_q) > 1e-3


def test_random_feature_gap_is_exact_and_falls_with_capacity(factor_analysis, x64):
    model = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), factor_analysis[0])
    xs = factor_analysis[1].astype(jnp.float64)
    family, gaps = mean_field(3), []
    posterior_means = jax.vmap(model.posterior_mean)(xs)
    precision = np.asarray(model.posterior_precision())
    for k in (0, 2, 8, 30, 70):
        encoder, gap = E.fit_random_features(E.random_features(KEY, 6, family, num_features=k), xs, model=model)
        # The gap again, from the closed form of the KL divergence at what the encoder returns.
        phis = np.asarray(jax.vmap(encoder)(xs))
        assert mean_part(phis, np.asarray(posterior_means), precision) == pytest.approx(gap, abs=1e-9)
        np.testing.assert_allclose(np.exp(-2 * phis[:, 3:]), np.tile(np.diag(precision), (60, 1)), rtol=1e-9)
        gaps.append(gap)
    assert gaps[0] == pytest.approx(float(model.rank_gap(xs, 0)), rel=1e-9)
    assert all(later < before for before, later in itertools.pairwise(gaps))
    assert gaps[-1] == pytest.approx(0, abs=1e-9), "as many features as data fit them all"


def test_generalised_least_squares_is_a_stationary_point(x64):
    rng = np.random.default_rng(0)
    features, means = rng.normal(size=(20, 3)), rng.normal(size=(20, 2))
    roots = rng.normal(size=(20, 2, 2))
    precisions = roots @ roots.transpose(0, 2, 1) + np.eye(2)
    found = E.least_squares(jnp.asarray(features), jnp.asarray(means), jnp.asarray(precisions))

    def loss(weights):
        left = features @ weights.T - means
        return 0.5 * jnp.mean(jnp.einsum("ni,nij,nj->n", left, precisions, left))

    np.testing.assert_allclose(loss(jnp.asarray(found.weights)), found.mean_gap, rtol=1e-10)
    np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(found.weights)), 0, atol=1e-10)


EMPTY = E.Group(jnp.zeros((2, 1)), jnp.zeros(2))
BAD = [
    (lambda: E.window(KEY, 4, 1, mean_field(4), reach=2), r"length must be at least the window, .* = 5, got 4"),
    (lambda: E.window(KEY, 4, 1, mean_field(6), reach=1), "family must be a mean field of 4 equal steps"),
    (lambda: E.window(KEY, 4, 1, ag.families.FullRankNormal(4), reach=1), "family must be a mean field"),
    (lambda: E.window(KEY, 4, 1, mean_field(4), reach=1)(jnp.zeros(3)), r"one sequence of 4 steps .* got \(3,\)"),
    (lambda: E.pad_groups([np.ones((2, 1)), np.ones((0, 1))]), "group 1 is empty"),
    (lambda: E.pad_groups([]), "groups must be matrices"),
    (lambda: E.deep_set(KEY, 1, mean_field(1))(EMPTY), "at least one observation, got a mask of zeros"),
    (lambda: E.conv(KEY, (8, 8), mean_field(1)), r"shape must be \(height, width, channels\)"),
    (lambda: E.conv(KEY, (8, 0, 1), mean_field(1)), r"shape must be a whole number, at least 1, got 0"),
    (
        lambda: E.conv(KEY, (8, 8, 1), mean_field(1), channels=(0,)),
        r"channels must be a whole number, at least 1, got 0",
    ),
    (
        lambda: E.conv(KEY, (8, 8, 1), mean_field(1), channels=(2,))(jnp.zeros(7)),
        r"one datum must have shape \(8, 8, 1\)",
    ),
    (lambda: E.shared_flow(None, mean_field(2)), "family must be a flow with a head"),
    (lambda: E.random_features(KEY, 2, mean_field(1), num_features=-1), "num_features must be .* got -1"),
    (
        lambda: E.least_squares(jnp.ones((3, 2)), jnp.ones((4, 2)), jnp.ones((1, 2, 2))),
        "features, means and precisions",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=range(len(BAD)))
def test_wrong_calls_are_refused(call, message, as_users_call):
    with pytest.raises(ValueError, match=message):
        call()


def test_encoder_of_another_size_is_refused_where_it_is_used(factor_analysis):
    model, xs = factor_analysis
    wrong = E.conv(KEY, (6, 1, 1), mean_field(2), channels=(2,))
    with pytest.raises(ValueError, match=r"encoder must return one vector of family\.size = 6"):
        ag.amortized_vi(KEY, xs, model=model, family=mean_field(3), encoder=wrong)


def test_no_hidden_layer_leaves_an_affine_map_of_full_rank():
    family = ag.families.FullRankNormal(2)
    encoder = ag.encoders.mlp(jax.random.key(0), 6, family, depth=0)
    zero = encoder(jnp.zeros(6))
    matrix = jax.vmap(lambda row: encoder(row) - zero)(jnp.eye(6))
    x = jax.random.normal(jax.random.key(1), (6,))
    np.testing.assert_allclose(encoder(x), x @ matrix + zero, rtol=1e-5, atol=1e-6)
    # A bottleneck as wide as the latent would leave rank two.
    assert np.linalg.matrix_rank(matrix) == family.size == 5


def test_only_encoders_that_padding_leaves_as_they_are_can_be_stacked(key):
    family = ag.families.MeanFieldNormal(2)
    tanh, relu = (
        ag.encoders.mlp(key, 3, family, width=w, depth=1, activation=a) for w, a in ((4, "tanh"), (8, "relu"))
    )
    with pytest.raises(ValueError, match=r"activation to be stacked, got .*'relu'.*'tanh'"):
        ag.encoders.stack_padded([tanh, relu])
    narrow, wide = (ag.encoders.mlp(key, 3, family, width=w, depth=2, residual=True) for w in (3, 8))
    with pytest.raises(ValueError, match="one width to be stacked if they are residual"):
        ag.encoders.stack_padded([narrow, wide])
    # What keeps blocks in one array, or reads at offsets, is not padded by zeros at the ends.
    steps = mean_field(6)
    for pair in (
        [E.window(key, 6, 1, steps, reach=reach, width=3) for reach in (0, 2)],
        [E.conv(key, (6, 6, 1), family, channels=(c,)) for c in (2, 3)],
    ):
        with pytest.raises(ValueError, match=f"one width to be stacked if they are {type(pair[0]).__name__}s"):
            ag.encoders.stack_padded(pair)
    other = ag.encoders.mlp(key, 3, ag.families.FullRankNormal(2), width=8, depth=2)
    with pytest.raises(ValueError, match="input and output size"):
        ag.encoders.stack_padded([other, ag.encoders.mlp(key, 3, family, width=8, depth=2)])
    # A unit with zero weights must stay silent: the hyperbolic tangent is zero there, the logistic function is not.
    for function, allowed in ((jnp.tanh, True), (jax.nn.sigmoid, False)):
        pair = [ag.encoders.mlp(key, 3, family, width=w, depth=1, activation=function) for w in (3, 8)]
        if allowed:
            stacked = ag.encoders.stack_padded(pair)
            narrow, _ = jax.vmap(lambda encoder: encoder(jnp.arange(3.0)))(stacked)
            np.testing.assert_allclose(narrow, pair[0](jnp.arange(3.0)), rtol=1e-6)
        else:
            with pytest.raises(ValueError, match="their activation does not map 0 to 0"):
                ag.encoders.stack_padded(pair)
    stacked = ag.encoders.stack_padded([wide, wide])
    x = jnp.arange(3.0)
    np.testing.assert_allclose(jax.vmap(lambda encoder: encoder(x))(stacked)[1], wide(x), rtol=1e-6)
