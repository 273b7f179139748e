"""Encoders `x -> phi`: callable pytrees that map one datum to the parameters of a variational family."""

from amortgap.encoders.adaptive import AdaptiveEncoder, SharedFlowEncoder, instance_adaptive, shared_flow
from amortgap.encoders.basic import ConstantEncoder, Encoder, constant, linear, mlp, stack_padded
from amortgap.encoders.images import ImageEncoder, conv
from amortgap.encoders.module import ModuleEncoder, from_module
from amortgap.encoders.random_features import (
    LeastSquares,
    RandomFeatureEncoder,
    fit_random_features,
    least_squares,
    random_features,
)
from amortgap.encoders.sequences import RecurrentEncoder, WindowEncoder, recurrent, window
from amortgap.encoders.sets import Group, SetEncoder, deep_set, pad_groups

__all__ = [
    "AdaptiveEncoder",
    "ConstantEncoder",
    "Encoder",
    "Group",
    "ImageEncoder",
    "LeastSquares",
    "ModuleEncoder",
    "RandomFeatureEncoder",
    "RecurrentEncoder",
    "SetEncoder",
    "SharedFlowEncoder",
    "WindowEncoder",
    "constant",
    "conv",
    "deep_set",
    "fit_random_features",
    "from_module",
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
