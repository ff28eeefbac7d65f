"""Rows and late labels: joined as a plain loop joins them, however both are cut."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.columnar.event_time import AGREE, NEVER
from engine.running.late_labels.label_join import Arrivals, Frames, LabelJoin
from engine.running.saving.codec import decode, encode
from tests.size import examples

HORIZON, LATENESS = 40, 8
Item = tuple[bool, int, int, int]
"""Whether it is a label, its key, its time, and its own number."""


@dataclass
class Outcome:
    """What became of rows and labels, by their own numbers."""

    pairs: set[tuple[int, int]] = field(default_factory=set)
    duplicate_rows: set[int] = field(default_factory=set)
    duplicate_labels: set[int] = field(default_factory=set)
    expired: set[int] = field(default_factory=set)
    unmatched: set[int] = field(default_factory=set)
    waiting: int = 0


def expected(items: Sequence[Item]) -> Outcome:
    """Join one by one, with dicts."""
    outcome, clock = Outcome(), 0
    rows: dict[int, tuple[int, int | None]] = {}
    labels: dict[int, tuple[int, int]] = {}
    left: list[tuple[int, int, bool]] = []
    for is_label, key, time, number in items:
        clock = max(clock, time)
        row, label = rows.get(key), labels.get(key)
        if is_label:
            near = row is not None and abs(time - row[0]) <= HORIZON
            if near and row is not None and row[1] is None:
                outcome.duplicate_labels.add(number)
            elif near and row is not None and row[1] is not None:
                outcome.pairs.add((row[1], number))
                rows[key] = row[0], None
            elif label is not None and time - label[0] <= HORIZON:
                outcome.duplicate_labels.add(number)
            else:
                left += [] if label is None else [(*label, True)]
                labels[key] = time, number
        elif row is not None and time - row[0] <= HORIZON:
            outcome.duplicate_rows.add(number)
        else:
            left += [] if row is None or row[1] is None else [(row[0], row[1], False)]
            rows[key] = time, number
            if label is not None and abs(time - label[0]) <= HORIZON:
                outcome.pairs.add((number, label[1]))
                rows[key] = time, None
                del labels[key]
    left += [(time, number, False) for time, number in rows.values() if number is not None]
    left += [(*label, True) for label in labels.values()]
    oldest = clock - HORIZON - LATENESS if len(items) >= AGREE else -1_000
    gone = [item for item in left if item[0] < oldest]
    outcome.expired = {number for _, number, is_label in gone if not is_label}
    outcome.unmatched = {number for _, number, is_label in gone if is_label}
    outcome.waiting = len(left) - len(gone)
    return outcome


def arrivals(batch: Sequence[Item], *, labels: bool) -> Arrivals:
    turns = np.flatnonzero([item[0] == labels for item in batch])
    items = [batch[turn] for turn in turns.tolist()]
    keys, times, own = (np.array([item[i] for item in items], np.int64) for i in (1, 2, 3))
    frame = pl.DataFrame({"number": own}, schema={"number": pl.Int64})
    return Arrivals(keys=keys.astype(np.uint64), times=times, turns=turns, frames={"frame": frame})


def numbers(frames: Frames) -> list[int]:
    found: list[int] = frames["frame"]["number"].to_list() if frames else []
    return found


def join_all(join: LabelJoin, batches: Iterable[Sequence[Item]]) -> Outcome:
    """Settle after each batch."""
    outcome = Outcome()
    for batch in batches:
        add(join, batch, outcome)
        settle(join, outcome)
    return outcome


def add(join: LabelJoin, batch: Sequence[Item], outcome: Outcome) -> None:
    rows, labels = [i for i in batch if not i[0]], [i for i in batch if i[0]]
    added = join.add(arrivals(batch, labels=False), arrivals(batch, labels=True))
    outcome.duplicate_rows |= {i[3] for i in itertools.compress(rows, added.duplicate_rows)}
    outcome.duplicate_labels |= {i[3] for i in itertools.compress(labels, added.duplicate_labels)}


def settle(join: LabelJoin, outcome: Outcome) -> tuple[list[tuple[int, int]], list[int], list[int]]:
    """Return pairs, and the numbers of what expired; all of it is added to the outcome."""
    settled = join.settle()
    pairs = list(zip(numbers(settled.rows), numbers(settled.labels), strict=True))
    expired, unmatched = numbers(settled.expired), numbers(settled.unmatched)
    outcome.pairs |= set(pairs)
    outcome.expired |= set(expired)
    outcome.unmatched |= set(unmatched)
    outcome.waiting = join.waiting
    return pairs, expired, unmatched


def restarted(join: LabelJoin) -> LabelJoin:
    """Return one that goes on from the checkpoint of another."""
    again = new_join()
    again.restore(decode(b"".join(map(bytes, encode({"join": join.snapshot()}, {})))).state["join"])
    return again


def new_join(most: int = 10**9) -> LabelJoin:
    return LabelJoin(horizon=HORIZON, lateness=LATENESS, most=most)


@st.composite
def streams(draw: st.DrawFn) -> list[Item]:
    """Rows and labels of few keys, none more than the lateness behind the newest before it."""
    clock, items = 0, list[Item]()
    for number in range(draw(st.integers(0, 60))):
        time = clock + draw(st.integers(-LATENESS, HORIZON // 4))
        clock = max(clock, time)
        items.append((draw(st.booleans()), draw(st.integers(0, 5)), time, number))
    return items


def cut(items: Sequence[Item], sizes: Iterable[int]) -> Iterator[Sequence[Item]]:
    at = 0
    for size in sizes:
        yield items[at : at + size]
        at += size
    yield items[at:]


@settings(deadline=None, max_examples=examples(60))
@given(streams(), st.lists(st.integers(0, 25), max_size=6), st.integers(0, 6))
def test_any_cut_and_a_restart_join_as_one_by_one(
    items: list[Item], sizes: list[int], restart: int
) -> None:
    want = expected(items)
    batches = list(cut(items, sizes))
    join = new_join()
    first = join_all(join, batches[:restart])
    again = restarted(join)
    rest = join_all(again, batches[restart:])
    assert first.pairs | rest.pairs == want.pairs
    assert first.duplicate_rows | rest.duplicate_rows == want.duplicate_rows
    assert first.duplicate_labels | rest.duplicate_labels == want.duplicate_labels
    assert first.unmatched | rest.unmatched == want.unmatched
    assert first.expired | rest.expired == want.expired
    assert again.waiting == want.waiting


@settings(deadline=None, max_examples=examples(60))
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 300)), max_size=40),
    st.sets(st.integers(0, 40)),
    st.sets(st.integers(0, 40)),
    st.integers(0, 40),
)
def test_what_is_settled_depends_on_when_and_not_on_what_is_added_together(
    drawn: list[tuple[bool, int, int]], settled: set[int], cuts: set[int], restart: int
) -> None:
    """Times are of any order here, later than the lateness too."""
    items = [(*item, number) for number, item in enumerate(drawn)]

    def outcomes(cuts: set[int], restart: int | None) -> tuple[Any, Outcome]:
        join, outcome, order = new_join(), Outcome(), list[Any]()
        ends = {cut for cut in cuts | settled if cut < len(items)}
        for start, stop in itertools.pairwise(sorted({0, len(items), *ends})):
            if start in settled:
                order.append(settle(join, outcome))
            add(join, items[start:stop], outcome)
            if restart is not None and start <= restart < stop:
                join = restarted(join)
        order.append(settle(join, outcome))
        return order, outcome

    assert outcomes(cuts, restart) == outcomes(set(), None)


def test_every_row_and_label_has_one_outcome() -> None:
    rng = np.random.default_rng(1)
    begins = np.sort(rng.integers(0, 2_000, 800)).tolist()
    rows = [(False, key, begin, key) for key, begin in enumerate(begins)]
    delays = rng.integers(0, 60, 800)
    labels = [(True, key, begins[key] + int(delay), key) for key, delay in enumerate(delays)]
    labels = [label for label in labels if label[1] % 10]  # a tenth never come
    labels += [label for label in labels if label[1] % 20 == 1]  # some twice
    items = sorted([*rows, *labels], key=lambda item: (item[2], item[0]))
    join = new_join()
    done = join_all(join, cut(items, [100] * 20))
    in_time = set(np.flatnonzero(delays <= HORIZON).tolist())
    assert done.pairs == {(key, key) for key in in_time if key % 10}
    left = join.rows.waiting
    assert len(done.pairs) + len(done.expired) + left == len(rows)
    twice = Counter(label[1] for label in labels)
    assert done.duplicate_labels == {key for key, n in twice.items() if n > 1}


def test_what_waits_is_given_back_when_its_label_comes() -> None:
    join = new_join()
    for batch in range(40):
        start = 10 * batch
        rows = [(False, n, n // 4, n) for n in range(start, start + 10)]
        join_all(join, [rows])
    assert [len(segment.numbers) for segment in join.rows.held] != [10] * 40
    join_all(join, [[(True, n, n // 4, n) for n in range(400)]])
    assert (join.waiting, join.rows.held) == (0, [])


def many(batch: int, rows: int) -> Arrivals:
    """A batch of rows with the batch's number as their time."""
    own = np.arange(batch * rows, (batch + 1) * rows)
    times, turns = np.full(rows, batch), np.zeros(rows, np.int64)
    frame = pl.DataFrame({"number": own})
    return Arrivals(keys=own.astype(np.uint64), times=times, turns=turns, frames={"frame": frame})


