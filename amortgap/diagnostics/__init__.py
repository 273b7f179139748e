"""Whether an approximate posterior is the right one: Pareto k-hat, calibration, the aggregated posterior."""

from amortgap.diagnostics.aggregate import AggregatePosterior, RateSplit, aggregate_posterior
from amortgap.diagnostics.calibration import Calibration, Simulations, calibration, pareto_k, simulate

__all__ = [
    "AggregatePosterior",
    "Calibration",
    "RateSplit",
    "Simulations",
    "aggregate_posterior",
    "calibration",
    "pareto_k",
    "simulate",
]
