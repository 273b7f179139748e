"""Sweeps that survive: cells as data, one record per cell, resume, many machines. Knows nothing of inference.

`cells` (what to compute) -> `run_cells` (computing what has no record yet) -> `records` (the truth) -> `table`.
The command line is in `amortgap.sweep.config`, the Dask executor in `amortgap.sweep.cluster`.
"""

from amortgap._internal.files import locked, write_atomic
from amortgap.sweep.cells import NOT_HASHED, Cell, grid, make_cells
from amortgap.sweep.executors import Threads, serial
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
    "Threads",
    "build_table",
    "grid",
    "list_cells",
    "locked",
    "make_cells",
    "open_store",
    "read_csv",
    "run_cells",
    "serial",
    "write_atomic",
    "write_table",
]
