"""The bounds on log p(x): one datum in, one number out. Local and amortized VI maximise these same functions.

A bound goes up. Where an optimiser wants a loss, it is negated there, once.
"""

from amortgap.objectives.fixed_nodes import bound, cubature_elbo, quadrature_elbo
from amortgap.objectives.monte_carlo import elbo, elbo_draws, iw_bound, log_mean_exp, log_weight, log_weights

__all__ = [
    "bound",
    "cubature_elbo",
    "elbo",
    "elbo_draws",
    "iw_bound",
    "log_mean_exp",
    "log_weight",
    "log_weights",
    "quadrature_elbo",
]
