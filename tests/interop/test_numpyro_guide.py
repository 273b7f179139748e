"""Amortized guides of NumPyro as encoders, against NumPyro's own ELBO."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flax import linen
from numpyro.contrib.module import flax_module
from numpyro.infer import SVI, Trace_ELBO

import amortgap as ag


@pytest.fixture(autouse=True)
def broadcasting():
    """Let models broadcast, as NumPyro's users do."""
    with jax.numpy_rank_promotion("allow"):
        yield


class Net(linen.Module):
    @linen.compact
    def __call__(self, x):
        hidden = jnp.tanh(linen.Dense(4)(x))
        return linen.Dense(2)(hidden), jnp.exp(linen.Dense(2)(hidden))


DATA = {"x": np.random.default_rng(0).poisson(2.0, (6, 3)).astype(np.float32)}


def model(x):
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    with numpyro.plate("N", x.shape[0]):
        shift = numpyro.sample("shift", dist.Normal(0.0, 1.0))
        rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
        mean = (shift + jnp.log(rate))[:, None] + jnp.zeros(3)
        numpyro.sample("obs", dist.Normal(mean, spread).to_event(1), obs=x)


def guide(x):
    net = flax_module("net", Net(), input_shape=(1, 3))
    mean, scale = net(x)
    numpyro.sample("spread", dist.Delta(1.0))
    with numpyro.plate("N", x.shape[0]):
        numpyro.sample("shift", dist.Normal(mean[:, 0], scale[:, 0]))
        numpyro.sample("rate", dist.LogNormal(mean[:, 1], scale[:, 1]))


def joint_guide(x):
    matrix = numpyro.param("matrix", jnp.full((2, 3), 0.1))
    root = numpyro.param("root", jnp.array([[0.5, 0.0], [0.2, 0.4]]))
    with numpyro.plate("N", x.shape[0]):
        numpyro.sample("z", dist.MultivariateNormal(x @ matrix.T, scale_tril=root))


def joint_model(x):
    with numpyro.plate("N", x.shape[0]):
        z = numpyro.sample("z", dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)))
        numpyro.sample("obs", dist.Normal(z @ jnp.ones((2, 3)), 1.0).to_event(1), obs=x)


@pytest.fixture(scope="module")
def trained():
    with jax.numpy_rank_promotion("allow"):
        svi = SVI(model, guide, numpyro.optim.Adam(1e-2), Trace_ELBO())
        state = svi.init(jax.random.key(0), **DATA)
        return svi.get_params(state)


def ours():
    return ag.models.from_numpyro(model, DATA, local_plate="N", condition={"spread": 1.0})


def test_guide_gives_the_normals_that_its_owner_trained(trained):
    encoder = ag.encoders.from_numpyro_guide(guide, trained, model=ours(), family=ag.families.MeanFieldNormal(2))
    phis = jax.vmap(encoder)(ours().data)
    mean, scale = Net().apply({"params": trained["net$params"]}, DATA["x"])
    np.testing.assert_allclose(phis, np.concatenate([mean, np.log(scale)], axis=1), rtol=1e-4, atol=1e-5)
    assert encoder.num_weights == sum(leaf.size for leaf in jax.tree.leaves(trained))


def test_elbo_of_a_guide_is_numpyros(trained, key):
    # Both are means of draws: NumPyro's of the whole plate, with the term of the fixed global latent beside it.
    mine, family = ours(), ag.families.MeanFieldNormal(2)
    encoder = ag.encoders.from_numpyro_guide(guide, trained, model=mine, family=family)
    draws = jax.vmap(
        lambda k, x: ag.objectives.elbo_draws(k, encoder(x), x, model=mine, family=family, num_samples=4000)
    )(jax.random.split(key, 6), mine.data)
    total, error = float(draws.mean(1).sum()), float(jnp.sqrt((draws.var(1) / 4000).sum()))
    losses = jax.lax.map(lambda k: Trace_ELBO().loss(k, trained, model, guide, **DATA), jax.random.split(key, 4000))
    theirs = -float(losses.mean()) - float(dist.HalfNormal(1.0).log_prob(1.0))
    assert abs(total - theirs) < 5 * (error**2 + float(losses.var()) / 4000) ** 0.5


