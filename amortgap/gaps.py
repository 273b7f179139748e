"""Arithmetic of gaps on arrays over data: differences of bounds, their standard errors and their intervals.

Imports nothing of the package.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from scipy import stats


class Estimate(NamedTuple):
    """A mean over data with its two kinds of uncertainty.

    Attributes:
      mean: mean over data, nats.
      total: sum over data, nats.
      data_standard_error: of the mean, from the spread over data (the noise of the draws is part of that spread).
      monte_carlo_standard_error: of the mean, from the draws alone, the data held fixed.
      num_data: number of data behind the mean.
    """

    mean: Float[Array, ""]
    total: Float[Array, ""]
    data_standard_error: Float[Array, ""]
    monte_carlo_standard_error: Float[Array, ""]
    num_data: int

    def interval(self, level: float = 0.95, *, over: str = "data") -> tuple[float, float]:
        """Return the confidence interval of the mean, `mean -+ quantile * standard error`.

        Args:
          level: nominal coverage, in (0, 1).
          over: "data" for the mean over the population that the data were drawn from (Student's t), "draws" for the
            mean over exactly these data (normal).

        Returns:
          Lower and upper end in nats.

        Raises:
          ValueError: another level or kind.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level!r}")
        if over not in ("data", "draws"):
            raise ValueError(f"over must be 'data' or 'draws', got {over!r}")
        tail = 0.5 * (1 + level)
        if over == "data":
            half = float(stats.t.ppf(tail, max(self.num_data - 1, 1))) * float(self.data_standard_error)
        else:
            half = float(stats.norm.ppf(tail)) * float(self.monte_carlo_standard_error)
        if half == float("inf"):
            return -half, half
        return float(self.mean) - half, float(self.mean) + half


