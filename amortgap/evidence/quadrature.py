"""log p(x) without draws: in closed form, or by adaptive Gauss-Hermite quadrature in up to three latent dimensions."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from amortgap._internal.checks import check_count, check_datum, check_key
from amortgap.evidence.proposal import check_proposal, fit_normal
from amortgap.evidence.records import Evidence
from amortgap.expectations import MAX_NODES, MAX_QUADRATURE_DIM, plain_gauss_hermite
from amortgap.protocols import Datum, Family, HasExactEvidence, HasMoments, Model

# Draws behind the moments of a family that does not state them.
_MOMENT_DRAWS = 1000


def check_exact(model: object) -> HasExactEvidence:
    """Return the model, refusing one without a closed form of log p(x)."""
    if not isinstance(model, HasExactEvidence):
        raise ValueError(f"method 'exact' needs model.log_evidence, which {type(model).__name__} lacks")
    return model


def exact(x: Datum, *, model: HasExactEvidence) -> Evidence:
    """Return log p(x) of one datum from the model's closed form.

    Formula: `log p(x) = log integral p(x, z) dz`, as `model.log_evidence(x)` states it.

    Args:
      x: one datum.
      model: record with `log_evidence(x)`.

    Returns:
      Evidence in nats with a standard error of zero.

    Raises:
      ValueError: a model without a closed form, or an x that is not one datum of it.
    """
    value = check_exact(model).log_evidence(check_datum(x, model))
    return Evidence(
        log_evidence=value,
        standard_error=jnp.zeros_like(value),
        effective_sample_size=jnp.full_like(value, jnp.inf),
        pareto_k=jnp.full_like(value, -jnp.inf),
        method="exact",
        bias="none",
    )


def check_quadrature(model: Model) -> None:
    """Refuse a model with more latent dimensions than a product rule can serve."""
    if model.latent_dim > MAX_QUADRATURE_DIM:
        raise ValueError(
            f"method 'quadrature' serves latent dimensions up to {MAX_QUADRATURE_DIM}, "
            f"got model.latent_dim = {model.latent_dim}; use 'importance' or 'ais'"
        )


def default_nodes(latent_dim: int) -> int:
    """Return the nodes of one axis where the caller does not choose: along a line many cost nothing."""
    return MAX_NODES if latent_dim == 1 else 32


def quadrature(
    key: jax.Array | None,
    x: Datum,
    *,
    model: Model,
    family: Family | None = None,
    phi: Float[Array, " size"] | None = None,
    num_nodes: int | None = None,
    num_refinements: int = 3,
) -> Evidence:
    """Compute log p(x) of one datum by adaptive Gauss-Hermite quadrature.

    Formula: `log sum_j |L| w_j exp(u_j' u_j / 2) p(x, m + L u_j)`, u_j and w_j the product rule for the standard
    normal weight, or for a narrower one where the nodes would reach beyond ten standard deviations. Centre m and scale
    L start at the moments of q(z; phi), or of a normal fitted here, and are replaced `num_refinements` times by
    the posterior moments that the rule itself yields.

    Args:
      key: typed key, used only where the moments of q have to be taken from draws; else it may be None.
      x: one datum.
      model: record with `log_joint(z, x)` and at most three latent dimensions.
      family, phi: a first approximation of the posterior, such as the local optimum; None to fit a
        normal here, from z = 0.
      num_nodes: nodes of one axis, 4 to 128; the cost is num_nodes^d. None for 128 in one dimension and 32 in more.
      num_refinements: how often the rule is centred again.

    Returns:
      Evidence in nats; the standard error is the change against three quarters of the nodes, no Monte Carlo error.

    Raises:
      ValueError: a latent dimension above three, only one of family and phi, bad counts, an x that is not one datum,
        or no key for a family without `moments`.

    Source: Naylor and Smith (1982); Liu and Pierce, "A note on Gauss-Hermite quadrature" (1994).
    """
    if key is not None:
        check_key(key)
    check_quadrature(model)
    x = check_datum(x, model)
    dim = model.latent_dim
    num_nodes = default_nodes(dim) if num_nodes is None else num_nodes
    check_count("num_nodes", num_nodes, minimum=4, maximum=MAX_NODES)
    check_count("num_refinements", num_refinements, minimum=0)
    check_proposal(model, family, phi)
    if family is not None and phi is not None:
        mean, scale = _moments(key, family, phi)
    else:
        mean, scale = fit_normal(jnp.eye(dim), jnp.zeros(dim), x, model=model)

    def apply(rule: tuple[np.ndarray, np.ndarray], mean: Array, scale: Array) -> tuple[Array, Array, Array]:
        nodes, log_weights = (jnp.asarray(part, mean.dtype) for part in rule)
        points = mean[None, :] + nodes @ scale.T
        values = log_weights + jax.vmap(lambda z: model.log_joint(z, x))(points)
        total = logsumexp(values)
        mass = jnp.exp(values - jnp.where(jnp.isfinite(total), total, 0.0))
        new_mean = mass @ points
        centred = (points - new_mean[None, :]) * jnp.sqrt(mass)[:, None]
        new_scale = jnp.linalg.cholesky(centred.T @ centred)
        good = jnp.all(jnp.isfinite(new_scale)) & jnp.all(jnp.diag(new_scale) > 0)
        # log |L| is the sum of the logs of its diagonal, since L is lower triangular.
        value = total + jnp.sum(jnp.log(jnp.abs(jnp.diag(scale))))
        return value, jnp.where(good, new_mean, mean), jnp.where(good, new_scale, scale)

    fine, coarse = (plain_gauss_hermite(number, dim) for number in (num_nodes, math.ceil(0.75 * num_nodes)))
    for _ in range(num_refinements):
        _, mean, scale = apply(fine, mean, scale)
    value, _, _ = apply(fine, mean, scale)
    coarse_value, _, _ = apply(coarse, mean, scale)
    return Evidence(
        log_evidence=value,
        standard_error=jnp.where(jnp.isneginf(value), jnp.inf, jnp.abs(value - coarse_value)),
        effective_sample_size=jnp.full_like(value, jnp.inf),
        pareto_k=jnp.full_like(value, -jnp.inf),
        method=f"adaptive Gauss-Hermite quadrature, {num_nodes} nodes an axis",
        bias="numerical",
    )


def _moments(key: jax.Array | None, family: Family, phi: Array) -> tuple[Array, Array]:
    if isinstance(family, HasMoments):
        return family.moments(phi)
    if key is None:
        raise ValueError(f"the moments of {type(family).__name__} are taken from draws, which need a key; got None")
    draws = jax.vmap(lambda draw_key: family.sample_and_log_prob(draw_key, phi)[0])(
        jax.random.split(key, _MOMENT_DRAWS)
    )
    return jnp.mean(draws, axis=0), jnp.linalg.cholesky(jnp.atleast_2d(jnp.cov(draws.T)))
