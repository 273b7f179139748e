"""The comparison of remedies as a user runs it: the smoke preset, a second run, its figure, and wrong calls."""

import importlib
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
from running import ROOT, rows_of, run


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    out = tmp_path_factory.mktemp("remedies")
    done = run("remedies.py", "--preset", "smoke", "--out", str(out))
    assert done.returncode == 0, done.stderr
    return out


def test_table_splits_every_gap_and_pairs_it_with_the_baseline(comparison):
    rows = rows_of(comparison / "table.csv")
    # Baseline, wide, six numbers of refinement steps and local VI, each on two splits.
    assert len(rows) == 2 * 9
    gaps = {(r["remedy"], r["steps"], r["split"]): float(r["inference_gap"]) for r in rows}
    for row in rows:
        gap = float(row["inference_gap"])
        assert gap == pytest.approx(float(row["approximation_gap"]) + float(row["amortization_gap"]), abs=1e-4)
        assert float(row["removed"]) == pytest.approx(gaps["baseline", "0", row["split"]] - gap, abs=1e-4)
        if row["remedy"] == "local VI":
            assert float(row["amortization_gap"]) == 0
        if row["remedy"] == "refine":
            assert int(row["test_evaluations"]) == 4 * int(row["steps"])


def test_second_run_computes_nothing_and_sidecar_says_how(comparison):
    before = {path.name: path.read_bytes() for path in comparison.iterdir() if path.suffix in (".csv", ".png")}
    again = run("remedies.py", "--preset", "smoke", "--out", str(comparison))
    assert again.returncode == 0, again.stderr
    assert "0 to compute" in again.stderr
    after = {path.name: path.read_bytes() for path in comparison.iterdir() if path.suffix in (".csv", ".png")}
    assert after == before
    sidecar = json.loads((comparison / "table.json").read_text())
    assert sidecar["command"].startswith("python experiments/remedies.py --preset smoke")
    assert {"table.csv", "remedies.pdf", "remedies.png"} == set(sidecar["files"])


def test_front_holds_what_nothing_beats():
    from studies.remedies.figure import front

    def row(name, gap, parameters=1, training=1, at_test=0):
        costs = {"parameters": parameters, "training_evaluations": training, "test_evaluations": at_test}
        return {"remedy": name, "kind": "method", "steps": 0, "inference_gap": gap, **costs}

    rows = [row("cheap", 1.0), row("worse", 1.1), row("better", 0.5, at_test=9), row("dear", 0.6, 2, at_test=9)]
    # A step short of the budget is no advantage; a bound with several weights is not compared.
    rows += [row("same cost", 1.2, training=0.99), row("weighted", 0.1) | {"kind": "bound"}]
    assert front(rows) == {"cheap", "better"}


def test_figure_shows_what_the_table_says(comparison, monkeypatch):
    from studies.remedies import figure as remedies_figure
    from studies.remedies.study import SCHEMA

    from amortgap.sweep import read_csv

    rows = read_csv(comparison / "table.csv", SCHEMA).rows
    figure = remedies_figure.remedies_figure(rows)
    bars = figure.axes[0]
    test = [row for row in rows if row["split"] == "test"]
    ends = sorted(patch.get_x() + patch.get_width() for patch in bars.patches[len(test) :])
    np.testing.assert_allclose(ends, sorted(row["inference_gap"] for row in test), atol=1e-9)
    assert "nats" in bars.get_xlabel()
    plt.close(figure)


def test_wrong_calls_are_refused_with_a_reason(tmp_path):
    missing = run(
        "remedies.py",
        "--preset",
        "smoke",
        "--study.data",
        "mnist",
        AMORTGAP_DATA=str(tmp_path),
        XDG_CACHE_HOME=str(tmp_path),
    )
    assert missing.returncode == 2
    assert "mnist is not on this machine" in missing.stderr and "make data" in missing.stderr
    unknown = run("remedies.py", "--preset", "smoke", "--remedies", "magic")
    assert unknown.returncode == 2
    assert "remedies must be among baseline" in unknown.stderr and "magic" in unknown.stderr


def test_elbo_beyond_32_bits_is_no_number(monkeypatch):
    # An encoder that diverged had ELBOs of +7e15 nats, rounding alone, and so the best gap of all.
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    resolved = importlib.import_module("studies.remedies.cells").resolved
    np.testing.assert_array_equal(resolved(np.float32([-90.0, -1e6, 7e15, -7e15])), [-90.0, -1e6, np.nan, np.nan])