def estimate(values: Float[Array, " N"], standard_errors: Float[Array, " N"]) -> Estimate:
    """Return the mean of per-datum values with standard errors over data and over Monte Carlo draws.

    Formula: `mean = (1/N) sum v_i`; `SE_data = sd(v) / sqrt(N)`; `SE_MC = sqrt(sum se_i^2) / N`. With an infinite value
    the mean is infinite and so are both errors; a NaN among the values stays NaN.

    Args:
      values: v_i in nats, [N].
      standard_errors: Monte Carlo standard error of each value, [N], independent between data.

    Returns:
      Estimate in nats; with a single datum its error over data is NaN.

    Raises:
      ValueError: arrays that are not one number for every datum.

    Example:
      >>> import jax.numpy as jnp
      >>> found = estimate(jnp.array([1.0, 2.0, 3.0]), jnp.array([0.3, 0.3, 0.3]))
      >>> print(f"{found.mean:.2f}, {found.data_standard_error:.2f}, {found.monte_carlo_standard_error:.2f}")
      2.00, 0.58, 0.17
    """
    if values.ndim != 1 or values.shape != standard_errors.shape:
        raise ValueError(
            f"values and standard_errors must be one number of every datum each, [N], got shapes {values.shape} "
            f"and {standard_errors.shape}"
        )
    n = values.shape[0]
    spread = jnp.std(values, ddof=1) if n > 1 else jnp.asarray(jnp.nan)
    infinite = jnp.any(jnp.isinf(values))
    return Estimate(
        mean=jnp.mean(values),
        total=jnp.sum(values),
        data_standard_error=jnp.where(infinite, jnp.inf, spread / n**0.5),
        monte_carlo_standard_error=jnp.where(infinite, jnp.inf, jnp.sqrt(jnp.sum(standard_errors**2)) / n),
        num_data=n,
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bound:
    """A bound that holds in expectation, for every datum.

    Attributes:
      value: in nats, [N].
      standard_error: Monte Carlo standard error, [N].
      proven: whether mathematics guarantees the direction, or only experience.
    """

    value: Float[Array, " N"]
    standard_error: Float[Array, " N"]
    proven: bool = field(metadata={"static": True})


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
      amortization_standard_error: of the paired difference, [N], taken from the differences of single draws. Where both
        posteriors are close the noise of shared draws cancels; where they are far apart it may exceed either part's.
      converged: whether the local optimum of the datum met its tolerance, [N].
      suboptimality: estimate of the nats by which the local fit misses its optimum, [N].
      evidence_upper: an upper bound on log p(x), where one is known besides an exact value.
      optimum_excess: an upper bound on the nats by which the local fit misses the best ELBO, where one was computed.
      evidence_method: how log p(x) was obtained.
      evidence_bias: "none", "numerical", or the direction in which log p(x) is off in expectation.
    """

    log_evidence: Float[Array, " N"]
    elbo_local: Float[Array, " N"]
    elbo_amortized: Float[Array, " N"]
    log_evidence_standard_error: Float[Array, " N"]
    elbo_local_standard_error: Float[Array, " N"]
    elbo_amortized_standard_error: Float[Array, " N"]
    amortization_standard_error: Float[Array, " N"]
    converged: Bool[Array, " N"]
    suboptimality: Float[Array, " N"]
    evidence_upper: Bound | None = None
    optimum_excess: Bound | None = None
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
        """Return the mean, sum and standard errors of every quantity, by name, each an Estimate in nats."""
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

    def bounds(self) -> dict[str, tuple[Bound | None, Bound | None]]:
        """Return a lower and an upper bound of every quantity by name, None where there is none.

        Formula, with L and U the bounds on log p(x) and S >= ELBO(phi*) - ELBO(fit): `L - ELBO(fit) - S <=
        approximation <= U - ELBO(fit)`, `ELBO(fit) - ELBO(encoder) <= amortization <= ELBO(fit) - ELBO(encoder) + S`,
        `L - ELBO(encoder) <= inference <= U - ELBO(encoder)`.

        Returns:
          (lower, upper) by name, each a Bound with arrays [N] in nats, or None.
        """
        known = Bound(self.log_evidence, self.log_evidence_standard_error, self.evidence_bias != "numerical")
        lower = known if self.evidence_bias in ("none", "numerical", "lower bound") else None
        upper = known if self.evidence_bias in ("none", "numerical", "upper bound") else self.evidence_upper
        fit = Bound(self.elbo_local, self.elbo_local_standard_error, True)
        encoder = Bound(self.elbo_amortized, self.elbo_amortized_standard_error, True)
        paired = Bound(self.amortization, self.amortization_standard_error, True)
        best = _combine(fit, self.optimum_excess, 1)
        return {
            "log_evidence": (lower, upper),
            "elbo_local": (fit, best),
            "elbo_amortized": (encoder, encoder),
            "approximation": (_combine(lower, best, -1), _combine(upper, fit, -1)),
            "amortization": (paired, _combine(paired, self.optimum_excess, 1)),
            "inference": (_combine(lower, encoder, -1), _combine(upper, encoder, -1)),
        }

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """Return a conservative interval of the mean of one quantity over these data.

        Formula: `[mean lower - q se, mean upper + q se]`, q the normal quantile of `(1 + level) / 2`, se from the
        draws; infinite on a side without a bound. It covers at least `level` in expectation where both bounds are
        proven.

        Args:
          name: a key of `bounds()`, such as "amortization".
          level: nominal coverage, in (0, 1).

        Returns:
          Lower and upper end in nats.

        Raises:
          ValueError: an unknown name or another level.
        """
        bounds = self.bounds()
        if name not in bounds:
            raise ValueError(f"name must be one of {', '.join(map(repr, bounds))}, got {name!r}")
        ends = []
        for bound, side, none in zip(bounds[name], (0, 1), (-float("inf"), float("inf")), strict=True):
            if bound is None:
                ends.append(none)
            else:
                ends.append(estimate(bound.value, bound.standard_error).interval(level, over="draws")[side])
        return ends[0], ends[1]

    def resolved(self, name: str) -> bool:
        """Return whether the mean of a gap stands out from the noise of its draws.

        Formula: `|mean| > 2 se`, se from the draws. A gap that does not is still reported, with its sign: more draws
        resolve it.

        Args:
          name: a key of `estimates()`, such as "amortization".

        Returns:
          True if the mean is more than two standard errors from zero.

        Raises:
          ValueError: an unknown name.
        """
        estimates = self.estimates()
        if name not in estimates:
            raise ValueError(f"name must be one of {', '.join(map(repr, estimates))}, got {name!r}")
        return bool(jnp.abs(estimates[name].mean) > 2 * estimates[name].monte_carlo_standard_error)

    def summary(self, level: float = 0.95) -> str:
        """Return a table in plain text: means in nats per datum, both standard errors, and bounds where they exist.

        Args:
          level: coverage of the bounds, in (0, 1).

        Returns:
          The text, several lines without a newline at the end.
        """
        n = self.elbo_local.shape[0]
        heads = ("mean", "SE (data)", "SE (draws)", "sum", "lower", "upper")
        lines = [f"{'nats per datum':<16}" + "".join(f"{head:>12}" for head in heads)]
        bounds = self.bounds()
        for name, row in self.estimates().items():
            marks = (_mark(bound, end) for bound, end in zip(bounds[name], self.interval(name, level), strict=True))
            lines.append(
                f"{name:<16}{float(row.mean):>12.4f}{float(row.data_standard_error):>12.4f}"
                f"{float(row.monte_carlo_standard_error):>12.4f}{float(row.total):>12.2f}" + "".join(marks)
            )
        lines.append(
            f"lower, upper: bounds on the mean over these data, together {100 * level:g} % sure of their draws; "
            "p proven in expectation, h heuristic, - none"
        )
        lines.append(f"{n} data; log p(x) by {self.evidence_method} (bias: {self.evidence_bias})")
        unclear = ", ".join(name for name in ("approximation", "amortization", "inference") if not self.resolved(name))
        if unclear:
            lines.append(f"not resolved from zero (within two standard errors over draws): {unclear}")
        missed = [int(i) for i in jnp.flatnonzero(~self.converged)[:10]]
        lines.append(
            f"local optimum: {n - int(jnp.sum(~self.converged))} of {n} data within tolerance, estimated shortfall "
            f"{float(jnp.mean(jnp.maximum(self.suboptimality, 0))):.4f} nats on average"
            + (f"; not converged: data {missed}" if missed else "")
        )
        for name in ("log_evidence", "elbo_local", "elbo_amortized"):
            bad = jnp.flatnonzero(~jnp.isfinite(getattr(self, name)))
            if bad.size:
                lines.append(f"{name} is not finite for {bad.size} data: {[int(i) for i in bad[:10]]}")
        return "\n".join(lines)


def _combine(first: Bound | None, second: Bound | None, sign: int) -> Bound | None:
    if first is None or second is None:
        return None
    error = jnp.hypot(first.standard_error, second.standard_error)
    return Bound(first.value + sign * second.value, error, first.proven and second.proven)


def _mark(bound: Bound | None, end: float) -> str:
    return f"{'-':>12}" if bound is None else f"{end:>11.4f}{'p' if bound.proven else 'h'}"


def paired_difference(
    first: Float[Array, " N"], second: Float[Array, " N"], standard_errors: Float[Array, " N"] | None = None
) -> Estimate:
    """Return `mean(first - second)` over the same data with the standard error of the paired difference.

    Formula: `estimate(first - second, standard_errors)`.

    Args:
      first, second: one value of every datum each, in nats, [N].
      standard_errors: Monte Carlo standard error of each difference, [N]. None where they are not known: the Monte
        Carlo part is then NaN, and the error over data still contains it.

    Returns:
      Estimate in nats, positive where `first` is larger.

    Raises:
      ValueError: arrays that are not one number for every datum.
    """
    if first.shape != second.shape:
        raise ValueError(f"first and second must hold the same data, got shapes {first.shape} and {second.shape}")
    errors = jnp.full_like(first, jnp.nan) if standard_errors is None else standard_errors
    return estimate(first - second, errors)


def generalization(train: Float[Array, " N"], test: Float[Array, " M"]) -> Estimate:
    """Return how much larger the mean gap is on held-out data, with its standard error over data.

    Formula: `mean(test) - mean(train)`, `SE^2 = var(test) / M + var(train) / N`; the Monte Carlo part is not known
    apart from it and NaN. Intervals have the degrees of freedom of the smaller side, which Welch's are never below.

    Args:
      train: gap of every training datum in nats, [N], at least two.
      test: gap of every held-out datum in nats, [M], at least two.

    Returns:
      Estimate in nats; `num_data` is min(N, M), and `total` as many times the mean.

    Raises:
      ValueError: fewer than two numbers on either side, or arrays that are not one number for every datum.

    Source: Zhang, Hayes and Barber, "Generalization gap in amortized inference" (2022), for the gap.
    """
    for name, values in (("train", train), ("test", test)):
        if values.ndim != 1 or values.shape[0] < 2:
            raise ValueError(f"{name} must be gaps of at least two data, [N], got shape {values.shape}")
    difference = jnp.mean(test) - jnp.mean(train)
    error = jnp.sqrt(jnp.var(test, ddof=1) / test.shape[0] + jnp.var(train, ddof=1) / train.shape[0])
    n = min(train.shape[0], test.shape[0])
    return Estimate(difference, difference * n, error, jnp.full_like(error, jnp.nan), n)


def conditioning_gap(
    precision: Float[Array, "d d"],
    mean_covariance: Float[Array, "d d"],
    cross_covariance: Float[Array, "d s"],
    input_covariance: Float[Array, "s s"],
) -> Float[Array, ""]:
    """Return what an encoder loses that sees only part of the datum, however large it is, for normal posteriors.

    Formula: `1/2 tr(Lambda [V - C_ms C_ss^-1 C_sm])`, with V = Cov(m) of the posterior means m, C_ms their covariance
    with the part s that the encoder sees, and C_ss = Cov(s); mean over data from the model, for normal families whose
    best scales do not depend on x. The best mean is `E[m | s]`, linear in s where all is jointly normal.

    Args:
      precision: Lambda, the posterior precision, the same for all data, [d, d].
      mean_covariance: V, [d, d].
      cross_covariance: C_ms, [d, s].
      input_covariance: C_ss, [s, s].

    Returns:
      A scalar in nats per datum.

    Raises:
      ValueError: shapes that do not fit.

    Source: Bayer et al., "Mind the gap when conditioning amortised inference in sequential latent-variable models"
    (2021), for the gap; the normal case by the law of total variance.
    """
    d, s = cross_covariance.shape
    if precision.shape != (d, d) or mean_covariance.shape != (d, d) or input_covariance.shape != (s, s):
        raise ValueError(
            "precision, mean_covariance, cross_covariance and input_covariance must be [d, d], [d, d], [d, s] and "
            f"[s, s], got {precision.shape}, {mean_covariance.shape}, {cross_covariance.shape} and "
            f"{input_covariance.shape}"
        )
    explained = cross_covariance @ jnp.linalg.solve(input_covariance, cross_covariance.T) if s else 0.0
    return 0.5 * jnp.trace(precision @ (mean_covariance - explained))
