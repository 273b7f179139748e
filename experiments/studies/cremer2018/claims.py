"""Tables in the paper's layout and its six claims, computed from the values of every image."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy import stats

from amortgap.sweep import Column
from studies.cremer2018.bounds import best_evidence, gaps
from studies.cremer2018.parts import TABLES
from studies.cremer2018.published import ROWS, published
from studies.cremer2018.study import AIS, PER_IMAGE
from studies.verdicts import LEVEL, UNRESOLVED, Trainings, holm, settled

CLAIMS = (
    Column("claim", str, "what the paper says", key=True),
    Column("verdict", str, "holds, does not hold, or not resolved"),
    Column("reason", str, "what the verdict rests on, or why there is none"),
    Column("value", float, "the number that decides, nats"),
    Column("low", float, "lower end of its 95 % interval, over images and, where there are several, seeds; nats"),
    Column("high", float, "upper end, nats"),
    Column("what", str, "what the number is; above zero the claim holds"),
    Column("command", str, "the command that computes it"),
)
PAPER = (
    Column("table", str, "sub-experiment", key=True),
    Column("quantity", str, "row of the published table", key=True),
    Column("data", str, "data set", key=True),
    Column("model", str, "family trained with", key=True),
    Column("split", str, "train (as published) or test", key=True),
    Column("ours", float, "mean over images, nats"),
    Column("low", float, "lower end of its 95 % interval over images; of gaps, of the paired difference"),
    Column("high", float, "upper end"),
    Column("median", float, "median over images"),
    Column("trimmed_mean", float, "mean without the largest and smallest twentieth"),
    Column("published_recalled", float, "the paper's number, recalled and not read from it"),
    Column("rerun_2022", float, "independent rerun in JAX, as printed in its notebooks"),
)
_NORMAL_QUANTILE = 1.959964
# Claims about a single training; all others compare two.
_OF_ONE_TRAINING = ("1.", "6.")
SCRIPT = "python experiments/cremer2018.py --experiments"


def paper_tables(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of the published tables: ours with interval, published, rerun."""
    found = []
    for row in rows:
        if row["experiment"] not in TABLES or row["quantity"] not in ROWS or row["mean"] is None:
            continue
        half = _NORMAL_QUANTILE * (math.nan if row["standard_error"] is None else row["standard_error"])
        paper, rerun = published(row["experiment"], row["data"], row["model"], row["quantity"])
        if row["split"] != "train":
            paper = rerun = None
        found.append(
            {
                "table": row["experiment"],
                "quantity": row["quantity"],
                "data": row["data"],
                "model": row["model"],
                "split": row["split"],
                "ours": row["mean"],
                "low": row["mean"] - half,
                "high": row["mean"] + half,
                "median": row["median"],
                "trimmed_mean": row["trimmed_mean"],
                "published_recalled": paper,
                "rerun_2022": rerun,
            }
        )
    order = {name: i for i, name in enumerate(ROWS)}
    return sorted(found, key=lambda row: (row["split"] == "test", TABLES.index(row["table"]), order[row["quantity"]]))


