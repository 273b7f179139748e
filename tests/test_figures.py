"""Every figure is saved in the style sheet and takes its colours from the one palette."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from PIL import Image

from amortgap.figures import CYCLE, PALETTE, save, style

ROOT = Path(__file__).parents[1]
MODULES = [
    ROOT / "amortgap" / "diagnosis" / "figures.py",
    ROOT / "experiments" / "benchmarks" / "local_vi_figure.py",
    *sorted((ROOT / "experiments" / "studies").glob("*/figure.py")),
]


def test_a_figure_drawn_outside_the_style_is_saved_in_it(tmp_path):
    figure, ax = plt.subplots(figsize=(2, 1))
    ax.set_title("text")
    pdf, png = save(figure, tmp_path, "figure")
    assert b"/Type3" not in pdf.read_bytes()
    with Image.open(png) as picture:
        assert picture.info["dpi"] == pytest.approx((200, 200), abs=0.1)


def test_style_serves_as_a_decorator_and_leaves_no_trace():
    before = plt.rcParams["savefig.dpi"]
    for _ in range(2):
        assert style()(lambda: plt.rcParams["savefig.dpi"])() == 200
        assert plt.rcParams["savefig.dpi"] == before


@pytest.mark.skipif(not (ROOT / "experiments").exists(), reason="only the package is here")
@pytest.mark.parametrize("module", MODULES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_no_figure_has_colours_of_its_own(module):
    text = module.read_text()
    assert re.findall(r"#[0-9a-fA-F]{3,8}\b", text) == []
    assert re.findall(r"""color=["'](?!none)[a-z]+["']""", text) == []


def test_no_colour_says_two_things():
    # Text and the exact posterior are both black, and no figure takes one for the other.
    roles = [colour for role, colour in PALETTE.items() if role != "ink"]
    colours = [*roles, *(colour for colour, _ in CYCLE)]
    assert len(set(colours)) == len(colours)
    assert len({marker for _, marker in CYCLE}) == len(CYCLE)
