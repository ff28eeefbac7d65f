"""How long the end of a thread is waited for. What it gives is in test_loader.py."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numba
import pytest
from numba import extending

from engine.loading import prefetch
from engine.loading.budget import Budget
from engine.loading.channel import Channel
from engine.loading.nodes import Node
from engine.loading.prefetch import PrefetchNode
from engine.observing import compiling
from engine.types import HeadraceError
from tests.waiting import HANG

njit: Any = numba.njit  # whose types take a loop for the number it returns


class Work(Node[int]):
    """A node that does this for its only item."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__()
        self._work = work

    def reset(self, initial_state: dict[str, Any] | None = None) -> None:
        super().reset(initial_state)

    def next(self) -> int:
        self._work()
        raise StopIteration

    def get_state(self) -> dict[str, Any]:
        return {}


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Ask for the end of a thread that does this, in a hurry."""
    monkeypatch.setattr(prefetch, "JOIN_SECONDS", 0.01)

    def end(work: Callable[[], object]) -> None:
        begun = threading.Event()

        def channel() -> Channel[Any]:
            return Channel("items", Budget(1 << 20), lambda taken: 1)

        def both() -> None:
            begun.set()
            work()

        node: PrefetchNode[int] = PrefetchNode(Work(both), channel, "items")
        node.reset()
        assert begun.wait(HANG)
        node.halt()

    return end


def test_a_thread_that_does_not_end_is_an_error(ends: Callable[..., None]) -> None:
    release = threading.Event()
    with pytest.raises(HeadraceError, match="thread did not end within"):
        ends(lambda: release.wait(HANG))
    release.set()


def test_loops_are_compiled_to_their_end(
    ends: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long that takes: nobody can interrupt it."""
    asked, seconds = [0.0], compiling.seconds
    begun, release = threading.Event(), threading.Event()

    def slow(n: int) -> int:
        return n

    @extending.overload(slow)
    def _slow(n: int) -> Callable[[int], int]:
        """Asked while `loop` is compiled: as if that took long."""
        begun.set()
        assert release.wait(HANG)
        return slow

    def loop(n: int) -> int:
        return slow(n)

    def counted() -> float:
        assert begun.wait(HANG)
        asked.append(seconds())
        if len(asked) > 6:
            release.set()
        return asked[-1]

    monkeypatch.setattr(compiling, "seconds", counted)
    with compiling.reported():
        ends(lambda: njit(loop)(1))
    assert release.is_set()
    assert asked[:7] == sorted(set(asked[:7]))  # time went on while it was compiled
