"""Inference: per-datum and amortized maximisation of the same ELBO."""

from amortgap.inference.amortized import AmortizedFit, Trace, amortized_vi, train_vae
from amortgap.inference.local import LocalFit, fit_local, local_vi

__all__ = ["AmortizedFit", "LocalFit", "Trace", "amortized_vi", "fit_local", "local_vi", "train_vae"]
