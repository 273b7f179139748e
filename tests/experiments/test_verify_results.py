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
    derive = verify.DERIVED[folder.name]
    return [*verify.sidecars(folder), *verify.verdicts(folder), *verify.derived(folder, derive)]


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
    differences = [*verify.sidecars(folder), *verify.verdicts(folder)]
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
def pages(committed, tmp_path, verify):
    """Copy the committed README and the pages beside it."""
    shutil.copytree(committed / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("_build", "notebooks"))
    return verify.pages(Path(shutil.copy(committed / "README.md", tmp_path)))


def names(page, count):
    """Return what the tests call a page, and how many marks it must hold at least."""
    return pytest.param(page, count, id=page)


@pytest.mark.parametrize(
    ("page", "count"),
    [
        names("README.md", 115),
        names("docs/benchmarks.md", 70),
        names("docs/clusters.md", 24),
        names("docs/cremer2018.md", 36),
        names("docs/evidence.md", 10),
        names("docs/remedies.md", 42),
        names("docs/when_and_why.md", 28),
    ],
)
def test_every_marked_number_that_is_changed_is_found(verify, committed, pages, tmp_path, page, count):
    results, path = committed / "results", tmp_path / page
    page_as_committed = path.read_text()
    assert list(verify.marks.faults(path, results)) == []
    changed = page_as_committed
    found = verify.marks.marks(page_as_committed, results)
    assert len(found) >= count
    for mark in reversed(found):
        digit = re.search(r"[0-9]", mark.text) or re.search(r"[a-z]", mark.text)
        at = mark.start + digit.start()
        changed = changed[:at] + ("7" if digit[0] != "7" else "3") + changed[at + 1 :]
    path.write_text(changed)
    assert len(list(verify.marks.faults(path, results))) == len(found)
    verify.marks.renew(path, results)
    assert " ".join(path.read_text().split()) == " ".join(page_as_committed.split())


# Settings, published values and versions: no table of results holds them.
UNMARKED = {
    "README.md": {"0.7", "2.0", "3.11", "3.13"},
    "benchmarks.md": {"0.01", "0.029", "0.05", "1e-3", "3.13"},
    "clusters.md": {"0.8", "1.2", "1e-5"},
    "cremer2018.md": {"0.8", "1,968,000"},
    "evidence.md": {"0.7"},
    "when_and_why.md": {"0.0001", "14.6", "100,000"},
}


