"""What the parts of `when_and_why.py` share: sizes, the schema of the table, how an encoder is trained and judged."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import amortgap as ag
from amortgap.inference import GlobalLocalFit, LocalFactors, amortized_factors
from amortgap.networks import dense
from amortgap.sweep import Column, Schema
from studies.requirements import NEAR, Requirement, near

SCHEMA = Schema(
    version=1,
    columns=(
        Column("part", str, "linear, nonlinear, saw, hmm, image or regression", key=True),
        Column("method", str, "inference method, with its encoder and recipe", key=True),
        Column("num_data", int, "data, or length of the series", key=True),
        Column("size", int, "width, degree, half window or structure of the encoder; -1 for none", key=True),
        Column("seed", int, "seed of the start, -1 for an exact value", key=True),
        Column("quantity", str, "what the value is, with its unit", key=True),
        Column("step", int, "optimiser step of a point of a path, -1 for none", key=True),
        Column("value", float, "the value; empty if not finite or never reached"),
        Column("seconds", float, "wall time of the steps so far, evaluation and compilation left out"),
        Column("visits", float, "local bounds computed with their gradients so far"),
        *NEAR,
    ),
)


@dataclasses.dataclass(frozen=True)
class Study:
    """Sizes of the measurements."""

    seeds: int = 10
    """Starts of every trained encoder."""
    linear_counts: tuple[int, ...] = (100, 1000, 10_000, 100_000)
    """Numbers of data of the linear model."""
    nonlinear_stride: int = 1
    """Take every n-th of the 10,000 data of the nonlinear model; targets hold for 1 only."""
    nonlinear_widths: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Widths of both hidden layers on the nonlinear model."""
    exact_nodes: int = 40
    """Nodes of the quadrature of all optima and of every final gap on the nonlinear model."""
    trained_nodes: int = 16
    """Nodes of the quadrature on which encoders are trained by the default recipe."""
    adam_steps: int = 1000
    """Adam steps of the default recipe, on minibatches of the nonlinear model and on all data of the saw series."""
    polish_steps: int = 150
    """L-BFGS steps on all data after them."""
    published_steps: int = 2000
    """Steps of Adam at a constant rate of 1e-2, the published recipe, on the nonlinear model (20,000 published)."""
    published_draws: int = 10
    """Draws of a gradient in it (100 published)."""
    batch_size: int = 500
    """Minibatch of the nonlinear model (all data published)."""
    noise_stride: int = 20
    """Every n-th datum on which the stationary noise of published F-VI is measured, with 100 draws."""
    noise_steps: int = 4000
    """Steps of that measurement, of which the last half counts."""
    normalised_seeds: int = 2
    """Starts of encoders of the normalised form of the nonlinear model."""
    saw_widths: tuple[int, ...] = (2, 4, 6, 10, 20)
    """Widths of both hidden layers on the saw series."""
    saw_steps: int = 5000
    """Steps of the published recipe on the saw series (30,000 at 1e-3 published, here 1e-2)."""
    chain_length: int = 60
    """Length of the hidden Markov series."""
    half_windows: tuple[int, ...] = (0, 1, 2, 3, 5)
    """Observations on either side that its encoders read."""
    image_data: Literal["auto", "fashion_mnist", "digits"] = "auto"
    """Images of the decoder part; auto takes Fashion-MNIST if its files are here and the embedded digits else."""
    image_count: int = 1000
    """Training images (10,000 published)."""
    image_steps: int = 2000
    """Steps of Adam on minibatches of 100."""
    image_latents: int = 8
    """Dimension of the latent (64 published)."""
    image_decoder: int = 32
    """Units of the decoder's two hidden layers (256 published)."""
    image_widths: tuple[int, ...] = (1, 16, 64)
    """Widths of both hidden layers of its encoders."""
    image_seeds: int = 2
    """Starts of each."""
    regression_dim: int = 3
    """Dimension of theta and of every group's coefficients (10 published)."""
    regression_groups: tuple[int, ...] = (10, 100, 1000, 10_000, 100_000)
    """Numbers of groups."""
    regression_joint: int = 10
    """Groups up to which one dense normal over all latents is fitted too."""
    regression_free: int = 1000
    """Groups up to which factors of every group's own are fitted too."""
    regression_steps: int = 3000
    """Adam steps of the amortized branches, on minibatches of 200 groups."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell of the sweep: an item of a part at one size."""

    study: Study
    part: str
    item: str
    size: int = -1