@pytest.mark.slow
def test_multivariate_guide_is_full_rank(key):
    family = ag.families.FullRankNormal(2)
    mine = ag.models.from_numpyro(joint_model, DATA, local_plate="N")
    params = {"matrix": jnp.full((2, 3), 0.1), "root": jnp.array([[0.5, 0.0], [0.2, 0.4]])}
    encoder = ag.encoders.from_numpyro_guide(joint_guide, params, model=mine, family=family)
    x = jax.tree.map(lambda leaf: leaf[0], mine.data)
    mean, root = family.moments(encoder(x))
    np.testing.assert_allclose(mean, DATA["x"][0] @ params["matrix"].T, rtol=1e-6)
    np.testing.assert_allclose(root, params["root"], rtol=1e-6)
    gaps = ag.inference_gaps(key, mine.data, model=mine, family=family, encoder=encoder, num_samples=200)
    assert np.all(np.asarray(gaps.inference) > 0)


def misnamed(x):
    with numpyro.plate("N", x.shape[0]):
        numpyro.sample("shift", dist.Normal(0.0, 1.0))


def untransformed(x):
    with numpyro.plate("N", x.shape[0]):
        numpyro.sample("shift", dist.Normal(0.0, 1.0))
        numpyro.sample("rate", dist.Normal(0.0, 1.0))


def gamma(x):
    with numpyro.plate("N", x.shape[0]):
        numpyro.sample("shift", dist.Normal(0.0, 1.0))
        numpyro.sample("rate", dist.Gamma(1.0, 1.0))


def dependent(x):
    with numpyro.plate("N", x.shape[0]):
        shift = numpyro.sample("shift", dist.Normal(0.0, 1.0))
        numpyro.sample("rate", dist.LogNormal(shift, 1.0))


def failing(x):
    return x @ jnp.ones((2, 2))


BAD = [
    (misnamed, r"must sample the local latents of the model in plate 'N', \['rate', 'shift'\], got \['shift'\]"),
    (untransformed, "site 'rate' of the guide must be a normal under the bijector .* transforms are: none"),
    (gamma, "site 'rate' of the guide must be normal or a transformed normal, got Gamma"),
    (dependent, "draws site 'rate' given other local sites"),
    (failing, "the guide cannot be run on one datum of the model"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[bad.__name__ for bad, _ in BAD])
def test_guides_that_do_not_fit_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        ag.encoders.from_numpyro_guide(bad, {}, model=ours(), family=ag.families.MeanFieldNormal(2))


def test_families_and_parameters_that_do_not_fit_are_refused(trained, as_users_call):
    mine = ag.models.from_numpyro(joint_model, DATA, local_plate="N")
    params = {"matrix": jnp.full((2, 3), 0.1), "root": jnp.array([[0.5, 0.0], [0.2, 0.4]])}
    with pytest.raises(ValueError, match="multivariate normal, which a MeanFieldNormal cannot hold"):
        ag.encoders.from_numpyro_guide(joint_guide, params, model=mine, family=ag.families.MeanFieldNormal(2))
    with pytest.raises(ValueError, match="params lack parameters of the guide: root"):
        ag.encoders.from_numpyro_guide(
            joint_guide, {"matrix": params["matrix"]}, model=mine, family=ag.families.FullRankNormal(2)
        )
    # A flow has moments too, but of its correlations it would keep none.
    for family in (ag.families.MeanFieldNormal(3), ag.families.LowRankNormal(2, 1), ag.families.CouplingFlow(2)):
        wanted = f"of the model's 2 latents, got {type(family).__name__} of {family.latent_dim}"
        with pytest.raises(ValueError, match=wanted):
            ag.encoders.from_numpyro_guide(guide, trained, model=ours(), family=family)
