"""Whether an approximate posterior is the right one: Pareto k-hat, simulation-based calibration, expected coverage."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy import stats

from amortgap._internal.checks import check_count, check_data, check_key, check_phis, check_sizes, num_rows
from amortgap._internal.devices import map_data
from amortgap.evidence import Evidence, evidence_of_data
from amortgap.protocols import Data, Family, HasDensity, Model, Simulating


class Simulations(NamedTuple):
    """Draws from the joint density.

    Attributes:
      latents: [N, d].
      xs: data, N rows.
    """

    latents: Float[Array, "N d"]
    xs: Data


class Calibration(NamedTuple):
    """Result of `calibration`.

    Attributes:
      ranks: number of posterior draws below the latent that made the datum, every coordinate, [N, d], in 0..S.
      density_ranks: number of draws whose density exceeds that of the latent, [N], in 0..S.
      num_draws: S.
    """

    ranks: Int[Array, "N d"]
    density_ranks: Int[Array, " N"]
    num_draws: int

    def histogram(self, num_bins: int = 20) -> np.ndarray:
        """Return counts of the ranks of every coordinate in equal bins, [d, num_bins]; flat if calibrated.

        Args:
          num_bins: number of bins, at least two, a divisor of S + 1.

        Returns:
          Counts, [d, num_bins].

        Raises:
          ValueError: more bins than ranks, or ranks that do not divide into equal bins.
        """
        check_count("num_bins", num_bins, minimum=2, maximum=self.num_draws + 1)
        if (self.num_draws + 1) % num_bins:
            raise ValueError(f"num_bins must divide the {self.num_draws + 1} possible ranks, got {num_bins}")
        bins = np.asarray(self.ranks) * num_bins // (self.num_draws + 1)
        return np.stack([np.bincount(column, minlength=num_bins) for column in bins.T])

    def uniformity(self, num_bins: int = 20) -> np.ndarray:
        """Return the p-value of a chi-squared test that the ranks of each coordinate are uniform, [d].

        Args:
          num_bins: as in `histogram`.

        Returns:
          One p-value a coordinate, [d].

        Raises:
          ValueError: as in `histogram`.
        """
        return np.array([stats.chisquare(row).pvalue for row in self.histogram(num_bins)])

    def coverage(self, levels: float | Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the expected coverage of the highest-density regions of each level, and its standard error.

        Formula: `(1/N) #{i: density rank_i < level (S + 1)}`, where a rank that the level divides counts in part; in
        expectation `level` for a calibrated posterior, and less for an overconfident one.

        Args:
          levels: one level or several in [0, 1], [L].

        Returns:
          Coverage and its standard error, each [L].

        Raises:
          ValueError: a level outside [0, 1].
        """
        levels = np.atleast_1d(np.asarray(levels, float))
        if np.any((levels < 0) | (levels > 1)):
            raise ValueError(f"levels must lie in [0, 1], got {levels}")
        ranks = np.asarray(self.density_ranks)[None, :]
        inside = np.clip(levels[:, None] * (self.num_draws + 1) - ranks, 0.0, 1.0)
        return inside.mean(axis=1), inside.std(axis=1) / ranks.shape[1] ** 0.5


def simulate(key: jax.Array, *, model: Simulating, num_data: int) -> Simulations:
    """Return draws (z_i, x_i) from the joint density; datum i uses `fold_in(key, i)`.

    Formula: `(z_i, x_i) ~ p(z, x)`, i = 1..N.

    Args:
      key: typed key.
      model: record with `sample(key)`, which returns z [d] and one datum.
      num_data: N.

    Returns:
      Simulations with latents [N, d] and N rows of data.

    Raises:
      ValueError: bad key or count, or a model without `sample`.
    """
    check_key(key)
    check_count("num_data", num_data)
    if not isinstance(model, Simulating):
        raise ValueError(f"simulation needs model.sample, which {type(model).__name__} lacks")
    return Simulations(*jax.vmap(lambda i: model.sample(jax.random.fold_in(key, i)))(jnp.arange(num_data)))


