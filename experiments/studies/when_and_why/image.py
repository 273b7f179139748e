"""The image decoder with Bayesian weights of `when_and_why.py`."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

import amortgap as ag
from amortgap.data import DataSet
from amortgap.expectations import Expectation
from amortgap.inference import amortized_factors, constant_factors, free_factors, global_local_vi, hierarchical_elbo
from studies.when_and_why.exact import Rows
from studies.when_and_why.models import bayesian_decoder
from studies.when_and_why.study import Study, row


def image_source(wanted: str) -> Literal["fashion_mnist", "digits"]:
    """Return the data set that is meant: "auto" is Fashion-MNIST where its files are, else the embedded digits."""
    if wanted == "fashion_mnist" or (wanted == "auto" and ag.data.is_available("fashion_mnist")):
        return "fashion_mnist"
    return "digits"


def images_of(study: Study) -> DataSet:
    """Return the data set of a study whose `image_data` names one."""
    if image_source(study.image_data) == "fashion_mnist":
        return ag.data.load_fashion_mnist(binarisation="dynamic")
    return ag.data.load_digits(binarisation="none")


def _images(study: Study) -> jax.Array:
    largest = 1 if image_source(study.image_data) == "fashion_mnist" else 16
    return jnp.asarray(images_of(study).train[: study.image_count] / largest, float)


def image(study: Study, method: str, width: int) -> Rows:
    """Return the ELBO a datum and the squared error of one method on images, with a decoder of Bayesian weights.

    There is no exact optimum here, and F-VI gets the same steps as the encoders, at a rate ten times as high: every
    datum's own factor is in one minibatch of ten.
    """
    xs = _images(study)
    n, pixels = xs.shape
    key_decoder, key_evaluation = jax.random.key(0), jax.random.key(1)
    model = bayesian_decoder(
        key_decoder,
        latent_dim=study.image_latents,
        data_dim=pixels,
        width=study.image_decoder,
        noise_variance=0.01,
    )
    family = ag.families.MeanFieldNormal(study.image_latents)
    global_family = ag.families.MeanFieldNormal(model.global_dim)
    means = jax.flatten_util.ravel_pytree(model.network)[0]
    start = jnp.concatenate([means, jnp.full_like(means, -4.0)])
    where = {"part": "image", "method": method, "num_data": n, "size": width}
    rows, elbos = [], []
    for seed in range(study.image_seeds):
        if method == "A-VI":
            key_encoder = jax.random.key(seed)
            encoder = ag.encoders.mlp(key_encoder, pixels, family, width=width, depth=2)
            factors = amortized_factors(encoder, family)
        else:
            factors = free_factors(family, n) if method == "F-VI" else constant_factors(family)
        key_training = jax.random.key(3000 + seed)
        fit = global_local_vi(
            key_training,
            xs,
            model=model,
            global_family=global_family,
            family=family,
            factors=factors,
            global_start=start,
            batch_size=min(100, n),
            num_steps=study.image_steps,
            num_evaluations=min(20, study.image_steps),
            learning_rate=0.1 if method == "F-VI" else 1e-2,
        )
        value = _image_elbo(key_evaluation, fit, xs, model, global_family, family)
        phis = jax.vmap(lambda i, x, fit=fit: fit.factors(i, x, fit.global_phi[: means.size]))(jnp.arange(n), xs)
        guess = jax.vmap(lambda phi, fit=fit: model.decode(fit.global_phi[: means.size], phi[: study.image_latents]))(
            phis
        )
        error = float(jnp.mean((guess - xs) ** 2))
        elbos.append(value / n)
        rows.append(row(**where, seed=seed, quantity="ELBO per datum, nats", value=value / n))
        rows.append(row(**where, seed=seed, quantity="mean squared error", value=error))
        seconds = np.cumsum(np.asarray(fit.trace.seconds))
        if seed == 0:
            rows += [
                row(
                    **where,
                    seed=0,
                    quantity="path, nats",
                    step=int(step),
                    value=float(elbo),
                    seconds=float(t),
                    visits=float(v),
                )
                for step, elbo, t, v in zip(fit.trace.step, fit.trace.elbo, seconds, fit.trace.data_visits, strict=True)
            ]
    return [*rows, row(**where, quantity="median ELBO per datum, nats", value=float(np.median(elbos)))]


@jax.jit
def _image_elbo(key: jax.Array, fit: Any, xs: Any, model: Any, global_family: Any, family: Any) -> Any:
    draws = Expectation(size=20, estimator="total")
    one = Expectation(size=1, estimator="total")
    return hierarchical_elbo(
        key,
        fit.global_phi,
        fit.factors,
        xs,
        model=model,
        global_family=global_family,
        family=family,
        global_expectation=draws,
        local_expectation=one,
    )
