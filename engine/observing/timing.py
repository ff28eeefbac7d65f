"""Timers: the busy time of each stage, the wait time of each thread."""

from __future__ import annotations

import contextlib
import copy
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from engine.observing.metrics import Metrics


@dataclass(slots=True)
class StageTime:
    """The time a stage has taken so far.

    Attributes:
        calls: how often it was at work.
        rows: records processed, if reported.
        wall: seconds by the wall.
        cpu: seconds its thread was on a processor meanwhile; what other threads do for it (polars,
            torch) is not in it.
    """

    calls: int = 0
    rows: int = 0
    wall: float = 0.0
    cpu: float = 0.0


class Listener(Protocol):
    """Callback invoked after every unit of work."""

    def __call__(self, stage: str, start: float, wall: float) -> object:
        """
        Args:
            start: `time.perf_counter` seconds.
            wall: seconds.
        """
        ...


@dataclass(slots=True)
class TimingSnapshot:
    """A copy of the times up to some moment; the difference of two is the time between.

    Attributes:
        at: `time.perf_counter` seconds.
        cpu: seconds of this process on any processor.
        stages: stage -> what it has taken.
        waits: (queue, ``put`` or ``get``) -> seconds.
        idle: seconds of reads that gave nothing, as no more was there.
        queued: seconds that this process's threads were ready and waited for a core; 0 where the
            system does not tell.
        compiling: seconds in which loops were compiled, for the first time on a machine.
    """

    at: float = 0.0
    cpu: float = 0.0
    stages: dict[str, StageTime] = field(default_factory=dict)
    waits: dict[tuple[str, str], float] = field(default_factory=dict)
    idle: float = 0.0
    queued: float = 0.0
    compiling: float = 0.0

    def since(self, before: TimingSnapshot) -> TimingSnapshot:
        """Return the time since `before`; `at` is then the seconds between the two."""
        stages = {}
        for name, now in self.stages.items():
            then = before.stages.get(name, StageTime())
            stages[name] = StageTime(
                calls=now.calls - then.calls,
                rows=now.rows - then.rows,
                wall=now.wall - then.wall,
                cpu=now.cpu - then.cpu,
            )
        waits = {key: n - before.waits.get(key, 0.0) for key, n in self.waits.items()}
        return TimingSnapshot(
            at=self.at - before.at,
            cpu=self.cpu - before.cpu,
            stages=stages,
            waits=waits,
            idle=self.idle - before.idle,
            queued=max(0.0, self.queued - before.queued),
            compiling=self.compiling - before.compiling,
        )


class _Inside(threading.local):
    """What this thread has timed inside of the block that it times: seconds by the wall, on a
    processor."""

    wall = cpu = 0.0


class StageTimer:
    """Sums the times that stages and queues report, and exports them as metrics.

    A stage or a side of a queue belongs to one thread, so nothing is locked.

    Attributes:
        listener: hears of every piece of work, unless None.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.listener: Listener | None = None
        self._seconds = metrics.stage_seconds
        self._observers: dict[str, Callable[[float], None]] = {}
        self._waits = metrics.queue_wait_seconds
        self._totals = TimingSnapshot()
        self._inside = _Inside()

    def add(self, stage: str, start: float, cpu: float, rows: int = 0) -> None:
        """Add work that began at `start` (`time.perf_counter`) and `cpu` (`time.thread_time`)
        and ends now.

        Args:
            rows: records processed; reported by at least one stage of each thread.
        """
        self.record(stage, start, time.perf_counter() - start, time.thread_time() - cpu, rows)

    def record(
        self, stage: str, start: float, wall: float, cpu: float, rows: int = 0, batches: int = 1
    ) -> None:
        """Add work that began at `start` and took `wall` and `cpu` seconds, for that many
        batches."""
        spent = self._totals.stages.setdefault(stage, StageTime())
        spent.calls += batches
        spent.rows += rows
        spent.wall += wall
        spent.cpu += cpu
        observe = self._observers.get(stage)
        if observe is None:
            observe = self._observers[stage] = self._seconds.labels(stage=stage).observe
        for _ in range(batches):
            observe(wall / batches)
        if self.listener is not None:
            self.listener(stage, start, wall)

    @contextlib.contextmanager
    def timed(self, stage: str, rows: int = 0, batches: int = 1) -> Iterator[None]:
        """Time the block, without those that are timed inside it; a block that fails is not
        counted. `rows`: see `add`."""
        inside, before = self._inside, (self._inside.wall, self._inside.cpu)
        inside.wall = inside.cpu = 0.0
        start, cpu = time.perf_counter(), time.thread_time()
        try:
            yield
            wall, used = time.perf_counter() - start, time.thread_time() - cpu
            self.record(stage, start, wall - inside.wall, used - inside.cpu, rows, batches)
            before = before[0] + wall, before[1] + used
        finally:
            inside.wall, inside.cpu = before

    def idle(self, seconds: float) -> None:
        """Note that a read gave nothing: waiting for data is not work."""
        self._totals.idle += seconds

    def wait_recorder(self, queue: str, side: str) -> Callable[[float], None]:
        """Return the callback that one side of a queue calls with the seconds it waited."""
        observe = self._waits.labels(queue=queue, side=side).observe
        waits, key = self._totals.waits, (queue, side)
        waits.setdefault(key, 0.0)

        def waited(seconds: float) -> None:
            observe(seconds)
            waits[key] += seconds

        return waited

    def waited_seconds(self, queue: str, side: str) -> float:
        """Return the total seconds this side has waited."""
        return self._totals.waits.get((queue, side), 0.0)

    def snapshot(self) -> TimingSnapshot:
        """Return the times so far."""
        spent = copy.deepcopy(self._totals)
        spent.at, spent.cpu = time.perf_counter(), time.process_time()
        spent.queued, spent.compiling = _queued(), _compiling
        return spent


_compiling = 0.0


def compiled(seconds: float) -> None:
    """Note that loops were compiled for so many seconds."""
    global _compiling
    _compiling += seconds


def compiling_seconds() -> float:
    """Return the seconds in which loops were compiled so far."""
    return _compiling


def _queued() -> float:
    """Return the seconds that this process's threads have waited for a core (Linux)."""
    total = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # a thread that has just ended
            total += int(file.read_text().split()[1])
    return total * 1e-9


__all__ = ["Listener", "StageTime", "StageTimer", "TimingSnapshot", "compiled"]
