"""`diagnose`: measure an encoder's gaps, name their causes and try remedies, within a budget of seconds."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from tqdm import tqdm

from amortgap._internal.checks import (
    check_choice,
    check_count,
    check_data,
    check_encoder,
    check_key,
    check_positive,
    check_sizes,
    first_row,
    num_rows,
)
from amortgap._internal.devices import encode, take
from amortgap.diagnosis.findings import findings
from amortgap.diagnosis.latents import activity, coverage
from amortgap.diagnosis.measure import measure
from amortgap.diagnosis.records import Budget, DiagnosisRecord, Problem
from amortgap.diagnosis.remedies import REMEDIES, try_remedies
from amortgap.diagnosis.text import summary
from amortgap.diagnosis.trials import TrialContext
from amortgap.gaps import generalization
from amortgap.networks import count_weights
from amortgap.protocols import Data, Datum, Encoder, Family, Model

MINIMUM_BUDGET = 30.0
# Share of the budget for measuring gaps, and the share by which remedies end: calibration and the report need the rest.
_MEASURING, _TRYING = 0.5, 0.94
# Number of the worst data in the report.
_WORST = 8


@dataclass(frozen=True, kw_only=True)
class Diagnosis(DiagnosisRecord):
    """How many nats an encoder loses, where, how sure that is, and what buys most; made by `diagnose`.

    Attributes:
      findings: the first is the verdict: the costliest cause, or that nothing costs much.
      train, test: the measurements on both parts of the data.
      generalization: how much larger the amortization gap is on held-out data.
      latents: activity of each latent.
      coverage: calibration of the encoder's q, None where it cannot be measured.
      remedies: those that were tried, the largest gain first; limits on gains come last.
      skipped: name and reason of every remedy that was not tried.
      worst: positions in `test.rows` of the largest inference gaps.
      worst_inputs: these data.
      settings: settings of the run: tolerance, budget, seconds, sizes.
      image_shape: shape of a datum as an image, None if data are no images.
    """

    def summary(self) -> str:
        """Return the diagnosis as plain text; every number is in nats per datum."""
        return summary(self)

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Write one self-contained HTML file and return its path.

        Raises:
          OSError: the file cannot be written.
        """
        # matplotlib takes a second to load, which only a report should cost.
        from amortgap.diagnosis.html import write_diagnosis

        return write_diagnosis(self, path)


