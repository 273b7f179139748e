"""Sweeps that survive: cells as data, one record per cell, resume, many machines. Knows nothing of inference.

`cells` (what to compute) -> `run_cells` (computing what has no record yet) -> `records` (the truth) -> `table`.
The command line is in `amortgap.sweep.config`, the Dask executor in `amortgap.sweep.cluster`.
"""

from .cells import NOT_HASHED, Cell, grid, make_cells
from .executors import Threads, serial
from .records import CellResult, DamagedRecord, Record, Store, open_store
from .run import Summary, list_cells, run_cells
from .table import Column, Schema, Table, build_table, read_csv, write_table

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
    "make_cells",
    "open_store",
    "read_csv",
    "run_cells",
    "serial",
    "write_table",
]
