# ruff: noqa: I001
"""The table of the package's public names: `__init__.py` loads them from these modules, editors read it as it is."""

from amortgap import (
    data as data,
    diagnosis as diagnosis,
    diagnostics as diagnostics,
    encoders as encoders,
    evidence as evidence,
    families as families,
    figures as figures,
    gaps as gaps,
    inference as inference,
    models as models,
    objectives as objectives,
    protocols as protocols,
    report as report,
    weights as weights,
)
from amortgap.diagnosis import Diagnosis as Diagnosis, diagnose as diagnose
from amortgap.diagnostics import aggregate_posterior as aggregate_posterior
from amortgap.evidence import (
    evidence_bounds as evidence_bounds,
    evidence_of_data as evidence_of_data,
    log_evidence as log_evidence,
)
from amortgap.expectations import Expectation as Expectation
from amortgap.gaps import (
    Gaps as Gaps,
    compare_encoders as compare_encoders,
    evaluate_bounds as evaluate_bounds,
    inference_gaps as inference_gaps,
)
from amortgap.inference import (
    AmortizedFit as AmortizedFit,
    EncoderFit as EncoderFit,
    GlobalLocalFit as GlobalLocalFit,
    LocalFit as LocalFit,
    amortized_vi as amortized_vi,
    buffered_bound as buffered_bound,
    fit_local as fit_local,
    global_local_vi as global_local_vi,
    iterative_amortized_vi as iterative_amortized_vi,
    local_vi as local_vi,
    local_vi_from_starts as local_vi_from_starts,
    recursive_mixture as recursive_mixture,
    refine as refine,
    semi_amortized_vi as semi_amortized_vi,
    train_encoder as train_encoder,
    train_vae as train_vae,
    train_vae_aggressively as train_vae_aggressively,
    whole_elbo as whole_elbo,
)
from amortgap.objectives import (
    cubature_elbo as cubature_elbo,
    elbo as elbo,
    iw_bound as iw_bound,
    log_weight as log_weight,
    quadrature_elbo as quadrature_elbo,
)

__version__: str
