"""Rows and late labels as one source: each once, in the order of their times, and the same after a
restart."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.memory import MemorySource, Pause
from engine.config import LabelSettings
from engine.loading.sources.label_times import SPANS
from engine.loading.sources.labelled_source import (
    QUIET_READS,
    LabelledSource,
    is_of_labels,
)
from engine.types import EndOfStream, Mark, Schema, UserError
from tests.size import examples

ROWS: Schema = {"id": pl.Int64(), "at": pl.Int64()}
LABELS: Schema = {**ROWS, "y": pl.Int64()}
LATENESS, SPAN, EVERY = 50, 400 // SPANS, 64
Item = tuple[bool, int, int]
"""Whether it is a label, its number and its time."""


def frame(times: list[int] | Any, schema: Schema) -> pl.DataFrame:
    columns = {"id": range(len(times)), "at": times, "y": [0] * len(times)}
    return pl.DataFrame({name: columns[name] for name in schema}, schema=schema)


def labelled(rows: list[Any], labels: list[Any]) -> LabelledSource:
    source = LabelledSource(
        MemorySource.of(rows),
        MemorySource.of(labels),
        LabelSettings(
            source={}, by=("id",), time="at", horizon=400, lateness=LATENESS, every_rows=EVERY
        ),
        target="y",
        declared={},
    )
    source.schema({})
    return source


def take(
    source: LabelledSource, mark: Mark, size: int, most: int = 10**9
) -> tuple[list[Item], Mark]:
    source.seek(mark)
    positions, taken = dict(mark.positions), list[Item]()
    while len(taken) < most:
        try:
            records = source.read(min(size, most - len(taken)), 1 << 20, 0.0)
        except EndOfStream:
            break
        if records is None:
            continue
        label = is_of_labels(records)
        decoded, rejects = source.format.decode(records, LABELS if label else ROWS)
        assert not rejects
        taken += [(label, number, at) for number, at in decoded.select("id", "at").iter_rows()]
        positions |= records.end_positions
    return taken, Mark(positions=positions)


def times(steps: list[int]) -> list[int]:
    added: list[int] = np.cumsum(steps).tolist()
    return added


steps = st.lists(st.integers(-3, 40), max_size=60)


@settings(deadline=None, max_examples=examples(60))
@given(steps, steps, st.integers(1, 20), st.integers(1, 20), st.integers(0, 130))
def test_a_restart_goes_on_in_the_order_of_times(
    rows: list[int], labels: list[int], size: int, other: int, done: int
) -> None:
    def source() -> LabelledSource:
        return labelled([frame(times(rows), ROWS)], [frame(times(labels), LABELS)])

    whole, _ = take(source(), Mark(), size)
    first, mark = take(source(), Mark(), other, done)
    rest, _ = take(source(), mark, size)
    assert first + rest == whole
    for label, n in ((False, len(rows)), (True, len(labels))):
        assert [number for own, number, _ in whole if own == label] == list(range(n))
    newest: dict[bool, int] = {}
    for label, _, at in whole:
        newest[label] = max(at, newest.get(label, at))
        if not label and True in newest:  # a label of later than the row's span waits
            assert newest[True] < max(newest[False], at) + LATENESS


def test_labels_come_before_the_step_after_them() -> None:
    rows = frame(range(2 * EVERY), ROWS)
    labels = frame([5, EVERY, 10 * EVERY], LABELS)
    taken, _ = take(labelled([rows], [labels]), Mark(), 10**6)
    places = [at for at, item in enumerate(taken) if item[0]]
    assert places[0] == SPAN
    assert taken[places[1] - 1][2] == EVERY + SPAN - EVERY % SPAN - 1
    assert places[2] == len(taken) - 1


@pytest.mark.parametrize("far", ["rows", "labels"])
def test_one_time_far_in_the_future_waits_for_nothing(far: str) -> None:
    rows, labels = list(range(0, 3_000, 10)), list(range(5, 3_000, 10))
    (rows if far == "rows" else labels)[50] = 10**9
    taken, _ = take(labelled([frame(rows, ROWS)], [frame(labels, LABELS)]), Mark(), 10**6)
    times = [at for _, _, at in taken if at < 10**9]
    assert max(abs(at - place) for at, place in zip(times, sorted(times), strict=True)) < 40 * SPAN
    assert abs(taken.index((far == "labels", 50, 10**9)) - 100) < 20


@pytest.mark.parametrize("late", ["rows", "labels"])
def test_a_topic_that_is_behind_is_waited_for(late: str) -> None:
    rows, labels = frame([0, 500, 1_000], ROWS), frame([10, 510], LABELS)
    pauses = [Pause() for _ in range(QUIET_READS)]
    given_rows = [*pauses, rows] if late == "rows" else [rows]
    given_labels = [*pauses, labels] if late == "labels" else [labels]
    taken, _ = take(labelled(given_rows, given_labels), Mark(), 100)
    assert [at for _, _, at in taken] == [0, 10, 500, 510, 1_000]


@pytest.mark.parametrize("late", ["rows", "labels"])
def test_only_what_is_not_too_new_goes_before_a_topic_that_is_behind(late: str) -> None:
    """Of one read of the other one the first rows may come, and the last ones must wait."""
    early, later = [0, 10, 20], list(range(30, 1_000, 10))
    whole, parts = [[*early, *later]], [early, Pause(), later]
    rows = [x if isinstance(x, Pause) else frame(x, ROWS) for x in (whole, parts)[late == "rows"]]
    labels = [
        x if isinstance(x, Pause) else frame(x, LABELS) for x in (whole, parts)[late == "labels"]
    ]
    taken, _ = take(labelled(rows, labels), Mark(), 10**6)
    times = np.array([at for _, _, at in taken])
    assert (np.maximum.accumulate(times) - times).max() <= LATENESS + EVERY * 10


@pytest.mark.parametrize("late", ["rows", "labels"])
def test_records_that_a_topic_has_are_waited_for_however_long_it_takes(late: str) -> None:
    """As those of a topic whose broker takes its time to answer first."""
    pauses = [Pause() for _ in range(20 * QUIET_READS)]
    rows, labels = frame([0, 500, 1_000], ROWS), frame([10, 510], LABELS)
    given_rows = [*pauses, rows] if late == "rows" else [rows]
    given_labels = [*pauses, labels] if late == "labels" else [labels]
    taken, _ = take(labelled(given_rows, given_labels), Mark(), 100)
    assert [at for _, _, at in taken] == [0, 10, 500, 510, 1_000]


def test_a_quiet_topic_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that knows of no record that it has not given."""
    monkeypatch.setattr(MemorySource, "lag", lambda *_: {})
    pauses = [Pause() for _ in range(20 * QUIET_READS)]
    source = labelled([frame([0, 500], ROWS)], [*pauses, frame([10], LABELS)])
    taken, _ = take(source, Mark(), 100)
    assert [label for label, _, _ in taken] == [False, False, True]


