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


def imports(name, *, type_checking=False):
    """Full names of everything that a module imports, also inside its functions."""
    tree = ast.parse(FILES[name].read_text())
    if not type_checking:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
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


ALLOWED = {
    "_checks": set(),
    "networks": {"_checks"},
    "families": {"_checks"},
    "modules": {"_checks", "networks"},
    "encoders": {"_checks", "networks", "modules"},
    "models": {"_checks", "networks", "modules"},
    "nodes": {"_checks"},
    "objectives": {"_checks", "nodes"},
    "gaps": set(),
    "weights": {"_checks", "_files"},
    "data": {"_checks"},
    "_files": set(),
    "sweep": {"_files"},
}


@pytest.mark.parametrize("layer", ALLOWED)
def test_layer_imports_only_what_it_may(layer):
    members = [name for name in FILES if part(name) == layer]
    assert members
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
    layers = {part(name): set() for name in modules}
    for name, others in modules.items():
        layers[part(name)] |= {part(other) for other in others} - {part(name), ""}
    assert is_acyclic(layers)
    assert not is_acyclic({**layers, "gaps": {"measure"}})


def test_nothing_imports_the_experiments_and_only_networks_and_modules_know_flax():
    for name in FILES:
        roots = {full.split(".")[0] for full in imports(name, type_checking=True)}
        assert not roots & {"experiments", "tests", "pickle", "dill", "cloudpickle"}, name
        assert "flax" not in roots or name in ("amortgap.networks", "amortgap.modules"), name


def test_the_reader_of_imports_sees_imports():
    assert internal("amortgap.objectives") == {"amortgap._checks", "amortgap.nodes"}
    assert "amortgap.objectives" in internal("amortgap.inference.amortized")
    assert "amortgap.sweep.cells" in internal("amortgap.sweep")
    assert "sklearn.datasets.load_digits" in imports("amortgap.data.digits")
