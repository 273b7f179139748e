"""Latent variable models `p(x, z)`: records with `log_joint(z, x)` for one datum."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from amortgap.models.arrowhead import ArrowPosterior
from amortgap.models.bayesian_decoder import BayesianDecoder, bayesian_decoder
from amortgap.models.deep_latent_gaussian import DeepLatentGaussian, deep_latent_gaussian
from amortgap.models.factor_analysis import FactorAnalysis, FactorAnalysisFit, NormalPosterior, fit_factor_analysis
from amortgap.models.finite_mixture import FiniteMixture
from amortgap.models.hierarchical import fix_global
from amortgap.models.hierarchical_regression import GroupStatistics, HierarchicalRegression, group_statistics
from amortgap.models.likelihoods import Bernoulli, Binomial, Gaussian
from amortgap.models.linear_gaussian_chain import LinearGaussianChain, windows
from amortgap.models.log_joint import LogJoint, from_log_joint
from amortgap.models.mixture_prior import MixturePosterior, MixturePrior
from amortgap.models.normal_hierarchies import LinearHierarchy, NonlinearHierarchy, SawSeries
from amortgap.models.poisson_gamma import PoissonGamma

if TYPE_CHECKING:
    from amortgap.interop.numpyro_model import NumpyroModel, from_numpyro


def __getattr__(name: str) -> Any:
    # NumPyro takes a second to import, which only its users should wait for.
    if name in ("NumpyroModel", "from_numpyro"):
        return getattr(importlib.import_module("amortgap.interop.numpyro_model"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ArrowPosterior",
    "BayesianDecoder",
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
    "LinearHierarchy",
    "LogJoint",
    "MixturePosterior",
    "MixturePrior",
    "NonlinearHierarchy",
    "NormalPosterior",
    "NumpyroModel",
    "PoissonGamma",
    "SawSeries",
    "bayesian_decoder",
    "deep_latent_gaussian",
    "fit_factor_analysis",
    "fix_global",
    "from_log_joint",
    "from_numpyro",
    "group_statistics",
    "windows",
]
