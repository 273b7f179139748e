"""Measures gaps, certificates and k-hat of both parts of the data, batch by batch, as long as the budget lasts."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from amortgap._internal.checks import num_rows
from amortgap._internal.devices import encode, take
from amortgap.diagnosis.records import Budget, Measured, Problem
from amortgap.diagnostics import pareto_k
from amortgap.evidence import UnreliableEvidence, evidence_of_data
from amortgap.families import FullRankNormal, LowRankNormal
from amortgap.gaps import evaluate_bounds, inference_gaps
from amortgap.inference.local.local_vi import fit_local
from amortgap.protocols import Data, Family, HasMoments, is_diagonal

# Data per batch: many enough to keep the machine busy, few enough that the first batch predicts the time of the next.
BATCH = 100
# Draws per datum for ELBOs and k-hat of q, and for log p(x).
DRAWS, EVIDENCE_DRAWS = 500, 2000
# A full-rank normal has d (d + 3) / 2 parameters per datum: above this d its fits cost more than everything else.
_RICHER_DIM = 64


def richer_family(family: Family) -> FullRankNormal | None:
    """Return the full-rank normal if the family is a smaller normal and full rank can be afforded."""
    smaller = is_diagonal(family) or isinstance(family, LowRankNormal)
    return FullRankNormal(family.latent_dim) if smaller and 1 < family.latent_dim <= _RICHER_DIM else None


def proposal_family(family: Family) -> Family:
    """Return the family of `Measured.proposal`."""
    return richer_family(family) or family


@jax.jit
def _embed(phis: Array, family: HasMoments, richer: FullRankNormal) -> Array:
    return jax.vmap(lambda phi: richer.from_moments(*family.moments(phi)))(phis)


def measure_batch(key: jax.Array, rows: np.ndarray, xs: Data, problem: Problem) -> Measured:
    """Return the measurements on the data `xs`, whose indices in their part are `rows`."""
    model, family = problem.model, problem.family
    key_local, key_richer, key_gaps, key_evidence, key_bound, key_k = jax.random.split(key, 6)
    encoded = encode(problem.encoder, xs)
    local = fit_local(key_local, xs, model=model, family=family, init=encoded, every_start=True)
    proposal, bounds = local.phi, None
    richer = richer_family(family)
    if richer is not None:
        init = _embed(local.phi, family, richer)
        proposal = fit_local(key_richer, xs, model=model, family=richer, init=init, max_reruns=1).phi
        bounds = evaluate_bounds(key_bound, proposal[:, None], xs, model=model, family=richer, num_samples=DRAWS)
    with warnings.catch_warnings():
        # The record holds k-hat of every datum.
        warnings.simplefilter("ignore", UnreliableEvidence)
        evidence = evidence_of_data(
            key_evidence,
            xs,
            model=model,
            family=richer or family,
            phis=proposal,
            num_samples=EVIDENCE_DRAWS,
        )
        encoder_k = pareto_k(key_k, encoded, xs, model=model, family=family, num_samples=DRAWS).pareto_k
    gaps = inference_gaps(
        key_gaps,
        xs,
        model=model,
        family=family,
        encoder=problem.encoder,
        local=local,
        evidence=evidence,
        num_samples=DRAWS,
    )
    return Measured(
        rows=rows,
        gaps=gaps,
        encoder_k=encoder_k,
        evidence_k=evidence.pareto_k,
        encoded=encoded,
        local=local.phi,
        richer_elbo=None if bounds is None else bounds.elbo[:, 0],
        richer_standard_error=None if bounds is None else bounds.standard_error[:, 0],
        proposal=proposal,
    )


def measure(
    key: jax.Array, problem: Problem, *, max_data: int, seconds: float, budget: Budget, progress: Callable[[str], None]
) -> tuple[Measured, Measured]:
    """Return the measurements on training and on held-out data, as many as fit into `seconds` of the budget.

    Data are taken in an order drawn from the key, so that more time adds data and changes none; at least one batch of
    each part is measured.
    """
    key_order, key_batch = jax.random.split(key)
    parts = {"test": problem.xs_test, "train": problem.xs_train}
    size = min(BATCH, max_data, max(map(num_rows, parts.values())))
    orders = {
        name: np.asarray(jax.random.permutation(jax.random.fold_in(key_order, number), num_rows(xs)))[:max_data]
        for number, (name, xs) in enumerate(parts.items())
    }
    measured: dict[str, list[Measured]] = {name: [] for name in parts}
    latest = 0.0
    firsts = range(0, max(map(len, orders.values())), size)
    for first, (number, (name, order)) in itertools.product(firsts, enumerate(orders.items())):
        if first >= len(order):
            continue
        start = budget.spent
        if first and start + 1.2 * latest > seconds:
            break
        # All batches have one size, and so one compiled program: the last is filled up with the first data again.
        rows = order[np.arange(first, first + size) % len(order)]
        batch_key = jax.random.fold_in(jax.random.fold_in(key_batch, number), len(measured[name]))
        batch = jax.block_until_ready(measure_batch(batch_key, rows, take(parts[name], rows), problem))
        count = min(size, len(order) - first)
        measured[name].append(jax.tree.map(lambda leaf, n=count: leaf[:n], batch))
        latest = budget.spent - start
        progress(f"measured {first + count} of the {name} data")
    return _concatenated(measured["train"]), _concatenated(measured["test"])


def _concatenated(batches: list[Measured]) -> Measured:
    joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *batches)
    return joined._replace(rows=np.asarray(joined.rows))
