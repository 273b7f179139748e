"""How far the training of an encoder is from its optimum."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Nats per datum that may be left of a training that has converged: below most gaps that are worth a claim.
TOLERANCE = 0.02


class EncoderCertificate(NamedTuple):
    """How much training could still gain.

    Attributes:
      suboptimality: estimate of the nats per datum still to be gained.
      standard_error: its standard error over data.
      converged: whether that is small, see `encoder_certificate`.
    """

    suboptimality: Float[Array, "*seeds"]
    standard_error: Float[Array, "*seeds"]
    converged: Bool[Array, "*seeds"]


def encoder_certificate(
    change: Float[Array, "*seeds"],
    change_standard_error: Float[Array, "*seeds"],
    finite: Bool[Array, "*seeds"],
    *,
    tolerance: float | Array = TOLERANCE,
) -> EncoderCertificate:
    """Estimate what the training of an encoder could still gain, and say whether that is little.

    Formula: `suboptimality = change`, the gain from the end of the first half of training to the end of the second;
    `converged = finite and |change| + 2 SE <= tolerance`.

    Both ends are at rest, so that `change` holds no noise of high rates. That the next cycle gains no more than the
    last one did is an extrapolation and not proved: a training that crawls along a plateau passes for converged. A loss
    over the second half, such as that of overfitting on validation data, counts like a gain: training is not at rest.

    Args:
      change: gain over the second half of training on shared noise, nats per datum.
      change_standard_error: its standard error over data.
      finite: whether all values of training were finite.
      tolerance: nats per datum that may be left.

    Returns:
      EncoderCertificate; a negative suboptimality is not clipped.
    """
    small = jnp.abs(change) + 2 * change_standard_error <= tolerance
    return EncoderCertificate(change, change_standard_error, finite & small)
