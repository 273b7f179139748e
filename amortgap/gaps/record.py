"""The gaps of every datum as one record: differences of bounds, their errors and a table to read."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from amortgap.evidence import Bound
from amortgap.gaps.estimates import Estimate, estimate


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
      suboptimality_bound: an upper bound on the nats by which the local fit misses the best ELBO, where
        it was computed.
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
    suboptimality_bound: Bound | None = None
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
        best = _combine(fit, self.suboptimality_bound, 1)
        return {
            "log_evidence": (lower, upper),
            "elbo_local": (fit, best),
            "elbo_amortized": (encoder, encoder),
            "approximation": (_combine(lower, best, -1), _combine(upper, fit, -1)),
            "amortization": (paired, _combine(paired, self.suboptimality_bound, 1)),
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