def test_a_sample_holds_rows_and_labels() -> None:
    source = labelled([frame(range(100), ROWS)], [frame(range(100), LABELS)])
    pieces = source.sample(20, 1.0)
    assert [(is_of_labels(piece), len(piece)) for piece in pieces] == [(False, 10), (True, 10)]


def test_columns_of_labels_stay_after_a_restart() -> None:
    first = labelled([frame([0], ROWS)], [frame([0], LABELS)])
    saved = first.schema_state()
    other = LABELS | {"y": pl.Float64()}
    again = LabelledSource(
        MemorySource.of([frame([0], ROWS)]),
        MemorySource.of([frame([0], other)]),
        first.settings,
        target="y",
        declared={},
    )
    again.restore_schema_state(saved)
    assert again.label_schema == first.label_schema


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"by": ("idd",)},
            "[labels] by, in [labels.source], needs column 'idd', which is not there. Did you mean",
        ),
        (
            {"label_time": "att"},
            "[labels] label_time, in [labels.source], needs column 'att', which is not there.",
        ),
        (
            {"time": "y", "label_time": "at"},
            "[labels] time, in [source], needs column 'y', which is not there.",
        ),
        ({"time": "att"}, "[labels] time, in [source], needs column 'att', which is not there."),
        ({"horizon": "7d"}, "expects whole numbers for 'horizon', as column 'at' holds integers"),
        ({"horizon": 0}, "[labels] expects a 'horizon' of 1 to"),
    ],
)
def test_what_does_not_fit_is_one_sentence(change: dict[str, Any], sentence: str) -> None:
    given_settings = {"source": {}, "by": ("id",), "time": "at", "horizon": 400} | change
    source = LabelledSource(
        MemorySource.of([frame([0], ROWS)]),
        MemorySource.of([frame([0], LABELS)]),
        LabelSettings(**given_settings),
        target="y",
        declared={},
    )
    with pytest.raises(UserError) as error:
        source.schema({})
    assert sentence in str(error.value)
