"""Measuring both parts of the data batch by batch, as many as the time allows, each with certificates."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from amortgap._internal.checks import num_rows
from amortgap._internal.devices import encode
from amortgap.diagnosis.clock import Clock
from amortgap.diagnosis.parts import Measured, Problem
from amortgap.diagnostics import pareto_k
from amortgap.evidence import UnreliableEvidence, evidence_of_data
from amortgap.expectations import MAX_NODES
from amortgap.families import FullRankNormal, LowRankNormal, MeanFieldNormal
from amortgap.gaps.measure import evaluate_bounds, inference_gaps
from amortgap.inference.local.local_vi import fit_local
from amortgap.protocols import HasExactEvidence

# Data in a batch: enough to keep the machine busy, few enough that the second batch tells what the rest will take.
BATCH = 100
# Latent dimensions up to which a full-rank normal is fitted beside the family.
_RICHER_DIM = 64
DRAWS = 500
_EVIDENCE_DRAWS = 2000
# Latent dimensions in which a grid takes no more evaluations than these draws.
_GRID_DIM = 2


def richer_family(family: Any) -> FullRankNormal | None:
    """Return the full-rank normal if the family is a smaller normal and it can be afforded."""
    smaller = isinstance(family, MeanFieldNormal | LowRankNormal)
    return FullRankNormal(family.latent_dim) if smaller and 1 < family.latent_dim <= _RICHER_DIM else None


def evidence_method(model: Any) -> str:
    """Return how log p(x) is had: exactly, on a grid where that costs no more than draws, or by importance sampling."""
    return "quadrature" if model.latent_dim <= _GRID_DIM and not isinstance(model, HasExactEvidence) else "auto"


def proposal_family(family: Any) -> Any:
    """Return the family of `Measured.proposal`."""
    return richer_family(family) or family


@jax.jit
def _embed(phis: Array, family: Any, richer: Any) -> Array:
    return jax.vmap(lambda phi: richer.from_moments(*family.moments(phi)))(phis)


def measure_batch(key: jax.Array, rows: np.ndarray, xs: Any, problem: Problem) -> Measured:
    """Return what is measured on the data `xs`, whose places in the whole are `rows`."""
    model, family = problem.model, problem.family
    key_local, key_richer, key_gaps, key_evidence, key_bound, key_k = jax.random.split(key, 6)
    encoded = encode(problem.encoder, xs)
    local = fit_local(key_local, xs, model=model, family=family, init=encoded, every_start=True)
    proposal, of = local.phi, family
    richer, found = richer_family(family), None
    if richer is not None:
        of = richer
        proposal = fit_local(
            key_richer, xs, model=model, family=richer, init=_embed(local.phi, family, richer), max_reruns=1
        ).phi
        found = evaluate_bounds(key_bound, proposal[:, None], xs, model=model, family=richer, num_samples=DRAWS)
    with warnings.catch_warnings():
        # k-hat of every datum is in the record.
        warnings.simplefilter("ignore", UnreliableEvidence)
        method = evidence_method(model)
        # Along a line many nodes cost nothing, and resolve modes that lie apart.
        nodes: dict[str, Any] = {"num_nodes": MAX_NODES} if method == "quadrature" and model.latent_dim == 1 else {}
        evidence = evidence_of_data(
            key_evidence, xs, model=model, method=method, family=of, phis=proposal, num_samples=_EVIDENCE_DRAWS, **nodes
        )
        shapes = pareto_k(key_k, encoded, xs, model=model, family=family, num_samples=DRAWS).pareto_k
    gaps = inference_gaps(
        key_gaps, xs, model=model, family=family, encoder=problem.encoder, local=local, evidence=evidence,
        num_samples=DRAWS,
    )  # fmt: skip
    return Measured(
        rows=rows,
        gaps=gaps,
        encoder_k=shapes,
        evidence_k=evidence.pareto_k,
        encoded=encoded,
        local=local.phi,
        richer_elbo=None if found is None else found.elbo[:, 0],
        richer_standard_error=None if found is None else found.standard_error[:, 0],
        proposal=proposal,
    )


def take(xs: Any, rows: np.ndarray) -> Any:
    """Return some of the data."""
    return jax.tree.map(lambda leaf: leaf[rows], xs)


def _batches(order: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Yield places in `order`, all batches of one size; the last is filled up with the first data again."""
    for first in range(0, len(order), size):
        yield np.arange(first, first + size) % len(order)


def measure(
    key: jax.Array, problem: Problem, *, max_data: int, seconds: float, clock: Clock, bar: Any
) -> tuple[Measured, Measured]:
    """Return what was measured on training and on held-out data, as much as `seconds` allow.

    Data are taken in an order drawn from the key, so that more time means more of the same data; at least one batch of
    each part is measured.
    """
    key_order, key_batch = jax.random.split(key)
    parts = {"test": problem.xs_test, "train": problem.xs_train}
    size = min(BATCH, max_data, max(map(num_rows, parts.values())))
    orders, batches = {}, {}
    for number, (name, xs) in enumerate(parts.items()):
        order = np.asarray(jax.random.permutation(jax.random.fold_in(key_order, number), num_rows(xs)))
        orders[name] = order[:max_data]
        batches[name] = _batches(orders[name], size)
    found: dict[str, list[Measured]] = {name: [] for name in parts}
    latest = 0.0
    while batches:
        for number, name in enumerate(parts):
            places = next(batches[name], None) if name in batches else None
            if places is None:
                batches.pop(name, None)
                continue
            if found[name] and clock.spent + 1.2 * latest > seconds:
                batches.pop(name)
                continue
            began = clock.spent
            rows = orders[name][places]
            batch_key = jax.random.fold_in(jax.random.fold_in(key_batch, number), len(found[name]))
            part = measure_batch(batch_key, rows, take(parts[name], rows), problem)
            # Counted, and kept, once: what only filled the batch up is dropped.
            count = min(size, len(orders[name]) - len(found[name]) * size)
            found[name].append(jax.tree.map(lambda leaf, n=count: leaf[:n], jax.block_until_ready(part)))
            latest = clock.spent - began
            bar(f"measured {sum(len(one.rows) for one in found[name])} of the {name} data")
    return _joined(found["train"]), _joined(found["test"])


def _joined(parts: list[Measured]) -> Measured:
    whole = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    return whole._replace(rows=np.asarray(whole.rows))
