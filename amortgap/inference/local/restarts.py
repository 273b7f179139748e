"""Local VI from several random starts, for families and posteriors whose ELBO has several optima."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
from jaxtyping import Array

from amortgap._internal.checks import check_count, check_key, check_positive, check_sizes
from amortgap.inference.local.local_vi import LocalFit, local_vi
from amortgap.inference.refinement.refine import refine

# Of a step from a start: antithetic pairs for families that have them.
_START_DRAWS = 4


def local_vi_from_starts(
    key: jax.Array,
    x: Any,
    *,
    model: Any,
    family: Any,
    num_starts: int = 8,
    spread: float = 1.0,
    start_steps: int = 300,
    **settings: Any,
) -> LocalFit:
    """Local VI from several random starts, each refined on its own; for families whose ELBO has several optima.

    Formula: starts `phi_s = standard + spread * N(0, I)`, or the family's own `random_start`, each after `start_steps`
    Adam steps offered to `local_vi`, which takes up the best on fresh samples.

    Args:
      key: typed key.
      x: one datum.
      model, family: as in `elbo`.
      num_starts: random starts.
      spread: standard deviation of the starts.
      start_steps: Adam steps from every start.
      settings: further arguments of `local_vi`.

    Returns:
      LocalFit of the best; steps and gradients are of all starts.

    Raises:
      ValueError: as `local_vi`, or a bad number or spread of starts.
    """
    check_key(key)
    check_count("num_starts", num_starts)
    check_count("start_steps", start_steps)
    check_positive("spread", spread)
    check_sizes(model, family)
    key_starts, key_refine, key_fit = jax.random.split(key, 3)
    if hasattr(family, "random_start"):
        starts = jax.vmap(lambda k: family.random_start(k, spread))(jax.random.split(key_starts, num_starts))
    else:
        starts = family.standard()[None] + spread * jax.random.normal(key_starts, (num_starts, family.size))

    def climbed(refine_key: jax.Array, start: Array) -> Array:
        return refine(
            refine_key,
            start,
            x,
            model=model,
            family=family,
            num_steps=start_steps,
            learning_rate=0.03,
            num_samples=_START_DRAWS,
        ).phi

    candidates = jax.vmap(climbed)(jax.random.split(key_refine, num_starts), starts)
    fit = local_vi(key_fit, x, model=model, family=family, init=candidates, **settings)
    steps = num_starts * start_steps
    return replace(fit, num_steps=fit.num_steps + steps, num_gradients=fit.num_gradients + _START_DRAWS * steps)
