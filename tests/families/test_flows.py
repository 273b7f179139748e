"""Flows against autodiff, flowjax, closed forms and the normals that they contain."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import amortgap as ag
from amortgap.families.flows.layers import (
    autoregressive,
    autoregressive_size,
    coupling,
    coupling_size,
    masks,
    unpack_net,
)
from amortgap.protocols import HasDensity, HasHead

F = ag.families
FLOWS = [
    F.CouplingFlow(3, 2, 4),
    F.CouplingFlow(2, 3, 4, 2),
    F.AutoregressiveFlow(3, 2, 5),
    F.AutoregressiveFlow(2, 2, 4, 2),
]


def some_phi(family, seed=0, size=0.5):
    return jnp.asarray(np.random.default_rng(seed).normal(size=family.size) * size)


def name_of(family):
    return f"{family.name}_{family.latent_dim}"


def test_joint_density_of_the_auxiliary_flow_integrates_to_one(x64):
    family = F.AuxiliaryFlow(1, 1, 2, 4)
    phi = some_phi(family)
    axis = np.linspace(-12, 12, 801)
    points = jnp.asarray(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2))
    area = (axis[1] - axis[0]) ** 2
    joint = jnp.exp(jax.jit(jax.vmap(lambda p: family.joint_log_prob(p[:1], p[1:], phi)))(points))
    assert float(joint.sum()) * area == pytest.approx(1.0, abs=1e-4)
    # r(v | z) integrates to one over v for every z.
    reverse = jnp.exp(jax.jit(jax.vmap(lambda p: family.reverse_log_prob(p[1:], p[:1], phi)))(points))
    over_v = np.asarray(reverse).reshape(801, 801).sum(axis=0) * (axis[1] - axis[0])
    np.testing.assert_allclose(over_v[200:601], 1.0, atol=1e-3)


@pytest.mark.parametrize("family", [*FLOWS, F.AuxiliaryFlow(2, 1, 2, 4)], ids=name_of)
def test_log_determinant_is_that_of_the_jacobian(family, x64):
    phi = some_phi(family)
    noise = jnp.asarray(np.random.default_rng(1).normal(size=family.latent_dim + getattr(family, "aux_dim", 0)))
    _, log_det = family.forward(noise, phi)
    jacobian = jax.jacobian(lambda e: family.forward(e, phi)[0])(noise)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], rtol=1e-10)


@pytest.mark.parametrize("family", FLOWS, ids=name_of)
def test_inverse_undoes_forward(family, x64):
    phi = some_phi(family)
    noise = jnp.asarray(np.random.default_rng(1).normal(size=family.latent_dim))
    z, log_det = family.forward(noise, phi)
    back, log_det_back = family.inverse(z, phi)
    np.testing.assert_allclose(back, noise, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(log_det_back, -log_det, rtol=1e-9)
    key = jax.random.key(3)
    z, log_q = family.sample_and_log_prob(key, phi)
    np.testing.assert_allclose(log_q, family.log_prob(z, phi), rtol=1e-9)


def test_autoregression_is_triangular(x64):
    weights = some_phi(F.AutoregressiveFlow(4, 1, 7, 2))[10:]
    x, context = jnp.arange(4.0), jnp.ones(2)
    jacobian = jax.jacobian(lambda x: autoregressive(weights, x, context, 7, inverse=False)[0])(x)
    np.testing.assert_array_equal(np.triu(jacobian, 1), 0)
    assert np.all(np.tril(jacobian)[np.tril_indices(4)] != 0)
    of_context = jax.jacobian(lambda c: autoregressive(weights, x, c, 7, inverse=False)[0])(context)
    assert np.all(of_context != 0)


def copied(mlp, layers):
    import equinox as eqx

    for number, (matrix, bias) in enumerate(layers):
        mlp = eqx.tree_at(lambda m, i=number: (m.layers[i].weight, m.layers[i].bias), mlp, (matrix, bias))
    return mlp


@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("kind", ["coupling", "autoregressive"])
def test_layers_equal_flowjax_on_copied_weights(kind, context_dim, x64):
    pytest.importorskip("flowjax", reason="flowjax is in the extra [flows]")
    import equinox as eqx
    import flowjax.bijections as fb

    dim, width, rng = 3, 6, np.random.default_rng(2)
    settings = {
        "transformer": fb.Affine(),
        "dim": dim,
        "cond_dim": context_dim or None,
        "nn_width": width,
        "nn_depth": 1,
    }
    settings |= {"nn_activation": jnp.tanh}
    x, context = jnp.asarray(rng.normal(size=dim)), jnp.asarray(rng.normal(size=context_dim))
    if kind == "coupling":
        theirs = fb.Coupling(jax.random.key(0), untransformed_dim=1, **settings)
        layer, inputs, outputs = coupling, 1 + context_dim, 4
        weights = jnp.asarray(rng.normal(size=coupling_size(dim, context_dim, width)))
    else:
        with jax.numpy_rank_promotion("allow"):
            theirs = fb.MaskedAutoregressive(jax.random.key(0), **settings)
        layer, inputs, outputs = autoregressive, dim + context_dim, 2 * dim
        weights = jnp.asarray(rng.normal(size=autoregressive_size(dim, context_dim, width)))
    first, bias, second, offset = unpack_net(weights, inputs, width, outputs)
    if kind == "coupling":
        net = copied(theirs.conditioner, [(first, bias), (second, offset)])
        theirs = eqx.tree_at(lambda t: t.conditioner, theirs, net)
    else:
        first_mask, second_mask = masks(dim, context_dim, width)
        net = copied(theirs.masked_autoregressive_mlp, [(first * first_mask, bias), (second * second_mask, offset)])
        theirs = eqx.tree_at(lambda t: t.masked_autoregressive_mlp, theirs, net)
    import paramax

    expected = paramax.unwrap(theirs).transform_and_log_det(x, context if context_dim else None)
    have = layer(weights, x, context, width, inverse=False)
    np.testing.assert_allclose(have[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(have[1], expected[1], rtol=1e-6)


def test_auxiliary_flow_contains_the_mean_field(key, x64):
    family, narrow = F.AuxiliaryFlow(2, 1, 2, 4), F.MeanFieldNormal(2)
    mean, root = jnp.array([0.3, -1.0]), jnp.diag(jnp.array([0.5, 2.0]))
    z, log_q = family.sample_and_log_prob(key, family.from_moments(mean, root))
    np.testing.assert_allclose(log_q, narrow.log_prob(z, narrow.from_moments(mean, root)), rtol=1e-10)


@pytest.mark.parametrize("aux_dim", [3, 5])
def test_auxiliary_flow_contains_every_normal(aux_dim, key, x64):
    family, narrow = F.AuxiliaryFlow(3, aux_dim, 2, 4, 1), F.FullRankNormal(3)
    mean, root = jnp.arange(3.0), jnp.asarray(np.linalg.cholesky(np.cov(np.random.default_rng(0).normal(size=(3, 6)))))
    phi = family.from_moments(mean, root)
    zs, log_qs = jax.vmap(family.sample_and_log_prob, (0, None))(jax.random.split(key, 5), phi)
    expected = jax.vmap(narrow.log_prob, (0, None))(zs, narrow.from_moments(mean, root))
    np.testing.assert_allclose(log_qs, expected, rtol=1e-10)


def test_standard_auxiliary_flow_is_the_standard_normal_and_no_saddle(key, x64):
    family, x = F.AuxiliaryFlow(2, 2, 2, 4), jnp.array([1.0, -0.5])
    phi = family.standard()
    zs, log_qs = jax.vmap(family.sample_and_log_prob, (0, None))(jax.random.split(key, 5), phi)
    np.testing.assert_allclose(log_qs, jax.vmap(F.MeanFieldNormal(2).log_prob, (0, None))(zs, jnp.zeros(4)), rtol=1e-10)
    np.testing.assert_allclose(phi[: family.head.size], family.head.standard(), atol=1e-12)
    # A correlated posterior around the best mean field normal: the weights are told of it.
    model = ag.models.FactorAnalysis(
        loadings=jnp.array([[1.0, 0.9], [0.9, 1.0]]), mean=jnp.zeros(2), noise_variance=0.2 * jnp.ones(2)
    )
    posterior = model.posterior(x)
    best = family.from_moments(posterior.mean, jnp.diag(1 / jnp.sqrt(jnp.diag(posterior.precision))))
    gradient = jax.grad(lambda phi: ag.elbo(key, phi, x, model=model, family=family, num_samples=4000))(best)
    assert jnp.abs(gradient[family.head.size :]).max() > 0.5


FIXED = [F.CouplingFlow(3, 2, 4, 2), F.AutoregressiveFlow(3, 2, 5, 2), F.AuxiliaryFlow(3, 2, 2, 4, 2)]


@pytest.mark.parametrize("flow", FIXED, ids=name_of)
def test_flow_with_fixed_weights_is_the_flow(flow, key, x64):
    phi = some_phi(flow)
    head, weights = phi[: flow.head.size], phi[flow.head.size :]
    family = F.FixedWeights(flow, weights)
    assert (family.latent_dim, family.size) == (3, flow.head.size)
    np.testing.assert_array_equal(family.whole(head), phi)
    for have, want in zip(family.sample_and_log_prob(key, head), flow.sample_and_log_prob(key, phi), strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-12)
    assert hasattr(family, "log_prob") == hasattr(flow, "log_prob")
    if hasattr(flow, "log_prob"):
        z = jnp.array([0.1, 0.4, -1.0])
        np.testing.assert_allclose(family.log_prob(z, head), flow.log_prob(z, phi), rtol=1e-12)


def test_gradient_of_shared_weights_is_that_of_the_whole_flow(key, x64):
    # Sticking the landing leaves out the score term of head and weights alike, whichever way they are passed.
    from amortgap.inference.training.objectives import without_copies

    model = ag.models.FactorAnalysis(loadings=jnp.eye(3, 2), mean=jnp.zeros(3), noise_variance=jnp.ones(3))
    flow, x = F.CouplingFlow(2, 2, 4, 1), jnp.array([0.7, -0.2, 1.0])
    encoder = ag.encoders.shared_flow(ag.encoders.mlp(key, 3, flow.head, width=4, depth=1), flow)
    # At zero weights the two gradients agree by chance.
    encoder = jax.tree.map(lambda leaf: leaf + 0.3, encoder)

    def loss(encoder, split):
        used, family = without_copies(encoder, flow) if split else (encoder, flow)
        return ag.elbo(key, used(x), x, model=model, family=family, num_samples=3)

    have, want = (jax.grad(loss)(encoder, split) for split in (True, False))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), have, want)
    assert without_copies(encoder.head, flow) == (encoder.head, flow)


def test_auxiliary_bound_stays_below_the_evidence_and_is_met_where_it_can_be(key, x64):
    model = ag.models.FactorAnalysis(loadings=jnp.eye(2), mean=jnp.zeros(2), noise_variance=jnp.ones(2))
    family, x = F.AuxiliaryFlow(2, 2, 2, 4), jnp.array([0.7, -0.2])
    posterior = model.posterior(x)
    best = family.from_moments(posterior.mean, jnp.sqrt(posterior.covariance))
    draws = ag.objectives.elbo_draws(key, best, x, model=model, family=family, num_samples=20)
    np.testing.assert_allclose(draws, model.log_evidence(x), rtol=1e-10)
    far = ag.objectives.elbo_draws(key, some_phi(family), x, model=model, family=family, num_samples=2000)
    assert far.mean() + 5 * far.std() / 2000**0.5 < model.log_evidence(x)
    # The weights are unbiased for p(x): the mean of exp(draw - log p(x)) is one for every phi.
    near = best + 0.1 * some_phi(family)
    weights = jnp.exp(
        ag.objectives.elbo_draws(key, near, x, model=model, family=family, num_samples=20_000) - model.log_evidence(x)
    )
    assert abs(weights.mean() - 1) < 5 * weights.std() / 20_000**0.5


@pytest.mark.parametrize("flow", FIXED, ids=name_of)
def test_a_flow_with_fixed_weights_has_the_parts_of_the_flow(flow):
    family = F.FixedWeights(flow, jnp.zeros(flow.size - flow.head.size))
    has_density = not isinstance(flow, F.AuxiliaryFlow)
    assert isinstance(flow, HasDensity) == isinstance(family, HasDensity) == has_density
    # The class itself has the method or lacks it: no attribute fails when it is read.
    assert hasattr(type(family), "log_prob") == has_density
    assert isinstance(family, F.FixedWeights) and not isinstance(family, HasHead)
    again = jax.tree.map(lambda leaf: leaf + 1, family)
    assert type(again) is type(family)
    assert type(dataclasses.replace(family, weights=again.weights)) is type(family)
