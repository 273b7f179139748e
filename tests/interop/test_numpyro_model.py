"""NumPyro models as models of one datum, against NumPyro's own densities."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flax import nnx
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.contrib.module import nnx_module
from numpyro.infer.util import log_density

import amortgap as ag


@pytest.fixture(autouse=True)
def broadcasting():
    """Let models broadcast, as NumPyro's users do."""
    with jax.numpy_rank_promotion("allow"):
        yield


SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
RNG = np.random.default_rng(0)


def schools(J, sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("J", J):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("obs", dist.Normal(theta, sigma), obs=y)


def intercepts(floor, y=None):
    slope = numpyro.sample("slope", dist.Normal(0, 1))
    with numpyro.plate("houses", y.shape[1], dim=-1), numpyro.plate("county", y.shape[0], dim=-2):
        pass
    with numpyro.plate("county", y.shape[0], dim=-2):
        a = numpyro.sample("a", dist.Normal(0, 1))
        scale = numpyro.sample("scale", dist.LogNormal(0, 0.5))
        with numpyro.plate("houses", y.shape[1], dim=-1), handlers.mask(mask=floor >= 0):
            numpyro.sample("obs", dist.Normal(a + slope * floor, scale), obs=y)


def responses(y):
    with numpyro.plate("items", y.shape[1], dim=-1):
        difficulty = numpyro.sample("difficulty", dist.Normal(0, 1))
    with numpyro.plate("persons", y.shape[0], dim=-2):
        ability = numpyro.sample("ability", dist.Normal(0, 1))
        with numpyro.plate("answers", y.shape[1], dim=-1):
            numpyro.sample("obs", dist.Bernoulli(logits=ability - difficulty), obs=y)


def counts(x, y):
    beta = numpyro.sample("beta", dist.Normal(0, 1).expand([2]).to_event(1))
    with numpyro.plate("N", 6):
        rate = numpyro.sample("rate", dist.Gamma(2.0, 2.0))
        numpyro.factor("more", -0.1 * rate)
        numpyro.sample("y", dist.Poisson(rate * jnp.exp(x @ beta)), obs=y)


def seeds(total, y):
    with numpyro.plate("plates", len(y), subsample_size=2) as index:
        low = numpyro.sample("low", dist.Uniform(-1.0, 0.0))
        # Its support depends on another latent.
        high = numpyro.sample("high", dist.Uniform(low, 2.0))
        numpyro.sample("y", dist.Binomial(total[index], logits=low + high), obs=y[index])


def clusters(x):
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(3)))
    with numpyro.plate("N", x.shape[0]):
        which = numpyro.sample("which", dist.Categorical(weights))
        centre = numpyro.sample("centre", dist.Normal(jnp.array([-2.0, 0.0, 2.0])[which], 0.5))
        numpyro.sample("x", dist.Normal(centre, 1.0), obs=x)


def components(x):
    loadings = numpyro.sample("loadings", dist.Normal(0, 1).expand([3, 2]).to_event(2))
    # The plate's axis of the observations is their last here.
    with numpyro.plate("N", x.shape[1]):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
        numpyro.sample("x", dist.Normal(z @ loadings.T, 0.5).to_event(1), obs=x.T)


