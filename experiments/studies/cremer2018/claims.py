"""Tables in the paper's layout and its six claims, computed from the values of every image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from amortgap.sweep import Column
from studies.cremer2018.bounds import best_evidence, gaps
from studies.cremer2018.parts import TABLES
from studies.cremer2018.published import ROWS, published
from studies.cremer2018.study import AIS, PER_IMAGE

CLAIMS = (
    Column("claim", str, "what the paper says", key=True),
    Column("verdict", str, "holds, does not hold, or not resolved"),
    Column("value", float, "the number that decides, nats"),
    Column("low", float, "lower end of its 95 % interval, nats"),
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
        found.append({
            "table": row["experiment"], "quantity": row["quantity"], "data": row["data"], "model": row["model"],
            "split": row["split"], "ours": row["mean"], "low": row["mean"] - half, "high": row["mean"] + half,
            "median": row["median"], "trimmed_mean": row["trimmed_mean"], "published_recalled": paper,
            "rerun_2022": rerun,
        })  # fmt: skip
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


def _paired(differences: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the mean of a sum of terms on the same images and its standard error."""
    total = np.sum(differences, axis=0)
    total = total[np.isfinite(total)]
    return float(total.mean()), float(total.std(ddof=1) / len(total) ** 0.5)


# The number whose sign decides a claim: mean, standard error, what it is.
Test = tuple[float, float, str]


def _amortization_dominates(images: Images, data: str, least: float, model: str) -> Test:
    found = images.values("inference-gaps", data, model)
    mean, error = _paired([found["amortization gap"], -least * found["approximation gap"]])
    return mean, error, f"amortization gap less {least:g} times the approximation gap, {model} on {data}"


def _loss_of_normals(found: dict[str, np.ndarray]) -> np.ndarray:
    return found["L[q*_AF]"] - found["L[q*_FFG]"]


def _decoder_adapts(images: Images, data: str) -> Test:
    """AF-trained model with the best FFG against FFG-trained model with the best AF."""
    flow, normal = (images.values("inference-gaps", data, model) for model in ("AF", "FFG"))
    mean, error = _paired([_loss_of_normals(flow), -5.0 * _loss_of_normals(normal)])
    what = f"{data}: what an AF-trained model loses with the best FFG instead of AF, less five times the same of the"
    return mean, error, f"{what} FFG-trained one"


def _warmup_allows_it(images: Images, data: str) -> Test:
    warm, cold = (images.values(name, data, "AF") for name in ("inference-gaps", "no-warm-up"))
    mean, error = _paired([_loss_of_normals(warm), -2.0 * _loss_of_normals(cold)])
    return mean, error, f"{data}: that loss of the AF-trained model with warm-up, less twice the one without"


def _larger_encoder(images: Images, data: str, model: str) -> Test:
    small, large = (
        images.values(name, data, model)["amortization gap"] for name in ("inference-gaps", "larger-encoder")
    )
    mean, error = _paired([small, -large])
    return mean, error, f"{data}, {model}: amortization gap of the encoder less that of the larger one"


def _warmup_improves(images: Images, data: str, model: str) -> Test:
    warm, cold = (best_evidence(images.values(name, data, model)) for name in ("inference-gaps", "no-warm-up"))
    mean, error = _paired([warm, -cold])
    return mean, error, f"{data}, {model}: log p(x) with warm-up less that without"


def _flow_parameters_amortize(images: Images, data: str, family: str) -> Test:
    normal, flow = (images.values("frozen-decoder", data, "FFG", name)["amortization gap"] for name in ("FFG", family))
    mean, error = _paired([normal, -flow])
    return mean, error, f"{data}: amortization gap of FFG less that of {family}, frozen decoder, no hidden layer"


def _decoder_depth(images: Images, data: str, shallow: int, deep: int) -> Test:
    def approximation(depth: int) -> np.ndarray:
        if depth == 2:
            return images.values("inference-gaps", data, "FFG")["approximation gap"]
        return images.values("decoder-size", data, "FFG", f"{depth} hidden layers")["approximation gap"]

    mean, error = _paired([approximation(shallow), -approximation(deep)])
    return mean, error, f"{data}: approximation gap with {shallow} hidden layers in the decoder less that with {deep}"


