"""Latent variable models `p(x, z)`: records with `log_joint(z, x)` for one datum."""

from amortgap.models.deep_latent_gaussian import DeepLatentGaussian, deep_latent_gaussian
from amortgap.models.factor_analysis import FactorAnalysis, FactorAnalysisFit, NormalPosterior, fit_factor_analysis
from amortgap.models.finite_mixture import FiniteMixture
from amortgap.models.likelihoods import Bernoulli, Binomial, Gaussian
from amortgap.models.log_joint import LogJoint, from_log_joint
from amortgap.models.mixture_prior import MixturePosterior, MixturePrior
from amortgap.models.poisson_gamma import PoissonGamma

__all__ = [
    "Bernoulli",
    "Binomial",
    "DeepLatentGaussian",
    "FactorAnalysis",
    "FactorAnalysisFit",
    "FiniteMixture",
    "Gaussian",
    "LogJoint",
    "MixturePosterior",
    "MixturePrior",
    "NormalPosterior",
    "PoissonGamma",
    "deep_latent_gaussian",
    "fit_factor_analysis",
    "from_log_joint",
]
