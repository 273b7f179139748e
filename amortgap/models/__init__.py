"""Latent variable models `p(x, z)`: records with `log_joint(z, x)` for one datum.

Exact models state their gaps in closed form, in nats. `approximation_gap` is the least KL(q || p(z | x)) of a family;
every other `..._gap` is the amortization gap of the best encoder of a kind: of one rank (`rank_gap`), constant
(`constant_gap`), linear in fixed features (`linear_gap`), of one window (`window_gap`), of a part of the datum
(`conditioning_gap`), or with given means (`mean_gap`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from amortgap.models.arrowhead import ArrowheadPosterior, arrowhead_posterior
from amortgap.models.deep_latent_gaussian import DeepLatentGaussian, deep_latent_gaussian
from amortgap.models.factor_analysis import FactorAnalysis, FactorAnalysisFit, fit_factor_analysis
from amortgap.models.finite_mixture import FiniteMixture
from amortgap.models.hierarchical import fix_global
from amortgap.models.hierarchical_regression import GroupStatistics, HierarchicalRegression, group_statistics
from amortgap.models.likelihoods import Bernoulli, Binomial, Gaussian
from amortgap.models.linear_gaussian_chain import LinearGaussianChain, windows
from amortgap.models.log_joint import LogJoint, from_log_joint
from amortgap.models.mixture_prior import MixturePosterior, MixturePrior
from amortgap.models.normal_posterior import NormalPosterior, conditioning_gap
from amortgap.models.poisson_gamma import PoissonGamma

if TYPE_CHECKING:
    from amortgap.interop.numpyro_model import NumpyroModel, from_numpyro


def __getattr__(name: str) -> Any:
    # NumPyro takes a second to import, which only its users should wait for.
    if name in ("NumpyroModel", "from_numpyro"):
        return getattr(importlib.import_module("amortgap.interop.numpyro_model"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ArrowheadPosterior",
    "Bernoulli",
    "Binomial",
    "DeepLatentGaussian",
    "FactorAnalysis",
    "FactorAnalysisFit",
    "FiniteMixture",
    "Gaussian",
    "GroupStatistics",
    "HierarchicalRegression",
    "LinearGaussianChain",
    "LogJoint",
    "MixturePosterior",
    "MixturePrior",
    "NormalPosterior",
    "NumpyroModel",
    "PoissonGamma",
    "arrowhead_posterior",
    "conditioning_gap",
    "deep_latent_gaussian",
    "fit_factor_analysis",
    "fix_global",
    "from_log_joint",
    "from_numpyro",
    "group_statistics",
    "windows",
]
