"""The check of log p(x) and of intervals as a user runs it, its parts, its figure, and the committed results."""

import hashlib
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from running import ROOT, rows_of, run

import amortgap as ag

RESULTS = ROOT / "results" / "evidence_check"
PARTS = ("methods", "draws", "sandwich", "coverage")


def read(out: Path) -> list[dict]:
    rows: list[dict] = rows_of(out / "table.csv")
    for row in rows:
        for name in ("value", "standard_error", "low", "high"):
            row[name] = float(row[name]) if row[name] else None
        row["met"] = {"": None, "True": True, "False": False}[row["met"]]
    return rows


def check_folder(out: Path, parts: tuple[str, ...]) -> list[dict]:
    """Table, sidecar and figure exist and agree; return the rows."""
    rows = read(out)
    assert {row["part"] for row in rows} == set(parts)
    keys = [(row["part"], row["model"], row["method"], row["quantity"]) for row in rows]
    assert len(set(keys)) == len(keys)
    for row in rows:
        bounded = row["low"] is not None or row["high"] is not None
        assert (row["met"] is not None) == bounded
        if bounded:
            above = row["low"] is None or row["value"] >= row["low"]
            assert row["met"] == (above and (row["high"] is None or row["value"] <= row["high"]))
    sidecar = json.loads((out / "table.json").read_text())
    assert set(sidecar["files"]) == {"table.csv", "evidence_check.pdf", "evidence_check.png"}
    for name, digest in sidecar["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    assert sidecar["command"].startswith("python experiments/evidence_check.py")
    assert sidecar["checked"] == sum(row["met"] is not None for row in rows)
    assert sidecar["missed"] == sum(row["met"] is False for row in rows)
    return rows


def test_one_part_of_the_smoke_preset_writes_table_sidecar_and_figure(tmp_path):
    done = run(
        "evidence_check.py", "--preset", "smoke", "--parts", "sandwich", "--study.ladder", "5", "--out", str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    rows = check_folder(tmp_path, ("sandwich",))
    assert {row["method"] for row in rows} == {"5 temperatures"}
    value = {row["quantity"]: row["value"] for row in rows}
    sides = value["mean distance of the lower bound, nats"] + value["mean distance of the upper bound, nats"]
    assert value["mean width, nats"] == pytest.approx(sides, rel=1e-4)
    assert 0 <= value["share of replicates between the bounds"] <= 1


@pytest.mark.slow
def test_the_whole_smoke_preset(tmp_path):
    done = run("evidence_check.py", "--preset", "smoke", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = check_folder(tmp_path, PARTS)
    assert len({row["model"] for row in rows if row["part"] == "methods"}) == 4
    references = [row for row in rows if row["method"] == "quadrature"]
    assert len(references) == 4 and all(row["met"] for row in references)


def test_committed_results_hold_every_requirement_that_was_asked():
    rows = check_folder(RESULTS, PARTS)
    # Methods and draws: six models; sandwich: at least four numbers of temperatures; coverage: two models, three gaps.
    assert len({row["model"] for row in rows if row["part"] == "methods"}) == 6
    assert len({row["method"] for row in rows if row["quantity"] == "mean width, nats"}) >= 4
    shares = [row for row in rows if row["part"] == "coverage" and row["low"] is not None]
    assert len(shares) == 2 * 3 * 2
    assert all((row["low"], row["high"]) == (0.93, 0.97) for row in shares)
    assert [row for row in rows if row["met"] is False] == []
    assert all((RESULTS / name).stat().st_size < 2e6 for name in os.listdir(RESULTS))


def test_grid_evidence_is_the_closed_form_of_factor_analysis():
    from studies.evidence.parts import grid_evidence
    from studies.evidence.study import factor_analysis

    model = factor_analysis(0, 2)
    xs = ag.diagnostics.simulate(jax.random.key(3), model=model, num_data=5).xs
    np.testing.assert_allclose(grid_evidence(model, xs), jax.vmap(model.log_evidence)(xs), rtol=2e-6)


def test_true_gaps_of_the_coverage_are_the_divergences():
    """Against `KL(q || p(z | x))` by sums over the posterior on a fine grid."""
    from studies.evidence import coverage as evidence_coverage

    _, model, family, encoder, truth, population = evidence_coverage._poisson_gamma_case()
    z = jnp.linspace(-9.0, 5.0, 20_001)[:, None]
    for count in (0.0, 2.0, 9.0):
        x = jnp.array([count])
        log_posterior = jax.vmap(lambda point, x=x: model.log_joint(point, x))(z) - model.log_evidence(x)
        mean, scale = model.normal_optimum(x)

        def divergence(phi, log_posterior=log_posterior):
            log_q = np.asarray(jax.vmap(lambda point: family.log_prob(point, phi))(z), np.float64)
            return float(np.sum(np.exp(log_q) * (log_q - np.asarray(log_posterior, np.float64))) * (14 / 20_000))

        best, amortized = divergence(family.from_moments(mean, scale[None, :])), divergence(encoder(x))
        np.testing.assert_allclose(truth(x), (best, amortized - best), atol=2e-4)
    assert population["inference"] == population["approximation"] + population["amortization"]


def test_requirements_compare_with_both_ends():
    from studies.evidence.study import row

    assert row("p", "m", "a", "q", 1.0)["met"] is None
    assert row("p", "m", "a", "q", 1.0, low=0.5, high=1.5)["met"] is True
    assert row("p", "m", "a", "q", 1.0, low=1.5)["met"] is False
    assert row("p", "m", "a", "q", float("nan"), high=1.5)["met"] is False
    assert row("p", "m", "a", "q", float("inf"))["value"] is None


def test_figure_shows_what_the_table_says():
    from studies.evidence.figure import evidence_figure
    from studies.evidence.study import row

    rows = [
        row("methods", "mixture prior", "importance, optimum", "mean minus exact, nats", -0.02, 0.01),
        row("sandwich", "fa", "10 temperatures", "mean width, nats", 0.8, 0.1),
        row("sandwich", "fa", "20 temperatures", "mean width, nats", 0.4, 0.1),
        row("coverage", "Poisson-Gamma", "interval over data", "inference", 0.95, 0.01, low=0.93, high=0.97),
    ]
    figure = evidence_figure(rows)
    bias, width, cover = figure.axes
    assert [tuple(line.get_xdata()) for line in bias.get_lines() if len(line.get_xdata()) == 1] == [(-0.02,)]
    assert [tuple(point) for point in width.get_lines()[0].get_xydata()] == [(10, 0.8), (20, 0.4)]
    assert (0.95,) in [tuple(line.get_xdata()) for line in cover.get_lines()]
    assert "nats" in bias.get_xlabel() and "nats" in width.get_ylabel()
    plt.close(figure)
    plt.close(evidence_figure([]))
