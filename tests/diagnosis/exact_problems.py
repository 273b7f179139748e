"""Encoders of factor analysis whose every gap is known, for the four verdicts."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

import amortgap as ag

D, DIM = 4, 2
FAMILY = ag.families.MeanFieldNormal(DIM)


def model(correlated=False):
    # Columns at right angles leave the posterior independent; nearly equal ones make it as correlated as can be.
    columns = [[1.0, 1.0, 1.0, 1.0], [1.0, 0.8, 1.0, 0.8]] if correlated else [[1.0, 1.0, 0, 0], [0, 0, 1.0, 1.0]]
    loadings = jnp.asarray(columns).T
    return ag.models.FactorAnalysis(loadings=loadings, mean=jnp.full(D, 0.3), noise_variance=jnp.full(D, 0.4))


def _weighted(of):
    return np.asarray(of.loadings, float).T / np.asarray(of.noise_variance, float)


def precision(of):
    return np.eye(DIM) + _weighted(of) @ np.asarray(of.loadings, float)


def posterior_means(of, xs):
    map_to_mean = np.linalg.solve(precision(of), _weighted(of))
    return (np.asarray(xs) - np.asarray(of.mean)) @ map_to_mean.T


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Affine:
    matrix: jax.Array
    centre: jax.Array
    log_scale: jax.Array

    def __call__(self, x):
        return jnp.concatenate([self.matrix @ (x - self.centre), self.log_scale])


def best_encoder(of):
    of_precision = precision(of)
    matrix = np.linalg.solve(of_precision, _weighted(of))
    return Affine(
        jnp.asarray(matrix, jnp.float32), of.mean, jnp.asarray(-0.5 * np.log(np.diag(of_precision)), jnp.float32)
    )


def half_blind(of):
    encoder = best_encoder(of)
    return Affine(encoder.matrix.at[1].set(0.0), encoder.centre, encoder.log_scale)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Remembered:
    """What the best encoder says of the nearest datum it has seen, right for these and wrong for all others."""

    xs: jax.Array
    phis: jax.Array

    def __call__(self, x):
        return self.phis[jnp.argmin(jnp.sum((self.xs - x[None]) ** 2, axis=1))]


def remembered(of, xs):
    return Remembered(xs, jax.vmap(best_encoder(of))(xs))


def problem(name):
    """Model, encoder, training and held-out data of a problem."""
    of = model(correlated=name == "approximation")
    _, xs = ag.diagnostics.simulate(jax.random.key(7), model=of, num_data=100)
    train, test = xs[:60], xs[60:]
    encoders = {"amortization": half_blind, "generalization": lambda of: remembered(of, train)}
    return of, encoders.get(name, best_encoder)(of), train, test
