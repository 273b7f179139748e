"""Sentences of README and docs on what the two commands take in a fresh clone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pages.tables import Tables, minutes, ran


def bare_machine(tables: Tables) -> Iterator[str]:
    """Yield those of the two commands in a fresh clone."""
    path = "benchmarks/fresh_clone"
    yield ran(tables, f"{path}.json")
    first, second = (found["python"].rpartition(".")[0] for found in tables.sidecar(f"{path}.json")["installed"])
    heads = [f"Python {found['python']}, jax {found['jax']}" for found in tables.sidecar(f"{path}.json")["installed"]]
    yield f"| | {heads[0]} | {heads[1]} |"

    def line(figure: str, form: Callable[[float], str]) -> str:
        return " | ".join(form(on_bare_machine(tables, python, figure)) for python in (first, second))

    yield f"| installation for the sweep | {line('installation for the sweep', _seconds)} |"
    yield f"| `make sweep` | {line('make sweep', _seconds)} |"
    yield f"| of that, compiling | {line('share of compiling in make sweep', _percent)} |"
    yield f"| memory of `make sweep` | {line('memory of make sweep', _gigabytes)} |"
    yield f"| installation for the tests | {line('installation for the tests', _seconds)} |"
    yield f"| `make test` | {line('make test', _seconds)} |"
    yield f"| memory of `make test` | {line('memory of make test', _gigabytes)} |"
    sweep, share, memory, test = (
        on_bare_machine(tables, first, figure)
        for figure in ("make sweep", "share of compiling in make sweep", "memory of make sweep", "make test")
    )
    yield f"`make sweep` takes {minutes(sweep)} minutes, {100 * share:.0f} % of them for compiling"
    yield f"and {memory:.1f} GB over all its processes (memory they share counted once)"
    yield f"`make test` {minutes(test)} minutes"
    installing = [on_bare_machine(tables, first, f"installation for the {what}") for what in ("sweep", "tests")]
    yield f"installing takes {installing[0]:.0f} s for the one and {installing[1]:.0f} s more for the other"


def on_bare_machine(tables: Tables, python: str, figure: str) -> float:
    """Return a number of the benchmark of a fresh clone."""
    return tables.value("benchmarks/fresh_clone.csv", figure=f"Python {python}, {figure}")


def _seconds(value: float) -> str:
    return f"{value:.0f} s"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _gigabytes(value: float) -> str:
    return f"{value:.2f} GB"
