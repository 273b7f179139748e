"""Sentences of the README that the committed tables imply, written from them; `verify_results.py` looks them up."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Iterator
from pathlib import Path

Row = dict[str, str]


class Tables:
    """The tables and sidecars below a folder of results."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def rows(self, path: str | Path, **where: object) -> list[Row]:
        """Return the rows of a CSV file whose columns have these values."""
        with (self._folder / path).open(newline="") as file:
            return [row for row in csv.DictReader(file) if all(row[name] == str(v) for name, v in where.items())]

    def sidecar(self, path: str) -> dict:
        """Return a sidecar."""
        return json.loads((self._folder / path).read_text())

    def value(self, path: str, column: str = "value", **where: object) -> float:
        """Return a number of the only row with these values; raises LookupError if it is not the only one."""
        found = self.rows(path, **where)
        if len(found) != 1:
            raise LookupError(f"{path}: {len(found)} rows with {where}")
        return float(found[0][column])


def facts(tables: Tables) -> Iterator[str]:
    """Yield the sentences; white space in them does not matter."""
    for section in (capacity, groups, local_vi, certificates, evidence, remedies, cremer, when_and_why, sweeps):
        yield from section(tables)


def capacity(tables: Tables) -> Iterator[str]:
    """Yield those of the capacity sweep."""
    path = "capacity_sweep/table.csv"
    encoders = tables.rows(path, model="vae", encoder="mlp", split="test")
    hollow = [row for row in encoders if row["converged"] == "False"]
    change = statistics.median(float(row["training_change"]) for row in encoders)
    yield f"{len(hollow)} of the {len(encoders)} encoders are hollow"
    yield f"(median {change:.2f}) over the second half of training"
    spent = tables.sidecar("capacity_sweep/table.json")["seconds"]
    yield f"2 CPU cores, {spent / 60:.1f} minutes with every program"
    ladder = [
        (abs(float(row["amortization_gap"]) - float(row["exact_amortization_gap"])), row)
        for row in tables.rows(path, model="factor_analysis")
        if float(row["exact_amortization_gap"]) > 1e-3
    ]
    worst = max(gap / float(row["amortization_gap_mc_se"]) for gap, row in ladder)
    relative = max(gap / float(row["exact_amortization_gap"]) for gap, row in ladder)
    yield f"All {len(ladder)} measured gaps of rank 0 to 7, train and held-out, lie within {worst:.1f} of their"
    yield f"Monte Carlo standard errors of it and within {relative:.1%}".replace("%", " %")


def groups(tables: Tables) -> Iterator[str]:
    """Yield those of the groups of a NumPyro model."""
    path = "benchmarks/numpyro_groups.csv"
    ours, theirs = (tables.value(path, figure=f"{name} a group") for name in ("fit_local", "SVI.run"))
    times = tables.value(path, figure="SVI.run a group against fit_local")
    above = tables.value(path, figure="ELBO of fit_local minus SVI, mean")
    yield f"takes {ours:.2f} ms for each of 1000 groups of a mixed NumPyro model of counts where `SVI.run` takes"
    yield f"{theirs:.0f} ms, {times:.0f} times as long, and its ELBOs are {above:.3f} nats higher on average"


def local_vi(tables: Tables) -> Iterator[str]:
    """Yield those of the benchmark of local VI."""
    path = "benchmarks/local_vi.csv"
    goals = [row for row in tables.rows(path) if row["met"]]
    yield f"{sum(row['met'] == 'True' for row in goals)} of {len(goals)} goals met"

    def value(method: str, quantity: str) -> float:
        return tables.value(path, method=method, quantity=quantity)

    yield f"(rate {value('natural gradient', RATE):.2f} times as high)"
    each = value(FROM_PRIOR, "milliseconds per point")
    yield f"takes {each:.0f} ms, {value(FROM_PRIOR, 'times as fast'):.0f} times less"


RATE = "rate over plain Adam's"
FROM_PRIOR = "fit_local from the prior"


def certificates(tables: Tables) -> Iterator[str]:
    """Yield those of the check of the certificate."""
    found = tables.sidecar("certificate_check/table.json")["requirements"]
    shares = [item["value"] for name, item in found.items() if name.startswith("share")]
    (worst,) = (item["value"] for name, item in found.items() if name.startswith("largest"))
    yield f"{100 * min(shares):.0f} to {100 * max(shares):.0f} % of the estimates lie within two standard errors"
    yield f"no fit called converged misses more than {worst + 5e-4:.3f} nats"


