"""The command line: `amortgap diagnose` and `amortgap report`."""

import importlib.metadata
import pathlib
import shutil
import subprocess
import sys

import pytest

from amortgap import cli

PROBLEM = """
import jax
import amortgap as ag

def make_problem():
    model = ag.models.FactorAnalysis(loadings=jax.numpy.ones((3, 1)), mean=jax.numpy.zeros(3),
                                     noise_variance=jax.numpy.ones(3))
    _, xs = ag.diagnostics.simulate(jax.random.key(0), model=model, num_data=80)
    family = ag.families.MeanFieldNormal(1)
    encoder = ag.encoders.constant(jax.random.key(1), 3, family)
    return dict(model=model, family=family, encoder=encoder, xs_train=xs[:40], xs_test=xs[40:])
"""


def written(tmp_path, text):
    file = tmp_path / "problem.py"
    file.write_text(text)
    return file


def test_problem_files_are_checked(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"problem: no such Python file: .*missing.py"):
        cli.load_problem(tmp_path / "missing.py")
    with pytest.raises(ValueError, match=r"must define a function make_problem\(\)"):
        cli.load_problem(written(tmp_path, "x = 1"))
    with pytest.raises(ValueError, match=r"must return a mapping with xs_train.*got int"):
        cli.load_problem(written(tmp_path, "def make_problem(): return 3"))
    with pytest.raises(
        ValueError, match=r"missing: \['xs_test', 'model', 'family', 'encoder'\], unknown: \['decoder'\]"
    ):
        cli.load_problem(written(tmp_path, "def make_problem(): return dict(xs_train=1, decoder=2)"))
    with pytest.raises(ValueError, match=r"problem\.py, line 3: ZeroDivisionError: division by zero"):
        cli.load_problem(written(tmp_path, "def make_problem():\n    x = 1\n    return x / 0"))
    with pytest.raises(ValueError, match=r"problem\.py, line 2: NameError"):
        cli.load_problem(written(tmp_path, "x = 1\ny = undefined"))
    with pytest.raises(ValueError, match=r"problem\.py, line 1: SyntaxError"):
        cli.load_problem(written(tmp_path, "def make_problem(:"))
    (tmp_path / "beside.py").write_text(f"PARTS = dict.fromkeys({cli.NEEDED}, 1)")
    (tmp_path / "later.py").write_text("VALUE = 7")
    monkeypatch.setattr(sys, "path", list(sys.path))
    late = "def late():\n    import later\n    return later.VALUE\n"
    text = f"from beside import PARTS\n{late}def make_problem(): return PARTS | dict(encoder=late)"
    found = cli.load_problem(written(tmp_path, text))
    # What the file defines may import its neighbours when it is called.
    assert found["model"] == 1 and found["encoder"]() == 7


def test_wrong_arguments_end_with_a_message_and_status_two(tmp_path, capsys):
    # Flags are judged before a file is run that may train a model.
    file = written(tmp_path, PROBLEM + "\nraise RuntimeError('was run')")
    assert cli.main(["diagnose", str(file), "--budget", "5"]) == 2
    assert "--budget must be at least 40 seconds, got 5" in capsys.readouterr().err
    assert cli.main(["diagnose", str(file), "--out", str(tmp_path / "no" / "where.html")]) == 2
    assert "--out: no such folder" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path / "nothing")]) == 2
    assert "folder: no such folder" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        cli.main(["diagnose", str(file), "--bugdet", "50"])
    assert stopped.value.code == 2
    assert "--budget" in capsys.readouterr().err


def test_report_command_writes_beside_the_results(tmp_path, capsys):
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    assert cli.main(["report", str(tmp_path)]) == 0
    assert (tmp_path / "report.html").exists() and "report.html" in capsys.readouterr().out
    assert cli.main(["report", str(tmp_path), "--out", str(tmp_path / "no" / "where.html")]) == 1


@pytest.mark.slow
def test_diagnose_command_runs_a_file_within_its_budget(tmp_path):
    file = written(tmp_path, PROBLEM)
    command = [pathlib.Path(sys.executable).with_name("amortgap"), "diagnose", file, "--budget", "60", "--out"]
    done = subprocess.run([*command, tmp_path / "out.html"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "verdict: amortization" in done.stdout and "best buy: " in done.stdout
    assert "best buy: none" not in done.stdout
    assert (tmp_path / "out.html").read_text().startswith("<!doctype html>")


def test_a_wheel_leaves_out_what_is_about_the_repository(tmp_path, monkeypatch):
    every = cli.experiments()
    scripts = pathlib.Path(cli.__file__).parents[1] / "experiments"
    shutil.copytree(scripts, tmp_path / "amortgap" / "experiments", ignore=shutil.ignore_patterns("notebooks", "_*"))
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "amortgap" / "cli.py"))
    assert set(every) - set(cli.experiments()) == {"verify_results", "fresh_clone"}


def test_run_finds_every_experiment_and_passes_its_flags_on(capsys):
    assert {"capacity_sweep", "cremer2018", "remedies", "local_vi", "verify_results"} <= set(cli.experiments())
    assert not {"study", "figures_table", "trivial_sweep", "local_vi_sharded"} & set(cli.experiments())
    assert cli.main(["run", "--help"]) == 0
    listed = capsys.readouterr().out
    assert "\n  capacity_sweep     Encoder capacity against the gap it leaves" in listed
    assert [line.split()[0] for line in listed.splitlines()[3:]] == sorted(cli.experiments())
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0 and "run EXPERIMENT [flags]" in " ".join(capsys.readouterr().out.split())
    assert cli.main(["run", "capacity_swep"]) == 2
    assert "no such experiment: 'capacity_swep'; did you mean capacity_sweep?" in capsys.readouterr().err
    assert cli.main(["run"]) == 2
    assert "run: which experiment? the experiments are capacity_sweep, " in capsys.readouterr().err
    assert cli.main(["--version"]) == 0 and capsys.readouterr().out.strip() == importlib.metadata.version("amortgap")
    done = subprocess.run(
        [sys.executable, "-m", "amortgap", "run", "sweep_overhead", "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "--kills" in done.stdout