class Images:
    """Values of every image, found by experiment, data, model, variant, step and split."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        groups: dict[tuple, list[dict[str, Any]]] = {}
        for row in rows:
            where = tuple(row[name] for name in ("experiment", "data", "model", "variant", "step", "split"))
            groups.setdefault(where, []).append(row)
        self._groups = {
            where: {
                name: np.array([math.nan if row[name] is None else row[name] for row in found])
                for name in PER_IMAGE
                if any(row[name] is not None for row in found) or name == AIS
            }
            for where, found in groups.items()
        }

    def steps(self, experiment: str, data: str, model: str, variant: str = "") -> list[int]:
        """Return the checkpoints of a model; raises KeyError if there are none."""
        found = sorted({where[4] for where in self._groups if where[:4] == (experiment, data, model, variant)})
        if not found:
            raise KeyError((experiment, data, model, variant))
        return found

    def values(
        self,
        experiment: str,
        data: str,
        model: str,
        variant: str = "",
        *,
        step: int | None = None,
        split: str = "train",
    ) -> dict[str, np.ndarray]:
        """Return bounds and gaps of every image; raises KeyError where there are none."""
        if step is None:
            step = self.steps(experiment, data, model, variant)[-1]
        family = variant if experiment == "frozen-decoder" else model
        return gaps(self._groups[experiment, data, model, variant, step, split], family)


# The values whose mean decides a claim, one for each image, and what they are.
Test = tuple[np.ndarray, str]


def _paired(terms: Sequence[np.ndarray]) -> np.ndarray:
    """Return the sums of terms on the same images."""
    total = np.sum(terms, axis=0)
    return total[np.isfinite(total)]


def _amortization_dominates(images: Images, data: str, least: float, model: str) -> Test:
    found = images.values("inference-gaps", data, model)
    total = _paired([found["amortization gap"], -least * found["approximation gap"]])
    return total, f"amortization gap less {least:g} times the approximation gap, {model} on {data}"


def _loss_of_normals(found: dict[str, np.ndarray]) -> np.ndarray:
    return found["L[q*_AF]"] - found["L[q*_FFG]"]


def _decoder_adapts(images: Images, data: str) -> Test:
    """AF-trained model with the best FFG against FFG-trained model with the best AF."""
    flow, normal = (images.values("inference-gaps", data, model) for model in ("AF", "FFG"))
    total = _paired([_loss_of_normals(flow), -5.0 * _loss_of_normals(normal)])
    what = f"{data}: what an AF-trained model loses with the best FFG instead of AF, less five times the same of the"
    return total, f"{what} FFG-trained one"


def _warmup_allows_it(images: Images, data: str) -> Test:
    warm, cold = (images.values(name, data, "AF") for name in ("inference-gaps", "no-warm-up"))
    total = _paired([_loss_of_normals(warm), -2.0 * _loss_of_normals(cold)])
    return total, f"{data}: that loss of the AF-trained model with warm-up, less twice the one without"


def _larger_encoder(images: Images, data: str, model: str) -> Test:
    small, large = (
        images.values(name, data, model)["amortization gap"] for name in ("inference-gaps", "larger-encoder")
    )
    total = _paired([small, -large])
    return total, f"{data}, {model}: amortization gap of the encoder less that of the larger one"


def _warmup_improves(images: Images, data: str, model: str) -> Test:
    warm, cold = (best_evidence(images.values(name, data, model)) for name in ("inference-gaps", "no-warm-up"))
    total = _paired([warm, -cold])
    return total, f"{data}, {model}: log p(x) with warm-up less that without"


def _flow_parameters_amortize(images: Images, data: str, family: str) -> Test:
    normal, flow = (images.values("frozen-decoder", data, "FFG", name)["amortization gap"] for name in ("FFG", family))
    total = _paired([normal, -flow])
    return total, f"{data}: amortization gap of FFG less that of {family}, frozen decoder, no hidden layer"


def _decoder_depth(images: Images, data: str, shallow: int, deep: int) -> Test:
    def approximation(depth: int) -> np.ndarray:
        if depth == 2:
            return images.values("inference-gaps", data, "FFG")["approximation gap"]
        return images.values("decoder-size", data, "FFG", f"{depth} hidden layers")["approximation gap"]

    total = _paired([approximation(shallow), -approximation(deep)])
    return total, f"{data}: approximation gap with {shallow} hidden layers in the decoder less that with {deep}"


def _over_training(images: Images, data: str, gap: str) -> Test:
    steps = images.steps("over-training", data, "FFG")
    first, last = (images.values("over-training", data, "FFG", step=s, split="test") for s in (steps[0], steps[-1]))
    total = _paired([last[gap], -first[gap]])
    return total, f"{data}, held-out images: {gap} after {steps[-1]} steps less that after {steps[0]}"


def _flatter(images: Images, data: str) -> Test:
    steps = images.steps("over-training", data, "FFG")
    first, last = (images.values("over-training", data, "FFG", step=s, split="test") for s in (steps[0], steps[-1]))
    growth = {gap: last[gap] - first[gap] for gap in ("amortization gap", "approximation gap")}
    mean = [float(np.mean(value)) for value in growth.values()]
    # About flat: it changes by less than a third of what the other grows by, in either direction.
    sign = math.copysign(1.0, mean[1])
    total = _paired([growth["amortization gap"] / 3, -sign * growth["approximation gap"]])
    return total, f"{data}: a third of that growth less the size of the change of the approximation gap"


def claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the claims, each with the number that decides it, its interval and the command.

    Rows may say the `seed` of their training and whether it had `converged`; without, they are of one seed and had not.
    """
    seeds: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        seeds.setdefault(row.get("seed", 0), []).append(row)
    images = [Images(found) for _, found in sorted(seeds.items())]
    unfinished = {row["experiment"] for row in rows if not row.get("converged", False)}
    data = sorted({row["data"] for row in rows})
    mnist = "mnist" if "mnist" in data else data[0]
    fashion = "fashion_mnist" if "fashion_mnist" in data else data[0]
    tests: list[tuple[str, str, Callable[[Images], Test]]] = []
    for name, least in ((mnist, 0.8), (fashion, 1.2)):
        size = "clearly larger than" if least > 1 else "about equal to or larger than"
        tests += [
            (
                f"1. on {name} the amortization gap is {size} the approximation gap ({model})",
                "inference-gaps",
                partial(_amortization_dominates, data=name, least=least, model=model),
            )
            for model in ("FFG", "AF")
        ]
    for name in dict.fromkeys((mnist, fashion)):
        both = "inference-gaps no-warm-up"
        tests += [
            (
                f"2. on {name} a model trained with AF is far worse with the best FFG than the reverse",
                "inference-gaps",
                partial(_decoder_adapts, data=name),
            ),
            (
                f"2. on {name} warm-up is what lets the decoder adapt to the family",
                both,
                partial(_warmup_allows_it, data=name),
            ),
            *(
                (
                    f"3. on {name} a larger encoder cuts the amortization gap ({model})",
                    "inference-gaps larger-encoder",
                    partial(_larger_encoder, data=name, model=model),
                )
                for model in ("FFG", "AF")
            ),
        ]
    tests += [
        *(
            (
                f"3. warm-up improves log p(x) on {fashion} ({model})",
                "inference-gaps no-warm-up",
                partial(_warmup_improves, data=fashion, model=model),
            )
            for model in ("FFG", "AF")
        ),
        *(
            (
                f"4. on a frozen decoder the parameters of {family} reduce the amortization gap",
                "frozen-decoder",
                partial(_flow_parameters_amortize, data=mnist, family=family),
            )
            for family in ("Flow", "AF")
        ),
        (
            "5. a deeper decoder shrinks the approximation gap (0 to 2 layers)",
            "inference-gaps decoder-size",
            partial(_decoder_depth, data=mnist, shallow=0, deep=2),
        ),
        (
            "5. a deeper decoder shrinks the approximation gap (2 to 4 layers)",
            "inference-gaps decoder-size",
            partial(_decoder_depth, data=mnist, shallow=2, deep=4),
        ),
        (
            "6. over training the amortization gap of held-out images grows",
            "over-training",
            partial(_over_training, data=fashion, gap="amortization gap"),
        ),
        ("6. over training their approximation gap stays about flat", "over-training", partial(_flatter, data=fashion)),
    ]
    found = [_computed(images, test) for _, _, test in tests]
    corrected = holm([each and each.p_value for each in found])
    judged = []
    for (claim, experiments, _), each, p_value in zip(tests, found, corrected, strict=True):
        row: dict[str, Any] = {"claim": claim, "command": f"{SCRIPT} {experiments}"}
        if each is None or p_value is None:
            nothing = dict.fromkeys(("value", "low", "high"))
            judged.append(row | {"verdict": UNRESOLVED, "reason": "not computed", "what": "not computed"} | nothing)
            continue
        trainings = Trainings(
            converged=unfinished.isdisjoint(experiments.split()),
            seeds=None if claim.startswith(_OF_ONE_TRAINING) else each.seeds,
        )
        holds = each.value > 0 if p_value < LEVEL else None
        verdict, reason = settled(holds, trainings, f"p = {p_value:.2g}, corrected for the number of tests")
        low, high = each.value - each.half, each.value + each.half
        row |= {"verdict": verdict, "reason": reason, "value": each.value, "low": low, "high": high}
        judged.append(row | {"what": each.what})
    return judged


