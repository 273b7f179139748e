"""Small models whose log p(x) is known exactly."""

from exact_models import factor_analysis, mixture, optima, simulated

__all__ = ["factor_analysis", "mixture", "optima", "simulated"]
