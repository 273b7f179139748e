"""Modules beside the scripts of experiments can be imported in every test here."""

import pytest
from running import EXPERIMENTS


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    """Let the modules beside the scripts be imported, as when Python runs these."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS / "benchmarks"))
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
