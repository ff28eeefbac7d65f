"""A compilation is said once, and is no stall; what is compiled already is not mentioned."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numba
import pytest
from numba import extending

from engine.observing import compiling
from engine.observing.service import Heartbeat

njit: Any = numba.njit  # whose types take a loop for the number it returns


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_compiling_is_said_once_and_pauses_the_heartbeat(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    heart = Heartbeat(60, clock=clock)
    ages: list[float] = []

    def slow(n: int) -> int:
        return n

    @extending.overload(slow)
    def _slow(n: int) -> Callable[[int], int]:
        """Asked while `loop` is compiled: as if that took long."""
        clock.now += 1000
        ages.append(heart.age())
        return slow

    def add_one(n: int) -> int:
        return n + 1

    inner = njit(add_one)

    def loop(n: int) -> int:
        return int(inner(n)) + slow(n)

    compiled = njit(loop)
    caplog.set_level(logging.INFO, "headrace.compiling")
    with compiling.reported(heart):
        for _ in range(2):
            assert compiled(1) == 3
    assert ages
    assert set(ages) == {0.0}
    assert heart.age() == 0
    (line,) = caplog.records
    assert line.getMessage().startswith("compiling the loops of this pipeline")
    assert vars(line)["first"].endswith("loop")


def test_what_is_compiled_is_not_mentioned(caplog: pytest.LogCaptureFixture) -> None:
    def loop(n: int) -> int:
        return n + 1

    compiled = njit(loop)
    compiled(1)
    caplog.set_level(logging.INFO, "headrace.compiling")
    with compiling.reported():
        compiled(2)
    assert caplog.records == []
