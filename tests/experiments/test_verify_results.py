"""Verification passes on what is committed and finds every way in which it could be wrong."""

import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "verify_results.py"


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """Take README, docs and results from the last commit: those of the working tree change with every run."""
    if not (ROOT / ".git").exists():
        return ROOT
    target = tmp_path_factory.mktemp("committed")
    files = subprocess.run(
        ["git", "archive", "HEAD", "README.md", "docs", "results"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(files)) as archive:
        archive.extractall(target, filter="data")
    return target


@pytest.fixture
def verify(monkeypatch):
    """Import the script, whose settings of the compiler would come too late here."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.syspath_prepend(str(SCRIPT.parent / "benchmarks"))
    monkeypatch.setattr("amortgap.runtime.prepare_compiler", lambda **_: None)
    import verify_results

    return verify_results


@pytest.fixture
def folder(committed, tmp_path):
    """Copy the committed files of one experiment."""
    target = tmp_path / "evidence_check"
    target.mkdir()
    for file in (committed / "results" / "evidence_check").iterdir():
        if file.is_file():
            shutil.copy(file, target)
    return target


def found(verify, folder):
    tables = verify.Tables(folder.parent)
    derive = verify.DERIVED[folder.name]
    return [*verify.sidecars(folder), *verify.verdicts(tables, folder), *verify.derived(folder, derive)]


def test_a_changed_number_a_lost_file_and_a_stray_one_are_found(verify, folder):
    assert found(verify, folder) == []
    table = folder / "table.csv"
    whole = table.read_text()
    twice = re.sub(r'("mean width, nats",)([0-9.e-]+)', lambda m: f"{m[1]}{2 * float(m[2])}", whole)
    assert twice != whole
    table.write_text(twice)
    differences = found(verify, folder)
    assert any("table.csv is not the file it vouches for" in each for each in differences)
    assert any("evidence_check.png: made anew from the tables it differs" in each for each in differences)
    table.write_text(whole)
    (folder / "evidence_check.pdf").unlink()
    (folder / "stray.csv").write_text("a\n1\n")
    assert {each.partition(": ")[2] for each in found(verify, folder)} == {
        "vouches for evidence_check.pdf, which is missing",
        "no sidecar vouches for it",
        "missing, though its table implies it",
    }


def test_a_wrong_verdict_and_a_poor_sidecar_are_found(verify, folder):
    table, sidecar = folder / "table.csv", folder / "table.json"
    table.write_text(re.sub(r",True$", ",False", table.read_text(), count=1, flags=re.MULTILINE))
    facts = json.loads(sidecar.read_text())
    del facts["machine"]
    sidecar.write_text(json.dumps(facts))
    differences = [*verify.sidecars(folder), *verify.verdicts(verify.Tables(folder.parent), folder)]
    assert any("met is False, but" in each for each in differences)
    assert any("table.json: no machine" in each for each in differences)
    sidecar.write_text(json.dumps(facts | {"machine": {}, "command": "python experiments/gone.py"}))
    assert any("gone.py, which does not exist" in each for each in verify.sidecars(folder))
    sidecar.write_text(json.dumps(facts | {"machine": {}, "git_commit": facts["git_commit"] + "+changes"}))
    assert any("from a working tree with changes" in each for each in verify.sidecars(folder))


def test_renewing_mends_figures_and_hashes_and_nothing_else(verify, committed, folder):
    before = json.loads((folder / "table.json").read_text())
    (folder / "evidence_check.png").write_bytes((committed / "results" / "remedies" / "remedies.png").read_bytes())
    assert len(found(verify, folder)) >= 2
    verify.renew(folder, verify.DERIVED[folder.name])
    assert found(verify, folder) == []
    after = json.loads((folder / "table.json").read_text())
    assert after.pop("files").keys() == before.pop("files").keys()
    assert after == before


@pytest.fixture
def pages(committed, tmp_path):
    """Copy the committed README and the pages beside it."""
    shutil.copytree(committed / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("_build", "notebooks"))
    return Path(shutil.copy(committed / "README.md", tmp_path))


@pytest.mark.parametrize(("page", "old", "new"), [
    ("README.md", "are **hollow**", "are **whole**"),
    ("docs/benchmarks.md", "32 ms an image", "31 ms an image"),
    ("docs/when_and_why.md", "0.0256 apart", "0.256 apart"),
])  # fmt: skip
def test_a_number_of_a_page_that_is_not_the_tables_is_found(verify, committed, pages, page, old, new):
    tables, words = verify.Tables(committed / "results"), (pages.parent / page).read_text()
    assert list(verify.text(tables, pages)) == []
    assert old in words
    (pages.parent / page).write_text(words.replace(old, new))
    (difference,) = verify.text(tables, pages)
    assert old in difference


def test_another_machine_or_time_in_a_sidecar_is_found(verify, committed, pages, monkeypatch):
    tables = verify.Tables(committed / "results")
    said = list(verify.facts(tables))
    assert len(said) > 120
    sidecar = type(tables).sidecar
    slower = lambda self, path: sidecar(self, path) | {"seconds": 3 * sidecar(self, path)["seconds"]}  # noqa: E731
    monkeypatch.setattr(type(tables), "sidecar", slower)
    assert len(list(verify.text(tables, pages))) >= 20
    other = lambda self, path: sidecar(self, path) | {"machine": {"cpu": "abacus", "cores": 2}}  # noqa: E731
    monkeypatch.setattr(type(tables), "sidecar", other)
    differences = " ".join(verify.text(tables, pages))
    assert differences.count("of an abacus") == 13


def test_every_committed_figure_is_saved_in_the_style_sheet(committed):
    pdfs, pngs = (sorted((committed / "results").rglob(f"*.{kind}")) for kind in ("pdf", "png"))
    assert len(pdfs) >= 12
    assert [path.stem for path in pdfs] == [path.stem for path in pngs]
    # Type 3 fonts are what matplotlib embeds outside the style sheet; journals refuse them.
    assert [path.name for path in pdfs if b"/Type3" in path.read_bytes()] == []
    for path in pngs:
        with Image.open(path) as picture:
            assert picture.info["dpi"] == pytest.approx((200, 200), abs=0.1), path


@pytest.mark.slow
def test_committed_results_are_verified(committed):
    command = [sys.executable, SCRIPT, "--results", committed / "results", "--readme", committed / "README.md"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 folders verified, 0 differences" in done.stderr