class Known(NamedTuple):
    """ELBOs of F-VI in the basin that descent reaches, of the best of all starts and of one shared factor.

    `left` are the Newton decrements of the first two, nats.
    """

    basin: float
    everywhere: float
    shared: float
    left: tuple[float, float]


def row(part: str, method: str, quantity: str, value: Any, **more: Any) -> dict[str, Any]:
    """One row; `target` and `tolerance` decide whether it is met, or `met` given with them, as by `at_most`."""
    base = dict.fromkeys(SCHEMA.names)
    base |= {"part": part, "method": method, "quantity": quantity, "num_data": -1, "size": -1, "seed": -1, "step": -1}
    base["value"] = None if value is None or not np.isfinite(value) else float(value)
    base |= {
        name: (None if item is None or (isinstance(item, float) and not math.isfinite(item)) else item)
        for name, item in more.items()
    }
    if more.get("target") is not None:
        base["met"] = near(more["target"], more.get("tolerance", 0.0)).met(base["value"])
    return base


def at_most(limit: float, value: float | None) -> dict[str, Any]:
    """Target columns of a value that may not exceed `limit`."""
    return {"tolerance": limit, "met": Requirement(high=limit).met(value)}


def published_loss(elbo: Any, num_data: int) -> float:
    """Return the loss of the published notebooks: minus the ELBO without any log of 2 pi (flat prior, one theta)."""
    return float(-elbo - 0.5 * (num_data - 1) * math.log(2 * math.pi))