def _over_training(images: Images, data: str, gap: str) -> Test:
    steps = images.steps("over-training", data, "FFG")
    first, last = (images.values("over-training", data, "FFG", step=s, split="test") for s in (steps[0], steps[-1]))
    mean, error = _paired([last[gap], -first[gap]])
    return mean, error, f"{data}, held-out images: {gap} after {steps[-1]} steps less that after {steps[0]}"


def _flatter(images: Images, data: str) -> Test:
    steps = images.steps("over-training", data, "FFG")
    first, last = (images.values("over-training", data, "FFG", step=s, split="test") for s in (steps[0], steps[-1]))
    growth = {gap: last[gap] - first[gap] for gap in ("amortization gap", "approximation gap")}
    mean = [float(np.mean(value)) for value in growth.values()]
    # About flat: it changes by less than a third of what the other grows by, in either direction.
    sign = math.copysign(1.0, mean[1])
    value, error = _paired([growth["amortization gap"] / 3, -sign * growth["approximation gap"]])
    return value, error, f"{data}: a third of that growth less the size of the change of the approximation gap"


def claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the claims, each with the number that decides it, its interval and the command."""
    images = Images(rows)
    data = sorted({row["data"] for row in rows})
    mnist = "mnist" if "mnist" in data else data[0]
    fashion = "fashion_mnist" if "fashion_mnist" in data else data[0]
    tests: list[tuple[str, str, Callable[[], Test]]] = []
    for name, least in ((mnist, 0.8), (fashion, 1.2)):
        size = "clearly larger than" if least > 1 else "about equal to or larger than"
        tests += [
            (f"1. on {name} the amortization gap is {size} the approximation gap ({model})", "inference-gaps",
             lambda name=name, least=least, model=model: _amortization_dominates(images, name, least, model))
            for model in ("FFG", "AF")
        ]  # fmt: skip
    for name in dict.fromkeys((mnist, fashion)):
        both = "inference-gaps no-warm-up"
        tests += [
            (f"2. on {name} a model trained with AF is far worse with the best FFG than the reverse", "inference-gaps",
             lambda name=name: _decoder_adapts(images, name)),
            (f"2. on {name} warm-up is what lets the decoder adapt to the family", both,
             lambda name=name: _warmup_allows_it(images, name)),
            *((f"3. on {name} a larger encoder cuts the amortization gap ({model})", "inference-gaps larger-encoder",
               lambda name=name, model=model: _larger_encoder(images, name, model)) for model in ("FFG", "AF")),
        ]  # fmt: skip
    tests += [
        *((f"3. warm-up improves log p(x) on {fashion} ({model})", "inference-gaps no-warm-up",
           lambda model=model: _warmup_improves(images, fashion, model)) for model in ("FFG", "AF")),
        *((f"4. on a frozen decoder the parameters of {family} reduce the amortization gap", "frozen-decoder",
           lambda family=family: _flow_parameters_amortize(images, mnist, family)) for family in ("Flow", "AF")),
        ("5. a deeper decoder shrinks the approximation gap (0 to 2 layers)", "inference-gaps decoder-size",
         lambda: _decoder_depth(images, mnist, 0, 2)),
        ("5. a deeper decoder shrinks the approximation gap (2 to 4 layers)", "inference-gaps decoder-size",
         lambda: _decoder_depth(images, mnist, 2, 4)),
        ("6. over training the amortization gap of held-out images grows", "over-training",
         lambda: _over_training(images, fashion, "amortization gap")),
        ("6. over training their approximation gap stays about flat", "over-training",
         lambda: _flatter(images, fashion)),
    ]  # fmt: skip
    return [_judged(claim, experiments, test) for claim, experiments, test in tests]


def _judged(claim: str, experiments: str, test: Callable[[], Test]) -> dict[str, Any]:
    row: dict[str, Any] = {"claim": claim, "command": f"{SCRIPT} {experiments}"}
    try:
        value, error, what = test()
    except KeyError:
        return row | {"verdict": "not resolved", "value": None, "low": None, "high": None, "what": "not computed"}
    low, high = value - _NORMAL_QUANTILE * error, value + _NORMAL_QUANTILE * error
    verdict = "holds" if low > 0 else "does not hold" if high < 0 else "not resolved"
    return row | {"verdict": verdict, "value": value, "low": low, "high": high, "what": what}
