"""The direction of imports, read from the source: leaves stay leaves, and there are no cycles."""

import ast
import graphlib
import pathlib

import pytest

import amortgap

PACKAGE = pathlib.Path(amortgap.__file__).parent


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(name, *, when_loaded=False):
    """Full names of all imports of a module, in functions and for type checking too, or of those run on loading."""
    tree = ast.parse(FILES[name].read_text())
    if when_loaded:
        for node in ast.walk(tree):
            type_checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            if type_checking or isinstance(node, ast.FunctionDef):
                node.body = []
    package = name if FILES[name].name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, base]).rstrip(".")
            found |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            found |= {part.value for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant)}
    return found


def internal(name):
    """Modules of the package that a module imports."""
    found = set()
    for full in imports(name):
        while full not in FILES and "." in full:
            full = full.rpartition(".")[0]
        if full in FILES and full != name:
            found.add(full)
    return found


def part(name):
    """The folder or file directly below the package."""
    return name.split(".")[1] if "." in name else ""


# What each part of the package may import, besides itself; every part has a line.
_BASE = {"_internal", "protocols"}
_LEAVES = _BASE | {"data", "networks", "families", "expectations"}
_BOUNDS = _LEAVES | {"objectives", "interop"}
_MODELS = _BOUNDS | {"models", "encoders", "evidence"}
_INFERENCE = _MODELS | {"inference"}
_GAPS = _INFERENCE | {"gaps"}
ALLOWED = {
    "protocols": set(),
    "_internal": {"protocols"},
    "runtime": set(),
    "data": _BASE,
    "networks": _BASE,
    "families": _BASE,
    "expectations": _BASE,
    "objectives": _BASE | {"expectations"},
    "interop": _LEAVES,
    "models": _LEAVES | {"interop"},
    "encoders": _LEAVES | {"interop"},
    "evidence": _LEAVES | {"objectives"},
    "inference": _MODELS,
    "gaps": _INFERENCE,
    "diagnostics": _GAPS,
    "diagnosis": _GAPS | {"diagnostics", "figures", "report"},
    "sweep": _BASE,
    "figures": _BASE,
    "weights": _BASE,
    "report": _BASE | {"figures", "sweep"},
    "__main__": {"cli"},
    "cli": {"runtime", "report", "diagnosis", "sweep"},
}


def test_every_part_has_its_line():
    assert {part(name) for name in FILES} - {""} == set(ALLOWED)


@pytest.mark.parametrize("layer", ALLOWED)
def test_layer_imports_only_what_it_may(layer):
    members = [name for name in FILES if part(name) == layer]
    for name in members:
        foreign = {part(other) for other in internal(name)} - {layer, ""}
        assert foreign <= ALLOWED[layer], f"{name} imports {foreign - ALLOWED[layer]}"


def is_acyclic(graph):
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError:
        return False
    return True


def test_there_are_no_cycles():
    # A package's __init__ gathers its own modules; the root loads lazily.
    modules = {
        name: {other for other in internal(name) if not name.startswith(f"{other}.")} for name in FILES if part(name)
    }
    assert is_acyclic(modules)
    assert is_acyclic({layer: others - {layer} for layer, others in ALLOWED.items()})
    assert not is_acyclic({**ALLOWED, "families": {"inference"}})


def test_nothing_imports_the_experiments_or_pickle():
    for name in FILES:
        roots = {full.split(".")[0] for full in imports(name)}
        assert not roots & {"experiments", "tests", "pickle", "dill", "cloudpickle"}, name


def test_only_networks_and_interop_know_flax_and_only_interop_loads_numpyro():
    for name in FILES:
        roots = {full.split(".")[0] for full in imports(name)}
        assert "flax" not in roots or name in ("amortgap.networks", "amortgap.interop.flax_module"), name
        loaded = {full.split(".")[0] for full in imports(name, when_loaded=True)}
        assert "numpyro" not in loaded or part(name) == "interop", name


def test_the_reader_of_imports_sees_imports():
    assert internal("amortgap.objectives.monte_carlo") == {
        "amortgap._internal.checks",
        "amortgap.expectations",
        "amortgap.protocols",
    }
    assert "amortgap.objectives" in internal("amortgap.inference.training.per_datum")
    assert "amortgap.sweep.cells" in internal("amortgap.sweep")
    assert "amortgap.interop.numpyro_model" in internal("amortgap.models")
    assert "sklearn.datasets.load_digits" in imports("amortgap.data.digits")
    # Imports for type checking are seen, imports in functions also, but neither is run when the module is loaded.
    assert "amortgap.interop.numpyro_guide" in internal("amortgap.encoders")
    lazy = "amortgap.diagnosis.html.write_diagnosis"
    assert lazy in imports("amortgap.diagnosis.diagnose") - imports("amortgap.diagnosis.diagnose", when_loaded=True)
    assert "numpyro.handlers" in imports("amortgap.interop.numpyro_model", when_loaded=True)
