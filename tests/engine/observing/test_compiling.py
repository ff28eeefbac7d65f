"""A compilation is said once, and is no stall; what is compiled already is not mentioned."""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numba
import pytest
from numba import extending

from engine.commands import cli
from engine.observing import compiling
from engine.observing.metrics import Metrics
from engine.observing.service import Heartbeat
from engine.observing.timing import StageTimer

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
    before = StageTimer(Metrics()).snapshot()
    with compiling.reported(heart):
        for _ in range(2):
            assert compiled(1) == 3
    assert StageTimer(Metrics()).snapshot().since(before).compiling > 0
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


def test_of_nested_blocks_one_says_it_and_the_heartbeat_of_the_inner_one_pauses(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    heart = Heartbeat(60, clock=clock)
    paused: list[int] = []

    def slow(n: int) -> int:
        return n

    @extending.overload(slow)
    def _slow(n: int) -> Callable[[int], int]:
        clock.now += 1000
        paused.append(heart.age() == 0)
        return slow

    def loop(n: int) -> int:
        return slow(n)

    caplog.set_level(logging.INFO, "headrace.compiling")
    with compiling.reported(), compiling.reported(heart):
        assert njit(loop)(1) == 1
    assert paused
    assert all(paused)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("command", ["_explore", "_interpret", "_export", "_adopt", "_predict"])
def test_every_command_that_reads_data_says_that_it_compiles(
    caplog: pytest.LogCaptureFixture, command: str
) -> None:
    def loop(n: int) -> int:
        return n + 1

    def compiles(options: argparse.Namespace) -> int:
        return int(njit(loop)(1))

    options = argparse.Namespace(command=getattr(cli, command))
    caplog.set_level(logging.INFO, "headrace.compiling")
    with cli._compiling_reported(options):
        assert compiles(options) == 2
    assert len(caplog.records) == 1


WITHOUT_PRODUCTS = """
import sys
import numba, numpy as np
from engine.observing import compiling

@numba.njit
def total(a): return a.sum()

total(np.ones(3))
print(any(name.startswith("scipy.linalg") for name in sys.modules))

@numba.njit
def product(a): return np.dot(a, a)[0, 0] + np.cov(a)[0, 0] + np.linalg.solve(a, a)[0, 0]

print(product(np.eye(2)))
"""


def test_a_loop_loads_no_scipy_and_one_that_multiplies_matrices_does() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PRODUCTS], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "2.5"]
