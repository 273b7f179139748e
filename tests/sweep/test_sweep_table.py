"""The table: a declared schema, filled from records alone, the same whatever order cells ran in."""

import csv
import dataclasses
import io
import math
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amortgap.sweep import (
    CellResult,
    Column,
    Schema,
    Table,
    build_table,
    grid,
    make_cells,
    open_store,
    read_csv,
    run_cells,
    write_table,
)
from amortgap.sweep.table import csv_text


@dataclasses.dataclass(frozen=True)
class Config:
    family: str = "b"
    width: int = 1
    steps: int = 100


SCHEMA = Schema(
    version=3,
    columns=(
        Column("family", str, "variational family", key=True),
        Column("width", int, "hidden units", key=True),
        Column("split", str, "train or test", key=True),
        Column("gap", float, "nats per datum"),
        Column("converged", bool, "whether the optimiser converged"),
    ),
)


def compute(config):
    gap = math.nan if config.width == 2 else config.width / 3
    common = {"family": config.family, "width": config.width, "converged": True}
    return CellResult([{**common, "split": "train", "gap": gap}, {**common, "split": "test", "gap": -gap}])


def cells_of(base=Config(), version=3):
    return make_cells(grid(base, {"family": ["b", "a"], "width": [10, 2, 1]}), schema_version=version)


@pytest.fixture
def store(tmp_path):
    store = open_store(tmp_path / "out")
    assert run_cells(cells_of(), compute, store, schema=SCHEMA).exit_status == 0
    return store


def test_rows_are_ordered_by_key_with_cell_and_status_first(store):
    table = build_table(store.records(), SCHEMA)
    assert [column.name for column in table.columns] == ["cell", "status", *SCHEMA.names]
    expected = [(f, w, s) for f in "ab" for w in (1, 2, 10) for s in ("test", "train")]
    assert [(row["family"], row["width"], row["split"]) for row in table.rows] == expected


def test_the_table_does_not_depend_on_the_order_of_records(store):
    records = store.records()
    text = csv_text(build_table(records, SCHEMA))
    for seed in range(5):
        random.Random(seed).shuffle(records)
        assert csv_text(build_table(records, SCHEMA)) == text


def test_a_number_that_is_not_finite_is_empty_and_its_cell_says_so(store):
    rows = build_table(store.records(), SCHEMA).rows
    assert {(row["status"], row["gap"] is None) for row in rows if row["width"] == 2} == {("nonfinite", True)}
    assert {(row["status"], row["gap"] is None) for row in rows if row["width"] != 2} == {("ok", False)}


def test_negative_values_are_kept(store):
    rows = build_table(store.records(), SCHEMA).rows
    assert [row["gap"] for row in rows if (row["width"], row["split"]) == (10, "test")] == [-3.33333, -3.33333]


def test_a_table_has_six_digits_and_its_records_have_all(tmp_path):
    store = open_store(tmp_path)
    cells = make_cells([Config()], schema_version=3)
    run_cells(cells, lambda config: CellResult([{**ROW, "gap": 2 / 3}]), store, schema=SCHEMA)
    assert store.load(cells[0].key).rows[0]["gap"] == 2 / 3
    assert build_table(store.records(), SCHEMA).rows[0]["gap"] == 0.666667


def test_csv_and_parquet_are_rebuilt_from_records_alone(store, tmp_path):
    table = build_table(store.records(), SCHEMA)
    first = [(path.suffix, path.read_bytes()) for path in write_table(tmp_path / "table.csv", table)]
    rebuilt = build_table(open_store(store.path).records(), SCHEMA)
    assert [(path.suffix, path.read_bytes()) for path in write_table(tmp_path / "again.csv", rebuilt)] == first
    assert read_csv(tmp_path / "table.csv", SCHEMA) == table


def test_parquet_holds_the_same_rows_and_the_meanings(store, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = build_table(store.records(), SCHEMA)
    _, path = write_table(tmp_path / "table.csv", table)
    arrow = parquet.read_table(path)
    assert arrow.to_pylist() == table.rows
    assert arrow.schema.field("gap").metadata == {b"meaning": b"nats per datum"}


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1),
            st.floats(allow_nan=False, allow_infinity=False) | st.none(),
            st.booleans() | st.none(),
        ),
        unique_by=lambda row: row[0],
    )
)
def test_any_row_survives_csv_to_six_digits(tmp_path_factory, values):
    schema = Schema(1, (Column("name", str, "a", key=True), Column("x", float, "b"), Column("flag", bool, "c")))
    own = ("cell", "status")
    columns = (*(Column(name, str, "own") for name in own), *schema.columns)
    rows = [dict(zip((*own, *schema.names), ("0", "ok", *value), strict=True)) for value in values]
    path = tmp_path_factory.mktemp("csv") / "table.csv"
    path.write_bytes(csv_text(Table(columns, rows)).encode())
    found = read_csv(path, schema).rows
    assert [row | {"x": None} for row in found] == [row | {"x": None} for row in rows]
    for new, old in zip(found, rows, strict=True):
        assert new["x"] is old["x"] is None or new["x"] == pytest.approx(old["x"], rel=5.0001e-6, abs=0)
    assert csv_text(Table(columns, found)) == path.read_text()
    assert len(list(csv.reader(io.StringIO(path.read_text())))) == len(rows) + 1


