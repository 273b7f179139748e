"""Bounds and log p(x) of every image under one trained model, and what follows from them."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import trim_mean

import amortgap as ag
from studies.cremer2018.estimators import published_ffg
from studies.cremer2018.models import Trained, key_of
from studies.cremer2018.study import AIS, ENCODER, FFG, IWAE, Study

# Data in a compiled call: training images come in fours of as many as there are held-out ones, and one shape of data
# is compiled once.
_CHUNK = 250
# Draws of the encoder's q from whose moments local normals start.
_MOMENT_DRAWS = 64


class Optima(NamedTuple):
    """Local optima of every image: variational parameters [N, size] and their ELBO [N]."""

    phi: jax.Array
    elbo: jax.Array


def local_name(family: str) -> str:
    """Return the name of the bound at the local optimum of a family."""
    return f"L[q*_{family}]"


def _elbos(key: Any, phis: Any, xs: Any, model: Any, family: Any, num_samples: int) -> Any:
    return ag.evaluate_bounds(key, phis[:, None], xs, model=model, family=family, num_samples=num_samples).elbo[:, 0]


@jax.jit
def _encode(encoder: Any, xs: Any) -> Any:
    return jax.lax.map(encoder, xs, batch_size=500)


@jax.jit
def _moments(key: Any, phis: Any, family: Any) -> tuple[jax.Array, jax.Array]:
    def one(phi: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys = jax.random.split(key, _MOMENT_DRAWS)
        draws = jax.lax.map(lambda k: family.sample_and_log_prob(k, phi)[0], keys)
        return jnp.mean(draws, axis=0), jnp.std(draws, axis=0)

    return jax.lax.map(lambda phi: one(phi), phis, batch_size=100)


@jax.jit
def _embed(phis: Any, normal: Any, family: Any) -> jax.Array:
    """Return parameters of a family that have the moments of these normals."""
    return jax.vmap(lambda phi: family.from_moments(*normal.moments(phi)))(phis)


def local_normals(study: Study, trained: Trained, xs: jax.Array, phis: jax.Array) -> Optima:
    """Return the local optima of mean field normals, started from the moments of the encoder's q."""
    normal = ag.families.MeanFieldNormal(trained.model.latent_dim)
    if study.local_estimator == "certified":
        # Of a model trained with another family the diagonal normals lose tens of nats: tenths of one say nothing more.
        tolerance = study.local_tolerance * (1 if trained.family == normal else 4)
        mean, scale = _moments(key_of("local", 2), phis, trained.family)
        start = jnp.concatenate([mean, jnp.log(scale)], axis=1)
        found = ag.fit_local(
            key_of("local"),
            xs,
            model=trained.model,
            family=normal,
            init=start,
            tolerance=tolerance,
            num_samples=study.local_samples,
            chunk_size=_CHUNK,
        ).phi
    else:
        found, elbo = published_ffg(
            key_of("copies"),
            xs,
            model=trained.model,
            way=study.local_estimator,
            copies=study.copies,
            window=study.window,
        )
        if study.local_estimator == "independent-copies":
            # What that code reports is the mean over copies, one draw each.
            return Optima(found, elbo)
    return Optima(found, _at(study, found, xs, trained.model, normal))


def local_flows(study: Study, trained: Trained, xs: jax.Array, normals: jax.Array, family: Any) -> Optima:
    """Return local flows: of each image the best of what the family contains and what its encoder can do.

    The diagonal normal; in an auxiliary flow, which contains it, the certified full-rank normal; on models trained with
    the family what the encoder computes for an image set free, its flow weights as trained. Steps on all weights of one
    image alone, which the published codes make, lost nats to the noise of gradients (thirty thousand weights).
    """
    key, d = key_of("local", 1), family.latent_dim
    mean_field, full_rank = ag.families.MeanFieldNormal(d), ag.families.FullRankNormal(d)
    if isinstance(family, ag.families.AuxiliaryFlow):
        full = ag.fit_local(
            jax.random.fold_in(key, 0),
            xs,
            model=trained.model,
            family=full_rank,
            init=_embed(normals, mean_field, full_rank),
            tolerance=study.local_tolerance,
            num_samples=study.local_samples,
            max_reruns=0,
            chunk_size=_CHUNK,
        ).phi
        # Not worse than the diagonal normal that it started from.
        found = [_embed(full, full_rank, family)]
    else:
        found = [_embed(normals, mean_field, family)]
    if trained.family == family:
        shared = ag.families.FixedWeights(family, trained.encoder.weights)
        heads = ag.fit_local(
            jax.random.fold_in(key, 1),
            xs,
            model=trained.model,
            family=shared,
            encoder=trained.encoder.head,
            num_steps=study.local_flow_steps,
            max_reruns=0,
            chunk_size=_CHUNK,
        ).phi
        found.append(jax.vmap(shared.whole)(heads))
    if len(found) == 1:
        return Optima(found[0], _at(study, found[0], xs, trained.model, family))
    # Chosen on other draws than those that the choice is reported on.
    judged = jnp.stack(
        [_elbos(jax.random.fold_in(key, 2), phis, xs, trained.model, family, study.bound_samples) for phis in found]
    )
    phis = jnp.stack(found)[jnp.argmax(judged, axis=0), jnp.arange(len(xs))]
    return Optima(phis, _at(study, phis, xs, trained.model, family))


