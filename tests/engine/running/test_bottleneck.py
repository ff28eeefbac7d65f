"""The diagnosis from an account of what was spent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from engine.observing.timing import StageTime, TimingSnapshot
from engine.running.bottleneck import PARTS, Bottleneck, diagnose

SETTINGS: dict[str, Any] = {
    "batch_rows": 8_192,
    "read_rows": 65_536,
    "decode_threads": 1,
    "interval": 10.0,
}


def account(idle: float = 0.0, cpu: float = 0.9, **stages: float) -> TimingSnapshot:
    """Ten seconds in which each stage took so many, at `cpu` of them on a processor."""
    spent = {
        name: StageTime(calls=10, rows=1_000, wall=wall, cpu=cpu * wall)
        for name, wall in stages.items()
    }
    return TimingSnapshot(at=10.0, cpu=10.0 * cpu, stages=spent, idle=idle)


def diagnosis(spent: TimingSnapshot, **more: Any) -> Bottleneck:
    made = diagnose(spent, settings=SETTINGS | more.pop("settings", {}), **more)
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("stage", "part", "setting"),
    [
        ("fetch", "source", "loader.read_rows=262144"),
        ("decode", "decode", "loader.decode_threads=2"),
        ("standardize", "scrub", "loader.batch_rows=32768"),
        ("collate", "scrub", "loader.batch_rows=32768"),
        ("transfer", "transfer", "loader.batch_rows=32768"),
        ("learn", "model", "loader.batch_rows=32768"),
        ("predict", "model", "loader.batch_rows=32768"),
        ("write", "sink", "loader.batch_rows=32768"),
        ("flush", "sink", "checkpoint.interval=60"),
        ("checkpoint", "checkpoint", "checkpoint.interval=60"),
        ("commit", "checkpoint", "checkpoint.interval=60"),
    ],
)
def test_the_slowest_stage_of_the_slowest_thread(stage: str, part: str, setting: str) -> None:
    others = {"fetch": 1.0, "decode": 1.0, "scale": 1.0, "learn": 1.0, "write": 0.5}
    found = diagnosis(account(**(others | {stage: 9.0})), cores=2)
    assert (found.part, found.stage, found.resource) == (part, stage, "CPU")
    assert found.share == pytest.approx(0.9)
    assert found.advice[0].setting == setting
    assert found.part in PARTS
    assert stage in str(found) or part == stage or stage == "fetch"


def test_nothing_can_be_faster_than_the_next_slowest_thread() -> None:
    found = diagnosis(account(fetch=4.0, decode=8.0, learn=2.0))
    assert found.limit == pytest.approx(2.0)
    assert "without it the run would be 2.0 times as fast." in str(found)


def test_what_gains_nothing_is_not_told() -> None:
    found = diagnosis(account(fetch=7.8, decode=8.0))
    assert found.limit < 1.1
    assert "as fast" not in str(found)
    assert "CPU-bound. " in str(found)


def test_a_thread_that_ran_ahead_counts_by_its_records() -> None:
    """Twice the time for ten times the records is the faster thread."""
    spent = account(learn=5.0)
    spent.stages["decode"] = StageTime(calls=100, rows=10_000, wall=10.0, cpu=9.0)
    found = diagnosis(spent)
    assert found.part == "model"
    assert found.limit == pytest.approx(5.0)


def test_a_stream_with_little_to_do_is_held_by_nothing() -> None:
    found = diagnosis(account(idle=9.0, decode=0.5, learn=1.0))
    assert found.part == "idle"
    assert "No bottleneck" in str(found)


@pytest.mark.parametrize(
    ("cpu", "device", "resource"), [(0.9, "cpu", "CPU"), (0.1, "cpu", "I/O"), (0.1, "cuda", "GPU")]
)
def test_what_it_works_on(cpu: float, device: str, resource: str) -> None:
    assert diagnosis(account(learn=9.0, cpu=cpu), device=device).resource == resource


def test_no_more_threads_than_cores_and_none_for_small_batches() -> None:
    spent = account(decode=9.0)
    assert diagnosis(spent, cores=1).advice[0].setting == ""
    assert diagnosis(spent, cores=2, settings={"batch_rows": 100}).advice[0].setting == (
        "loader.batch_rows=400"
    )


def test_too_little_to_tell() -> None:
    assert diagnose(TimingSnapshot(at=10.0), settings=SETTINGS) is None
    short = account(learn=1.0)
    short.at = 0.5
    assert diagnose(short, settings=SETTINGS) is None
    first = account(standardize=9.0)
    first.compiling = 8.0  # inside the stage, once on a machine
    assert diagnose(first, settings=SETTINGS) is None
    few = TimingSnapshot(at=10.0, stages={"decode": StageTime(calls=3, rows=3, wall=9.0, cpu=9.0)})
    assert diagnose(few, settings=SETTINGS) is None


def test_the_difference_of_two_accounts() -> None:
    before = account(learn=1.0, fetch=1.0)
    after = account(learn=3.0, fetch=1.5, decode=2.0, idle=1.0)
    after.at, after.waits = 25.0, {("raw", "get"): 2.0}
    spent = after.since(before)
    assert (spent.at, spent.idle, spent.waits) == (15.0, 1.0, {("raw", "get"): 2.0})
    assert {name: taken.wall for name, taken in spent.stages.items()} == {
        "learn": 2.0,
        "fetch": 0.5,
        "decode": 2.0,
    }


def test_waiting_for_a_core_is_no_input_or_output() -> None:
    spent = account(learn=9.0, cpu=0.2)
    spent.queued = 6.0
    found = diagnosis(spent, settings={"threads": "train.threads"})
    assert found.resource == "contended CPU"
    assert found.advice[0].setting == "train.threads=1"
    assert diagnosis(account(learn=9.0, cpu=0.2)).resource == "I/O"


def test_advice_says_what_it_costs() -> None:
    found = diagnosis(account(learn=9.0), settings={"costs": "needs --fresh"})
    assert "needs --fresh" in str(found)


@pytest.mark.parametrize("stage", ["decode", "standardize", "learn"])
def test_where_others_take_the_cores_no_thread_more_is_advised(stage: str) -> None:
    spent = replace(account(cpu=0.3, **{stage: 9.0}), queued=6.0)
    found = diagnosis(spent, cores=4)
    assert found.resource == "contended CPU"
    assert found.advice[0].setting == ""
    assert "Other processes take the cores: give it cores of its own" in str(found)
    assert not any("decode_threads" in advice.setting for advice in found.advice)
