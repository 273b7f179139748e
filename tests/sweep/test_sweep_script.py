"""What a script gets from `run_study`: table, derived files and a sidecar that stays true when it is run again."""

import dataclasses
import hashlib
import json
import logging
from pathlib import Path

import pytest

from amortgap.sweep import CellResult, Column, Schema, grid, make_cells
from amortgap.sweep.cells import content_hash
from amortgap.sweep.script import Flat, SweepOptions, run_study

SCHEMA = Schema(version=1, columns=(Column("width", int, "width", key=True), Column("value", float, "value")))


@dataclasses.dataclass(frozen=True)
class Config:
    width: int = 1


@dataclasses.dataclass(frozen=True)
class Args:
    widths: tuple[int, ...] = (1, 2)
    sweep: Flat = dataclasses.field(default_factory=SweepOptions)


@pytest.fixture(autouse=True)
def logging_as_before():
    """Take away the handler that scripts add: its stream ends with the test."""
    package = logging.getLogger("amortgap")
    level = package.level
    yield
    package.handlers.clear()
    package.setLevel(level)


def cells(args):
    if min(args.widths) < 1:
        raise ValueError(f"widths must be positive, got {args.widths}")
    data = {1: "one", 2: "two", 3: None}
    configs = grid(Config(), {"width": args.widths})
    return make_cells(configs, schema_version=1, data_sha256=lambda config: data[config.width])


def compute(config):
    return CellResult([{"width": config.width, "value": 0.5 * config.width}])


def study(out, *widths, note="drawn once", compute=compute, **options):
    def derive(folder, out):
        assert (folder / "table.csv").exists()
        (out / "note.png").write_text(note)
        return [out / "note.png"]

    args = Args(widths, SweepOptions(out=out, **options))
    return run_study(
        args,
        cells,
        compute,
        schema=SCHEMA,
        derive=derive,
        facts=lambda rows: {"sum": sum(row["value"] for row in rows)},
    )


def sidecar(out):
    return json.loads((out / "table.json").read_text())


def test_a_study_leaves_a_table_what_follows_from_it_and_a_sidecar(tmp_path, capsys):
    finished = study(tmp_path, 1, 2)
    assert finished.exit_status == 0 and [row["value"] for row in finished.rows] == [0.5, 1.0]
    assert [file.name for file in finished.files] == ["table.csv", "note.png"]
    said = sidecar(tmp_path)
    assert said["files"] == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in finished.files}
    assert said["cells"]["computed"] == 2 and said["sum"] == 1.5 and said["config"]["widths"] == [1, 2]
    assert said["data_sha256"] == ["one", "two"]
    assert {"scipy", "scikit-learn", "matplotlib", "safetensors"} <= set(said["versions"])
    (device,) = said["machine"]["devices"]
    assert device.startswith(("cpu", "gpu")) and said["machine"]["peak_memory_mib"]["this_process"] > 10
    assert capsys.readouterr().out == f"table:  {tmp_path / 'table.csv'}\nfigure: {tmp_path / 'note.png'}\n"


def test_a_run_with_nothing_to_compute_renews_hashes_and_nothing_else(tmp_path):
    study(tmp_path, 1, 2)
    before = sidecar(tmp_path)
    finished = study(tmp_path, 1, 2, note="drawn again")
    after = sidecar(tmp_path)
    drawn = hashlib.sha256((tmp_path / "note.png").read_bytes()).hexdigest()
    assert after.pop("files")["note.png"] == drawn != before.pop("files")["note.png"]
    assert after == before and finished.exit_status == 0


def test_the_sidecar_of_fewer_cells_of_the_same_records_describes_these(tmp_path):
    study(tmp_path, 1, 2)
    finished = study(tmp_path, 2)
    said = sidecar(tmp_path)
    assert len(finished.rows) == 1 and said["config"]["widths"] == [2] and said["sum"] == 1.0
    assert said["cells"]["computed"] == 0 and said["cells"]["skipped"] == 1


def test_a_resumed_run_states_the_cost_of_the_whole_table(tmp_path):
    study(tmp_path, 1, 2)
    for path in (tmp_path / "cells").glob("*.json"):
        record = json.loads(path.read_text()) | {"wall_time": 100.0}
        del record["checksum"]
        path.write_text(json.dumps(record | {"checksum": content_hash(record)}))
    study(tmp_path, 1, 2, 3)
    said = sidecar(tmp_path)
    assert said["cells"]["computed"] == 1 and said["cells"]["skipped"] == 2
    assert 200 <= said["cell_seconds"] < 210 and said["seconds"] < 100


def test_a_wrong_configuration_a_dry_run_and_a_failed_cell(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        study(tmp_path / "wrong", 0)
    assert ended.value.code == 2 and "error: widths must be positive, got (0,)" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        study(tmp_path / "dry", 1, dry_run=True)
    assert ended.value.code == 0 and not (tmp_path / "dry").exists()

    def fails_at_two(config):
        if config.width == 2:
            raise RuntimeError("no luck")
        return compute(config)

    finished = study(tmp_path / "failed", 1, 2, compute=fails_at_two)
    assert finished.exit_status == 1 and len(finished.rows) == 1
    assert sidecar(tmp_path / "failed")["cells"]["failed"] == 1


def test_the_sidecar_names_the_script_from_the_folder_of_experiments_on(tmp_path, monkeypatch):
    script = Path("/somewhere/experiments/benchmarks/one.py")
    monkeypatch.setattr("sys.argv", [str(script), "--out", "a folder"])
    study(tmp_path, 1)
    assert sidecar(tmp_path)["command"] == "python experiments/benchmarks/one.py --out 'a folder'"
