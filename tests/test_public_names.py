"""The names of the package: one table, which the package loads and editors read."""

import importlib
import types

import pytest

import amortgap as ag


@pytest.mark.parametrize("name", ag.__all__)
def test_every_name_of_the_table_is_loaded_from_its_module(name):
    value = getattr(ag, name)
    home = importlib.import_module(ag._HOMES[name])
    assert value is (importlib.import_module(f"amortgap.{name}") if home is ag else getattr(home, name))
    assert isinstance(value, types.ModuleType) == (home is ag)


def test_the_table_is_complete_and_other_names_are_refused():
    assert set(ag.__all__) <= set(dir(ag)) and "__version__" in dir(ag)
    assert {"elbo", "local_vi", "amortized_vi", "inference_gaps", "diagnose", "models", "figures"} <= set(ag.__all__)
    with pytest.raises(AttributeError, match="module 'amortgap' has no attribute 'elbow'"):
        _ = ag.elbow