class Decoder(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(2, 4, rngs=rngs)

    def __call__(self, z):
        return jnp.tanh(self.layer(z))


DECODER = Decoder(nnx.Rngs(0))


def autoencoder(x):
    decoder = nnx_module("decoder", DECODER)
    with numpyro.plate("N", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
        numpyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)


def trained(model, data):
    trace = handlers.trace(handlers.seed(model, 0)).get_trace(**data)
    return {name: site["value"] for name, site in trace.items() if site["type"] == "param"}


PIXELS = {"x": RNG.integers(0, 2, (5, 4)).astype(np.float32)}
ZOO = {
    "eight schools": (schools, {"J": 8, "sigma": SIGMA, "y": EFFECTS}, "J", {"mu": 4.4, "tau": 3.6}, None),
    "varying intercepts": (
        intercepts,
        {"floor": np.array([[0.0, 1.0, -1.0], [1.0, 1.0, 0.0]]), "y": RNG.normal(size=(2, 3))},
        "county",
        {"slope": -0.6},
        None,
    ),
    "item responses": (
        responses,
        {"y": RNG.integers(0, 2, (5, 3))},
        "persons",
        {"difficulty": np.array([0.3, -1.0, 0.5])},
        None,
    ),
    "poisson": (
        counts,
        {"x": RNG.normal(size=(6, 2)), "y": RNG.integers(0, 5, 6)},
        "N",
        {"beta": np.array([0.2, -0.3])},
        None,
    ),
    "binomial, subsampled": (seeds, {"total": np.array([5, 6, 7, 8]), "y": np.array([1, 3, 2, 8])}, "plates", {}, None),
    "mixture": (clusters, {"x": RNG.normal(size=4)}, "N", {"weights": np.array([0.2, 0.5, 0.3])}, None),
    "components": (components, {"x": RNG.normal(size=(3, 5))}, "N", {"loadings": RNG.normal(size=(3, 2))}, {"x": 1}),
    "autoencoder": (autoencoder, PIXELS, "N", trained(autoencoder, PIXELS), None),
}


def everything(np_model, data, given, values):
    """Return NumPyro's log density of all data and all latents, without that of the globals."""
    full = handlers.substitute(handlers.seed(np_model, 0), data=given)
    total, trace = log_density(full, (), data, dict(values))
    fixed = [site for name, site in trace.items() if name in given and site["type"] == "sample"]
    return float(total) - sum(float(jnp.sum(site["fn"].log_prob(site["value"]))) for site in fixed)


@pytest.mark.parametrize("name", [name for name in ZOO if name not in ("mixture", "binomial, subsampled")])
def test_terms_add_up_to_numpyros_density(name):
    np_model, data, plate, given, axes = ZOO[name]
    model = ag.models.from_numpyro(np_model, data, local_plate=plate, condition=given, axes=axes)
    n = len(next(iter(model.data.values())))
    z = jax.random.normal(jax.random.key(3), (n, model.latent_dim))
    terms = jax.jit(jax.vmap(model.log_joint))(z, model.data)
    latents = jax.vmap(model.unpack)(z, model.data)
    assert set(latents) == set(model.sites)
    if name == "varying intercepts":
        jacobian = float(jnp.sum(z[:, model.sites.index("scale")]))
        latents = {site: value[:, None] for site, value in latents.items()}
        latents = {site: value.reshape(2, 1) for site, value in latents.items()}
    elif name == "poisson":
        jacobian = float(jnp.sum(z))
    else:
        jacobian = 0.0
    if name == "item responses":
        latents = {"ability": latents["ability"].reshape(5, 1)}
    expected = everything(np_model, data, given, latents) + jacobian
    assert float(jnp.sum(terms)) == pytest.approx(expected, rel=1e-5, abs=1e-3)


def test_supports_that_depend_on_latents_and_subsampled_plates():
    np_model, data, plate, given, _ = ZOO["binomial, subsampled"]
    model = ag.models.from_numpyro(np_model, data, local_plate=plate, condition=given)
    assert model.latent_dim == 2 and model.sites == ("low", "high")
    z, row = jnp.array([0.3, -0.7]), jax.tree.map(lambda leaf: leaf[1], model.data)
    found = model.unpack(z, row)
    low = -1 + jax.nn.sigmoid(0.3)
    high = low + (2 - low) * jax.nn.sigmoid(-0.7)
    np.testing.assert_allclose([found["low"], found["high"]], [low, high], rtol=1e-5)

    def log_sigmoid_slope(u):
        return jax.nn.log_sigmoid(u) + jax.nn.log_sigmoid(-u)

    # Uniform densities and Jacobians cancel but for the slopes of the sigmoids.
    expected = log_sigmoid_slope(0.3) + log_sigmoid_slope(-0.7)
    expected += dist.Binomial(6, logits=low + high).log_prob(3)
    assert float(model.log_joint(z, row)) == pytest.approx(float(expected), rel=1e-5)


def test_discrete_latents_are_summed_out():
    np_model, data, plate, given, _ = ZOO["mixture"]
    model = ag.models.from_numpyro(np_model, data, local_plate=plate, condition=given)
    assert model.sites == ("centre",)
    z, x = jnp.array([0.4]), data["x"][2]
    prior = jax.nn.logsumexp(jnp.log(given["weights"]) + dist.Normal(jnp.array([-2.0, 0.0, 2.0]), 0.5).log_prob(z[0]))
    expected = prior + dist.Normal(z[0], 1.0).log_prob(x)
    row = jax.tree.map(lambda leaf: leaf[2], model.data)
    assert float(model.log_joint(z, row)) == pytest.approx(float(expected), rel=1e-5)


def test_local_vi_of_eight_schools_is_exact():
    np_model, data, plate, given, _ = ZOO["eight schools"]
    model = ag.models.from_numpyro(np_model, data, local_plate=plate, condition=given)
    fit = ag.fit_local(jax.random.key(0), model.data, model=model, family=ag.families.MeanFieldNormal(1))
    precision = 1 / 3.6**2 + 1 / SIGMA**2
    np.testing.assert_allclose(fit.phi[:, 0], (4.4 / 3.6**2 + EFFECTS / SIGMA**2) / precision, atol=2e-2)
    np.testing.assert_allclose(jnp.exp(fit.phi[:, 1]), precision**-0.5, rtol=2e-2)
    evidence = dist.Normal(4.4, np.sqrt(3.6**2 + SIGMA**2)).log_prob(EFFECTS)
    np.testing.assert_allclose(fit.elbo, evidence, atol=2e-3)


def test_refusals_say_what_to_change():
    def refused(np_model, data, plate, match, **more):
        with pytest.raises(ValueError, match=match):
            ag.models.from_numpyro(np_model, data, local_plate=plate, **more)

    data = {"J": 8, "sigma": SIGMA, "y": EFFECTS}
    bare = {name: data[name] for name in ("J", "sigma")}
    refused(schools, bare, "J", "has no observed site: was an argument left out", condition={"mu": 0.0, "tau": 1.0})
    refused(schools, data, "school", r"no plate 'school' \(its plates: J\)", condition={"mu": 0.0, "tau": 1.0})
    refused(schools, data, "J", "without a value: mu, tau")
    refused(schools, data, "J", "lacks: nu", condition={"mu": 0.0, "tau": 1.0, "nu": 1.0})
    short = data | {"y": EFFECTS[:5]}
    refused(schools, short, "J", r"cannot be run on data .*y \(5,\)", condition={"mu": 0.0, "tau": 1.0})
    refused(autoencoder, PIXELS, "N", r"without a value: decoder\$params")

    def series(y):
        def step(state, value):
            state = numpyro.sample("state", dist.Normal(state, 1.0))
            numpyro.sample("y", dist.Normal(state, 1.0), obs=value)
            return state, None

        scan(step, 0.0, y)

    refused(series, {"y": EFFECTS}, "time", "time series")

    def coupled(y):
        with numpyro.plate("N", y.shape[0]):
            z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(jnp.cumsum(z), 1.0).to_event(1), obs=y)

    refused(coupled, {"y": EFFECTS}, "N", "plate 'N' is not local")

    def infinite(y):
        with numpyro.plate("N", y.shape[0]):
            count = numpyro.sample("count", dist.Poisson(2.0))
            numpyro.sample("y", dist.Normal(count, 1.0), obs=y)

    refused(infinite, {"y": EFFECTS}, "N", "'count' is discrete .Poisson. without finite support")

    def branching(y):
        with numpyro.plate("N", y.shape[0]):
            z = numpyro.sample("z", dist.Normal(0, 1))
            if jnp.all(z > -100):
                numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    refused(branching, {"y": EFFECTS}, "N", "jnp.where or jax.lax.cond")

    def broken(y):
        with numpyro.plate("N", y.shape[0]):
            z = numpyro.sample("z", dist.Normal(0, 1))
            numpyro.factor("bad", jnp.log(y - 100.0) + z)

    refused(broken, {"y": EFFECTS}, "N", "not finite at z = 0 for 8 of 8 data")


