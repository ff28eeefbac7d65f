"""Each second counts for one stage, also where one is timed inside of another."""

from __future__ import annotations

import time

import pytest

from engine.observing.metrics import Metrics
from engine.observing.timing import StageTimer


def spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_what_is_timed_inside_counts_there_alone() -> None:
    timer, begun = StageTimer(Metrics()), time.perf_counter()
    with timer.timed("learn"):
        spin(0.01)
        with timer.timed("write"):
            spin(0.02)
        with pytest.raises(OSError, match="gone"), timer.timed("write"):
            raise OSError("gone")
        with timer.timed("predict"), timer.timed("write"):
            spin(0.02)
    with timer.timed("learn"):
        spin(0.01)
    whole, stages = time.perf_counter() - begun, timer.snapshot().stages
    assert sum(stage.wall for stage in stages.values()) <= whole
    assert {name: stage.calls for name, stage in stages.items()} == {
        "learn": 2, "write": 2, "predict": 1,
    }  # fmt: skip
    assert stages["write"].wall >= 0.04
    assert stages["learn"].wall >= 0.02