@dataclasses.dataclass(frozen=True)
class _Found:
    """The number that decides a claim, half its 95 % interval, and the seeds it was computed from."""

    value: float
    half: float
    p_value: float
    seeds: int
    what: str


def _computed(images: Sequence[Images], test: Callable[[Images], Test]) -> _Found | None:
    """Return the number that decides a claim; None where no seed has what it needs."""
    totals, what = [], ""
    for each in images:
        try:
            total, what = test(each)
        except KeyError:
            continue
        totals.append(total)
    if not totals:
        return None
    means = [float(total.mean()) for total in totals]
    # Images are the same for all seeds: more seeds do not make that part of the error smaller.
    squared = float(np.mean([total.var(ddof=1) / len(total) for total in totals]))
    value, seeds = float(np.mean(means)), len(means)
    if seeds == 1:
        error, quantile, tail = squared**0.5, _NORMAL_QUANTILE, stats.norm.sf
    else:
        error = (squared + float(np.var(means, ddof=1)) / seeds) ** 0.5
        quantile, tail = float(stats.t.ppf(0.975, seeds - 1)), partial(stats.t.sf, df=seeds - 1)
    p_value = 2 * float(tail(abs(value) / max(error, 1e-300)))
    return _Found(value, quantile * error, p_value, seeds, what)
