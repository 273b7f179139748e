"""Where a run goes, how it is compared with committed results, and when it becomes one of them."""

import dataclasses
import json
import subprocess
from pathlib import Path

import pytest

from amortgap.sweep import CellResult, Column, Schema, grid, make_cells
from amortgap.sweep.committed import AGREEMENT, compare
from amortgap.sweep.script import Flat, SweepOptions, parse_study, run_study

SCHEMA = Schema(
    version=1,
    columns=(
        Column("width", int, "width", key=True),
        Column("gap", float, "mean gap, nats"),
        Column("gap_sum", float, "gap summed over data, nats"),
        Column("seconds", float, "wall time"),
    ),
)
ROWS = [
    {"width": 1, "gap": 0.5, "gap_sum": 500.0, "seconds": 3.0},
    {"width": 2, "gap": 0.25, "gap_sum": 250.0, "seconds": 3.0},
]


@dataclasses.dataclass(frozen=True)
class Config:
    width: int = 1
    steps: int = 10


@dataclasses.dataclass(frozen=True)
class Args:
    config: Config = Config()
    widths: tuple[int, ...] = (1, 2)
    sweep: Flat = dataclasses.field(default_factory=SweepOptions)


PRESETS = {"usual": Args(), "long": Args(config=Config(steps=100)), "smoke": Args(widths=(1,))}


def git(*words):
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *who, *words], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with the study's script in it, and nothing to commit."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(tmp_path / "experiments" / "mine.py"), "--promote", "--threads", "1"])
    git("init", "--quiet")
    Path("experiments").mkdir()
    Path("experiments/mine.py").write_text("code")
    Path(".gitignore").write_text("results/runs/\n")
    git("add", "--all")
    git("commit", "--quiet", "--message", "first")
    return tmp_path


def status():
    return subprocess.run(["git", "status", "--porcelain"], check=True, capture_output=True, text=True).stdout


def study(*flags, shift=0.0):
    args = parse_study(Args, PRESETS, name="mine", args=flags)

    def cells(args):
        return make_cells(grid(args.config, {"width": args.widths}), schema_version=1)

    def compute(config):
        gap = 1 / config.width + shift
        return CellResult([{"width": config.width, "gap": gap, "gap_sum": 1000 * gap, "seconds": 1.0}])

    return run_study(args, cells, compute, schema=SCHEMA, derive=lambda folder, out: [])


@pytest.mark.parametrize(
    ("flags", "folder", "committed"),
    [
        ((), "mine-usual", "mine"),
        (("--preset", "long"), "mine-long", "mine_long"),
        (("--preset", "smoke"), "mine-smoke", None),
    ],
)
def test_a_preset_has_a_folder_for_runs_and_one_for_what_is_committed(flags, folder, committed):
    sweep = parse_study(Args, PRESETS, name="mine", args=flags).sweep
    assert sweep.out == Path("results/runs") / folder
    assert sweep.committed == (None if committed is None else Path("results") / committed)


@pytest.mark.parametrize("preset", PRESETS)
def test_runs_leave_the_working_tree_as_it_was(repository, preset):
    study("--promote")
    git("add", "--all")
    git("commit", "--quiet", "--message", "results")
    study("--preset", preset, shift=1.0)
    assert status() == ""


def test_a_promoted_run_is_what_the_run_wrote_and_replaces_what_was_there(repository, capsys):
    study("--promote")
    old, run = repository / "results" / "mine", repository / "results" / "runs" / "mine-usual"
    assert {path.name for path in old.iterdir()} == {"table.csv", "table.json"}
    assert all(path.read_bytes() == (run / path.name).read_bytes() for path in old.iterdir())
    assert "promoted: results/mine" in capsys.readouterr().out
    said = json.loads((old / "table.json").read_text())
    # The command that computes them, which anybody may run.
    assert said["command"] == "python experiments/mine.py --threads 1"
    (old / "table.json").write_text(json.dumps(said | {"files": {"gone.png": "of an older version"}}))
    (old / "gone.png").touch()
    study("--promote")
    assert not (old / "gone.png").exists() and "gone.png" not in (old / "table.json").read_text()