def test_numbers_outside_of_marks_are_settings_and_published_values(verify, pages):
    outside = r"<!--:\n.*?-->|<!--=.*?<!---->|```.*?```|`[^`\n]*`|\]\([^)]*\)|^    [^\n]*$"
    for page in pages:
        text = re.sub(outside, "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        numbers = set(re.findall(r"(?<![\w.])[0-9]+(?:[.,][0-9]+|e-?[0-9]+)+", text))
        assert numbers <= UNMARKED.get(page.name, set()), page.name


def test_marks_do_not_show_on_a_rendered_page(pages):
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True}).enable("table")
    comments = re.compile(r"<!--.*?-->", re.DOTALL)
    for page in pages:
        marked, plain = page.read_text(), comments.sub("", page.read_text())
        shown = [comments.sub("", markdown.render(text)).split() for text in (marked, plain)]
        assert shown[0] == shown[1], page.name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("So <!--=mean(rows.absent):.2f-->1<!---->", "line 1: table.csv has no column 'absent', only figure, value"),
        ("So <!--=rows(absent=1).value-->1<!---->", "line 1: table.csv has no column 'absent', only figure, value"),
        ("A line\nand <!--=absent-->1<!---->", "line 2: 'absent' is neither a name defined on this page nor"),
        ("So <!--=rows.value-->1<!---->", "line 1: 2 rows where a page has room for the number of one"),
        ("So <!--=rows(figure='c').value-->1<!---->", "line 1: no row of table.csv is left to take the column 'value'"),
        ("So <!--=open('table.csv')-->1<!---->", "line 1: 'open' is neither a name defined on this page nor"),
        ("So <!--=rows.value.size-->1<!---->", "line 1: there is no 'size' in"),
        ("So <!--=mean(rows.value-->1<!---->", "line 1: '(' was never closed"),
        ("So <!--=missing.value-->1<!---->", "line 1: nan is neither a number nor text"),
        ("So <!--=mean(rows.value)-->1", "a mark has no end"),
        ("- a\n- <!--=mean(rows.value):.0f-->2<!---->", "line 2: a mark opens the line"),
        ("A mean of <!--=mean(rows.value):.1f-->1.6<!---->", "line 1: the page says '1.6', the tables '1.5'"),
        (
            "<!--:\nmore = table('table.csv').absent\n-->",
            "line 2: table.csv has no column 'absent'",
        ),
        ("<!--:\nmore = (\n-->", "line 2: '(' was never closed"),
        ("<!--:\nimport os\n-->", "line 2: 'import os' does not name an expression"),
    ],
)
def test_a_faulty_mark_is_reported_with_its_page_and_line(verify, tmp_path, words, message):
    (tmp_path / "table.csv").write_text("figure,value\na,1\nb,2\nmissing,\n")
    page = tmp_path / "page.md"
    known = "rows = table('table.csv', figure=('a', 'b'))\nmissing = table('table.csv', figure='missing')\n"
    page.write_text(f"{words}\n\n<!--:\n{known}-->\n")
    (fault, *_) = verify.marks.faults(page, tmp_path)
    assert fault.startswith(str(page)) and message in fault


def test_expressions_take_numbers_from_tables_and_sidecars(verify, tmp_path):
    rows = "a,1,0.5,,,,True,\nb,2,0.25,1,3,2,False,less than 4 nats\na,6,,,,,,\n"
    (tmp_path / "t.csv").write_text("kind,x,x_se,low,high,ours,met,said\n" + rows)
    (tmp_path / "t.json").write_text('{"seconds": 90, "machine": {"cores": 1, "cpu": "Intel(R) Xeon(R) Processor"}}')
    expected = {
        "mean(rows.x):.1f": "3.0",
        "max(rows(kind='a').x) - median(rows.x):.0f": "4",
        "min(rows(kind='b').x / 2, 7):.0f": "1",
        "count(rows)": "3",
        "count(rows.x_se)": "2",
        "count(rows[rows.x > 1](kind='a'))": "1",
        "count(rows[~has(rows.kind, 'b')])": "2",
        "met(rows)": "1 of 2",
        "estimate(rows(kind='b'), 'x'):.2f": "2.00 ± 0.25",
        "interval(rows(kind='b')):.2f": "2.00 ± 0.51",
        "after(rows(kind='b').said, 'than')": "4",
        "ran(run('t.json'))": "one core of an Intel Xeon, 1.5 minutes",
        "run('t.json')['seconds'] * 1e-9:.0e": "9e-8",
    }
    page = tmp_path / "page.md"
    marks = [f"so <!--={expression}-->?<!---->" for expression in expected]
    page.write_text("\n".join([*marks, "", "<!--:", "rows = table('t.csv')", "-->"]))
    verify.marks.renew(page, tmp_path)
    assert re.findall(r"-->(.*?)<!---->", page.read_text()) == list(expected.values())


def test_another_machine_or_time_in_a_sidecar_is_found(verify, committed, pages, tmp_path):
    results = tmp_path / "results"
    shutil.copytree(committed / "results", results, ignore=shutil.ignore_patterns("*.png", "*.pdf"))
    for sidecar in results.rglob("*.json"):
        run = json.loads(sidecar.read_text())
        sidecar.write_text(json.dumps(run | {"seconds": 3 * run["seconds"], "machine": {"cpu": "abacus", "cores": 3}}))
    differences = " ".join(fault for page in pages for fault in verify.marks.faults(page, results))
    assert differences.count("3 cores of an abacus") == 13


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
