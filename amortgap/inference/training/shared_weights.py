"""The ELBO of what an encoder says of a datum, where encoders may share flow weights over data."""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array, Float

from amortgap.encoders import SharedFlowEncoder
from amortgap.families import FixedWeights
from amortgap.objectives import elbo


def without_copies(encoder: Any, family: Any) -> tuple[Any, Any]:
    """Return an equal encoder and family that do not copy shared flow weights for every datum.

    `vmap` over data of `[head(x), weights]` would, and multiply every copy with its datum alone.
    """
    if not isinstance(encoder, SharedFlowEncoder):
        return encoder, family
    return encoder.head, FixedWeights(family, encoder.weights)


def encoder_elbo(
    key: jax.Array, encoder: Any, x: Any, *, model: Any, family: Any, seen: Any = None, **settings: Any
) -> Float[Array, ""]:
    """Return `ELBO(encoder(x); x)` in nats, by `elbo` with its settings; `seen` is what the encoder reads if not x."""
    encoder, family = without_copies(encoder, family)
    return elbo(key, encoder(x if seen is None else seen), x, model=model, family=family, **settings)
