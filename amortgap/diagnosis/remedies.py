"""The list of remedies, and their trials one after another within the budget."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from amortgap.diagnosis.records import Measured, TriedRemedy
from amortgap.diagnosis.trials import (
    SETTINGS,
    NotTried,
    Trial,
    TrialContext,
    fresh_encoder,
    measured_gain,
    more_training,
    refinement,
    simulated_training,
)
from amortgap.gaps import paired_difference

TRIALS: dict[str, Callable[[jax.Array, TrialContext, float], Trial]] = {
    **{f"refine {steps} steps": partial(refinement, steps) for steps in SETTINGS.refinement_steps},
    "more training": more_training,
    "training with simulated data": simulated_training,
    "wider encoder": partial(fresh_encoder, richer=False),
    "full-rank encoder": partial(fresh_encoder, richer=True),
}
REMEDIES = tuple(TRIALS)


def limits(test: Measured) -> list[TriedRemedy]:
    """Return what the best encoder, and the best full-rank normals, would gain."""
    gaps = test.gaps
    gain = paired_difference(gaps.elbo_local, gaps.elbo_amortized, gaps.amortization_standard_error)
    note = "local optima: no encoder gains more"
    found = [TriedRemedy("best encoder of this family", gain, 0, 0.0, 0, note, limit=True)]
    if test.richer_elbo is not None and test.richer_standard_error is not None:
        errors = jnp.hypot(test.richer_standard_error, gaps.elbo_amortized_standard_error)
        gain = paired_difference(test.richer_elbo, gaps.elbo_amortized, errors)
        note = "local optima of full-rank normals"
        found.append(TriedRemedy("best full-rank normals", gain, 0, 0.0, 0, note, limit=True))
    return found


def try_remedies(
    key: jax.Array, context: TrialContext, *, names: tuple[str, ...], seconds: float, progress: Callable[[str], None]
) -> tuple[tuple[TriedRemedy, ...], tuple[tuple[str, str], ...]]:
    """Return the remedies tried within `seconds` of the budget, the best first, and those not tried with the reason."""
    tried, skipped = [], []
    for number, name in enumerate(names):
        start = context.budget.spent
        left = seconds - start
        least = SETTINGS.least_refining if name.startswith("refine") else SETTINGS.least_training
        if left < least:
            skipped.append((name, f"no time left: {max(left, 0):.1f} s, and it takes {least:g} at least"))
            continue
        # An even share of the time that is left, or the least that serves: rather few remedies than none.
        share = max(left / (len(names) - number), least)
        key_trial, key_gain = jax.random.split(jax.random.fold_in(key, REMEDIES.index(name)))
        try:
            trial = TRIALS[name](key_trial, context, share)
            gain = jax.block_until_ready(measured_gain(key_gain, context, trial.phis, trial.family))
        except NotTried as error:
            skipped.append((name, str(error)))
            continue
        except Exception as error:
            # The measurements took minutes; a remedy that fails on the user's model must not lose them.
            skipped.append((name, f"it failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}"))
            continue
        taken = context.budget.spent - start
        tried.append(TriedRemedy(name, gain, trial.parameters, taken, trial.gradients, trial.note))
        progress(f"tried: {name}")
    tried.sort(key=lambda remedy: -np.nan_to_num(float(remedy.gain.mean), nan=-np.inf, neginf=-np.inf))
    return (*tried, *limits(context.test)), tuple(skipped)
