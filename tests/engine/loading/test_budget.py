"""The ledger: it says what is true, at once, and knows who holds what."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.loading.budget import Budget
from tests.size import examples
from tests.waiting import HANG


def test_a_new_ledger_is_empty() -> None:
    budget = Budget(100)
    assert (budget.total, budget.used, budget.peak, budget.left) == (100, 0, 0, 100)
    assert budget.held() == {}


def test_it_tells_holders_apart_and_keeps_them_at_zero() -> None:
    budget = Budget(100)
    budget.acquire("raw", 30)
    budget.acquire("prepared", 20)
    budget.acquire("raw", 5)
    budget.release("prepared", 20)
    assert budget.held() == {"raw": 35, "prepared": 0}
    assert (budget.used, budget.left, budget.peak) == (35, 65, 55)


def test_acquire_never_waits_and_nothing_is_left_above_the_cap() -> None:
    budget = Budget(10)
    budget.acquire("sink", 25)
    assert (budget.used, budget.left, budget.peak) == (25, 0, 25)


def test_what_held_gives_is_a_copy() -> None:
    budget = Budget(10)
    budget.acquire("raw", 1)
    budget.held()["raw"] = 99
    assert budget.held() == {"raw": 1}


@pytest.mark.parametrize("n", [-1, 8])
def test_giving_back_more_than_held_is_our_mistake(n: int) -> None:
    budget = Budget(10)
    budget.acquire("raw", 7)
    with pytest.raises(AssertionError, match="raw released"):
        budget.release("raw", n)
    assert budget.held() == {"raw": 7}


def test_a_budget_of_nothing_and_negative_bytes_are_our_mistakes() -> None:
    with pytest.raises(AssertionError, match="budget of 0"):
        Budget(0)
    with pytest.raises(AssertionError, match="acquired -1"):
        Budget(1).acquire("raw", -1)


@settings(max_examples=examples(50), deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 50)), max_size=30))
def test_the_ledger_adds_up(entries: list[tuple[str, int]]) -> None:
    budget = Budget(100)
    for holder, n in entries:
        budget.acquire(holder, n)
        assert sum(budget.held().values()) == budget.used
    assert budget.peak == budget.used == sum(n for _, n in entries)
    for holder, n in entries:
        budget.release(holder, n)
    assert budget.used == 0
    assert set(budget.held().values()) <= {0}


def test_threads_do_not_lose_bytes() -> None:
    budget = Budget(10)

    def work(holder: str) -> None:
        for _ in range(2_000):
            budget.acquire(holder, 3)
            budget.acquire("shared", 1)
            budget.release(holder, 2)

    threads = [threading.Thread(target=work, args=(f"h{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG)
    assert budget.held() == {"shared": 8_000} | {f"h{i}": 2_000 for i in range(4)}
    assert budget.used == 16_000


def test_a_watched_holder_is_asked() -> None:
    budget, kept = Budget(100), [7]
    budget.watch("sink", lambda: kept[0])
    budget.acquire("raw", 10)
    assert (budget.used, budget.left, budget.held()) == (17, 83, {"raw": 10, "sink": 7})
    kept[0] = 95
    assert budget.left == 0


def test_an_account_holds_what_it_is_said_to_hold() -> None:
    budget = Budget(100)
    account = budget.open("rebatch", drains=False)
    for n in (30, 50, 20):
        budget.hold(account, n)
        assert budget.held() == {"rebatch": n}
    assert budget.peak == 50
