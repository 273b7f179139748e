"""Encoders that share flow weights over data, without a copy of those weights for every datum."""

from __future__ import annotations

from typing import Any

from amortgap.encoders import SharedFlowEncoder
from amortgap.families import FixedWeights


def without_copies(encoder: Any, family: Any) -> tuple[Any, Any]:
    """Return an equal encoder and family that do not copy shared flow weights for every datum.

    `vmap` over data of `[head(x), weights]` would, and multiply every copy with its datum alone.
    """
    if not isinstance(encoder, SharedFlowEncoder):
        return encoder, family
    return encoder.head, FixedWeights(family, encoder.weights)