def evidence(tables: Tables) -> Iterator[str]:
    """Yield those of the evidence: the check, and what it costs."""
    rows = [row for row in tables.rows("evidence_check/table.csv") if row["met"]]
    yield f"{sum(row['met'] == 'True' for row in rows)} of {len(rows)} requirements met"
    shares = [float(row["value"]) for row in rows if row["part"] == "coverage" and row["low"] and row["high"]]
    yield f"contain the true gap in {100 * min(shares):.1f} to {100 * max(shares):.1f} % of 1000 replicated data sets"
    path = "benchmarks/evidence.csv"
    memory = tables.value(path, figure="temporary memory of IWAE, 1000 points")
    share = tables.value(path, figure="IWAE rate over the rate of the decoder's matrix products")
    faster = tables.value(path, figure="AIS rate over the blackjax composition")
    yield f"takes {memory:.0f} MiB of temporary memory and runs at {100 * share:.0f} % of the rate"
    yield f"is {faster:.2f} times as fast as the same estimator composed from blackjax"


def remedies(tables: Tables) -> Iterator[str]:
    """Yield those of the comparison of remedies."""
    for folder, unit in (("remedies", 2), ("remedies_fashion_mnist", 1)):
        path = f"{folder}/table.csv"

        def removed(remedy: str, steps: int = 0, *, path: str = path, unit: int = unit) -> str:
            where = {"remedy": remedy, "steps": steps, "split": "test"}
            value, error = (tables.value(path, name, **where) for name in ("removed", "removed_se"))
            return f"{value:.{unit}f} +- {error:.{unit}f}"

        lost = tables.value(path, "inference_gap", remedy="baseline", split="test")
        if folder == "remedies":
            yield f"loses {lost:.2f} nats per held-out image"
            yield f"remove {removed('refine', 5)} nats of the {removed('local VI')} that local VI removes with 400"
            yield f"remove {removed('residual')}, a hypernetwork that adapts layers to the image"
            yield f"{removed('instance adaptive')}, four times the width {removed('width x 4')}; four times the"
            yield f"{removed('longer training')}."
            yield f"full rank alone removes {removed('full rank')}"
            yield f"brings the total to {removed('residual full rank')}"
        else:
            yield f"{lost:.1f} nats are lost"
            yield f"five refinement steps remove {removed('refine', 5)} nats, twenty {removed('refine', 20)}"
            yield f"residual layers {removed('residual')}, with five steps after them {removed('residual + refine', 5)}"


def cremer(tables: Tables) -> Iterator[str]:
    """Yield the table of the three gaps, and the number of verdicts."""
    verdicts = tables.rows("cremer2018/claims.csv")
    yield f"{len(verdicts)} verdicts with intervals"
    names = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
    for data, model in (("mnist", "FFG"), ("mnist", "AF"), ("fashion_mnist", "FFG"), ("fashion_mnist", "AF")):
        cells = []
        for quantity in ("approximation gap", "amortization gap", "inference gap"):
            where = {"table": "inference-gaps", "data": data, "model": model, "split": "train", "quantity": quantity}
            ours, low = (tables.value("cremer2018/tables.csv", name, **where) for name in ("ours", "low"))
            cells.append(f"{ours:.2f} +- {ours - low:.2f}")
        word = {"FFG": "diagonal normal (FFG)", "AF": "auxiliary flow (AF)"}[model] if data == "mnist" else model
        yield f"| {names[data]}, {word} | {' | '.join(cells)} |"


def when_and_why(tables: Tables) -> Iterator[str]:
    """Yield those of "When and why"."""
    path = "when_and_why/table.csv"
    rows = [row for row in tables.rows(path) if row["met"]]
    yield f"{sum(row['met'] == 'True' for row in rows)} of {len(rows)} targets met"
    yield f"{len(tables.rows('when_and_why/claims.csv'))} claims of the paper and slips in it"
    where = {"part": "nonlinear", "method": "A-VI, default", "quantity": "median gap, nats"}
    gaps = [tables.value(path, size=size, **where) for size in (1, 2, 4, 8, 16, 32)]
    digits = (0, 0, 1, 1, 2, 2)
    *first, last = (f"{gap:.{places}f}" for gap, places in zip(gaps, digits, strict=True))
    yield f"{', '.join(first)} and {last} nats at widths 1 to 32"


def sweeps(tables: Tables) -> Iterator[str]:
    """Yield those of what a sweep costs."""
    path = "benchmarks/sweep_overhead.csv"

    def value(figure: str) -> float:
        return tables.value(path, figure=figure)

    yield (
        f"| a cell in one process | {value('overhead of a cell, serial'):.1f} ms "
        f"(processor {value('processor time in it, whatever else runs'):.1f} ms) |"
    )
    yield f"| a cell with Dask, 2 workers | {value('overhead of a cell, Dask, 2 workers'):.1f} ms |"
    yield f"| {value('second invocation of a finished sweep of 200 cells'):.2f} s, 0 cells computed |"
    yield f"{value('speed of 2 workers over 1'):.2f} times as fast"
