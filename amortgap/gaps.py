"""Arithmetic of gaps on arrays over data: differences of bounds and their standard errors. Imports nothing of the package."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Estimate(NamedTuple):
    """A mean over data with its two kinds of uncertainty.

    Attributes:
      mean: mean over data, nats.
      total: sum over data, nats.
      data_standard_error: of the mean, from the spread over data (the noise of the draws is part of that spread).
      monte_carlo_standard_error: of the mean, from the draws alone, the data held fixed.
    """

    mean: Float[Array, ""]
    total: Float[Array, ""]
    data_standard_error: Float[Array, ""]
    monte_carlo_standard_error: Float[Array, ""]


def estimate(values: Float[Array, " N"], standard_errors: Float[Array, " N"]) -> Estimate:
    """Return the mean of per-datum values with standard errors over data and over Monte Carlo draws.

    Formula: `mean = (1/N) sum v_i`; `SE_data = sd(v) / sqrt(N)`; `SE_MC = sqrt(sum se_i^2) / N`.

    Args:
      values: v_i in nats, [N].
      standard_errors: Monte Carlo standard error of each value, [N], independent between data.
    """
    n = values.shape[0]
    spread = jnp.std(values, ddof=1) if n > 1 else jnp.asarray(jnp.nan)
    return Estimate(
        mean=jnp.mean(values),
        total=jnp.sum(values),
        data_standard_error=spread / n**0.5,
        monte_carlo_standard_error=jnp.sqrt(jnp.sum(standard_errors**2)) / n,
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Gaps:
    """What inference loses on every datum, in nats, split by cause.

    Formula: `inference = approximation + amortization = [log p(x) - ELBO(phi*)] + [ELBO(phi*) - ELBO(encoder(x))]`.
    No entry is ever clipped: a negative one is noise, an unfinished local fit or a biased log p(x), and should be seen.

    Attributes:
      log_evidence, elbo_local, elbo_amortized: per datum, [N]; both ELBOs from the same fresh draws.
      approximation, amortization, inference: the differences, [N].
      log_evidence_standard_error, elbo_local_standard_error, elbo_amortized_standard_error: Monte Carlo, [N].
      amortization_standard_error: of the paired difference, [N]; shared draws make it smaller than its parts.
      converged: whether the local optimum of the datum met its tolerance, [N].
      suboptimality: estimate of the nats by which the local fit misses its optimum, [N].
      evidence_method: how log p(x) was obtained.
      evidence_bias: "none", or the direction in which log p(x) is off in expectation.
    """

    log_evidence: Float[Array, " N"]
    elbo_local: Float[Array, " N"]
    elbo_amortized: Float[Array, " N"]
    log_evidence_standard_error: Float[Array, " N"]
    elbo_local_standard_error: Float[Array, " N"]
    elbo_amortized_standard_error: Float[Array, " N"]
    amortization_standard_error: Float[Array, " N"]
    converged: Array
    suboptimality: Float[Array, " N"]
    evidence_method: str = field(metadata={"static": True})
    evidence_bias: str = field(metadata={"static": True})

    @property
    def approximation(self) -> Float[Array, " N"]:
        """`log p(x) - ELBO(phi*)`: what the variational family costs."""
        return self.log_evidence - self.elbo_local

    @property
    def amortization(self) -> Float[Array, " N"]:
        """`ELBO(phi*) - ELBO(encoder(x))`: what sharing one encoder costs."""
        return self.elbo_local - self.elbo_amortized

    @property
    def inference(self) -> Float[Array, " N"]:
        """`log p(x) - ELBO(encoder(x))`: the sum of both."""
        return self.log_evidence - self.elbo_amortized

    def estimates(self) -> dict[str, Estimate]:
        """Return the mean, sum and standard errors of every quantity, by name."""
        # The evidence is estimated from draws of its own, independent of those behind the ELBOs.
        approximation = jnp.hypot(self.log_evidence_standard_error, self.elbo_local_standard_error)
        inference = jnp.hypot(self.log_evidence_standard_error, self.elbo_amortized_standard_error)
        return {
            "log_evidence": estimate(self.log_evidence, self.log_evidence_standard_error),
            "elbo_local": estimate(self.elbo_local, self.elbo_local_standard_error),
            "elbo_amortized": estimate(self.elbo_amortized, self.elbo_amortized_standard_error),
            "approximation": estimate(self.approximation, approximation),
            "amortization": estimate(self.amortization, self.amortization_standard_error),
            "inference": estimate(self.inference, inference),
        }

    def summary(self) -> str:
        """Return a table in plain text: means in nats per datum, standard errors over data and over draws."""
        n = self.elbo_local.shape[0]
        lines = [f"{'nats per datum':<16}{'mean':>12}{'SE (data)':>12}{'SE (draws)':>12}{'sum':>14}"]
        for name, row in self.estimates().items():
            lines.append(
                f"{name:<16}{float(row.mean):>12.4f}{float(row.data_standard_error):>12.4f}"
                f"{float(row.monte_carlo_standard_error):>12.4f}{float(row.total):>14.2f}"
            )
        missed = [int(i) for i in jnp.flatnonzero(~self.converged)[:10]]
        lines.append(f"{n} data; log p(x) by {self.evidence_method} (bias: {self.evidence_bias})")
        lines.append(
            f"local optimum: {n - int(jnp.sum(~self.converged))} of {n} data within tolerance, estimated shortfall "
            f"{float(jnp.mean(self.suboptimality)):.4f} nats on average"
            + (f"; not converged: data {missed}" if missed else "")
        )
        return "\n".join(lines)


def paired_difference(first: Float[Array, " N"], second: Float[Array, " N"]) -> Estimate:
    """Return `mean(first - second)` over the same data with the standard error of the paired difference.

    The Monte Carlo part is not separated and reported as zero: it is contained in the spread over data.
    """
    return estimate(first - second, jnp.zeros_like(first))


def generalization(train: Float[Array, " N"], test: Float[Array, " M"]) -> Estimate:
    """Return how much larger the mean gap is on held-out data, with its standard error over data.

    Formula: `mean(test) - mean(train)`, `SE^2 = var(test) / M + var(train) / N`.
    """
    difference = jnp.mean(test) - jnp.mean(train)
    error = jnp.sqrt(jnp.var(test, ddof=1) / test.shape[0] + jnp.var(train, ddof=1) / train.shape[0])
    return Estimate(difference, difference * test.shape[0], error, jnp.zeros_like(error))
