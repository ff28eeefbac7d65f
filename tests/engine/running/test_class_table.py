"""Classes that appear while the model learns: their numbers, which of them leave, and what was
known of them when a row was scored."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.running.classes.class_table import ClassRules, ClassTable, without_foresight
from engine.types.arrays import Ints

RULES = ClassRules(most=5)


def with_labels(table: ClassTable, labels: pl.Series) -> tuple[ClassTable, Ints]:
    return table.with_labels(labels, np.arange(table.rows, table.rows + len(labels)), RULES)


def seen(labels: list[str], cuts: list[int], most: int) -> list[ClassTable]:
    """The table after each batch."""
    table, tables, ends = ClassTable(), [], [*sorted(cuts), len(labels)]
    for start, stop in zip([0, *ends], ends, strict=False):
        table, numbers = with_labels(table, pl.Series(labels[start:stop], dtype=pl.String))
        assert [table.names[number] for number in numbers] == labels[start:stop]
        if len(table.names) > most:
            table, kept = table.newest(most)
            assert len(kept) == most
        tables.append(table)
    return tables


@given(
    st.lists(st.sampled_from("abcdefg"), max_size=40),
    st.lists(st.integers(0, 40), max_size=5),
    st.integers(2, 5),
)
def test_the_classes_seen_last_are_kept_however_rows_are_cut(
    labels: list[str], cuts: list[int], most: int
) -> None:
    last = seen(labels, [min(cut, len(labels)) for cut in cuts], most)[-1]
    newest = list(dict.fromkeys(reversed(labels)))[:most]
    assert sorted(last.names) == sorted(newest)
    assert last.rows == len(labels)
    again = ClassTable.restored(last.snapshot()).snapshot()
    np.testing.assert_equal(again, last.snapshot())


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (pl.Series(["b", "a", "b"]), ("b", "a"), [0, 1, 0]),
        (pl.Series([7, 3, 7]), ("7", "3"), [0, 1, 0]),
        (pl.Series(["1", "1.0", "2", "true"]), ("1", "2"), [0, 0, 1, 0]),
        (pl.Series([True, False]), ("true", "false"), [0, 1]),
        (pl.Series([2.0, 2.0, 5.0]), ("2.0", "5.0"), [0, 0, 1]),
    ],
)
def test_labels_are_numbered_as_they_come(
    labels: pl.Series, names: tuple[str, ...], numbers: list[int]
) -> None:
    table, numbered = with_labels(ClassTable(), labels)
    assert (table.names, numbered.tolist()) == (names, numbers)
    again, numbered = with_labels(table, labels)
    assert (again.names, numbered.tolist()) == (names, numbers)


def test_a_class_is_unknown_until_its_first_row() -> None:
    scores = np.full((4, 3), 1 / 3)
    numbers = np.array([0, 1, 0, 2])
    known = without_foresight(scores, numbers, 1)
    assert known.tolist() == [[1, 0, 0], [1, 0, 0], [0.5, 0.5, 0], [0.5, 0.5, 0]]
    first = without_foresight(scores, numbers, 0)
    assert first[0].tolist() == [0, 0, 0]  # there was nothing to predict
    assert without_foresight(scores, numbers, 3) is scores
