"""Encoders `x -> phi`: callable pytrees that map one datum to the parameters of a variational family."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from amortgap.encoders.adaptive import AdaptiveEncoder, SharedFlowEncoder, instance_adaptive, shared_flow
from amortgap.encoders.basic import ConstantEncoder, Encoder, constant, linear, mlp
from amortgap.encoders.images import ImageEncoder, conv
from amortgap.encoders.least_squares import LeastSquares, least_squares
from amortgap.encoders.random_features import RandomFeatureEncoder, fit_random_features, random_features
from amortgap.encoders.sequences import RecurrentEncoder, WindowEncoder, recurrent, window
from amortgap.encoders.sets import Group, SetEncoder, deep_set, pad_groups
from amortgap.encoders.stacking import stack_padded
from amortgap.encoders.weight_norm import WeightNormEncoder
from amortgap.interop.flax_encoder import ModuleEncoder, from_module

if TYPE_CHECKING:
    from amortgap.interop.numpyro_guide import GuideEncoder, from_numpyro_guide


def __getattr__(name: str) -> object:
    # NumPyro takes a second to import, which only its users should wait for; a guide's encoder also knows its model.
    if name in ("GuideEncoder", "from_numpyro_guide"):
        return getattr(importlib.import_module("amortgap.interop.numpyro_guide"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "AdaptiveEncoder",
    "ConstantEncoder",
    "Encoder",
    "Group",
    "GuideEncoder",
    "ImageEncoder",
    "LeastSquares",
    "ModuleEncoder",
    "RandomFeatureEncoder",
    "RecurrentEncoder",
    "SetEncoder",
    "SharedFlowEncoder",
    "WeightNormEncoder",
    "WindowEncoder",
    "constant",
    "conv",
    "deep_set",
    "fit_random_features",
    "from_module",
    "from_numpyro_guide",
    "instance_adaptive",
    "least_squares",
    "linear",
    "mlp",
    "pad_groups",
    "random_features",
    "recurrent",
    "shared_flow",
    "stack_padded",
    "window",
]