def pareto_k(
    key: jax.Array, phis: Float[Array, "N size"], xs: Data, *, model: Model, family: Family, num_samples: int = 4000
) -> Evidence:
    """Return Pareto k-hat of every datum, in the record of the importance-sampled log p(x) that it belongs to.

    Formula: the shape of the upper tail of `p(x, z) / q(z; phi)`, `z ~ q`.

    k-hat says whether the family can cover the posterior at this phi, not whether phi is an optimum: the exact mean
    field optimum of a normal posterior whose precision has correlation rho has k = rho. It grows with the latent
    dimension, so it is given for every datum and never for all data together.

    Args:
      key: typed key; datum i uses `fold_in(key, i)`.
      phis: variational parameters, [N, size].
      xs: data.
      model, family: as in `elbo`.
      num_samples: draws per datum, at least 25.

    Returns:
      Evidence; see its `pareto_k`. A warning names data above `amortgap.evidence.reliable_below(num_samples)`.

    Raises:
      ValueError: bad key, sizes or counts.

    Source: Yao, Vehtari, Simpson and Gelman, "Yes, but did it work? Evaluating variational inference" (2018).
    """
    check_count("num_samples", num_samples, minimum=25)
    return evidence_of_data(
        key, xs, model=model, method="importance", family=family, phis=phis, num_samples=num_samples
    )


def calibration(
    key: jax.Array,
    phis: Float[Array, "N size"],
    simulations: Simulations,
    *,
    model: Model,
    family: Family,
    num_draws: int = 99,
) -> Calibration:
    """Rank the latents that made simulated data among draws of the approximate posteriors.

    Formula: `rank_ij = #{s: z_sj < z_ij}`, `z_s ~ q(z; phi_i)`; with `(z_i, x_i) ~ p(z, x)` and q equal to the
    posterior the ranks are uniform on 0..S. The rank of the density, `#{s: q(z_s) > q(z_i)}`, gives expected coverage.

    Args:
      key: typed key; datum i uses `fold_in(key, i)`.
      phis: variational parameters of the simulated data, [N, size]: of local VI or of an encoder.
      simulations: result of `simulate`.
      model, family: as in `elbo`.
      num_draws: S; S + 1 with many divisors suits histograms.

    Returns:
      Calibration. A U-shaped histogram of ranks says that q is too narrow, a slope that it is biased.

    Raises:
      ValueError: bad key, sizes or counts, or a family without `log_prob`.

    Source: Talts, Betancourt, Simpson, Vehtari and Gelman, "Validating Bayesian inference algorithms with
      simulation-based calibration" (2018); Hermans et al. (2022) for expected coverage.
    """
    check_key(key)
    check_sizes(model, family)
    check_count("num_draws", num_draws)
    xs = check_data("simulations.xs", simulations.xs, model)
    check_phis("phis", phis, family, num_rows(xs))
    if not isinstance(family, HasDensity):
        raise ValueError(f"calibration needs family.log_prob, which {type(family).__name__} lacks")
    ranks, density_ranks = _ranks(key, phis, simulations.latents, family, num_draws)
    return Calibration(ranks, density_ranks, num_draws)


@partial(jax.jit, static_argnames=("num_draws",))
def _ranks(key: jax.Array, phis: Array, latents: Array, family: HasDensity, num_draws: int) -> tuple[Array, Array]:
    def one(index: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        phi, latent = row
        keys = jax.random.split(jax.random.fold_in(key, index), num_draws)
        draws, log_q = jax.vmap(lambda k: family.sample_and_log_prob(k, phi))(keys)
        below = jnp.sum(draws < latent[None, :], axis=0)
        return below, jnp.sum(log_q > family.log_prob(latent, phi))

    return map_data(one, (phis, latents), chunk_size=1000)
