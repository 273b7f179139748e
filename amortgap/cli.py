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
from typing import Any, NoReturn, TypeVar

import tyro

NEEDED = ("xs_train", "xs_test", "model", "family", "encoder")
OPTIONAL = ("image_shape",)
# Scripts that work on the repository itself, which a wheel has not: its committed results, and a clone of it.
_OF_THE_REPOSITORY = ("verify_results", "fresh_clone")
Result = TypeVar("Result")
# Seconds of the budget that are kept for drawing the report.
_DRAWING = 10.0


def load_problem(file: pathlib.Path) -> dict[str, Any]:
    """Return the mapping that `make_problem()` in a Python file returns, its names checked.

    Raises:
      ValueError: no such file, one that does not run, no `make_problem`, or a result with missing or unknown names.
    """
    if not file.is_file():
        raise ValueError(f"problem: no such Python file: {str(file)!r}")
    # The file, and later the functions it defines, can import modules beside it, as if Python ran it.
    sys.path.insert(0, str(file.resolve().parent))
    make = _with_line(file, lambda: runpy.run_path(str(file), run_name="__problem__")).get("make_problem")
    if not callable(make):
        raise ValueError(f"{file} must define a function make_problem()")
    problem = _with_line(file, make)
    # A named tuple serves as well.
    problem = getattr(problem, "_asdict", lambda: problem)()
    if not isinstance(problem, Mapping):
        raise ValueError(f"make_problem() must return a mapping with {', '.join(NEEDED)}, got {type(problem).__name__}")
    missing = [name for name in NEEDED if name not in problem]
    unknown = [name for name in problem if name not in (*NEEDED, *OPTIONAL)]
    if missing or unknown:
        raise ValueError(
            f"make_problem() must return {', '.join(NEEDED)} and may return {', '.join(OPTIONAL)}; "
            f"missing: {missing or 'none'}, unknown: {unknown or 'none'}"
        )
    return dict(problem)


def _with_line(file: pathlib.Path, call: Callable[[], Result]) -> Result:
    """Return the result of `call`; an error in the user's file becomes a ValueError that names its line."""
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
            and encoder, and with image_shape if data are images whose shape cannot be guessed.
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
        raise ValueError(f"--out: no such folder: {str(out.parent)!r}")
    least = ag.diagnosis.MINIMUM_BUDGET + _DRAWING
    if budget < least:
        raise ValueError(f"--budget must be at least {least:g} seconds, got {budget:g}")
    parts = load_problem(problem)
    diagnosis = ag.diagnose(
        jax.random.key(seed),
        parts.pop("xs_train"),
        parts.pop("xs_test"),
        **parts,
        budget=budget - _DRAWING,
        max_data=max_data,
        tolerance=tolerance,
        progress=True,
    )
    # The report states the budget the user gave, which includes the time for drawing.
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
            scripts = sorted([*folder.glob("*.py"), *folder.glob("benchmarks/*.py")], key=lambda script: script.stem)
            left_out = _OF_THE_REPOSITORY if folder.parent == package else ()
            # The docstring of an experiment gives the command that runs it; other files are modules of experiments.
            return {
                script.stem: script
                for script in scripts
                if f"    python {script.relative_to(folder.parent).as_posix()}" in script.read_text()
                and script.stem not in left_out
            }
    raise ValueError(f"no experiments beside {package} or in it: install from a wheel or work in the repository")


def run(args: Sequence[str]) -> NoReturn:
    """Run an experiment with its own flags, as `python experiments/NAME.py` does in the repository.

    Raises:
      ValueError: no such experiment; the message lists all.
    """
    known = experiments()
    listed = f"the experiments are {', '.join(known)}"
    if not args:
        raise ValueError(f"run: which experiment? {listed}")
    name, *flags = args
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise ValueError(f"run: no such experiment: {name!r}; {f'did you mean {near[0]}? ' if near else ''}{listed}")
    # A process of its own: it sets up the compiler before jax is imported, and its workers look beside the script.
    os.execv(sys.executable, [sys.executable, str(known[name]), *flags])


def _run_in_help(experiment: tyro.conf.Positional[str]) -> NoReturn:
    """Run an experiment, `run EXPERIMENT [flags]`; `run --help` lists them."""
    # Only for the list of commands in the help text: `main` itself handles `run`, whose flags belong to the experiment.
    run([experiment])


def _list_of_experiments() -> str:
    """Return the usage of `run` and every experiment with the first line of its docstring."""
    texts = {name: ast.get_docstring(ast.parse(script.read_text())) or "" for name, script in experiments().items()}
    width = max(map(len, texts))
    usage = "usage: amortgap run EXPERIMENT [flags]; --help after the name shows its flags"
    lines = [f"  {name:<{width}}  {text.splitlines()[0]}" for name, text in texts.items()]
    return "\n".join([usage, "", "experiments:", *lines])


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status: 0 done, 1 a file that cannot be written, 2 a wrong argument."""
    words = list(sys.argv[1:] if args is None else args)
    try:
        if words == ["--version"]:
            print(importlib.metadata.version("amortgap"))
            return 0
        if words[:1] == ["run"]:
            if words[1:2] not in (["--help"], ["-h"]):
                run(words[1:])
            print(_list_of_experiments())
            return 0
        return tyro.extras.subcommand_cli_from_dict(
            {"diagnose": diagnose, "report": report, "run": _run_in_help},
            prog="amortgap",
            args=words,
            description="How many nats an amortized encoder loses, why, and how sure we are.",
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