ROW = {"family": "a", "width": 1, "split": "test", "gap": 0.5, "converged": True}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**ROW, "gpa": 1.0}, "unknown column 'gpa', did you mean 'gap'"),
        ({name: ROW[name] for name in ("family", "split", "converged")}, r"missing columns \['width', 'gap'\]"),
        ({**ROW, "width": 1.5}, "column 'width' expects int, got 1.5"),
        ({**ROW, "width": True}, "column 'width' expects int, got True"),
        ({**ROW, "width": None}, "column 'width' expects int, got None"),
        ({**ROW, "family": 3}, "column 'family' expects str, got 3"),
        ({**ROW, "gap": "0.5"}, "column 'gap' expects float, got '0.5'"),
        ({**ROW, "gap": [0.5, 1.0]}, "row column 'gap': expected a number, a string or None, got list"),
        ({**ROW, "converged": 1}, "column 'converged' expects bool, got 1"),
    ],
)
def test_a_row_that_does_not_fit_the_schema_fails_its_cell(tmp_path, row, message):
    store = open_store(tmp_path)
    (cell,) = make_cells([Config()], schema_version=3)
    assert run_cells([cell], lambda config: CellResult([row]), store, schema=SCHEMA).failed == 1
    assert re.search(message, store.load(cell.key).error)


def test_missing_values_and_whole_floats_are_accepted(tmp_path):
    store = open_store(tmp_path)
    (cell,) = make_cells([Config()], schema_version=3)
    row = {**ROW, "gap": 1, "converged": None}
    assert run_cells([cell], lambda config: CellResult([row]), store, schema=SCHEMA).computed == 1
    (built,) = build_table(store.records(), SCHEMA).rows
    assert type(built["gap"]) is float and built["converged"] is None and built["status"] == "ok"


def test_another_schema_version_in_the_folder_is_refused_unless_asked(store):
    run_cells(cells_of(version=2), compute, store)
    with pytest.raises(ValueError, match=r"versions \[\(2, 1\), \(3, 1\)\]"):
        build_table(store.records(), SCHEMA)
    assert len(build_table(store.records(cells_of()), SCHEMA).rows) == 12
    assert len(build_table(store.records(), SCHEMA, mixed=True).rows) == 24


def test_cells_that_differ_only_in_what_the_table_hides_are_refused_unless_asked(store):
    longer = cells_of(Config(steps=200))
    run_cells(longer, compute, store, schema=SCHEMA)
    with pytest.raises(ValueError, match=r"both have a row for .*'width'.*differ in a field that is no key column"):
        build_table(store.records(), SCHEMA)
    assert len(build_table(store.records(longer), SCHEMA).rows) == 12
    assert len(build_table(store.records(), SCHEMA, mixed=True).rows) == 24


def test_failed_cells_have_no_row(tmp_path):
    def fails(config):
        if config.width == 2:
            raise RuntimeError("no")
        return compute(config)

    store = open_store(tmp_path)
    run_cells(cells_of(), fails, store, schema=SCHEMA)
    assert {row["width"] for row in build_table(store.records(), SCHEMA).rows} == {1, 10}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ((Column("a", int, "x"), Column("a", int, "y")), "'a' occurs twice"),
        ((Column("cell", str, "x"),), "'cell' occurs twice or is reserved"),
        ((Column("a", list, "x"),), "'a' has type"),
        ((Column("a", int, " "),), "'a' has no meaning"),
    ],
)
def test_a_wrong_schema_is_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        Schema(1, columns)


@pytest.mark.parametrize(
    "text", ["", "a,b\n1,2\n", "cell,status,family,width,split,gap,converged\n0,ok,a,one,test,,True\n"]
)
def test_a_csv_file_of_another_schema_is_refused_by_name(tmp_path, text):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"table\.csv"):
        read_csv(path, SCHEMA)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0,ok,a,1,test,0.5", "line 2: not 7 values"),
        ("0,ok,a,1,test,0.5,True,9", "line 2: not 7 values"),
        ("0,ok,a,1,test,0.5,true", "line 2: column converged holds bool, got 'true'"),
        ("0,ok,a,,test,0.5,True", "line 2: column width holds int, got ''"),
        ("0,ok,a,one,test,0.5,True", "line 2: column width holds int, got 'one'"),
    ],
)
def test_a_damaged_line_is_refused_by_line_and_column(tmp_path, line, message):
    path = tmp_path / "table.csv"
    path.write_text(f"cell,status,family,width,split,gap,converged\n{line}\n")
    with pytest.raises(ValueError, match=rf"table\.csv, {message}"):
        read_csv(path, SCHEMA)
