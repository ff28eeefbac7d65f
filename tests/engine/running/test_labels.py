"""Labels to class numbers."""

from __future__ import annotations

import polars as pl
import pytest

from engine.types import class_indexes


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        ([1.0, 0.0, None, 0.5], ["0", "1"], [1, 0, -1, -1]),
        ([True, False, None], ["0", "1"], [1, 0, -1]),
        (["True", " false", "yes"], ["false", "true"], [1, 0, -1]),
        ([1, 0, 2], ["false", "true"], [1, 0, -1]),
        (["1.0", "1", "0.50"], ["1", "0.5"], [0, 0, 1]),
        (["true", "1", "1.0"], ["1", "true"], [1, 0, -1]),  # two equal it: only its own text counts
        (["nan", "inf", "a"], ["a", "nan"], [1, -1, 0]),
        ([float("nan"), 3.0], ["3", "4"], [-1, 0]),
        ([2**63, 1], [str(2**63), "1"], [0, 1]),
    ],
)
def test_equal_values_are_equal(
    labels: list[object], classes: list[str], expected: list[int]
) -> None:
    column = pl.Series(labels, dtype=pl.UInt64 if labels[0] == 2**63 else None)
    assert class_indexes(column, classes).tolist() == expected
