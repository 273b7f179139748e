"""Local VI on a 50-200-200-784 Bernoulli decoder: rates, time to tolerance, and what users have without this library.

    python experiments/benchmarks/local_vi.py                    # preset default: 20 minutes, a core at a time
    python experiments/benchmarks/local_vi.py --preset smoke     # about a minute, mostly compilation

Everything is measured in one run and on one core, rates in turns, ratios as medians over the turns. *Rate*: gradients
of the log joint a second, against a plain vmapped loop of Adam and against the matrix products of the decoder alone;
once more with data sharded over one device a core. *Tolerance*: every method from the encoder's start to growing
horizons; nats below the best mean ELBO, against gradients and time (for the natural gradient and the tuned Adam, which
are compared, the least of two times). *Published*: in the manner of a published procedure, Adam at 1e-3 with 100 draws
from the prior until its own stop rule ends it. *Encoder sweep*: share of compilation. Compilation is in no time, but in
rows of its own.

Writes local_vi.csv, local_vi.json and local_vi.{pdf,png} to OUT. Numbers to expect, with goals in
brackets: gradients at 1.4 times the plain rate (1.15) and, over two cores, at 77 to 86 % of the rate of the matrix
products (85); 0.05 and 0.01 nats in 0.23 of tuned Adam's time (0.25); 590 times as fast as that procedure (500); a
quarter of a short encoder sweep spent in compiling (40 %).
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from typing import Literal

from amortgap.runtime import prepare_compiler

prepare_compiler(quick_loops=False)
# One method after the other on one core, which is what each has to itself; sharding takes all of them.
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
if CORES and __name__ == "__main__":
    os.sched_setaffinity(0, CORES[:1])

import jax
from figures_table import Output, promote_output
from local_vi_figure import SCHEMA, derive
from local_vi_parts import PARTS, sharded
from local_vi_workload import Study, make_workload

from amortgap.sweep import write_atomic
from amortgap.sweep.config import parse_args
from amortgap.sweep.provenance import write_sidecar
from amortgap.sweep.table import Table, csv_text


@dataclasses.dataclass(frozen=True)
class Args(Output):
    """Flags of the benchmark."""

    study: Study = dataclasses.field(default_factory=Study)
    parts: tuple[Literal["start-up", "rate", "sharded", "tolerance", "published", "encoder-sweep", "gpu"], ...] = (
        "start-up",
        "rate",
        "sharded",
        "tolerance",
        "published",
        "encoder-sweep",
        "gpu",
    )
    """Parts to measure."""
    cached: bool = False
    """Take programs that an earlier run compiled; the seconds to compile then mean nothing."""


PRESETS = {
    "default": Args(),
    "smoke": Args(
        cached=True,
        study=Study(
            latent_dim=4,
            width=8,
            points=6,
            train_steps=4,
            slow_points=1,
            turns=1,
            tolerance_turns=1,
            rate_steps=2,
            natural_horizons=(2, 4),
            fit_horizons=(3,),
            adam_horizons=(2, 4),
            plain_horizons=(2,),
            loop_horizons=(2,),
            reference_steps=4,
            eval_samples=4,
            published_points=2,
            published_samples=2,
            published_window=2,
            published_patience=1,
            widths=(2, 3, 5),
            padded_to=3,
            seeds=2,
            sweep_steps=2,
            gpu_points=20,
        ),
    ),
}


def main() -> int:
    """Measure, write table, figure and sidecar, and return the exit status."""
    args = parse_args(Args, presets=PRESETS, description=__doc__)
    jax.config.update("jax_enable_compilation_cache", args.cached)
    began, load = time.perf_counter(), os.getloadavg()
    workload = make_workload(args.study)
    print(f"training: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    rows = []
    for name in args.parts:
        started = time.perf_counter()
        rows += sharded(args.study, CORES) if name == "sharded" else PARTS[name](args.study, workload)
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    args.out.mkdir(parents=True, exist_ok=True)
    table = args.out / "local_vi.csv"
    write_atomic(table, csv_text(Table(SCHEMA.columns, rows)).encode())
    files = [table, *derive(args.out, args.out)]
    goals = [row for row in rows if row["low"] is not None or row["high"] is not None]
    sidecar = write_sidecar(
        args.out / "local_vi.json",
        config=args,
        files=files,
        schema=SCHEMA,
        facts={
            "seconds": round(time.perf_counter() - began, 1),
            "data": workload.name,
            "goals": len(goals),
            "missed": sum(row["met"] is False for row in goals),
            # What else ran meanwhile: it slows some rows more than others.
            "load_average": {"before": load, "after": os.getloadavg()},
        },
    )
    promote_output(args, [*files, sidecar])
    for row in goals:
        says = {True: "met", False: "MISSED", None: "not measured"}[row["met"]]
        print(f"{says}: {row['method']}, {row['quantity']}: {row['value']} (from {row['low']} to {row['high']})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