def all_schools(sigma, y, centred):
    with numpyro.plate("all", 1, dim=-2):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        tau = numpyro.sample("tau", dist.HalfCauchy(5))
        with numpyro.plate("J", 8, dim=-1):
            if centred:
                theta = numpyro.sample("theta", dist.Normal(mu, tau))
            else:
                theta = mu + tau * numpyro.sample("raw", dist.Normal(0, 1))
            numpyro.sample("obs", dist.Normal(theta, sigma), obs=y)


@pytest.mark.slow
@pytest.mark.parametrize(("centred", "kl"), [(False, 0.2857), (True, 2.0928)])
def test_eight_schools_with_globals_inside(centred, kl):
    # log p(y) by quadrature over tau; KL of the best mean field normal by L-BFGS on 2^15 Sobol points.
    evidence = -31.31134735
    data = {"sigma": SIGMA, "y": EFFECTS[None], "centred": centred}
    model = ag.models.from_numpyro(all_schools, data, local_plate="all")
    family = ag.families.MeanFieldNormal(10)
    key_fit, key_bound, key_evidence = jax.random.split(jax.random.key(0), 3)
    fit = ag.fit_local(key_fit, model.data, model=model, family=family)
    bound = ag.evaluate_bounds(key_bound, fit.phi[:, None], model.data, model=model, family=family, num_samples=100_000)
    assert float(bound.elbo[0, 0]) == pytest.approx(evidence - kl, abs=4 * float(bound.standard_error[0, 0]) + 0.01)
    if not centred:
        full = ag.families.FullRankNormal(10)
        wide = ag.fit_local(key_fit, model.data, model=model, family=full)
        found = ag.evidence_of_data(
            key_evidence, model.data, model=model, family=full, phis=wide.phi, num_samples=100_000
        )
        error = float(found.standard_error[0])
        assert float(found.log_evidence[0]) == pytest.approx(evidence, abs=4 * error + 0.01)
