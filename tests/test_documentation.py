"""Every public name says what it takes and returns; the examples in docstrings, README and docs run."""

import doctest
import importlib
import inspect
import math
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from amortgap import protocols

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text() for page in PAGES)
MODULES = (
    "objectives",
    "expectations",
    "models",
    "families",
    "encoders",
    "inference",
    "evidence",
    "gaps",
    "diagnostics",
    "diagnosis",
    "report",
    "data",
    "weights",
    "sweep",
)
# Where a function computes something mathematical, its docstring has the formula.
MATHEMATICS = ("objectives", "gaps", "diagnostics")


def public():
    """The public functions and classes, with the module under which a user finds them."""
    found = {}
    for name in MODULES:
        module = importlib.import_module(f"amortgap.{name}")
        names = getattr(module, "__all__", None)
        for each in names or vars(module):
            value = getattr(module, each)
            own = names is not None or getattr(value, "__module__", "") == module.__name__
            if not each.startswith("_") and own and (inspect.isfunction(value) or inspect.isclass(value)):
                found.setdefault(value, (name, each))
    return [pytest.param(value, *where, id=".".join(where)) for value, where in found.items()]


def test_the_reference_shows_every_public_module():
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    assert set(re.findall(r"automodule:: amortgap\.(\w+)", pages)) >= set(MODULES)


# One line may stand for what another docstring says of the same names: "Args and Raises as in `elbo`."
SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Formula", "Source")
REFERENCE = re.compile(rf"^((?:(?:, | and )?(?:{'|'.join(SECTIONS)}))+) as in `(\w+)`", re.MULTILINE)


def met(value):
    """Names that a caller meets: parameters of a function, fields of a record."""
    if inspect.isclass(value):
        return tuple(getattr(value, "__dataclass_fields__", None) or getattr(value, "_fields", ()))
    return tuple(inspect.signature(value).parameters)


def references(value, section):
    """What a docstring names in the place of one of its sections."""
    named = {each.values[2]: each.values[0] for each in PUBLIC}
    near = vars(sys.modules[value.__module__])
    found = REFERENCE.findall(inspect.getdoc(value) or "")
    return [near.get(name) or named.get(name) for sections, name in found if section in sections]


def says(value, name):
    """Whether a docstring tells of a parameter, by itself or by what it refers to."""
    others = [other for section in ("Args", "Attributes") for other in references(value, section)]
    here = re.search(rf"\b{re.escape(name)}\b", inspect.getdoc(value) or "")
    return bool(here) or any(name in met(other) and says(other, name) for other in others if other is not None)


PUBLIC = public()


@pytest.mark.parametrize(("value", "module", "name"), PUBLIC)
def test_docstring_names_everything_a_caller_meets(value, module, name):
    said = inspect.getdoc(value) or ""
    assert re.match(r"[^\n]{10,}", said), "no first sentence"
    if not inspect.isclass(value):
        nothing = inspect.signature(value).return_annotation in ("None", "Iterator[None]")
        assert nothing or re.search(r"\b[Rr]eturns?\b|\bYields?\b", said), "nothing about what returns"
        if module in MATHEMATICS:
            assert re.search(r"^Formula:|^.*\bFormula\b.* as in `|\A.*`[^`]+ [^`]+`", said, re.MULTILINE), "no formula"
    assert [each for each in met(value) if not each.startswith("_") and not says(value, each)] == []
    for sections, other in REFERENCE.findall(said):
        assert other != name, "it refers to itself"
        for section in SECTIONS:
            assert None not in references(value, section), f"{other} is not public"
            if section in sections and section not in ("Args", "Attributes"):
                there = [inspect.getdoc(each) or "" for each in references(value, section)]
                assert all(section in each for each in there), f"{other} has no {section}"


def test_a_reference_stands_for_the_names_that_the_other_docstring_explains():
    def shared(x, y):
        """Return x and y."""

    def silent(x, y):
        """Return something."""

    def refers(x, y, z):
        """Return it with z.

        Args as in `shared`.
        """

    def refers_in_vain(x):
        """Args and Raises as in `silent`."""

    home = sys.modules[__name__]
    with pytest.MonkeyPatch.context() as patch:
        for function in (shared, silent):
            patch.setattr(home, function.__name__, function, raising=False)
        assert references(refers, "Args") == [shared] and references(refers, "Raises") == []
        assert references(refers_in_vain, "Raises") == [silent]
        assert all(says(refers, name) for name in "xyz")
        assert not says(refers, "other") and not says(refers_in_vain, "x")


