"""`diagnose`: measure an encoder's gaps, say what is wrong, and try what could mend it, within a budget of seconds."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from amortgap._internal.checks import (
    check_choice,
    check_count,
    check_data,
    check_encoder,
    check_key,
    check_positive,
    check_sizes,
    num_rows,
)
from amortgap._internal.devices import encode
from amortgap.diagnosis.clock import Clock
from amortgap.diagnosis.findings import findings
from amortgap.diagnosis.latents import activity, coverage
from amortgap.diagnosis.measuring import measure, take
from amortgap.diagnosis.parts import Problem
from amortgap.diagnosis.record import Diagnosis
from amortgap.diagnosis.trials import REMEDIES, Place, try_remedies
from amortgap.gaps import generalization
from amortgap.networks import count_weights

MINIMUM_BUDGET = 30.0
# Share of the budget for measuring gaps, and what is kept back for calibration and latents.
_MEASURING, _KEPT_BACK = 0.5, 0.06
_WORST = 8


def diagnose(
    key: jax.Array,
    xs_train: Any,
    xs_test: Any,
    *,
    model: Any,
    family: Any,
    encoder: Any,
    budget: float = 300.0,
    max_data: int = 500,
    tolerance: float = 0.1,
    remedies: Sequence[str] | None = None,
    image_shape: tuple[int, ...] | None = None,
    progress: bool = False,
) -> Diagnosis:
    """Say how many nats an encoder loses, where, how sure that is, and which remedy buys most.

    Formula: the gaps of `inference_gaps` on training and on held-out data; the verdict is the largest of amortization
    (the smaller of both parts'), generalization (its growth on held-out data) and approximation, if it stands above
    `tolerance` by two standard errors; remedies are judged by the paired difference of ELBOs on the held-out data.

    For mean field and low-rank normals the best full-rank normal of every datum is fitted too: log p(x) is estimated
    from it, and it bounds what a richer family can buy.

    Args:
      key: typed key.
      xs_train: data the encoder was trained on, [N, ...]; remedies that train use them.
      xs_test: held-out data of the same kind.
      model, family, encoder: as in `inference_gaps`.
      budget: seconds, at least 30; half go to measuring, the rest to remedies. A compilation that has begun is not
        broken off, so a large model needs minutes. How many data are measured and how long remedies train depends on
        it; what is measured for a given datum does not.
      max_data: data measured of either part, at most.
      tolerance: nats per datum below which a loss is no problem.
      remedies: names of `amortgap.diagnosis.REMEDIES` to try; None for all, an empty tuple for none.
      image_shape: shape of a datum as an image, [H, W] or [H, W, C], for the report; None to guess from square rows.
      progress: show a progress bar on standard error if that is a terminal.

    Returns:
      Diagnosis; `.summary()` is plain text, `.to_html(path)` a report in one file.

    Raises:
      ValueError: bad key, data, sizes or settings, a budget below 30 seconds, a log joint that is not one finite number
        where the encoder starts.

    Source: Cremer, Li and Duvenaud, "Inference suboptimality in variational autoencoders" (2018), for the gaps; Zhang,
      Hayes and Barber, "Generalization gap in amortized inference" (2022), for that of the encoder.
    """
    check_key(key)
    check_positive("budget", budget)
    if budget < MINIMUM_BUDGET:
        raise ValueError(
            f"budget must be at least {MINIMUM_BUDGET:g} seconds, got {budget:g}: compiling what measures takes as long"
        )
    check_count("max_data", max_data, minimum=2)
    check_positive("tolerance", tolerance)
    names = REMEDIES if remedies is None else tuple(remedies)
    for name in names:
        check_choice("remedies", name, REMEDIES)
    xs_train, xs_test = check_data("xs_train", xs_train, model), check_data("xs_test", xs_test, model)
    for name, xs in (("xs_train", xs_train), ("xs_test", xs_test)):
        if num_rows(xs) < 2:
            raise ValueError(f"{name} must hold at least two data, for an error over data, got {num_rows(xs)}")
    _check_alike(xs_train, xs_test)
    check_sizes(model, family)
    encoder_name = type(encoder).__name__
    encoder = check_encoder(encoder, family, jax.tree.map(lambda leaf: leaf[0], xs_test))
    image_shape = _image_shape(xs_test, image_shape)
    clock = Clock(float(budget))
    problem = Problem(model, family, encoder, xs_train, xs_test)
    keys = dict(zip(("check", "measure", "latents", "coverage", "remedies"), jax.random.split(key, 5), strict=True))
    _check_log_joint(keys["check"], problem)
    with _bar(clock, progress) as bar:
        train, test = measure(
            keys["measure"], problem, max_data=max_data, seconds=_MEASURING * budget, clock=clock, bar=bar
        )
        xs = take(xs_test, test.rows)
        latents = activity(keys["latents"], test, family)
        covered = coverage(keys["coverage"], test, xs, problem)
        bar("measured calibration")
        tried, skipped = try_remedies(
            keys["remedies"], Place(problem, test, xs, clock), names=names, seconds=(1 - _KEPT_BACK) * budget, bar=bar
        )
    more = generalization(train.gaps.amortization, test.gaps.amortization)
    worst = np.argsort(-np.nan_to_num(np.asarray(test.gaps.inference), nan=np.inf))[:_WORST]
    return Diagnosis(
        findings=findings(train, test, more, latents, tolerance),
        train=train,
        test=test,
        generalization=more,
        latents=latents,
        coverage=covered,
        remedies=tried,
        skipped=skipped,
        worst=worst,
        worst_inputs=jax.tree.map(np.asarray, take(xs, worst)),
        settings={
            "budget": float(budget),
            "seconds": clock.spent,
            "tolerance": float(tolerance),
            "model": type(model).__name__,
            "family": type(family).__name__,
            "encoder": encoder_name,
            "latent_dim": family.latent_dim,
            "encoder_weights": count_weights(encoder),
            "training_data": num_rows(xs_train),
            "held_out_data": num_rows(xs_test),
        },
        image_shape=image_shape,
    )


def _check_alike(xs_train: Any, xs_test: Any) -> None:
    shapes = [jax.tree.map(lambda leaf: leaf.shape[1:], xs) for xs in (xs_train, xs_test)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"xs_train and xs_test must hold data of one shape, got {shapes[0]} and {shapes[1]}")


def _image_shape(xs: Any, given: tuple[int, ...] | None) -> tuple[int, ...] | None:
    leaves = jax.tree.leaves(xs)
    shape = leaves[0].shape[1:] if len(leaves) == 1 else ()
    size = math.prod(shape)
    if given is not None:
        whole = tuple(check_count("image_shape", length) for length in given)
        if len(whole) not in (2, 3) or math.prod(whole) != size or (len(whole) == 3 and whole[2] not in (1, 3)):
            raise ValueError(
                f"image_shape must be (H, W), (H, W, 1) or (H, W, 3) with as many numbers as a datum of shape {shape}, "
                f"got {given}"
            )
        return whole
    if len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3)):
        return shape
    side = math.isqrt(size)
    # Rows of 64, 784, ...: square, and too long to be read as numbers.
    return (side, side) if len(shape) == 1 and side >= 8 and side * side == size else None


def _check_log_joint(key: jax.Array, problem: Problem) -> None:
    """Refuse a log joint that is no scalar, or not finite for any of the first data at what the encoder says."""
    xs = take(problem.xs_test, np.arange(min(10, num_rows(problem.xs_test))))
    out = jax.eval_shape(problem.model.log_joint, jnp.zeros(problem.family.latent_dim), take(xs, np.asarray(0)))
    if getattr(out, "shape", None) != ():
        got = getattr(out, "shape", type(out).__name__)
        raise ValueError(f"model.log_joint(z, x) must return one scalar, got {got}; sum over the parts of one datum")
    phis = encode(problem.encoder, xs)
    if not bool(jnp.isfinite(phis).all()):
        raise ValueError("encoder returns values that are not finite for the first held-out data; train it again")

    @jax.jit
    def values(key: jax.Array, phis: Any, xs: Any) -> Any:
        def one(phi: Any, x: Any) -> Any:
            return problem.model.log_joint(problem.family.sample_and_log_prob(key, phi)[0], x)

        return jax.vmap(one)(phis, xs)

    found = np.asarray(values(key, phis, xs))
    if not np.isfinite(found).any():
        raise ValueError(
            f"model.log_joint is not finite at a draw of the encoder's q for any of the first {len(found)} held-out "
            f"data, got {found}; check the support of the data and the scales that the model computes"
        )


@contextmanager
def _bar(clock: Clock, progress: bool) -> Iterator[Callable[[str], None]]:
    """Yield what moves a bar of the seconds used, and says what was done last."""
    shown = progress and sys.stderr.isatty()
    with tqdm(total=round(clock.budget), desc="diagnosis", unit="s", disable=not shown, leave=False) as bar:

        def move(what: str) -> None:
            bar.set_postfix_str(what, refresh=False)
            bar.update(min(round(clock.spent), bar.total) - bar.n)

        yield move