@pytest.mark.parametrize("are_labels", [False, True])
def test_what_takes_too_many_bytes_leaves_oldest_first(are_labels: bool) -> None:
    most, n, left = 3_000_000, 20_000, 0
    join, none = new_join(most=most), many(0, 0)
    for at in range(5):
        batch = many(at, n)
        join.add(none, batch) if are_labels else join.add(batch, none)
        settled = join.settle()
        gone = settled.forgotten_labels if are_labels else settled.forgotten_rows
        assert sorted(numbers(settled.unmatched)) == [*range(left, left + gone)] * are_labels
        left += gone
        assert join.rows.live_bytes + join.labels.live_bytes <= most
    assert 0 < left < 4 * n
    assert join.waiting == 5 * n - left
    again = new_join()
    again.restore(join.snapshot())
    assert again.waiting == join.waiting
    for at in range(5):
        batch = many(at, n)
        again.add(batch, none) if are_labels else again.add(none, batch)
        assert numbers(again.settle().rows) == [*range(max(at * n, left), (at + 1) * n)]


def test_one_time_far_ahead_expires_little() -> None:
    join = new_join()
    join_all(join, [[(False, n, 100, n) for n in range(AGREE)]])
    far = [(False, 9, 10**9, 9)]
    added = join.add(arrivals(far, labels=False), arrivals(far, labels=True))
    assert (added.ahead, numbers(join.settle().expired), join.clock) == (1, [], 100)


