"""Sentences of README and docs that the committed tables imply, written from them; `verify_results.py` looks them up.

Machine, time and the headline numbers of every page stand here, so that a renewed table shows which words are old.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from pages.bare_machine import bare_machine, on_bare_machine
from pages.papers import cremer, fashion, refined, remedies, verdicts, when_and_why
from pages.tables import Tables, machine, minutes, ran


def facts(tables: Tables) -> Iterator[str]:
    """Yield the sentences; white space in them does not matter."""
    sections = (
        experiments, bare_machine, capacity, groups, local_vi, certificates, evidence, remedies, fashion, cremer,
        when_and_why, sweeps,
    )  # fmt: skip
    for section in sections:
        yield from section(tables)


def experiments(tables: Tables) -> Iterator[str]:
    """Yield the rows of the table of experiments."""
    for path, data, number in (
        ("capacity_sweep/table", "none", f"width 256 ends at {_widest(tables, 'mean_field')} nats"),
        ("capacity_sweep_long/table", "none", f"the same, {_widest(tables, 'mean_field', long=True)} nats"),
        ("evidence_check/table", "none", f"{tables.met('evidence_check/table.csv')} requirements on log p(x) met"),
        ("remedies/table", "none", f"{refined(tables, 'remedies', 2)} nats removed by five refinement steps"),
        (
            "remedies_fashion_mnist/table",
            "`make data`",
            f"{refined(tables, 'remedies_fashion_mnist', 1)} nats, the same",
        ),
        (
            "certificate_check/table",
            "none",
            f"at most {_missed(tables)} nats missed by a converged fit of these models",
        ),
        ("when_and_why/table", "`make data`*", f"{tables.met('when_and_why/table.csv')} targets met"),
        (
            "cremer2018/table",
            "`make data`",
            f"{verdicts(tables)['not resolved']} of {sum(verdicts(tables).values())} tests not resolved",
        ),
        ("benchmarks/local_vi", "`make data`*", f"{tables.met('benchmarks/local_vi.csv')} goals of speed met"),
        ("benchmarks/evidence", "none", f"{_faster(tables):.2f} times as fast as annealing in blackjax"),
        ("benchmarks/numpyro_groups", "none", f"{_each_group(tables):.2f} ms a group for `fit_local`"),
        ("benchmarks/sweep_overhead", "none", f"{_overhead(tables, 'serial'):.1f} ms a cell beside its work"),
        ("benchmarks/fresh_clone", "none", f"`make test` in {_tested(tables)} minutes"),
    ):
        sidecar = tables.sidecar(f"{path}.json")
        cores, cells = sidecar["machine"]["cores"], sidecar.get("cells", {})
        share = f", {cells['computed']} of {cells['computed'] + cells['skipped']} cells" if cells.get("skipped") else ""
        time = f"{minutes(sidecar['seconds'])} ({cores}{share})"
        yield f"| `{sidecar['command']}` | {time} | {data} | {number} | `results/{path.partition('/')[0]}` |"


def _tested(tables: Tables) -> str:
    return minutes(on_bare_machine(tables, "3.11", "make test"))


def _widest(tables: Tables, family: str, *, long: bool = False, split: str = "train") -> str:
    """Return the mean KL of the widest encoders and of local VI, in nats per image."""
    where = {"model": "vae", "family": family, "encoder": "mlp", "capacity": 256, "depth": 2, "split": split}
    rows = tables.rows(f"capacity_sweep{'_long' if long else ''}/table.csv", **where)
    amortized, local = (statistics.mean(float(row[name]) for row in rows) for name in ("kl_amortized", "kl_local"))
    return f"{amortized:.2f} against {local:.2f}"


def capacity(tables: Tables) -> Iterator[str]:
    """Yield those of the capacity sweep, long and by default."""
    yield ran(tables, "capacity_sweep/table.json")
    path = "capacity_sweep_long/table.csv"
    yield ran(tables, "capacity_sweep_long/table.json")
    encoders = tables.rows(path, model="vae", encoder="mlp", split="test")
    most = max(abs(float(row["training_change"])) for row in encoders)
    assert all(row["converged"] == "True" for row in encoders)
    yield f"none of the {len(encoders)} encoders gains more than {most:.3f} nats."
    for family, word in zip(FAMILIES, ("for mean field", "for full rank"), strict=True):
        yield f"{_widest(tables, family, long=True)} {word}"
    held_out = [_widest(tables, family, long=True, split="test") for family in FAMILIES]
    yield f"on held-out images at {held_out[0]} and {held_out[1]}"
    ladder = [
        (abs(float(row["amortization_gap"]) - float(row["exact_amortization_gap"])), row)
        for row in tables.rows(path, model="factor_analysis")
        if float(row["exact_amortization_gap"]) > 1e-3
    ]
    worst = max(gap / float(row["amortization_gap_mc_se"]) for gap, row in ladder)
    relative = max(gap / float(row["exact_amortization_gap"]) for gap, row in ladder)
    yield f"All {len(ladder)} measured gaps of rank 0 to 7, train and held-out, lie within {worst:.1f} of their"
    yield f"Monte Carlo standard errors of it and within {relative:.1%}".replace("%", " %")
    lost = max(float(row["amortization_gap"]) for row in tables.rows(path, model="factor_analysis", capacity=8))
    yield f"at rank 8 less than {lost + 5e-5:.4f} nats are lost"
    wide = {"model": "vae", "encoder": "mlp", "capacity": 256, "depth": 2}
    for family in FAMILIES:
        seen, unseen = (
            statistics.mean(float(row["amortization_gap"]) for row in tables.rows(path, family=family, split=s, **wide))
            for s in ("train", "test")
        )
        # What is lost on training images too is not lost by overfitting.
        assert 0 <= seen < 0.5 * unseen, "most of what a wide encoder still loses it loses by overfitting"
        excess = [
            statistics.mean(
                float(row["amortization_gap"]) for row in tables.rows(table, family=family, split="train", **wide)
            )
            for table in ("capacity_sweep/table.csv", path)
        ]
        assert 3 <= excess[0] / excess[1] < 4.5, "three to four times too large"
    where = wide | {"seed": 0, "split": "test"}
    half, tail = ({f: tables.value(path, q, family=f, **where) for f in FAMILIES} for q in ("gap_q050", "gap_q095"))
    yield f"loses less than {half['mean_field']:.2f} nats on half of the held-out images"
    yield f"more than {tail['mean_field']:.2f} on a twentieth; the full-rank one"
    yield f"the full-rank one {half['full_rank']:.2f} and {tail['full_rank']:.2f}."
    encoders = tables.rows("capacity_sweep/table.csv", model="vae", encoder="mlp", split="test")
    hollow = [row for row in encoders if row["converged"] == "False"]
    change = statistics.median(float(row["training_change"]) for row in encoders)
    yield f"{len(hollow)} of the {len(encoders)} are **hollow**"
    yield f"(median {change:.2f}) over the second half of training"
    ends = [_widest(tables, family).split(" against ")[0] for family in FAMILIES]
    yield f"the widest end at {ends[0]} and {ends[1]} on training images"


FAMILIES = ("mean_field", "full_rank")


def groups(tables: Tables) -> Iterator[str]:
    """Yield those of the groups of a NumPyro model."""
    path = "benchmarks/numpyro_groups.csv"
    above, least = (tables.value(path, figure=f"ELBO of fit_local minus SVI, {of}") for of in ("mean", LEAST))
    yield ran(tables, "benchmarks/numpyro_groups.json")
    yield f"takes {_each_group(tables):.2f} ms for each of 1000 groups of a mixed NumPyro model of counts, compiling"
    assert tables.value(path, figure="groups certified to 0.01 nats") == 1, "certifies all of them"
    compared = tables.value(path, figure="groups on which ELBOs are compared")
    yield f"On the {compared:.0f} groups that were compared the ELBOs of `fit_local` are"
    yield f"ELBOs of `fit_local` are {above:.3f} nats higher on average"
    yield f"and nowhere more than {-least:.3f} lower"
    yield f"in {tables.value(path, figure='diagnosis of an encoder'):.0f} s (budget"


LEAST = "least of the groups"


def _each_group(tables: Tables) -> float:
    return tables.value("benchmarks/numpyro_groups.csv", figure="fit_local a group")


def local_vi(tables: Tables) -> Iterator[str]:
    """Yield those of the benchmark of local VI."""
    path = "benchmarks/local_vi.csv"

    def value(method: str, quantity: str) -> float:
        return tables.value(path, method=method, quantity=quantity)

    before, after = (tables.sidecar("benchmarks/local_vi.json")["load_average"][of][0] for of in ("before", "after"))
    yield f"{machine(tables, 'benchmarks/local_vi.json')} (two for the sharded row)"
    ran_for = minutes(tables.sidecar("benchmarks/local_vi.json")["seconds"])
    yield f"{ran_for} minutes (load average {before:.1f} before, {after:.1f} after)"
    yield f"{tables.met(path)} goals met"
    near, nearer = (value("natural gradient", f"milliseconds per point to {gap} nats") for gap in ("0.05", "0.01"))
    yield f"within 0.05 nats of the best mean ELBO after {near:.1f} ms an image and within 0.01 after {nearer:.1f} ms"
    shares = [value("natural gradient", f"time to {gap} nats over tuned Adam's") for gap in ("0.05", "0.01")]
    yield f"{shares[0]:.2f} and {shares[1]:.2f} of what Adam takes"
    yield f"(rate {value('natural gradient', RATE):.2f} times as high)"
    products, large = (value(SHARDED, f"share of the rate of {of}") for of in ("matrix products", "sgemm 2048"))
    yield f"{100 * products:.0f} % of the rate of its matrix products alone and at {100 * large:.0f} % of that of large"
    yield f"takes {value('fit_local, defaults, reruns included', EACH):.0f} ms an image"
    yield f"takes {value(BY_ADAM, EACH) / 1000:.0f} s an image from the prior ({value(BY_ADAM, 'points'):.0f}"
    yield f"takes {value(FROM_PRIOR, EACH):.0f} ms, {value(FROM_PRIOR, 'times as fast'):.0f} times less"
    adam = [value("tuned Adam", f"milliseconds per point to {gap} nats") for gap in ("0.05", "0.01")]
    alone = value("fit_local", "milliseconds per point to 0.05 nats")
    yield f"start: {adam[0]:.1f} ms to 0.05 nats, where `fit_local` without reruns takes {alone:.1f}"
    yield f"and {adam[1]:.0f} ms to 0.01."
    gain = tables.row(path, method=FROM_PRIOR, quantity="ELBO above that of Adam, nats")
    yield f"({1e3 * float(gain['value']):.1f}e-3 ± {1e3 * float(gain['standard_error']):.1f}e-3 nats)"


RATE, EACH = "rate over plain Adam's", "milliseconds per point"
FROM_PRIOR, SHARDED = "fit_local from the prior", "natural gradient, sharded"
BY_ADAM = "Adam at 1e-3, 100 draws, window stop"


def certificates(tables: Tables) -> Iterator[str]:
    """Yield those of the check of the certificate."""
    found = tables.sidecar("certificate_check/table.json")["requirements"]
    shares = [item["value"] for name, item in found.items() if name.startswith("share")]
    yield ran(tables, "certificate_check/table.json")
    rows = tables.rows("certificate_check/table.csv")
    stated = [row for row in rows if "Adam" not in row["model"]]
    near = [row for row in stated if float(row["true"]) < 1 and row["estimated"]]
    yield f"of the {len(near)} normal fits out of {len(stated)} that miss less than a nat"
    yield f"{100 * min(shares):.0f} to {100 * max(shares):.0f} % of the estimates lie within two standard errors"
    yield f"of all {len(rows)} no fit called converged misses"
    yield f"no fit called converged misses more than {_missed(tables)} nats"


def _missed(tables: Tables) -> str:
    found = tables.sidecar("certificate_check/table.json")["requirements"]
    (worst,) = (item["value"] for name, item in found.items() if name.startswith("largest"))
    return f"{worst + 5e-4:.3f}"


def evidence(tables: Tables) -> Iterator[str]:
    """Yield those of the evidence: the check, and what it costs."""
    rows = tables.rows("evidence_check/table.csv")
    yield f"{ran(tables, 'evidence_check/table.json')}: {tables.met('evidence_check/table.csv')} requirements met"
    shares = [float(row["value"]) for row in rows if row["part"] == "coverage" and row["low"] and row["high"]]
    yield f"contain the true gap in {100 * min(shares):.1f} to {100 * max(shares):.1f} % of 1000 replicated data sets"
    methods = [row for row in rows if (row["part"], row["quantity"]) == ("methods", "mean minus exact, nats")]
    lowest = min(float(row["value"]) for row in methods)
    yield f"the bound is up to {-lowest:.1f} nats low"
    wide = {row["method"]: float(row["value"]) for row in rows if row["quantity"] == "mean width, nats"}
    yield f"{wide['25 temperatures']:.1f} nats with 25 temperatures, {wide['800 temperatures']:.2f} with 800"
    path = "benchmarks/evidence.csv"
    memory = tables.value(path, figure="temporary memory of IWAE, 1000 points")
    share = tables.value(path, figure="IWAE rate over the rate of the decoder's matrix products")
    yield ran(tables, "benchmarks/evidence.json")
    yield f"takes {memory:.0f} MiB of temporary memory and runs at {100 * share:.0f} % of the rate"
    yield f"is {_faster(tables):.2f} times as fast as the same estimator composed from blackjax"


def _faster(tables: Tables) -> float:
    return tables.value("benchmarks/evidence.csv", figure="AIS rate over the blackjax composition")


def sweeps(tables: Tables) -> Iterator[str]:
    """Yield those of what a sweep costs."""
    path = "benchmarks/sweep_overhead.csv"

    def value(figure: str) -> float:
        return tables.value(path, figure=figure)

    serial, dask = _overhead(tables, "serial"), _overhead(tables, "Dask, 2 workers")
    yield ran(tables, "benchmarks/sweep_overhead.json")
    yield f"| {serial:.1f} ms (processor {value('processor time in it, whatever else runs'):.1f} ms) |"
    yield f"| a cell with Dask, 2 workers | {dask:.1f} ms |"
    yield f"| {value('second invocation of a finished sweep of 200 cells'):.2f} s, 0 cells computed |"
    yield f"{value('speed of 2 workers over 1'):.2f} times as fast"
    size, found = value("size of one record"), value("reading one record")
    yield f"records of {size:.0f} bytes make {size / 10:.0f} MB"
    yield f"{found:.2f} ms each, {found * 100:.0f} s."
    yield f"{serial * 1e5 / 6e4:.1f} minutes in one process and {dask * 1e5 / 6e4:.0f} minutes with Dask"
    yield f"that is {1e3 / dask:.0f} cells a second: cells of 10 s keep {round(1e4 / dask, -1):.0f} workers busy"
    yield f"workers busy, cells of a minute {round(6e4 / dask, -2):.0f}."
    yield f"cells of {value('one cell, one worker'):.1f} s |"
    grown = value("memory of driver and scheduler per cell")
    yield f"grow by {grown:.1f} kB a cell, {grown / 10:.1f} GB"


def _overhead(tables: Tables, where: str) -> float:
    return tables.value("benchmarks/sweep_overhead.csv", figure=f"overhead of a cell, {where}")