def _at(study: Study, phis: Any, xs: Any, model: Any, family: Any) -> jax.Array:
    return _elbos(key_of("amortized"), phis, xs, model, family, study.bound_samples)


def bounds(
    study: Study, trained: Trained, xs: Any, *, flow: Any, with_flow: bool = True, annealed: int | None = None
) -> dict[str, np.ndarray]:
    """Return for every image the ELBO of the encoder, those of the local optima, and estimates of log p(x), nats.

    Args:
      study, trained: sizes and the model.
      xs: images, [N, D].
      flow: (family name, family) of the local flow.
      with_flow: whether local flows are fitted.
      annealed: number of images with annealed importance sampling, NaN for the others; None for the study's.
    """
    name, family = flow
    xs = jnp.asarray(xs)
    phis = _encode(trained.encoder, xs)
    normals = local_normals(study, trained, xs, phis)
    found: dict[str, Any] = {ENCODER: _at(study, phis, xs, trained.model, trained.family), FFG: normals.elbo}
    proposal, of = normals.phi, ag.families.MeanFieldNormal(trained.model.latent_dim)
    if with_flow:
        flows = local_flows(study, trained, xs, normals.phi, family)
        found[local_name(name)] = flows.elbo
        proposal, of = flows.phi, family
    with warnings.catch_warnings():
        # k-hat of single images: the tables hold annealed importance sampling beside this bound.
        warnings.simplefilter("ignore", ag.evidence.UnreliableEvidence)
        found[IWAE] = ag.evidence_of_data(
            key_of("evidence"), xs, model=trained.model, family=of, phis=proposal, num_samples=study.evidence_samples
        ).log_evidence
        count = min(study.ais_images if annealed is None else annealed, len(xs))
        values = np.full(len(xs), np.nan)
        if count:
            values[:count] = ag.evidence_of_data(
                key_of("annealing"),
                xs[:count],
                model=trained.model,
                method="ais",
                start="q",
                family=ag.families.MeanFieldNormal(trained.model.latent_dim),
                phis=normals.phi[:count],
                num_temperatures=study.ais_temperatures,
                num_chains=study.ais_chains,
                num_pilots=2,
                num_leapfrog=study.ais_leapfrog,
            ).log_evidence
        found[AIS] = values
    return {quantity: np.asarray(value, np.float64) for quantity, value in found.items()}


def best_evidence(values: dict[str, np.ndarray]) -> np.ndarray:
    """Return log p(x) of every image by the estimate with the larger mean where both are known.

    One estimate is taken for all images: the larger of two noisy values, image by image, would be biased upwards.
    """
    both = np.isfinite(values[AIS])
    if not both.any():
        return values[IWAE]
    better = values[AIS] if values[AIS][both].mean() > values[IWAE][both].mean() else values[IWAE]
    return np.where(both, better, values[IWAE])


def gaps(values: dict[str, np.ndarray], family: str) -> dict[str, np.ndarray]:
    """Return the bounds of every image and the three gaps of a model trained with `family`, nats."""
    evidence, own = best_evidence(values), values[local_name(family)]
    return {
        "log p(x)": evidence,
        **values,
        "approximation gap": evidence - own,
        "amortization gap": own - values[ENCODER],
        "inference gap": evidence - values[ENCODER],
    }


def summary(values: np.ndarray) -> dict[str, Any]:
    """Return mean, standard error, median and trimmed mean over the images that have a value."""
    values = values[np.isfinite(values)]
    if not values.size:
        return {"mean": None, "standard_error": None, "median": None, "trimmed_mean": None, "num_images": 0}
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else None
    return {
        "mean": float(values.mean()),
        "standard_error": None if error is None else float(error),
        "median": float(np.median(values)),
        "trimmed_mean": float(trim_mean(values, 0.05)),
        "num_images": len(values),
    }