def test_a_run_ends_by_comparing_with_the_committed_table_of_its_configuration(repository, capsys):
    study("--promote")
    for shift, said in (
        (0.001, "agrees with results/mine within 0.001 nats"),
        (1.0, "differs from results/mine by up"),
    ):
        capsys.readouterr()
        study("--out", f"shifted {shift}", shift=shift)
        assert f"this table {said}" in capsys.readouterr().out
    study("--config.steps", "20", "--out", "another")
    study("--preset", "smoke")
    assert "results/mine" not in capsys.readouterr().out


def test_only_unchanged_presets_computed_by_committed_code_are_promoted(repository, capsys):
    for flags in (("--preset", "smoke"), ("--config.steps", "20")):
        with pytest.raises(SystemExit):
            study("--promote", *flags)
    Path("experiments/mine.py").write_text("changed code")
    study()
    Path("experiments/mine.py").write_text("code")
    assert status() == ""
    with pytest.raises(SystemExit, match="computed by code that no commit holds"):
        study("--promote")
    assert not Path("results/mine").exists()


def test_committed_results_are_no_folder_for_a_run(repository):
    study("--promote")
    git("add", "--all")
    git("commit", "--quiet", "--message", "results")
    with pytest.raises(SystemExit, match="--out results/mine: this folder holds committed results"):
        study("--out", "results/mine", "--preset", "smoke")
    assert status() == ""


# --- the comparison


@pytest.fixture
def committed(tmp_path):
    """Write a table with the given rows, and return its folder."""

    def write(rows, header="cell,status,width,gap,gap_sum,seconds"):
        lines = [f"0,ok,{row['width']},{row['gap']},{row['gap_sum']},{row['seconds']}" for row in rows]
        (tmp_path / "table.csv").write_text("\n".join([header, *lines, ""]))
        (tmp_path / "table.json").write_text(json.dumps({"config": {"steps": 10}}))
        return tmp_path

    return write


def test_the_largest_difference_of_a_mean_in_nats_is_said(committed):
    folder = committed([row | {"gap_sum": 0.0, "seconds": 9.0} for row in ROWS])
    assert compare(folder, ROWS, SCHEMA, {"steps": 10}) == f"agrees with {folder} within 0 nats"
    near = [row | {"gap": row["gap"] + AGREEMENT * row["width"] / 4} for row in ROWS]
    assert compare(folder, near, SCHEMA, {"steps": 10}) == f"agrees with {folder} within 0.005 nats"
    far = [ROWS[0], ROWS[1] | {"gap": -1.0}]
    said = compare(folder, far, SCHEMA, {"steps": 10})
    assert said == f"differs from {folder} by up to 1.2 nats: gap of width 2 is -1 here and 0.25 there"
    lost = [ROWS[0] | {"gap": None}, ROWS[1]]
    said = compare(folder, lost, SCHEMA, {"steps": 10})
    assert said == f"differs from {folder}: gap of width 1 is empty here and 0.5 there"


def test_other_rows_columns_and_configurations_are_not_compared_number_by_number(committed, tmp_path):
    folder = committed(ROWS)
    assert compare(folder, ROWS, SCHEMA, {"steps": 20}) is None
    assert compare(tmp_path / "absent", ROWS, SCHEMA, {"steps": 10}) is None
    said = compare(folder, ROWS[1:], SCHEMA, {"steps": 10})
    assert said == f"differs from {folder}: 0 rows are only in the new table and 1 only in the old one"
    committed(ROWS, header="cell,status,width,gap,total,seconds")
    assert "cannot be compared with" in compare(folder, ROWS, SCHEMA, {"steps": 10})


def test_a_value_whose_quantity_is_in_nats_is_compared(tmp_path):
    columns = (
        Column("quantity", str, "what the value is, with its unit", key=True),
        Column("value", float, "the value"),
    )
    schema = Schema(1, columns)
    (tmp_path / "table.csv").write_text('cell,status,quantity,value\n0,ok,"gap, nats",1.0\n0,ok,seconds,5.0\n')
    (tmp_path / "table.json").write_text('{"config": {}}')
    rows = [{"quantity": "gap, nats", "value": 1.002}, {"quantity": "seconds", "value": 7.0}]
    assert compare(tmp_path, rows, schema, {}) == f"agrees with {tmp_path} within 0.002 nats"