def test_times_far_ahead_move_the_clock_where_all_are() -> None:
    join, outcome = new_join(), Outcome()
    add(join, [(False, n, 100, n) for n in range(AGREE)], outcome)
    add(join, [(False, 10 + n, 1_000 + n, 10 + n) for n in range(AGREE - 1)], outcome)
    assert join.clock == 100
    add(join, [(False, 30, 990, 30)], outcome)
    settle(join, outcome)
    assert (join.clock, outcome.expired) == (1_006, set(range(AGREE)))


@pytest.mark.parametrize("wild", range(AGREE))
def test_a_stream_far_ahead_of_its_first_label_is_followed_but_not_its_one_wild_time(
    wild: int,
) -> None:
    join, outcome = new_join(), Outcome()
    add(join, [(True, 9, 0, 9)], outcome)
    times = [1_000 + HORIZON * n for n in range(AGREE)]
    times[wild] = 10**9
    add(join, [(False, n, time, n) for n, time in enumerate(times)], outcome)
    assert join.clock == max(time for time in times if time < 10**9)


def test_rows_further_apart_than_the_first_label_and_they_expire_in_time() -> None:
    """A day each, a horizon of three; a label a week before: at the end four rows wait."""
    join, outcome = LabelJoin(horizon=3, lateness=0, most=1 << 20), Outcome()
    add(join, [(True, 99, 0, 99)], outcome)
    add(join, [(False, day, day, day) for day in range(9, 29)], outcome)
    settle(join, outcome)
    assert (join.clock, join.waiting) == (28, 4)


def test_a_time_far_ahead_that_comes_first_expires_nothing() -> None:
    join, outcome = new_join(), Outcome()
    add(join, [(False, 9, 10**9, 9)], outcome)
    add(join, [(False, n, 100 + n, n) for n in range(3)], outcome)
    settle(join, outcome)
    assert (outcome.expired, join.clock, join.waiting) == (set(), NEVER, 4)
    add(join, [(False, 20 + n, 110 + n, 20 + n) for n in range(AGREE)], outcome)
    settle(join, outcome)
    assert (outcome.expired, join.clock) == (set(), 110 + AGREE - 1)