def diagnose(
    key: jax.Array,
    xs_train: Data,
    xs_test: Data,
    *,
    model: Model,
    family: Family,
    encoder: Encoder,
    budget: float = 300.0,
    max_data: int = 500,
    tolerance: float = 0.1,
    remedies: Sequence[str] | None = None,
    image_shape: tuple[int, ...] | None = None,
    progress: bool = False,
) -> Diagnosis:
    """Say how many nats an encoder loses, where, how sure that is, and which remedy buys most.

    Formula: the gaps of `inference_gaps` on training and on held-out data; the verdict is the largest of amortization
    (the smaller of its training and held-out values), generalization (its growth on held-out data) and approximation,
    if it stands above `tolerance` by two standard errors; a remedy gains the paired difference of ELBOs on the
    held-out data.

    For mean field and low-rank normals the best full-rank normal of every datum is fitted too: log p(x) is estimated
    from it, and it bounds the gain of a richer normal family.

    Args:
      key: typed key.
      xs_train: data the encoder was trained on, [N, ...]; remedies that train use them.
      xs_test: held-out data of the same kind.
      model, family, encoder: as in `inference_gaps`.
      budget: seconds, at least 30; half go to measuring, the rest to remedies. A compilation that has begun is not
        broken off, so a large model needs minutes. More time measures more data and trains remedies for longer; the
        measurements of a given datum do not depend on it.
      max_data: data measured of either part, at most.
      tolerance: nats per datum below which a loss is no problem.
      remedies: names of `amortgap.diagnosis.REMEDIES` to try; None for all, an empty tuple for none.
      image_shape: shape of a datum as an image, [H, W] or [H, W, C], for the report; None to guess from square rows.
      progress: show a progress bar on standard error if that is a terminal.

    Returns:
      Diagnosis; `.summary()` is plain text, `.to_html(path)` a report in one file.

    Raises:
      ValueError: bad key, data, sizes or settings, a budget below 30 seconds, a log joint that is not one finite number
        at the encoder's output.

    Source: Cremer, Li and Duvenaud, "Inference suboptimality in variational autoencoders" (2018), for the gaps; Zhang,
      Hayes and Barber, "Generalization gap in amortized inference" (2022), for that of the encoder.
    """
    check_key(key)
    check_positive("budget", budget)
    if budget < MINIMUM_BUDGET:
        raise ValueError(
            f"budget must be at least {MINIMUM_BUDGET:g} seconds, got {budget:g}: compilation takes about as long"
        )
    check_count("max_data", max_data, minimum=2)
    check_positive("tolerance", tolerance)
    names = REMEDIES if remedies is None else tuple(remedies)
    for name in names:
        check_choice("remedies", name, REMEDIES)
    xs_train, xs_test = check_data("xs_train", xs_train, model), check_data("xs_test", xs_test, model)
    _check_parts(xs_train, xs_test)
    check_sizes(model, family)
    encoder_name = type(encoder).__name__
    encoder = check_encoder(encoder, family, first_row(xs_test))
    image_shape = _image_shape(xs_test, image_shape)
    clock = Budget(float(budget))
    problem = Problem(model, family, encoder, xs_train, xs_test)
    key_check, key_measure, key_latents, key_coverage, key_remedies = jax.random.split(key, 5)
    _check_log_joint(key_check, problem)
    with _progress_bar(clock, progress) as report:
        train, test = measure(
            key_measure, problem, max_data=max_data, seconds=_MEASURING * budget, budget=clock, progress=report
        )
        xs = take(xs_test, test.rows)
        latents = activity(key_latents, test, family)
        calibration = coverage(key_coverage, test, xs, problem)
        report("measured calibration")
        context = TrialContext(problem, test, xs, clock)
        tried, skipped = try_remedies(key_remedies, context, names=names, seconds=_TRYING * budget, progress=report)
    growth = generalization(train.gaps.amortization, test.gaps.amortization)
    worst = np.argsort(-np.nan_to_num(np.asarray(test.gaps.inference), nan=np.inf))[:_WORST]
    return Diagnosis(
        findings=findings(train, test, growth, latents, tolerance),
        train=train,
        test=test,
        generalization=growth,
        latents=latents,
        coverage=calibration,
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


def _check_parts(xs_train: Data, xs_test: Data) -> None:
    """Refuse parts of fewer than two data, which give no error over data, and parts of different shapes."""
    shapes = []
    for name, xs in (("xs_train", xs_train), ("xs_test", xs_test)):
        if num_rows(xs) < 2:
            raise ValueError(f"{name} must hold at least two data, for an error over data, got {num_rows(xs)}")
        shapes.append(jax.tree.map(lambda leaf: leaf.shape[1:], xs))
    if shapes[0] != shapes[1]:
        raise ValueError(f"xs_train and xs_test must hold data of one shape, got {shapes[0]} and {shapes[1]}")


def _image_shape(xs: Data, given: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Return the shape of a datum as an image: the given one after a check, else a guess, None for no image."""
    leaves = jax.tree.leaves(xs)
    shape = leaves[0].shape[1:] if len(leaves) == 1 else ()
    size = math.prod(shape)
    if given is not None:
        image = tuple(check_count("image_shape", length) for length in given)
        if len(image) not in (2, 3) or math.prod(image) != size or (len(image) == 3 and image[2] not in (1, 3)):
            raise ValueError(
                f"image_shape must be (H, W), (H, W, 1) or (H, W, 3) with as many numbers as a datum of shape {shape}, "
                f"got {given}"
            )
        return image
    if len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3)):
        return shape
    side = math.isqrt(size)
    # Rows of 64, 784, ...: square, and too long to be read as numbers.
    return (side, side) if len(shape) == 1 and side >= 8 and side * side == size else None


def _check_log_joint(key: jax.Array, problem: Problem) -> None:
    """Refuse a log joint that is no scalar, or not finite for all of the first data at draws of the encoder's q."""
    model, family = problem.model, problem.family
    xs = take(problem.xs_test, np.arange(min(10, num_rows(problem.xs_test))))
    out = jax.eval_shape(model.log_joint, jnp.zeros(family.latent_dim), take(xs, np.asarray(0)))
    if getattr(out, "shape", None) != ():
        got = getattr(out, "shape", type(out).__name__)
        raise ValueError(f"model.log_joint(z, x) must return one scalar, got {got}; sum over the parts of one datum")
    phis = encode(problem.encoder, xs)
    if not bool(jnp.isfinite(phis).all()):
        raise ValueError("encoder returns values that are not finite for the first held-out data; train it again")

    def at_a_draw(phi: Array, x: Datum) -> Array:
        return model.log_joint(family.sample_and_log_prob(key, phi)[0], x)

    values = np.asarray(jax.jit(jax.vmap(at_a_draw))(phis, xs))
    if not np.isfinite(values).any():
        raise ValueError(
            f"model.log_joint is not finite at a draw of the encoder's q for any of the first {len(values)} held-out "
            f"data, got {values}; check the support of the data and the scales that the model computes"
        )


@contextmanager
def _progress_bar(budget: Budget, shown: bool) -> Iterator[Callable[[str], None]]:
    """Show a bar of the seconds spent; yield the function that moves it and names the last step."""
    hidden = not (shown and sys.stderr.isatty())
    with tqdm(total=round(budget.seconds), desc="diagnosis", unit="s", disable=hidden, leave=False) as bar:

        def move(step: str) -> None:
            bar.set_postfix_str(step, refresh=False)
            bar.update(min(round(budget.spent), bar.total) - bar.n)

        yield move
