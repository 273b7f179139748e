"""Every notebook runs from top to bottom, in its smoke form, and is one that Jupytext opens."""

import os
import pathlib
import subprocess
import sys

import jupytext
import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "experiments" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.py"))


def test_there_are_notebooks_and_each_tells_what_it_does():
    assert len(NOTEBOOKS) == 5
    for file in NOTEBOOKS:
        notebook = jupytext.read(file)
        kinds = [cell.cell_type for cell in notebook.cells]
        assert kinds[0] == "markdown" and notebook.cells[0].source.startswith("# "), file.name
        assert kinds.count("markdown") >= 4 and kinds.count("code") >= 4, file.name
        assert notebook.metadata["kernelspec"]["language"] == "python"


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=[file.stem for file in NOTEBOOKS])
def test_notebook_runs_from_top_to_bottom(file, tmp_path):
    environment = os.environ | {"AMORTGAP_SMOKE": "1"}
    # That of the tests; a notebook's reader has it not.
    environment.pop("JAX_NUMPY_RANK_PROMOTION", None)
    done = subprocess.run(
        [sys.executable, file], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    said = {
        "idea_in_pictures": "amortization",
        "exact_ladder": "rank 4: measured",
        "numpyro_model": "groups held out",
        "flax_vae": "verdict: ",
        "cluster_sweep": "0 computed, 2 skipped",
    }
    assert said[file.stem] in done.stdout
