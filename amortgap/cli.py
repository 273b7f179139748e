"""The command line: `amortgap diagnose problem.py`, `amortgap report results/NAME` and `amortgap run EXPERIMENT`."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.metadata
import os
import pathlib
import runpy
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import tyro

NEEDED = ("xs_train", "xs_test", "model", "family", "encoder")
OPTIONAL = ("image_shape",)
# Scripts about the repository itself: its committed results, and a clone of it.
_OF_THE_REPOSITORY = ("verify_results", "fresh_clone")


def load_problem(file: pathlib.Path) -> dict[str, Any]:
    """Return what `make_problem()` in a Python file returns, checked for its parts.

    Raises:
      ValueError: no such file, one that does not run, no `make_problem`, or a result that lacks a part or has another.
    """
    if not file.is_file():
        raise ValueError(f"problem must be a Python file, got {str(file)!r}, which is none")
    # Modules beside the file can be imported, as when Python runs it: also later, by what the file defines.
    sys.path.insert(0, str(file.resolve().parent))
    make = _naming_the_line(file, lambda: runpy.run_path(str(file), run_name="__problem__")).get("make_problem")
    if not callable(make):
        raise ValueError(f"{file} must define a function make_problem(), got {type(make).__name__}")
    problem = _naming_the_line(file, make)
    if not isinstance(problem, Mapping):
        as_dict = getattr(problem, "_asdict", None)
        if as_dict is None:
            raise ValueError(
                f"make_problem() must return a mapping with {', '.join(NEEDED)}, got {type(problem).__name__}"
            )
        problem = as_dict()
    missing = [name for name in NEEDED if name not in problem]
    unknown = [name for name in problem if name not in (*NEEDED, *OPTIONAL)]
    if missing or unknown:
        raise ValueError(
            f"make_problem() must return {', '.join(NEEDED)} and may return {', '.join(OPTIONAL)}; "
            f"missing: {missing or 'none'}, unknown: {unknown or 'none'}"
        )
    return dict(problem)


def _naming_the_line(file: pathlib.Path, call: Callable[[], Any]) -> Any:
    """Return what `call` gives; what goes wrong in the user's file is said with its line."""
    try:
        return call()
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(file)]
        if isinstance(error, SyntaxError):
            lines = [error.lineno]
        where = f"{file}, line {lines[-1]}" if lines else str(file)
        raise ValueError(f"{where}: {type(error).__name__}: {error}") from error


def diagnose(
    problem: tyro.conf.Positional[pathlib.Path],
    budget: float = 300.0,
    out: pathlib.Path = pathlib.Path("diagnosis.html"),
    max_data: int = 500,
    tolerance: float = 0.1,
    seed: int = 0,
) -> int:
    """Say how many nats an encoder loses, why, how sure that is, and which remedy buys most.

    Args:
        problem: Python file that defines make_problem(), which returns a mapping with xs_train, xs_test, model, family
            and encoder (and image_shape, if data are images that do not look like it).
        budget: seconds to use, report included; at least 40.
        out: where to write the report, one HTML file.
        max_data: data measured of training and of held-out data, at most.
        tolerance: nats per datum below which a loss is no problem.
        seed: seed of everything random.
    """
    from amortgap.runtime import prepare_compiler

    if "jax" not in sys.modules:
        prepare_compiler()
    import jax

    import amortgap as ag

    if not out.resolve().parent.is_dir():
        raise ValueError(f"--out must lie in a folder that exists, got {str(out)!r}")
    # Drawing the figures takes some seconds of its own.
    drawing = 10.0
    if budget < ag.diagnosis.MINIMUM_BUDGET + drawing:
        raise ValueError(f"--budget must be at least {ag.diagnosis.MINIMUM_BUDGET + drawing:g} seconds, got {budget:g}")
    found = load_problem(problem)
    diagnosis = ag.diagnose(
        jax.random.key(seed),
        found.pop("xs_train"),
        found.pop("xs_test"),
        **found,
        budget=budget - drawing,
        max_data=max_data,
        tolerance=tolerance,
        progress=True,
    )
    # What was asked for is the whole; the report is drawn in the rest.
    diagnosis = dataclasses.replace(diagnosis, settings=diagnosis.settings | {"budget": budget})
    print(diagnosis.summary())
    print(f"report: {diagnosis.to_html(out)}")
    return 0


def report(folder: tyro.conf.Positional[pathlib.Path], out: pathlib.Path | None = None) -> int:
    """Write one HTML file with everything a results folder holds: configuration, cells, failures, figures, tables.

    Args:
        folder: results of an experiment, such as results/capacity_sweep.
        out: where to write; by default report.html in that folder.
    """
    from amortgap.report import write_sweep

    print(f"report: {write_sweep(folder, out)}")
    return 0


def experiments() -> dict[str, pathlib.Path]:
    """Return the scripts of the experiments by name: those of the repository, or the copies in an installed wheel."""
    package = pathlib.Path(__file__).parent
    for folder in (package.parent / "experiments", package / "experiments"):
        if (folder / "capacity_sweep.py").is_file():
            scripts = [*folder.glob("*.py"), *folder.glob("benchmarks/*.py")]
            # The others are parts of these: an experiment opens with the command that runs it.
            found = {
                script.stem: script
                for script in sorted(scripts, key=lambda script: script.stem)
                if f"    python {script.relative_to(folder.parent).as_posix()}" in script.read_text()
            }
            in_wheel = folder.parent == package
            return {name: script for name, script in found.items() if not (in_wheel and name in _OF_THE_REPOSITORY)}
    raise ValueError(f"no experiments beside {package} or in it: install from a wheel or work in the repository")


def run(args: Sequence[str]) -> NoReturn:
    """Run an experiment with its own flags, as `python experiments/NAME.py` does in the repository.

    Raises:
      ValueError: an experiment that does not exist; the message lists all.
    """
    known = experiments()
    if not args:
        raise ValueError(f"run must be followed by one of {', '.join(known)}")
    name, *flags = args
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"run must be followed by one of {', '.join(known)}, got {name!r}{hint}")
    # A process of its own: settings of the compiler come before jax, and workers look beside the script.
    os.execv(sys.executable, [sys.executable, str(known[name]), *flags])


def _run_listed(experiment: tyro.conf.Positional[str]) -> NoReturn:
    """Run an experiment, `run EXPERIMENT [flags]`; `run --help` lists them."""
    # For the list of commands: `main` passes on what follows `run`, which is not for the parser here.
    run([experiment])


def _experiments_listed() -> str:
    """Return the usage of `run` and every experiment with the first sentence of its script."""
    known = {name: ast.get_docstring(ast.parse(script.read_text())) or "" for name, script in experiments().items()}
    width = max(map(len, known))
    lines = [f"  {name:<{width}}  {text.splitlines()[0]}" for name, text in known.items()]
    usage = "usage: amortgap run EXPERIMENT [flags]; --help after the name shows its flags"
    return "\n".join([usage, "", "experiments:", *lines])


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status: 0 done, 1 a file that cannot be written, 2 a wrong argument."""
    words = list(sys.argv[1:] if args is None else args)
    try:
        if words == ["--version"]:
            print(importlib.metadata.version("amortgap"))
            return 0
        if words[:1] == ["run"] and words[1:2] in (["--help"], ["-h"]):
            print(_experiments_listed())
            return 0
        if words[:1] == ["run"]:
            run(words[1:])
        return tyro.extras.subcommand_cli_from_dict(
            {"diagnose": diagnose, "report": report, "run": _run_listed},
            prog="amortgap",
            args=words,
            description="How many nats an amortized encoder loses, why, and how sure we are.",
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
