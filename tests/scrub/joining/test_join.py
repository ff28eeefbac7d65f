"""Joins with another stream: lists of rows and events in, list of what rows get out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.columnar import event_time
from engine.columnar.event_time import AGREE
from engine.scrub.joining import recent_events
from engine.scrub.joining.stage import Join
from engine.types import Batch, HeadraceError, UserError
from tests.scrub.conftest import batch_of
from tests.scrub.joining.streams import Event, InOrder, Partitions, expected, rows_frame, stage_of
from tests.size import examples

Rows = Sequence[tuple[str | None, int | None]]
KEYS = st.sampled_from(["a", "b", "c", None])
ROWS = st.lists(st.tuples(KEYS, st.none() | st.integers(0, 60)), max_size=40)
EVENTS = st.lists(st.tuples(KEYS, st.none() | st.integers(0, 60)), max_size=40)
LENGTHS = st.fixed_dictionaries(
    {
        "within": st.sampled_from([0, 3, 10, 40]),
        "wait": st.sampled_from([0, 2, 15]),
        "lateness": st.sampled_from([0, 4, 30]),
    }
)
CUTS = st.lists(st.integers(0, 40), max_size=6)
CLOSE: dict[str, Any] = {"ahead": 1_000}


def numbered(events: Sequence[tuple[str | None, int | None]]) -> list[Event]:
    return [Event(key, at, x) for x, (key, at) in enumerate(events)]


def joined(stage: Join, rows: Rows, cuts: Sequence[int] = ()) -> list[int | None]:
    """What the rows get, in batches that end at these places."""
    frame, got, at = rows_frame(rows), list[int | None](), 0
    for end in [*sorted(cuts), len(rows)]:
        done = stage.apply(batch_of(frame[at : max(at, end)]))
        got += done.frame["x"].to_list()
        at = max(at, end)
    return got


def apply(stage: Join, rows: Rows) -> Batch:
    return stage.apply(batch_of(rows_frame(rows)))


def counts(batch: Batch) -> dict[str, int]:
    return {what: n for (_, what), n in batch.counts.items() if n}


# ---------------------------------------------------------------------------------------- semantics


def test_a_row_gets_the_newest_event_of_its_key_within_the_time_before_it() -> None:
    events = numbered([("a", 10), ("b", 12), ("a", 20), ("a", 20)])
    rows: Rows = [("a", 9), ("a", 10), ("a", 19), ("a", 20), ("b", 22), ("b", 23), ("c", 30)]
    done = apply(stage_of(InOrder({"e": events})), rows)
    assert done.frame["x"].to_list() == [None, 0, 0, 3, 1, None, None]
    assert counts(done) == {"events": 4, "unmatched": 3}


def test_with_wait_it_gets_the_first_one_after_it_if_there_is_none_before() -> None:
    events = numbered([("a", 10), ("a", 12), ("a", 30)])
    rows: Rows = [("a", 4), ("a", 5), ("a", 11), ("a", 21), ("a", 25), ("a", 31)]
    stage = stage_of(InOrder({"e": events}), within=9, wait=5)
    assert joined(stage, rows) == [None, 0, 0, 1, 2, 2]


def test_a_row_without_an_event_is_rejected_where_asked_for() -> None:
    stage = stage_of(InOrder({"e": numbered([("a", 10)])}), missing="reject", wait=2)
    done = apply(stage, [("a", 11), ("a", 40), (None, 41), ("a", None)])
    assert done.frame["x"].to_list() == [0]
    assert [(r.stage, r.reason, r.rows["detail"].to_list()) for r in done.rejects] == [
        ("s", "no_key", ["Expected a key in 'key', got null."]),
        ("s", "no_time", ["Expected an event time in 'at', got null."]),
        (
            "s",
            "unmatched",
            ["No event of [s] has its key (key) at most 10 before it or 2 after it."],
        ),
    ]
    assert counts(done) == {"events": 1, "unmatched": 3, "no_time": 1}


def test_events_without_a_key_or_time_are_counted_and_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage = stage_of(InOrder({"e": numbered([("a", None), (None, 10), ("a", 10)])}))
    done = apply(stage, [("a", 11)])
    assert done.frame["x"].to_list() == [2]
    assert counts(done) == {"events": 1, "unreadable": 2}
    assert "[scrub.s.source] has 2 records without a key or time, first at 0 of 'e'" in caplog.text
    assert "[scrub.s.source] had 2 records without a key or time: the log names the first." in (
        stage.remarks()
    )


# ----------------------------------------------------------------------------------- by brute force


@given(rows=ROWS, events=EVENTS, lengths=LENGTHS, cuts=CUTS, each=st.integers(1, 9))
@settings(max_examples=examples(80), deadline=None)
def test_it_is_a_search_through_all_events_however_both_are_cut(
    rows: Rows, events: Any, lengths: dict[str, int], cuts: list[int], each: int
) -> None:
    source = InOrder({"e": numbered(events)}, each)
    got = joined(stage_of(source, **lengths, **CLOSE), rows, cuts)
    assert got == expected(rows, list(source.logs.values()), **lengths)


@given(
    rows=ROWS,
    events=st.lists(st.tuples(KEYS, st.integers(0, 2)), max_size=40),
    times=st.permutations(range(60)),
    lengths=LENGTHS,
    cuts=CUTS,
    each=st.integers(1, 9),
)
@settings(max_examples=examples(80), deadline=None)
def test_partitions_of_a_topic_have_clocks_of_their_own(
    rows: Rows, events: Any, times: list[int], lengths: dict[str, int], cuts: list[int], each: int
) -> None:
    class Whole(Partitions):
        endless = False

    logs: dict[str, list[Event]] = {"t/0": [], "t/1": [], "t/2": []}
    for x, ((key, partition), at) in enumerate(zip(events, times, strict=False)):
        logs[f"t/{partition}"].append(Event(key, at, x))
    got = joined(stage_of(Whole(logs, each), **lengths, **CLOSE), rows, cuts)
    assert got == expected(rows, list(logs.values()), **lengths)


@given(rows=ROWS, events=EVENTS, lengths=LENGTHS, cuts=CUTS, each=st.integers(1, 9))
@settings(max_examples=examples(60), deadline=None)
def test_a_run_that_resumes_after_each_batch_goes_on_as_if_nothing_was(
    rows: Rows, events: Any, lengths: dict[str, int], cuts: list[int], each: int
) -> None:
    source = InOrder({"e": numbered(events)}, each)
    frame, got, at, saved = rows_frame(rows), list[int | None](), 0, None
    for end in [*sorted(cuts), len(rows)]:
        stage = stage_of(source, **lengths, **CLOSE)
        if saved is not None:
            stage.restore(saved)
        got += stage.apply(batch_of(frame[at : max(at, end)])).frame["x"].to_list()
        at, saved = max(at, end), stage.snapshot()
    assert got == expected(rows, list(source.logs.values()), **lengths)


def test_a_snapshot_stays_what_it_was(same: Any) -> None:
    events = numbered([("a", at) for at in range(100)])
    stage = stage_of(InOrder({"e": events}))
    apply(stage, [("a", 5)])
    saved = stage.snapshot()
    after = apply(stage, [("a", 50)]).frame
    apply(stage, [("a", 90)])
    stage.restore(saved)
    assert apply(stage, [("a", 50)]).frame.equals(after)
    assert same(
        stage_of(InOrder({"e": events})).snapshot(), stage_of(InOrder({"e": []})).snapshot()
    )


# -------------------------------------------------------------------------------------- late, ahead


def test_late_rows_and_events_are_counted_and_told() -> None:
    early = [("b", 0)] * AGREE
    events = numbered([*early, ("a", 20), ("a", 10), ("a", 30)])
    stage = stage_of(InOrder({"e": events}), lateness=5)
    done = apply(stage, [("a", 14), ("a", 15), ("a", 30), ("a", 24), ("a", 25)])
    # The event of 10 came after that of 20, so rows see it from 15 on. Of the last two, one is
    # late; what it asks for is remembered all the same.
    assert done.frame["x"].to_list() == [None, 9, 10, 8, 8]
    assert counts(done) == {"events": 11, "events_late": 1, "late": 1, "unmatched": 1}
    (said,) = stage.remarks()
    assert said.startswith("[scrub.s]: 1 event and 1 row came more than 'lateness' = 5 after")


def test_what_it_tells_after_a_resume_counts_from_the_beginning() -> None:
    log = numbered([*[("b", 20)] * AGREE, (None, 20), ("a", 20)])
    stage = stage_of(InOrder({"e": log}), lateness=5)
    apply(stage, [("a", 30), ("a", 24)])
    said = list(stage.remarks())
    assert said == [
        "[scrub.s.source] had 1 record without a key or time: the log names the first.",
        "[scrub.s]: 1 row came more than 'lateness' = 5 after a newer one, so some rows may lack "
        "theirs: raise it.",
    ]
    other = stage_of(InOrder({"e": log}), lateness=5)
    other.restore(stage.snapshot())
    assert list(other.remarks()) == said
    apply(other, [("a", 24)])
    assert "[scrub.s]: 2 rows came more than" in other.remarks()[1]


def test_events_that_come_after_the_rows_that_they_are_for_are_counted_and_told() -> None:
    log = [Event("b", 0, -1)] * AGREE
    stage = stage_of(Partitions({"t/0": log}), lateness=2)
    assert joined(stage, [("a", 10)]) == [None]
    log += [Event("a", 9, 1), Event("a", 11, 2), Event("a", 13, 3)]
    done = apply(stage, [("a", 12), ("a", 14)])
    assert done.frame["x"].to_list() == [2, 3]
    assert counts(done) == {"events": 3, "events_missed": 1}
    assert "[scrub.s]: 1 event came when rows that they may have been for" in stage.remarks()[0]
    other = stage_of(Partitions({"t/0": log}), lateness=2)
    other.restore(stage.snapshot())
    log += [Event("a", 14, 4), Event("a", 15, 5)]
    assert counts(apply(other, [("a", 15)])) == {"events": 2, "events_missed": 1}


def test_one_wrong_time_neither_reads_nor_forgets_everything() -> None:
    events = numbered([("a", at) for at in range(0, 2_000, 2)])
    stage = stage_of(InOrder({"e": events}, each=10), ahead=100)
    rows: Rows = [*[("a", 10)] * AGREE, ("a", 1_900), ("a", 11)]
    done = apply(stage, rows)
    assert done.frame["x"].to_list() == [*[5] * AGREE, None, 5]
    assert counts(done) == {"events": 10, "ahead": 1, "unmatched": 1}
    # Eight in sequence are no mistake.
    done = apply(stage, [("a", 1_900)] * AGREE)
    assert done.frame["x"].to_list() == [None] * (AGREE - 1) + [950]
    assert "1 row came more than 'ahead'" not in " ".join(stage.remarks())
    assert "8 rows came more than 'ahead'" in " ".join(stage.remarks())


@pytest.mark.parametrize("each", [1, 3, 40])
@pytest.mark.parametrize("place", range(AGREE))
@pytest.mark.parametrize("wrong", [9_999, -9_999])
def test_one_wrong_time_among_the_first_rows_takes_no_other_its_event(
    wrong: int, place: int, each: int
) -> None:
    """However the rows are cut: also where it is all that is known."""
    events = numbered([("a", at) for at in range(100)])
    stage = stage_of(InOrder({"e": events}, each=10), lateness=2)
    rows = [("a", at) for at in range(40)]
    rows.insert(place, ("a", wrong))
    parts = [apply(stage, rows[at : at + each]) for at in range(0, len(rows), each)]
    found = [x for part in parts for x in part.frame["x"]]
    assert found.pop(place) is None
    assert found == list(range(40))
    told = sum(counts(part).get("ahead", 0) for part in parts)
    assert told == 1 if wrong > 0 else told <= 1


def test_an_event_of_the_far_future_hides_none_of_those_after_it() -> None:
    events = numbered([("a", 9_999), *(("a", at) for at in range(40)), ("a", 9_999), ("a", 41)])
    stage = stage_of(InOrder({"e": events}), ahead=100)
    done = apply(stage, [("a", 10), ("a", 41)])
    assert done.frame["x"].to_list() == [11, 42]
    assert counts(done) == {"events": 43, "events_ahead": 2}


# ------------------------------------------------------------------------------------------- memory


def test_events_that_no_row_asks_for_again_are_dropped() -> None:
    events = numbered([(f"k{at % 50}", at) for at in range(5_000)])
    stage = stage_of(InOrder({"e": events}, each=40))
    kept = []
    for at in range(0, 5_000, 100):
        apply(stage, [("k0", at)])
        kept.append(stage.rows)
    assert max(kept[AGREE:]) < 250  # before eight rows, none is
    assert stage.nbytes > 0
    assert len(stage.snapshot()["events"]) < 8


def test_of_too_many_events_the_oldest_are_forgotten_and_counted() -> None:
    events = numbered([("a", at) for at in range(100)])
    stage = stage_of(InOrder({"e": events}, each=100), within=1_000, events=32)
    # What lies ahead of the rows pushes nothing out that they ask for.
    assert joined(stage, [("a", 20)]) == [20]
    done = apply(stage, [("a", 40), ("a", 99)])
    assert done.frame["x"].to_list() == [None, 99]
    assert counts(done) == {"events": 78, "events_forgotten": 68, "unmatched": 1}
    assert stage.rows == 32
    (said,) = stage.remarks()
    assert said.startswith("[scrub.s]: 68 events that rows could still ask for were forgotten, as")


# ------------------------------------------------------------------------------------------ waiting


def test_rows_are_held_back_for_a_topic_until_the_clock_on_the_wall_has_come_that_far(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An event that comes meanwhile is joined; where none comes, rows go on."""
    now, written = 1_000.0, {"t/0": [Event("b", 0, -1)] * AGREE}
    waits: list[float] = []

    class Slow(Partitions):
        times = pl.Datetime("ms")

        def read(self, max_rows: int, max_bytes: int, timeout: float) -> Any:
            nonlocal now
            records = super().read(max_rows, max_bytes, timeout)
            if records is None:
                waits.append(timeout)
                now += timeout
                if len(waits) == 4:
                    written["t/0"].append(Event("a", 1_002_000, 7))
            return records

    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setattr("time.time_ns", lambda: int(now * 1e9))
    stage = stage_of(Slow(written), within="1s", wait="3s")

    def joined_at(*rows: tuple[str, int]) -> list[int | None]:
        return stage.apply(batch_of(rows_frame(rows, Slow.times))).frame["x"].to_list()

    assert joined_at(("a", 1_000_000)) == [7]
    assert now == pytest.approx(1_003.0)
    assert waits[0] == 0.0
    assert max(waits) <= 0.5
    # Rows of long ago wait for nothing.
    assert joined_at(("a", 1_000_000), ("b", 999_000)) == [7, None]
    assert now == pytest.approx(1_003.0)


