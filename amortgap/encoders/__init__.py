"""Encoders `x -> phi`: callable pytrees that map one datum to the parameters of a variational family."""

from amortgap.encoders.basic import ConstantEncoder, Encoder, constant, linear, mlp, stack_padded

__all__ = ["ConstantEncoder", "Encoder", "constant", "linear", "mlp", "stack_padded"]
