"""Sweeps that survive: cells as data, one record per cell, resume, many machines. Knows nothing of inference.

`cells` (what to compute) -> `run_cells` (computing what has no record yet) -> `records` (the truth) -> `table`.
Cells run in this process, or by an executor of `concurrent.futures` such as that of `amortgap.sweep.dask`. The flags
of scripts are in `amortgap.sweep.script`.
"""

from amortgap._internal.files import locked, write_atomic
from amortgap.sweep.cells import NOT_HASHED, Cell, grid, make_cells
from amortgap.sweep.records import CellResult, DamagedRecord, Record, Store, open_store
from amortgap.sweep.run import Summary, list_cells, run_cells
from amortgap.sweep.table import Column, Schema, Table, build_table, read_csv, write_table

__all__ = [
    "NOT_HASHED",
    "Cell",
    "CellResult",
    "Column",
    "DamagedRecord",
    "Record",
    "Schema",
    "Store",
    "Summary",
    "Table",
    "build_table",
    "grid",
    "list_cells",
    "locked",
    "make_cells",
    "open_store",
    "read_csv",
    "run_cells",
    "write_atomic",
    "write_table",
]