def test_a_wait_can_be_interrupted() -> None:
    class Quiet(Partitions):
        times = pl.Datetime("us")

        def read(self, max_rows: int, max_bytes: int, timeout: float) -> Any:
            side.interrupt()

    stage = stage_of(Quiet({"t/0": []}), within="1h", wait="1h")
    assert stage.side is not None
    side = stage.side
    now = time.time_ns() // 1_000
    with pytest.raises(HeadraceError, match=r"\[scrub.s.source\] was interrupted while rows wai"):
        stage.apply(batch_of(rows_frame([("a", now)], Quiet.times)))


# ----------------------------------------------------------------------------------- wrong settings


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"by": []}, "names no key columns"),
        ({"by": {"key": "no"}}, "[scrub.s.source]"),
        ({"event_time": "x2"}, "x2"),
        ({"within": "10m"}, "whole numbers for 'within'"),
        ({"within": -1}, "whole numbers for 'within'"),
        ({"within": 1 << 60}, "less than 2**58 ticks"),
        ({"ahead": 0}, "positive 'ahead'"),
        ({"columns": ["key"], "prefix": ""}, "key"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        stage_of(InOrder({"e": []}), **options)
    assert said in str(error.value)


def test_integers_do_not_say_how_long_to_wait_for_a_topic() -> None:
    with pytest.raises(UserError, match="datetime or date in 'time' to 'wait'"):
        stage_of(Partitions({"t/0": []}), wait=5)


def test_its_loops_are_compiled_once_wherever_a_state_comes_from() -> None:
    """A checkpoint's arrays cannot be written to."""
    stage = stage_of(InOrder({"e": numbered([("a", at) for at in range(20)])}))
    apply(stage, [("a", 5)])
    saved = stage.snapshot()
    for run in saved["events"]:
        for array in run.values():
            if isinstance(array, np.ndarray):
                array.flags.writeable = False
    stage.restore(saved)
    assert apply(stage, [("a", 7)]).frame["x"].to_list() == [7]
    assert {len(loop.signatures) for loop in (event_time._walk, recent_events._find)} == {1}


def test_columns_that_changed_since_the_checkpoint_are_named() -> None:
    stage = stage_of(InOrder({"e": numbered([("a", 1)])}))
    apply(stage, [("a", 1)])
    other = stage_of(InOrder({"e": []}), prefix="e_")
    with pytest.raises(UserError, match=r"first of them 'x': declare them"):
        other.restore(stage.snapshot())
