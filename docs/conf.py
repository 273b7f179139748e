"""Settings of the documentation site: the README, the reference from the docstrings, and the notebooks.

make docs                                       # runs the notebooks, minutes; kept between builds
make docs ARGS="-D nb_execution_mode=off"       # without running them
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import amortgap

HERE = Path(__file__).parent
# Before a notebook or autodoc imports jax.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

project = "amortgap"
author = "The amortgap developers"
copyright = "the amortgap developers, Apache License 2.0"
release = version = amortgap.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "pydata_sphinx_theme"
html_title = "amortgap"
html_theme_options = {"show_toc_level": 2, "navigation_with_keys": False, "secondary_sidebar_items": ["page-toc"]}
html_show_sourcelink = False
html_copy_source = False

# Docstrings write formulas in single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
# The percent format of Jupytext, which is how the notebooks are kept.
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "cache"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True
suppress_warnings = ["mystnb.unknown_mime_type"]

# Sphinx reads sources below this folder only; the copies are not committed.
shutil.rmtree(HERE / "notebooks", ignore_errors=True)
shutil.copytree(HERE.parent / "experiments" / "notebooks", HERE / "notebooks", ignore=shutil.ignore_patterns("__*"))
exclude_patterns += ["conf.py"]
