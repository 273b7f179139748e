"""A value meets a requirement within its bounds, bounds included, and no value does that is not finite."""

import math

import pytest


@pytest.mark.parametrize(
    ("low", "high", "value", "met"),
    [
        (None, None, 3.0, None),
        (None, None, math.nan, None),
        (1.0, None, 1.0, True),
        (1.0, None, math.inf, False),
        (None, 2.0, 2.0, True),
        (None, 2.0, 2.1, False),
        (None, 2.0, -math.inf, False),
        (1.0, 2.0, 0.9, False),
        (1.0, 2.0, 1.5, True),
        (1.0, 2.0, None, False),
        (1.0, 2.0, math.nan, False),
    ],
)
def test_a_value_meets_its_bounds(low, high, value, met):
    from studies.requirements import Requirement

    assert Requirement(low, high).met(value) is met


def test_a_target_allows_its_tolerance_on_both_sides():
    from studies.requirements import near

    required = near(10.0, 0.5)
    assert [required.met(value) for value in (9.4, 9.5, 10.5, 10.6)] == [False, True, True, False]
    assert str(required) == ">= 9.5 and <= 10.5"


def test_missed_rows_are_counted_and_printed(capsys):
    from studies.requirements import say_missed, tally

    rows = [{"name": "a", "met": True}, {"name": "b", "met": False}, {"name": "c", "met": None}]
    assert tally(rows) == {"checked": 2, "missed": 1}
    assert say_missed(rows, "targets") == 1
    assert capsys.readouterr().out == "missed: {'name': 'b', 'met': False}\n1 of 2 targets met\n"
