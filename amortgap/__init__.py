"""amortgap: how many nats an encoder loses, why, and how sure we are.

Local VI and amortized VI maximise the same one-datum function `elbo(key, phi, x)`, over a free phi for every datum or
over the weights of one encoder; every gap is a difference of that function at two arguments.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Batched factorisations in jaxlib wait inside the thread pool for tasks of the same pool: as many of them at a time as
# the pool has threads, two on a small machine, wait for ever. A wider pool is read when jax first computes.
os.environ.setdefault("PJRT_NPROC", str(max(16, os.cpu_count() or 1)))

if TYPE_CHECKING:
    from amortgap import (
        data,
        diagnosis,
        diagnostics,
        encoders,
        evidence,
        families,
        gaps,
        inference,
        models,
        objectives,
        protocols,
        report,
        weights,
    )
    from amortgap.diagnosis import Diagnosis, diagnose
    from amortgap.diagnostics import aggregate_posterior
    from amortgap.evidence import evidence_bounds, evidence_of_data, log_evidence
    from amortgap.expectations import Expectation
    from amortgap.gaps import Gaps, compare_encoders, evaluate_bounds, inference_gaps
    from amortgap.inference import (
        AmortizedFit,
        EncoderFit,
        GlobalLocalFit,
        LocalFit,
        amortized_vi,
        buffered_bound,
        fit_local,
        global_local_vi,
        iterative_amortized_vi,
        local_vi,
        local_vi_from_starts,
        recursive_mixture,
        refine,
        semi_amortized_vi,
        train_encoder,
        train_vae,
        train_vae_aggressively,
        whole_elbo,
    )
    from amortgap.objectives import cubature_elbo, elbo, iw_bound, log_weight, quadrature_elbo

_HOMES = {
    "cubature_elbo": "objectives",
    "elbo": "objectives",
    "iw_bound": "objectives",
    "log_weight": "objectives",
    "quadrature_elbo": "objectives",
    "Expectation": "expectations",
    "global_local_vi": "inference",
    "whole_elbo": "inference",
    "GlobalLocalFit": "inference",
    "local_vi": "inference",
    "fit_local": "inference",
    "amortized_vi": "inference",
    "train_vae": "inference",
    "local_vi_from_starts": "inference",
    "buffered_bound": "inference",
    "iterative_amortized_vi": "inference",
    "recursive_mixture": "inference",
    "refine": "inference",
    "semi_amortized_vi": "inference",
    "train_encoder": "inference",
    "train_vae_aggressively": "inference",
    "EncoderFit": "inference",
    "LocalFit": "inference",
    "AmortizedFit": "inference",
    "log_evidence": "evidence",
    "evidence_of_data": "evidence",
    "evidence_bounds": "evidence",
    "aggregate_posterior": "diagnostics",
    "compare_encoders": "gaps",
    "evaluate_bounds": "gaps",
    "inference_gaps": "gaps",
    "Gaps": "gaps",
    "diagnose": "diagnosis",
    "Diagnosis": "diagnosis",
}
_MODULES = (
    "data",
    "diagnosis",
    "diagnostics",
    "encoders",
    "evidence",
    "families",
    "figures",
    "gaps",
    "inference",
    "models",
    "objectives",
    "protocols",
    "report",
    "weights",
)

__all__ = [
    "AmortizedFit",
    "Diagnosis",
    "EncoderFit",
    "Expectation",
    "Gaps",
    "GlobalLocalFit",
    "LocalFit",
    "aggregate_posterior",
    "amortized_vi",
    "buffered_bound",
    "compare_encoders",
    "cubature_elbo",
    "data",
    "diagnose",
    "diagnosis",
    "diagnostics",
    "elbo",
    "encoders",
    "evaluate_bounds",
    "evidence",
    "evidence_bounds",
    "evidence_of_data",
    "families",
    "fit_local",
    "gaps",
    "global_local_vi",
    "inference",
    "inference_gaps",
    "iterative_amortized_vi",
    "iw_bound",
    "local_vi",
    "local_vi_from_starts",
    "log_evidence",
    "log_weight",
    "models",
    "objectives",
    "protocols",
    "quadrature_elbo",
    "recursive_mixture",
    "refine",
    "report",
    "semi_amortized_vi",
    "train_encoder",
    "train_vae",
    "train_vae_aggressively",
    "weights",
    "whole_elbo",
]


def __getattr__(name: str) -> Any:
    # Loaded on first use: the sweep layer, which needs no jax, then starts in a fraction of a second.
    if name in _MODULES:
        return importlib.import_module(f"amortgap.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"amortgap.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'amortgap' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_MODULES})