def torch_start(key: jax.Array, sizes: Iterable[int], activation: str = "relu") -> Any:
    """Return a network with the published initial weights, uniform within one over the root of the inputs."""
    network = dense(key, tuple(sizes), activation=activation)
    leaves, structure = jax.tree.flatten(network)
    fans = [leaf.shape[0] for leaf in leaves if leaf.ndim == 2]
    # Flax orders bias before kernel in every layer.
    bounds = [1 / math.sqrt(fans[index // 2]) for index in range(len(leaves))]
    keys = jax.random.split(key, len(leaves))
    drawn = [
        jax.random.uniform(k, leaf.shape, leaf.dtype, -bound, bound)
        for k, leaf, bound in zip(keys, leaves, bounds, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TwoNetworks:
    """One network for the mean and one for the log scale of a scalar latent, as in the published nonlinear model."""

    mean: Any
    log_scale: Any

    def __call__(self, x: Any) -> Any:
        """Return phi of one datum."""
        return jnp.concatenate([self.mean(x), self.log_scale(x)])


def mlp_factors(seed: int, xs: Any, family: Any, width: int, *, recipe: str, separate: bool = False) -> Any:
    """Return amortized factors from a perceptron with two hidden layers by the library's defaults or as published."""
    key, in_dim = jax.random.key(seed), xs.shape[1]
    if recipe == "default":
        encoder: Any = ag.encoders.mlp(key, in_dim, family, width=width, depth=2, activation="tanh", standardize=xs)
    elif separate:
        pair = jax.random.split(key)
        encoder = TwoNetworks(*(torch_start(k, (in_dim, width, width, 1)) for k in pair))
    else:
        encoder = torch_start(key, (in_dim, width, width, family.size))
    return amortized_factors(encoder, family)


def train_by_default(
    study: Study,
    vi: Callable[..., GlobalLocalFit],
    factors: LocalFactors,
    *,
    batch_size: int | None,
    polish_steps: int,
) -> list[GlobalLocalFit]:
    """Return the fits of the library's recipe: Adam with a cosine on minibatches, then L-BFGS on all data.

    `vi` is `global_local_vi` with key, data, model, families and expectations.
    """
    first = vi(
        factors=factors,
        batch_size=batch_size,
        num_steps=study.adam_steps,
        num_evaluations=min(20, study.adam_steps),
        learning_rate=3e-2,
    )
    second = vi(
        factors=first.factors,
        global_start=first.global_phi,
        optimizer="lbfgs",
        num_steps=polish_steps,
        num_evaluations=min(5, polish_steps),
    )
    return [first, second]


def judged(
    fits: list[list[GlobalLocalFit]],
    best: float,
    worst: float,
    *,
    part: str,
    method: str,
    num_data: int,
    size: int,
    loss: Callable[[Any], float],
    limit: float | None = None,
) -> list[dict[str, Any]]:
    """Return rows of trained factors: final gap of every seed, dead and diverged seeds, time to 1 %, and one path.

    Args:
      fits: for every seed the fits that went on from one another.
      best, worst: ELBOs of factorized VI and of one shared factor.
      loss: from ELBO to the loss whose first value within 1 % of the optimum's counts as converged.
      limit: largest allowed median gap.
    """
    where = {"part": part, "method": method, "num_data": num_data, "size": size}
    rows, gaps = [], []
    for seed, chain in enumerate(fits):
        diverged = not all(bool(fit.finite) for fit in chain)
        gap = best - float(chain[-1].elbo)
        gaps.append(gap if math.isfinite(gap) else math.inf)
        rows.append(row(**where, seed=seed, quantity="gap, nats", value=gap))
        # Not a single one may be lost by the library's recipe.
        never: dict[str, Any] = at_most(0.0, float(diverged)) if "default" in method else {}
        rows.append(row(**where, seed=seed, quantity="diverged", value=float(diverged), **never))
        # Within a hundredth of what a shared factor loses: the encoder has stopped to look at the data.
        dead = diverged or not gap < 0.99 * (best - worst)
        rows.append(row(**where, seed=seed, quantity="dead or diverged", value=float(dead)))
        path = _path(chain)
        within = [point for point in path if loss(point[1]) <= loss(best) + 0.01 * abs(loss(best))]
        first = within[0] if within and not diverged else (None, None, None, None)
        rows.append(row(**where, seed=seed, quantity="steps to 1 %", value=first[0]))
        rows.append(row(**where, seed=seed, quantity="seconds to 1 %", value=first[2]))
        if seed == 0:
            rows += [
                row(**where, seed=0, quantity="path, nats", step=int(s), value=best - e, seconds=t, visits=v)
                for s, e, t, v in path
            ]
    median = float(np.median(gaps))
    extra = {} if limit is None else at_most(limit, median)
    return [*rows, row(**where, quantity="median gap, nats", value=median, **extra)]


def _path(chain: list[GlobalLocalFit]) -> list[tuple[float, float, float, float]]:
    """Steps, ELBOs, seconds and visits along the fits of one seed."""
    points, steps, seconds, visits = [], 0.0, 0.0, 0.0
    for fit in chain:
        taken = np.asarray(fit.trace.seconds, np.float64).copy()
        if taken.size > 1:
            taken[0] = np.median(taken[1:])  # the first round may have compiled
        clock = seconds + np.cumsum(taken)
        for index, elbo in enumerate(np.asarray(fit.trace.elbo)):
            at = (steps + float(fit.trace.step[index]), visits + float(fit.trace.data_visits[index]))
            points.append((at[0], float(elbo), float(clock[index]), at[1]))
        steps, visits, seconds = points[-1][0], points[-1][3], float(clock[-1])
    return points
