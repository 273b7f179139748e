"""The capacity sweep as a user runs it: the smoke preset, a second run, its figure, and wrong calls."""

import dataclasses
import json
import shutil
import types

import matplotlib.pyplot as plt
import numpy as np
import pytest
from running import ROOT, rows_of, run

SCRIPT = ROOT / "experiments" / "capacity_sweep.py"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "with space"
    done = run("capacity_sweep.py", "--preset", "smoke", "--out", str(out))
    assert done.returncode == 0, done.stderr
    return out


def test_table_holds_every_cell_and_its_identity(sweep):
    rows = rows_of(sweep / "table.csv")
    # Ranks 0 to 2, the constant encoder and two widths, each on two splits.
    assert len(rows) == 2 * (3 + 1 + 2)
    for row in rows:
        parts = float(row["kl_local"]) + float(row["amortization_gap"])
        assert float(row["kl_amortized"]) == pytest.approx(parts, rel=1e-5, abs=2e-5)
        total = float(row["kl_amortized"]) * int(row["num_data"])
        assert float(row["kl_amortized_sum"]) == pytest.approx(total, rel=2e-5, abs=1e-3)


def test_sidecar_says_how_the_table_was_made(sweep):
    sidecar = json.loads((sweep / "table.json").read_text())
    assert sidecar["command"].startswith("python experiments/capacity_sweep.py --preset smoke")
    assert set(sidecar["columns"]) <= set(rows_of(sweep / "table.csv")[0])
    assert {"table.csv", "capacity_sweep.pdf", "capacity_sweep.png"} == set(sidecar["files"])
    assert sidecar["seconds"] > 0 and "jax" in sidecar["versions"]


def test_second_run_computes_nothing_and_changes_nothing(sweep):
    before = {path.name: path.read_bytes() for path in sweep.iterdir() if path.suffix in (".csv", ".json", ".png")}
    again = run("capacity_sweep.py", "--preset", "smoke", "--out", str(sweep))
    assert again.returncode == 0, again.stderr
    assert "0 to compute" in again.stderr
    after = {path.name: path.read_bytes() for path in sweep.iterdir() if path.suffix in (".csv", ".json", ".png")}
    assert after == before


def test_figure_drawn_anew_is_vouched_for_by_the_sidecar_of_the_computation(sweep, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(sweep, out)
    made = json.loads((out / "table.json").read_text())
    (out / "table.json").write_text(json.dumps(made | {"files": {"table.csv": "of another figure"}, "seconds": 77}))
    again = run("capacity_sweep.py", "--preset", "smoke", "--out", str(out))
    assert again.returncode == 0, again.stderr
    sidecar = json.loads((out / "table.json").read_text())
    assert sidecar == made | {"seconds": 77}


def test_training_that_breaks_down_reports_no_gap_and_keeps_its_steps(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from studies.capacity import cells as capacity_cells
    from studies.capacity.study import Study

    from amortgap.inference import Trace
    from amortgap.sweep import make_cells, open_store, run_cells

    row = {"split": "train", "kl_local": 1.0, "kl_amortized": 2.0, "amortization_gap": 1.0, "gap_q050": 1.0}
    encoder = types.SimpleNamespace(num_weights=3)

    def compute(studies):
        ends = np.array([study.seed != 1 for study in studies])
        elbo = np.where(ends[:, None], -1.0, np.array([-1.0, -1.0, np.nan, -2.0]))
        counts = np.zeros((3, 4), int)
        trace = Trace(np.tile([15, 30, 45, 60], (3, 1)), np.zeros((3, 4)), elbo, counts, counts, counts)
        fit = types.SimpleNamespace(change=np.zeros(3), change_standard_error=np.zeros(3), finite=ends, trace=trace)
        return [capacity_cells._result(study, fit, [row], encoder, 60, i) for i, study in enumerate(studies)]

    cells = make_cells([Study(seed=seed, width=2) for seed in range(3)], schema_version=1)
    store = open_store(tmp_path)
    summary = run_cells(cells, compute, store, group_by=lambda study: 0)
    assert (summary.computed, summary.nonfinite, summary.failed) == (3, 1, 0)
    good, broken, other = store.records(cells)
    assert [record.status for record in (good, broken, other)] == ["ok", "nonfinite", "ok"]
    assert good.rows[0]["amortization_gap"] == other.rows[0]["amortization_gap"] == 1.0
    gone = {name for name, value in broken.rows[0].items() if value is None}
    assert gone == {"kl_amortized", "amortization_gap", "gap_q050"}
    assert broken.rows[0]["training_steps"] == 60 and not broken.rows[0]["converged"]
    assert "not finite by step 45 of 60" in broken.error


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Pareto k-hat")
def test_only_encoders_that_still_move_are_trained_longer(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from studies.capacity.cells import Compute
    from studies.capacity.study import Study

    study = Study(
        latent_dim=2,
        decoder_width=8,
        decoder_steps=60,
        encoder_steps=60,
        num_samples=100,
        evidence_samples=200,
        subset=120,
        width=2,
    )
    once = [result.rows[0] for result in Compute()([dataclasses.replace(study, seed=seed) for seed in range(3)])]
    changes = sorted(abs(row["training_change"]) for row in once)
    between = 0.5 * (changes[0] + changes[1])
    options = {"extensions": 1, "convergence_tolerance": between}
    longer = [r.rows[0] for r in Compute()([dataclasses.replace(study, seed=seed, **options) for seed in range(3)])]
    for before, after in zip(once, longer, strict=True):
        moved = abs(before["training_change"]) > between
        assert after["training_steps"] == (120 if moved else 60)
        assert (after["training_change"] == before["training_change"]) is not moved
        # The extension starts from the trained encoder and not from the initial one.
        assert (
            after["amortization_gap"] < before["amortization_gap"] if moved else after == before | {"converged": True}
        )


def test_figure_shows_what_the_table_says(sweep, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from studies.capacity import figure as capacity_figure
    from studies.capacity.study import SCHEMA

    from amortgap.sweep import read_csv

    rows = read_csv(sweep / "table.csv", SCHEMA).rows
    figure = capacity_figure.capacity_figure(rows)
    ladder = figure.axes[2]
    exact = next(line for line in ladder.get_lines() if line.get_label() == "exact, train")
    expected = sorted(
        (row["capacity"], row["exact_amortization_gap"])
        for row in rows
        if row["model"] == "factor_analysis" and row["split"] == "train"
    )
    np.testing.assert_allclose(exact.get_xydata(), expected)
    for axes in (figure.axes[0], ladder):
        assert any(list(line.get_ydata()) == [0.0, 0.0] for line in axes.get_lines()), "no zero line"
        assert "nats" in axes.get_ylabel()
    plt.close(figure)


def test_unknown_flags_and_values_are_refused_with_a_hint():
    wrong = run("capacity_sweep.py", "--presett", "smoke")
    assert wrong.returncode == 2 and "preset" in wrong.stderr + wrong.stdout
    unknown = run("capacity_sweep.py", "--preset", "smok")
    assert unknown.returncode == 2 and "smoke" in unknown.stderr


def test_folder_that_cannot_be_written_is_refused_before_any_cell(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    refused = run("capacity_sweep.py", "--preset", "smoke", "--out", str(blocker / "sweep"))
    assert refused.returncode == 1
    assert str(blocker) in refused.stderr
