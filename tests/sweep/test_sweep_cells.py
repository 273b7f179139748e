"""Cells: canonical form, content hash, grids."""

import dataclasses
import enum
import hashlib
import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amortgap.sweep import NOT_HASHED, grid, make_cells
from amortgap.sweep.cells import canonical, canonical_json, content_hash


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass(frozen=True)
class Encoder:
    width: int = 8
    rate: float = 0.1


@dataclasses.dataclass(frozen=True)
class Linear:
    width: int = 8
    rate: float = 0.1


@dataclasses.dataclass(frozen=True)
class Config:
    family: str = "mean_field"
    seed: int = 0
    encoder: Encoder | Linear = Encoder()
    out: str = dataclasses.field(default="here", metadata=NOT_HASHED)


def keys(configs, **identity):
    return [cell.key for cell in make_cells(configs, **{"schema_version": 1, **identity})]


def test_the_key_is_the_sha256_of_the_stated_document():
    (key,) = keys([Config()], data_sha256="ab")
    text = (
        '{"config":{"_type":"Config","encoder":{"_type":"Encoder","rate":0.1,"width":8},"family":"mean_field","seed":0},'
        '"data_sha256":"ab","schema_version":1,"semantics_version":1}'
    )
    assert key == hashlib.sha256(text.encode()).hexdigest()


def test_the_key_is_the_same_in_another_process():
    program = "from test_sweep_cells import *; print(*keys([Config()]))"
    run = [sys.executable, "-c", program]
    out = subprocess.run(run, capture_output=True, text=True, check=True, cwd=Path(__file__).parent).stdout
    assert out.split() == keys([Config()])


@pytest.mark.parametrize(
    "identity", [{"schema_version": 2}, {"semantics_version": 2}, {"data_sha256": "ab"}], ids=lambda value: str(value)
)
def test_schema_semantics_and_data_are_part_of_the_key(identity):
    assert keys([Config()], **identity) != keys([Config()])


def test_fields_that_cannot_change_results_are_not_part_of_the_key():
    assert keys([Config(out="elsewhere")]) == keys([Config()])
    assert keys([Config(seed=1)]) != keys([Config()])


def test_two_classes_with_equal_fields_have_different_keys():
    assert keys([Config(encoder=Linear())]) != keys([Config(encoder=Encoder())])


def test_data_may_differ_between_cells():
    cells = make_cells([Config(seed=0), Config(seed=1)], schema_version=1, data_sha256=lambda config: "ab"[config.seed])
    assert [cell.identity["data_sha256"] for cell in cells] == ["a", "b"]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (1.0, 1),
        (-0.0, 0.0),
        (np.float64(0.5), 0.5),
        (np.int32(3), 3),
        (np.array(2.0), 2),
        ((1, 2), [1, 2]),
        (np.bool_(True), True),
        (Path("a/b"), "a/b"),
        (Colour.RED, "RED"),
    ],
)
def test_equal_values_have_one_canonical_form(left, right):
    assert canonical_json(canonical(left)) == canonical_json(canonical(right))


def test_true_is_not_one():
    assert content_hash(canonical(True)) != content_hash(canonical(1))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_the_canonical_form_survives_json(value):
    form = canonical(value)
    assert canonical(json.loads(canonical_json(form))) == form


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Config(encoder=Encoder(rate=float("nan"))), r"config\.encoder\.rate: nan cannot"),
        (Config(encoder=Encoder(rate=float("inf"))), r"config\.encoder\.rate: inf cannot"),
        (Config(family=object()), r"config\.family: .*object.* cannot"),
        ({1: 2}, "keys must be strings"),
    ],
)
def test_what_has_no_canonical_form_is_refused_by_name(value, message):
    with pytest.raises(ValueError, match=message):
        canonical(value)


def test_a_grid_is_ordered_with_the_last_axis_fastest():
    configs = grid(Config(), {"family": ["a", "b"], "encoder.width": [1, 2, 4]})
    assert [(c.family, c.encoder.width) for c in configs] == [(f, w) for f in "ab" for w in (1, 2, 4)]


def test_fields_can_vary_together():
    configs = grid(Config(), {("seed", "encoder.width"): [(0, 1), (1, 2)], "family": ["a", "b"]})
    assert [(c.seed, c.encoder.width, c.family) for c in configs] == [
        (0, 1, "a"),
        (0, 1, "b"),
        (1, 2, "a"),
        (1, 2, "b"),
    ]


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"famly": ["a"]}, "'famly' is not a field of Config: did you mean 'family'"),
        ({"encoder.widht": [1]}, "'encoder.widht' is not a field of Encoder: did you mean 'width'"),
        ({"seed": []}, "seed.*expected a list of values"),
        ({"family": "abc"}, "family.*expected a list of values, got 'abc'"),
        ({"seed": ["0"]}, "seed: expected int, got '0'"),
        ({"seed": [True]}, "seed: expected int, got True"),
        ({"encoder.rate": ["fast"]}, "encoder.rate: expected float, got 'fast'"),
        ({("seed", "family"): [(1,)]}, r"\(1,\) does not give 2 values"),
    ],
)
def test_a_wrong_axis_is_refused_before_anything_runs(axes, message):
    with pytest.raises(ValueError, match=message):
        grid(Config(), axes)


def test_a_base_that_is_no_dataclass_is_refused():
    with pytest.raises(ValueError, match="expected a dataclass"):
        grid({"seed": 0}, {"seed": [1]})


def test_duplicates_are_removed_with_a_notice(caplog):
    with caplog.at_level(logging.WARNING, logger="amortgap"):
        cells = make_cells(grid(Config(), {"seed": [0, 1, 0], "encoder.rate": [1, 1.0, 0.1]}), schema_version=1)
    assert [(cell.config.seed, cell.config.encoder.rate) for cell in cells] == [(0, 1), (0, 0.1), (1, 1), (1, 0.1)]
    assert "5 duplicate cells removed: 4 distinct cells remain" in caplog.text


def test_no_notice_without_duplicates(caplog):
    make_cells(grid(Config(), {"seed": range(3)}), schema_version=1)
    assert not caplog.records
