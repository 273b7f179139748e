"""When and why amortized VI reaches factorized VI: four published experiments and two more, beside their exact answers.

    python experiments/when_and_why.py --cluster local:2      # preset laptop: 18 minutes on two cores
    python experiments/when_and_why.py --preset paper         # published sizes: many hours on a CPU
    python experiments/when_and_why.py --preset smoke         # a few minutes, mostly compilation

*linear*: polynomial encoders, N = 100 to 100,000. *nonlinear*: as published (an objective without the normaliser of the
likelihood) and normalised; encoders of width 1 to 32 against the certified optimum of their basin and of all starts.
*saw*: a series whose encoder needs two observations. *hmm*: the published counter-example, why it proves nothing, and
some that do; gap against window width. *image*: a decoder with Bayesian weights. *regression*: hierarchical regression
with dense, block, diagonal, branch and amortized branch posteriors against the exact evidence. Encoders are trained by
the library's recipe (tanh, Adam with a cosine, then L-BFGS) and by the published one (ReLU, Adam at a constant rate).

Expectations are deterministic wherever the model allows, all arithmetic is in 64 bits. Writes OUT/table.csv,
OUT/claims.csv, OUT/table.json, OUT/when_and_why.{pdf,png} and OUT/paths.{pdf,png}; the exit status is 1 if the laptop
or paper preset misses an exact target (to expect: 227 of 227 met). Every method and size is a cell of a sweep: run
again to resume.

Source: Margossian and Blei, "Amortized variational inference: when and why?" (2024); Agrawal and Domke, "Amortized
variational inference for simple hierarchical models" (2021).
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Literal

from amortgap.runtime import prepare_compiler

prepare_compiler(one_core=True)

import jax
from studies.requirements import say_missed, tally
from studies.when_and_why import nonlinear as when_and_why_nonlinear
from studies.when_and_why import saw as when_and_why_saw
from studies.when_and_why.claims import claims
from studies.when_and_why.exact import counter_examples, linear, regression, window
from studies.when_and_why.figure import derive
from studies.when_and_why.image import image, image_source, images_of
from studies.when_and_why.nonlinear import noise, nonlinear, nonlinear_optima
from studies.when_and_why.saw import saw, saw_exact
from studies.when_and_why.study import SCHEMA, Cell, Study

from amortgap import sweep
from amortgap.sweep.script import Flat, SweepOptions, parse_study, run_study

Part = Literal["linear", "nonlinear", "saw", "hmm", "image", "regression"]
RECIPES = ("default", "published")


@dataclasses.dataclass(frozen=True)
class Args:
    """Flags of the experiment."""

    study: Study = dataclasses.field(default_factory=Study)
    parts: tuple[Part, ...] = ("linear", "nonlinear", "saw", "hmm", "image", "regression")
    """Parts to run."""
    enforce: bool = True
    """Exit with status 1 if a target is missed; the smoke preset is too small to meet them."""
    sweep: Flat = dataclasses.field(default_factory=SweepOptions)


PRESETS = {
    "laptop": Args(),
    "paper": Args(
        study=Study(
            published_steps=20_000,
            published_draws=100,
            batch_size=10_000,
            saw_steps=30_000,
            noise_stride=1,
            noise_steps=8000,
            image_count=10_000,
            image_steps=50_000,
            image_latents=64,
            image_decoder=256,
            image_widths=(1, 64, 128, 256),
            image_seeds=10,
            regression_dim=10,
        )
    ),
    "smoke": Args(
        enforce=False,
        study=Study(
            seeds=2,
            linear_counts=(20, 40),
            nonlinear_stride=500,
            nonlinear_widths=(2,),
            exact_nodes=12,
            trained_nodes=8,
            adam_steps=20,
            polish_steps=5,
            published_steps=20,
            published_draws=2,
            batch_size=10,
            noise_stride=2,
            noise_steps=20,
            normalised_seeds=1,
            saw_widths=(2,),
            saw_steps=20,
            chain_length=8,
            half_windows=(0, 1),
            image_data="digits",
            image_count=20,
            image_steps=20,
            image_latents=2,
            image_decoder=4,
            image_widths=(2,),
            image_seeds=1,
            regression_dim=2,
            regression_groups=(4,),
            regression_joint=4,
            regression_free=4,
            regression_steps=20,
        ),
    ),
}


def configurations(args: Args) -> list[Cell]:
    """Return the cells of the parts that were asked for."""
    study = args.study
    found: dict[str, list[tuple[str, int]]] = {
        "linear": [("degrees", count) for count in study.linear_counts],
        "nonlinear": [
            ("optima", -1),
            ("noise", -1),
            ("F-VI", -1),
            ("Const", -1),
            *((recipe, k) for recipe in RECIPES for k in study.nonlinear_widths),
            ("normalised optima", -1),
            *(("normalised", k) for k in study.nonlinear_widths[-1:]),
        ],
        "saw": [
            ("optima", -1),
            ("F-VI", -1),
            ("Const", -1),
            *((f"{recipe} {inputs}", k) for inputs in (1, 2) for recipe in RECIPES for k in study.saw_widths),
        ],
        "hmm": [("counter-examples", -1), *(("window", w) for w in study.half_windows)],
        "image": [("F-VI", -1), ("Const", -1), *(("A-VI", k) for k in study.image_widths)],
        "regression": [("structures", count) for count in study.regression_groups],
    }
    return [Cell(study, part, item, size) for part in args.parts for item, size in found[part]]


def rows_of(cell: Cell) -> list[dict]:
    """Return the rows of one cell."""
    study, size, item = cell.study, cell.size, cell.item
    if cell.part == "linear":
        return linear(size)
    if cell.part == "hmm":
        return window(study, size) if item == "window" else counter_examples()
    if cell.part == "regression":
        return regression(study, size)
    if cell.part == "image":
        return image(study, item, size)
    if cell.part == "saw":
        if item == "optima":
            return saw_exact()
        if item in ("F-VI", "Const"):
            return when_and_why_saw.references(study, item)
        recipe, inputs = item.split()
        return saw(study, recipe, int(inputs), size)
    if item == "noise":
        return noise(study)
    if item in ("F-VI", "Const"):
        return when_and_why_nonlinear.references(study, item)
    if "optima" in item:
        return nonlinear_optima(study, item.startswith("normalised"))
    return nonlinear(study, item if item in RECIPES else "default", size, normalised=item == "normalised")


def compute(cell: Cell) -> sweep.CellResult:
    """Return the result of one cell, in 64 bits."""
    jax.config.update("jax_enable_x64", True)
    return sweep.CellResult(rows=rows_of(cell))


def cells(args: Args) -> tuple[sweep.Cell, ...]:
    """Return the cells of the parts that were asked for, those on images with the sha256 of the images."""
    # Named before cells are made: their hashes say which images were used, whatever machine computes them.
    named = dataclasses.replace(args.study, image_data=image_source(args.study.image_data))
    images = images_of(named).sha256 if "image" in args.parts else None
    of_images = lambda cell: cell.part == "image"  # noqa: E731
    configs = [dataclasses.replace(cell, study=named) if of_images(cell) else cell for cell in configurations(args)]
    return sweep.make_cells(
        configs, schema_version=SCHEMA.version, data_sha256=lambda cell: images if of_images(cell) else None
    )


def main() -> int:
    """Run the experiment, write tables, figures and sidecar, and return the exit status."""
    args = parse_study(Args, PRESETS, name="when_and_why", description=__doc__)
    finished = run_study(args, cells, compute, schema=SCHEMA, derive=derive, facts=tally)
    for claim in claims(finished.rows):
        print(f"{claim['verdict']}: {claim['claim']}: {claim['evidence']}")
    return finished.exit_status or (1 if say_missed(finished.rows, "targets") and args.enforce else 0)


if __name__ == "__main__":
    sys.exit(main())