@pytest.mark.parametrize(
    "name",
    [
        "objectives.monte_carlo",
        "gaps.estimates",
        "inference.local.local_vi",
        "inference.training.amortized",
        "evidence.methods",
        "families.normal",
        "models.factor_analysis",
        "models.log_joint",
        "sweep.cells",
    ],
)
def test_examples_in_docstrings_run(name):
    result = doctest.testmod(importlib.import_module(f"amortgap.{name}"))
    assert result.attempted > 0 and result.failed == 0


def test_every_command_of_the_pages_names_a_script_and_flags_that_exist():
    commands = re.findall(r"python (experiments/\S+\.py)([^`#\n|]*)", TEXT)
    assert len(commands) > 15
    for script, flags in commands:
        source = ROOT / script
        assert source.exists(), script
        options = [word for word in shlex.split(flags) if word.startswith("--")]
        known = (ROOT / "amortgap" / "sweep" / "script.py").read_text() + "--preset --config --study"
        text = known.replace("_", "-") + source.read_text().replace("_", "-")
        for option in options:
            assert option.removeprefix("--").partition(".")[0] in text, (script, option)


def programs(page):
    """The Python examples of a page that are complete programs."""
    found = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    return [block for block in found if "import amortgap" in block or "amortgap as ag" in block]


# For every program of the pages: a regular expression of a number that it prints, its value, and how far it may be off.
# The gap of the best Laplace distribution is exact; 0.012 are four of its standard errors.
PROGRAMS = {
    "README.md": [(r"amortization +(\S+)", 0.0, math.inf)],
    "evidence.md": [(r"amortization +(\S+)", 0.0, math.inf)],
    "write_your_own.md": [
        (r"approximation +(\S+)", (math.log(math.pi) - 1) / 2, 0.012),
        (r"approximation gap: (\S+) nats, 20 of 20 converged", 0.01, 0.01),
        (r"amortization gap: 0.00\d nats, slope of the mean: (\S+)", 2 / 3, 0.02),
    ],
}


def test_the_pages_have_complete_examples():
    assert {page.name: len(programs(page)) for page in PAGES if programs(page)} == {
        name: len(numbers) for name, numbers in PROGRAMS.items()
    }
    first = (ROOT / "README.md").read_text()
    assert all(f"ag.{name}(" in first for name in ("elbo", "local_vi", "amortized_vi", "inference_gaps", "diagnose"))


def test_the_page_on_writing_your_own_lists_every_optional_part_with_its_methods():
    rows = re.findall(
        r"^\| `(\w+)` \| (?:model|family|encoder) \| (.*?) \|", (ROOT / "docs" / "write_your_own.md").read_text(), re.M
    )
    parts = {name: value for name, value in vars(protocols).items() if getattr(value, "_is_protocol", False)}
    required = {"Protocol", "Model", "Family", "Encoder", "Head"}
    assert dict(rows).keys() == parts.keys() - required
    for name, methods in rows:
        own = {member for member in vars(parts[name]) if not member.startswith("_")} - {"latent_dim"}
        assert own <= set(re.findall(r"`(\w+)", methods)), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_figures_of_a_page_exist(page):
    targets = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert all((page.parent / target).is_file() for target in targets)
    index = (ROOT / "docs" / "index.md").read_text()
    assert page.name in ("README.md", "index.md") or f"\n{page.stem}\n" in index


def test_the_readme_links_every_page_that_tells_more():
    told = {page.name for page in PAGES[1:]} - {"index.md", "notebooks.md", "changelog.md", "contributing.md"}
    assert told == set(re.findall(r"\]\(docs/(\w+\.md)\)", (ROOT / "README.md").read_text()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "number"), [(page, number) for page, numbers in PROGRAMS.items() for number in range(len(numbers))]
)
def test_example_of_the_pages_runs(page, number, tmp_path):
    (path,) = (path for path in PAGES if path.name == page)
    program = [sys.executable, "-c", programs(path)[number]]
    done = subprocess.run(program, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    pattern, value, tolerance = PROGRAMS[page][number]
    printed = re.search(pattern, done.stdout)
    assert printed and float(printed[1]) == pytest.approx(value, abs=tolerance), done.stdout
