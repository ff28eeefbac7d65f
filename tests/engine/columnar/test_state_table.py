"""States per key: the same as a dictionary that forgets its oldest key, however rows are cut."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.columnar.event_time import NEVER
from engine.columnar.state_table import Rounds, StateTable
from engine.types.arrays import Ints
from tests.size import examples

STRIDE = 64
"""Hashes whose lowest bits are equal, so that their places in the index collide."""


UNKNOWN = -7
"""A row without a time."""


def ticks(times: Sequence[int] | None) -> Ints | None:
    if times is None:
        return None
    return np.array([NEVER if time == UNKNOWN else time for time in times], np.int64)


def passed(
    table: StateTable,
    keys: Sequence[int],
    numbers: Sequence[float],
    times: Sequence[int] | None = None,
) -> tuple[Any, ...]:
    """Half of the state before, plus the row's number: round by round."""
    entry = table.enter(STRIDE * np.array(keys, np.uint64), ticks(times))
    rounds = Rounds.of(np.maximum(entry.previous - entry.row, -1))
    x = np.array(numbers, np.float32)[rounds.order, None]
    start: Any = table.states(entry, rounds.first)
    state = start
    states, at = [np.empty((0, 1), np.float32)], 0
    for size in rounds.sizes:
        state = state[:size] / 2 + x[at : at + size]
        states.append(state)
        at += size
    after = np.concatenate(states)[rounds.place]
    table.put(entry.slots, after)
    before = rounds.states_before(start, after)
    return before.ravel().tolist(), after.ravel().tolist(), entry.forgotten, entry.expired


def one_by_one(
    keys: Sequence[int], numbers: Sequence[float], times: Sequence[int], size: int, idle: int
) -> tuple[list[float], list[float], int, int]:
    memory: OrderedDict[int, tuple[float, int]] = OrderedDict()
    before, after, forgotten, expired = [], [], 0, 0
    for key, number, time in zip(keys, numbers, times, strict=True):
        state, newest = memory.pop(key, (0.0, UNKNOWN))
        if UNKNOWN not in (newest, time) and time - newest > idle:
            state, expired = 0.0, expired + 1
        before.append(state)
        after.append(state / 2 + number)
        memory[key] = (after[-1], max(newest, time))
        if len(memory) > size:
            memory.popitem(last=False)
            forgotten += 1
    return before, after, forgotten, expired


@settings(max_examples=examples(50))
@given(
    keys=st.lists(st.integers(0, 9), max_size=80),
    cuts=st.lists(st.integers(0, 80), max_size=4),
    size=st.integers(1, 12),
    idle=st.integers(1, 30),
    times=st.none() | st.lists(st.integers(UNKNOWN, 60), min_size=80, max_size=80),
    resumed=st.booleans(),
)
def test_it_is_a_dictionary_that_forgets(
    keys: list[int],
    cuts: list[int],
    size: int,
    idle: int,
    times: list[int] | None,
    resumed: bool,
) -> None:
    """By the number of rows, and by times of any order, some of which are not known."""
    numbers = [float(i % 5) for i in range(len(keys))]

    def new() -> StateTable:
        return StateTable(width=1, keys=size, idle=idle, timed=times is not None)

    table = new()
    before, after, forgotten, expired = [], [], 0, 0
    for start, stop in itertools.pairwise([0, *sorted(min(cut, len(keys)) for cut in cuts), 80]):
        part = None if times is None else times[start : min(stop, len(keys))]
        found = passed(table, keys[start:stop], numbers[start:stop], part)
        before += found[0]
        after += found[1]
        forgotten, expired = forgotten + found[2], expired + found[3]
        if resumed:
            snapshot, table = table.snapshot(), new()
            table.restore(snapshot)
    clock = range(len(keys)) if times is None else times[: len(keys)]
    assert (before, after, forgotten, expired) == one_by_one(keys, numbers, clock, size, idle)
    assert len(table) <= size


@given(
    keys=st.lists(st.integers(0, 9), max_size=60),
    cut=st.integers(0, 60),
    times=st.none() | st.lists(st.integers(UNKNOWN, 60), min_size=60, max_size=60),
)
def test_looking_up_finds_what_entering_finds(
    keys: list[int], cut: int, times: list[int] | None
) -> None:
    table = StateTable(width=1, keys=20, idle=15, timed=times is not None)
    cut = min(cut, len(keys))
    first, then = (None, None) if times is None else (times[:cut], times[cut : len(keys)])
    passed(table, keys[:cut], [1.0] * cut, first)
    before = table.snapshot()
    rounds, start = table.look_up(STRIDE * np.array(keys[cut:], np.uint64), ticks(then))
    assert all(np.array_equal(value, before[name]) for name, value in table.snapshot().items())
    entry = table.enter(STRIDE * np.array(keys[cut:], np.uint64), ticks(then))
    assert rounds.before.tolist() == np.maximum(entry.previous - entry.row, -1).tolist()
    assert start.tolist() == table.states(entry, rounds.first).tolist()


@given(keys=st.lists(st.integers(0, 5), max_size=40))
def test_no_two_rows_of_a_round_have_the_same_key(keys: list[int]) -> None:
    newest: dict[int, int] = {}
    before = []
    for row, key in enumerate(keys):
        before.append(newest.get(key, -1))
        newest[key] = row
    rounds = Rounds.of(np.array(before, np.int64))
    assert sorted(rounds.order.tolist()) == list(range(len(keys)))
    assert rounds.order[rounds.place].tolist() == list(range(len(keys)))
    assert (np.diff(rounds.sizes) <= 0).all()
    at = 0
    first = [keys[row] for row in rounds.first]
    for size in rounds.sizes.tolist():
        rows = rounds.order[at : at + size]
        assert [keys[row] for row in rows] == first[:size]
        at += size
    assert at == len(keys)


def test_memory_is_taken_for_the_keys_that_are_there() -> None:
    table = StateTable(width=64, keys=1 << 24)
    assert table.nbytes == 0
    passed_keys = np.arange(10, dtype=np.uint64)
    table.enter(passed_keys)
    assert 10 * 4 * 64 < table.nbytes < 100_000
