"""When a batch must go: by what batches of its size took."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.loading import deadline as deadlines
from engine.loading.deadline import RECENT, Deadline, Demand


def learned(objective: float, times: dict[int, float], batches: int = 400) -> Deadline:
    deadline = Deadline(objective)
    for rows, seconds in times.items():
        for _ in range(batches):
            deadline.observe(rows, seconds)
    return deadline


def test_before_anything_is_known_a_batch_goes_at_once() -> None:
    deadline = Deadline(0.05)
    assert deadline.seconds(10) is None
    assert deadline.close_at(100.0, 10) == 100.0


def test_a_batch_may_wait_for_what_its_time_leaves() -> None:
    deadline = learned(0.05, {64: 0.01})
    assert deadline.seconds(64) == pytest.approx(0.01, rel=1e-3)
    assert deadline.close_at(100.0, 64) == pytest.approx(100.04, abs=1e-4)


def test_a_size_never_seen_is_taken_to_grow_with_its_rows() -> None:
    deadline = learned(0.1, {64: 0.01})
    assert deadline.seconds(256) == pytest.approx(0.04, rel=1e-3)
    assert deadline.seconds(8) == pytest.approx(0.01, rel=1e-3)
    assert deadline.seconds(1) == pytest.approx(0.01, rel=1e-3)


def test_what_varies_counts_with_its_spread() -> None:
    """99 of 100 batches take less than the mean and 2.33 deviations, if they are normal."""
    rng = np.random.default_rng(0)
    deadline = Deadline(0.1)
    for seconds in rng.normal(0.02, 0.002, 5_000):
        deadline.observe(100, float(seconds))
    assert deadline.seconds(100) == pytest.approx(0.02 + 2.33 * 0.002, rel=0.1)


def test_it_forgets_the_first_batches() -> None:
    deadline = learned(0.1, {64: 1.0}, batches=1)
    for _ in range(400):
        deadline.observe(64, 0.01)
    assert deadline.seconds(64) == pytest.approx(0.01, rel=0.05)


def test_an_objective_out_of_reach_closes_at_once() -> None:
    assert learned(0.01, {64: 0.05}).close_at(100.0, 64) < 100.0


@given(
    st.lists(st.tuples(st.integers(0, 1 << 33), st.floats(1e-6, 10)), max_size=50),
    st.integers(1, 1 << 33),
)
def test_whatever_it_saw_its_answer_is_a_time(seen: list[tuple[int, float]], rows: int) -> None:
    deadline = Deadline(0.1)
    for n, seconds in seen:
        deadline.observe(n, seconds)
    takes = deadline.seconds(rows)
    assert (takes is None) == (not any(n for n, _ in seen))
    assert takes is None or 0 < takes < np.inf


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(deadlines, "time", clock)
    return clock


def test_a_batch_is_due_when_it_can_just_be_ready_in_time(clock: Clock) -> None:
    demand = Demand()
    for _ in range(100):
        demand.take(preparing=0.01)
        clock.now += 0.05  # the model is at work
        demand.ask()
        clock.now += 1.0  # it waits
    assert demand.due == 0.0  # whatever is there may go
    demand.take(preparing=0.01)
    assert demand.due - clock.now == pytest.approx(0.04)


def test_a_batch_that_takes_longer_to_prepare_than_to_use_is_due_at_once(clock: Clock) -> None:
    demand = Demand()
    for _ in range(100):
        demand.take(preparing=0.08)
        clock.now += 0.05
        demand.ask()
    demand.take(preparing=0.08)
    assert demand.due == clock.now


def test_who_closes_batches_hears_of_each_question(clock: Clock) -> None:
    demand, dues = Demand(), [0.0]
    demand.on_ask = lambda: dues.append(demand.due)
    demand.take(preparing=0.0)
    clock.now += 1.0
    demand.ask()
    assert dues == [0.0, 0.0]
    demand.take(preparing=0.0)
    assert demand.due == pytest.approx(clock.now + RECENT * 1.0)
