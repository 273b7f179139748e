# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # A sweep on a cluster
#
# A sweep is a list of frozen configurations and a function from one of them to rows of a table. Each finished cell is one small
# file, so that a sweep can be stopped, resumed and spread over machines without anything being computed twice. This notebook
# runs one on two worker processes of this machine; for a cluster only the address changes.

# %%
import dataclasses
import os
import pathlib
import tempfile

from amortgap.runtime import prepare_compiler

prepare_compiler()  # keeps compiled programs between runs; before jax is imported

import jax
import matplotlib.pyplot as plt

import amortgap as ag
from amortgap.figures import PALETTE, style
from amortgap.sweep import CellResult, Column, Schema, build_table, grid, make_cells, open_store, run_cells

SMOKE = "AMORTGAP_SMOKE" in os.environ  # the tests run every notebook with fewer steps

# %% [markdown]
# ## A cell
#
# What varies is a frozen dataclass; its fields are the columns that name a row. Everything a cell needs is made from them, keys
# included, so that a cell gives the same numbers wherever it runs.


# %%
@dataclasses.dataclass(frozen=True)
class Study:
    """Width of an encoder for a factor analysis of simulated data."""

    width: int = 1
    seed: int = 0
    steps: int = 100 if SMOKE else 1500


SCHEMA = Schema(
    version=1,
    columns=(
        Column("width", int, "units of the hidden layer", key=True),
        Column("seed", int, "seed of weights and training", key=True),
        Column("amortization", float, "mean amortization gap, nats per datum"),
        Column("standard_error", float, "of it, over draws"),
    ),
)


def compute(study):
    """Train one encoder and measure what it loses."""
    loadings = jax.random.normal(jax.random.key(0), (10, 4))
    model = ag.models.FactorAnalysis(loadings=loadings, mean=jax.numpy.zeros(10), noise_variance=jax.numpy.ones(10))
    _, xs = ag.diagnostics.simulate(jax.random.key(1), model=model, num_data=200)
    family = ag.families.MeanFieldNormal(4)
    key_weights, key_train, key_gaps = jax.random.split(jax.random.key(study.seed), 3)
    encoder = ag.encoders.mlp(key_weights, 10, family, width=study.width, depth=1)
    fit = ag.amortized_vi(key_train, xs, model=model, family=family, encoder=encoder, num_steps=study.steps)
    gaps = ag.inference_gaps(key_gaps, xs, model=model, family=family, encoder=fit.encoder, num_samples=200)
    found = gaps.estimates()["amortization"]
    row = {"width": study.width, "seed": study.seed, "amortization": float(found.mean)}
    return CellResult(rows=[row | {"standard_error": float(found.monte_carlo_standard_error)}])


# %% [markdown]
# ## Running it, and running it again

# %%
widths, seeds = ((1, 4), (0,)) if SMOKE else ((1, 2, 4, 8), (0, 1))
cells = make_cells(grid(Study(), {"width": widths, "seed": seeds}), schema_version=SCHEMA.version)
folder = pathlib.Path(tempfile.mkdtemp())
store = open_store(folder / "sweep")
print("first run: ", run_cells(cells, compute, store, schema=SCHEMA))
print("second run:", run_cells(cells, compute, store, schema=SCHEMA))

# %% [markdown]
# The second run computed nothing. A cell that fails keeps its error in its record and does not stop the others.
#
# ## From records to a table and a figure

# %%
rows = build_table(store.records(cells), SCHEMA).rows
with style():
    figure, ax = plt.subplots(figsize=(4.2, 2.4), layout="constrained")
    for row in rows:
        ax.plot(row["width"], row["amortization"], marker="o", color=PALETTE["mean_field"])
    ax.set_xscale("log", base=2)
    ax.set(xlabel="width of the encoder", ylabel="amortization gap (nats per datum)")
    plt.show()

# %% [markdown]
# ## On workers
#
# `dask_executor("local:2")` starts two processes, each kept to one core. On a cluster the address is that of a scheduler,
# `tcp://host:8786`, or its file, `file:scheduler.json`; nothing else changes. A function that workers are to run must be importable
# there, so put it into a module (as the scripts in `experiments/` do) rather than into a notebook:
#
# ```python
# from amortgap.sweep.dask import dask_executor
#
# with dask_executor("local:2") as executor:
#     run_cells(cells, my_module.compute, store, schema=SCHEMA, executor=executor)
# ```
#
# Every experiment script has this built in: `python experiments/capacity_sweep.py --cluster local:2`. And
# `amortgap report FOLDER` writes a results folder as one HTML file.

# %%
(folder / "sweep" / "table.csv").write_text("\n".join(",".join(map(str, row.values())) for row in rows))
figure.savefig(folder / "sweep" / "widths.png")
print(ag.report.write_sweep(folder / "sweep").name)
