"""What tunes itself: told what happened and when, it decides; nothing here waits or measures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.loading.autotune import EPOCH_SECONDS, LOW_WATER_EPOCHS, DecodeThreads, QueueDepth

MIB = 1 << 20


class Clock:
    """Calls of one epoch after the other."""

    def __init__(self) -> None:
        self.now = 1.0

    def tick(self) -> float:
        self.now += EPOCH_SECONDS
        return self.now


def depth_of(limit: int, fixed: int | None = None) -> tuple[QueueDepth, Clock]:
    depth, clock = QueueDepth(limit, fixed=fixed, start=0.125), Clock()
    depth.item_taken(0, 0.0, clock.now)  # the first call only starts the clock
    return depth, clock


def test_a_consumer_that_starves_behind_a_stopped_producer_gets_a_deeper_queue() -> None:
    depth, clock = depth_of(64 * MIB)
    assert depth.bytes == 8 * MIB
    for expected in (16, 32, 64, 64):
        depth.blocked(1)
        depth.item_taken(0, 0.1, clock.tick())
        assert depth.bytes == expected * MIB


def test_a_depth_below_one_item_grows_to_what_was_not_let_in() -> None:
    depth, clock = depth_of(64 * MIB)
    depth.bytes = 1
    depth.blocked(2 * 5 * MIB)
    depth.item_taken(0, 0.1, clock.tick())
    assert depth.bytes == 10 * MIB


def test_what_still_lies_above_the_depth_is_no_reason_to_shrink_again() -> None:
    """A consumer of minutes per item: the queue holds what it held, whatever its depth."""
    depth, clock = depth_of(64 * MIB)
    for _ in range(LOW_WATER_EPOCHS * 10):
        depth.item_taken(7 * MIB, 0.0, clock.tick())
    assert 6 * MIB < depth.bytes < 7 * MIB


def test_a_slow_producer_gets_no_memory_for_nothing() -> None:
    """It was never stopped: a deeper queue would be as empty."""
    depth, clock = depth_of(64 * MIB)
    for _ in range(50):
        depth.item_taken(0, 0.4, clock.tick())
    assert depth.bytes == 8 * MIB


def test_a_slow_consumer_gets_no_memory_for_nothing() -> None:
    depth, clock = depth_of(64 * MIB)
    for _ in range(LOW_WATER_EPOCHS - 2):
        depth.blocked(1)
        depth.item_taken(7 * MIB, 0.0, clock.tick())
    assert depth.bytes == 8 * MIB


def test_waits_of_microseconds_are_worth_no_memory() -> None:
    depth, clock = depth_of(64 * MIB)
    for _ in range(50):
        depth.blocked(1)
        depth.item_taken(0, 50e-6, clock.tick())
    assert depth.bytes == 8 * MIB


def test_what_nobody_needed_for_ten_seconds_is_given_back() -> None:
    depth, clock = depth_of(64 * MIB)
    for _ in range(3):
        depth.blocked(1)
        depth.item_taken(0, 0.1, clock.tick())
    assert depth.bytes == 64 * MIB
    for _ in range(LOW_WATER_EPOCHS - 1):
        depth.item_taken(depth.bytes - MIB, 0.0, clock.tick())
        assert depth.bytes == 64 * MIB
    for _ in range(2 * LOW_WATER_EPOCHS):
        depth.item_taken(depth.bytes - MIB, 0.0, clock.tick())
    assert depth.bytes < 8 * MIB


def test_a_queue_that_is_emptied_now_and_then_keeps_its_depth() -> None:
    depth, clock = depth_of(64 * MIB)
    for i in range(100):
        depth.item_taken(0 if i % 5 == 0 else 7 * MIB, 0.0, clock.tick())
    assert depth.bytes == 8 * MIB


def test_a_depth_fixed_by_hand_stays() -> None:
    depth, clock = depth_of(64 * MIB, fixed=3 * MIB)
    for _ in range(100):
        depth.blocked(1)
        assert not depth.item_taken(0, 0.4, clock.tick())
    assert depth.bytes == 3 * MIB


@given(
    st.integers(1, 1 << 30),
    st.lists(st.tuples(st.booleans(), st.integers(0, 1 << 30), st.floats(0, 1)), max_size=80),
)
def test_a_depth_never_leaves_its_limits(limit: int, events: list[tuple[bool, int, float]]) -> None:
    heard: list[tuple[int, str]] = []
    depth, clock = QueueDepth(limit, on_change=lambda n, why: heard.append((n, why))), Clock()
    for blocked, unused, waited in events:
        if blocked:
            depth.blocked(1)
        before = depth.bytes
        changed = depth.item_taken(min(unused, before), waited, clock.tick())
        assert 1 <= depth.bytes <= limit
        assert changed == (depth.bytes != before)
        if changed:
            assert heard[-1] == (depth.bytes, "grow" if depth.bytes > before else "shrink")


def run(threads: DecodeThreads, clock: Clock, cost: float, waited: float, epochs: int = 1) -> None:
    """Epochs in which 100,000 rows were decoded at so many seconds a row."""
    for _ in range(epochs):
        threads.decoded(100_000, cost * 100_000, waited, clock.tick())


def started(limit: int, fixed: int | None = None) -> tuple[DecodeThreads, Clock, list[int]]:
    heard: list[int] = []
    threads, clock = DecodeThreads(limit, fixed=fixed, on_change=heard.append), Clock()
    threads.decoded(1, 0.0, 0.0, clock.now)
    return threads, clock, heard


def test_a_thread_more_stays_where_rows_decode_faster() -> None:
    threads, clock, heard = started(4)
    run(threads, clock, cost=4e-6, waited=0.3)
    assert threads.count == 2
    run(threads, clock, cost=2.2e-6, waited=0.3)  # it helped
    run(threads, clock, cost=2.2e-6, waited=0.3)
    assert threads.count == 3
    run(threads, clock, cost=2.1e-6, waited=0.3)  # it did not
    assert threads.count == 2
    run(threads, clock, cost=2.2e-6, waited=0.3, epochs=threads.retry_epochs - 2)
    assert threads.count == 2
    assert heard == [2, 3, 2]
    run(threads, clock, cost=2.2e-6, waited=0.3, epochs=3)
    assert 3 in heard[3:]  # tried again after a while


@pytest.mark.parametrize(("cost", "waited"), [(4e-6, 0.0), (0.5e-6, 0.3)])
def test_no_thread_for_a_model_that_does_not_wait_or_a_decode_that_is_quick(
    cost: float, waited: float
) -> None:
    threads, clock, heard = started(4)
    run(threads, clock, cost, waited, epochs=200)
    assert heard == []


def test_threads_are_given_back_when_the_model_no_longer_waits() -> None:
    threads, clock, heard = started(2)
    run(threads, clock, cost=4e-6, waited=0.3)
    run(threads, clock, cost=2e-6, waited=0.0)
    assert threads.count == 2
    run(threads, clock, cost=2e-6, waited=0.0, epochs=LOW_WATER_EPOCHS)
    assert heard == [2, 1]


def test_threads_fixed_by_hand_stay() -> None:
    threads, clock, heard = started(8, fixed=3)
    run(threads, clock, cost=4e-6, waited=0.3, epochs=50)
    assert (threads.count, threads.limit, heard) == (3, 3, [])
