"""Local VI from several random starts, for families and posteriors whose ELBO has several optima."""

from __future__ import annotations

from dataclasses import replace

import jax
from jaxtyping import Array, Float

from amortgap._internal.checks import check_count, check_datum, check_key, check_positive, check_sizes
from amortgap._internal.compiled import compiled_once
from amortgap.inference.local.acceptance import TOLERANCE
from amortgap.inference.local.local_vi import LocalFit, local_vi
from amortgap.inference.refinement.refine import refine
from amortgap.protocols import Datum, Family, HasRandomStart, Model

# Draws of a step from a start; families that can take them in antithetic pairs.
_START_DRAWS = 4
_START_RATE = 0.03


def local_vi_from_starts(
    key: jax.Array,
    x: Datum,
    *,
    model: Model,
    family: Family,
    num_starts: int = 8,
    spread: float = 1.0,
    start_steps: int = 300,
    method: str = "auto",
    num_steps: int | None = None,
    warmup_steps: int | None = None,
    num_samples: int = 256,
    tolerance: float = TOLERANCE,
    max_reruns: int = 3,
    every_start: bool = False,
) -> LocalFit:
    """Local VI from several random starts, each refined on its own; for families whose ELBO has several optima.

    Formula: starts `phi_s = standard + spread * N(0, I)`, or the family's own `random_start`, each after `start_steps`
    Adam steps offered to `local_vi`, which fits from the best on fresh samples.

    Args:
      key: typed key.
      x: one datum.
      model, family: as in `elbo`.
      num_starts: random starts.
      spread: standard deviation of the starts.
      start_steps: Adam steps from every start.
      method, num_steps, warmup_steps, num_samples, tolerance, max_reruns, every_start: as in `local_vi`.

    Returns:
      LocalFit of the best; steps and gradients are of all starts.

    Raises:
      ValueError: as `local_vi`, or a bad number or spread of starts.
    """
    check_key(key)
    check_count("num_starts", num_starts)
    check_count("start_steps", start_steps)
    spread = check_positive("spread", spread)
    check_sizes(model, family)
    x = check_datum(x, model)
    key_starts, key_refine, key_fit = jax.random.split(key, 3)
    init = _refined_starts(
        key_starts, key_refine, x, model, family, num_starts=num_starts, spread=spread, start_steps=start_steps
    )
    fit = local_vi(
        key_fit,
        x,
        model=model,
        family=family,
        init=init,
        method=method,
        num_steps=num_steps,
        warmup_steps=warmup_steps,
        num_samples=num_samples,
        tolerance=tolerance,
        max_reruns=max_reruns,
        every_start=every_start,
    )
    steps = num_starts * start_steps
    return replace(fit, num_steps=fit.num_steps + steps, num_gradients=fit.num_gradients + _START_DRAWS * steps)


@compiled_once("num_starts", "spread", "start_steps")
def _refined_starts(
    key_starts: jax.Array,
    key_refine: jax.Array,
    x: Datum,
    model: Model,
    family: Family,
    *,
    num_starts: int,
    spread: float,
    start_steps: int,
) -> Float[Array, "starts size"]:
    if isinstance(family, HasRandomStart):
        starts = jax.vmap(lambda k: family.random_start(k, spread))(jax.random.split(key_starts, num_starts))
    else:
        starts = family.standard()[None] + spread * jax.random.normal(key_starts, (num_starts, family.size))

    def refined(refine_key: jax.Array, start: Array) -> Array:
        found = refine(
            refine_key,
            start,
            x,
            model=model,
            family=family,
            num_steps=start_steps,
            learning_rate=_START_RATE,
            num_samples=_START_DRAWS,
        )
        return found.phi

    return jax.vmap(refined)(jax.random.split(key_refine, num_starts), starts)
