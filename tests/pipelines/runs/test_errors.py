"""An error anywhere reaches the for-loop and leaves nothing behind: 100 of them."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import polars as pl
import pytest

from connectors.memory import Fault, MemorySink, MemorySource
from engine import types
from engine.config import LoaderSettings
from engine.loading.loader import Loader
from engine.running.loop import Loop
from engine.running.work import Work as AnyWork
from engine.running.work import WorkResult
from engine.types import Batch, HeadraceError, Schema, Snapshot

SCHEMA: Schema = {"a": pl.Int64()}
ROWS = [pl.DataFrame({"a": range(start, start + 10)}) for start in range(0, 100, 10)]


class Odd(BaseException):
    """No Exception, no error that anyone knows."""


ERRORS = (ValueError, HeadraceError, KeyboardInterrupt, SystemExit, Odd)


class Bomb:
    """Raises at the n-th call."""

    def __init__(self, error: BaseException, at: int) -> None:
        self.error = error
        self.at = at
        self.calls = 0

    def tick(self) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise self.error


class Stage(types.Stage):
    """A stage that is a bomb."""

    def __init__(self, bomb: Bomb) -> None:
        super().__init__("bomb", None)
        self.bomb = bomb

    def apply(self, batch: Batch) -> Batch:
        self.bomb.tick()
        return batch


class Work(AnyWork):
    """A learner that is a bomb."""

    stage = "learn"

    def __init__(self, bomb: Bomb | None = None) -> None:
        self.bomb = bomb

    def process(self, batch: Batch) -> WorkResult:
        if self.bomb is not None:
            self.bomb.tick()
        return WorkResult(batch=batch, rows=batch.frame, learned=len(batch))

    def finish(self) -> WorkResult | None:
        return None

    def state_dict(self) -> dict[str, Snapshot]:
        return {}

    def load_state_dict(self, state: Mapping[str, Snapshot]) -> None:
        pass


class Sink(MemorySink):
    """A sink that is a bomb."""

    def __init__(self, bomb: Bomb) -> None:
        super().__init__()
        self.bomb = bomb

    def write(self, frame: pl.DataFrame, places: pl.DataFrame | None = None) -> None:
        self.bomb.tick()
        super().write(frame)


def in_source(bomb: Bomb) -> Loop:
    items: list[Any] = [*ROWS]
    items.insert(bomb.at - 1, Fault(bomb.error))
    return loop(MemorySource.of(items))


def in_stage(bomb: Bomb) -> Loop:
    return loop(MemorySource.of(ROWS), stages=[Stage(bomb)])


def in_learner(bomb: Bomb) -> Loop:
    return loop(MemorySource.of(ROWS), work=Work(bomb))


def in_sink(bomb: Bomb) -> Loop:
    return loop(MemorySource.of(ROWS), sink=Sink(bomb))


def loop(
    source: MemorySource,
    stages: list[Stage] | None = None,
    work: Work | None = None,
    sink: MemorySink | None = None,
) -> Loop:
    settings = LoaderSettings(batch_rows=10, read_rows=10, poll_timeout=0.01)
    loader = Loader(source, schema=SCHEMA, stages=stages or [], settings=settings)
    return Loop(source=source, loader=loader, work=work or Work(), sink=sink or MemorySink())


PLACES: dict[str, Callable[[Bomb], Loop]] = {
    "source": in_source,
    "stage": in_stage,
    "learner": in_learner,
    "sink": in_sink,
}


@pytest.mark.parametrize("place", PLACES)
def test_an_error_surfaces_and_no_thread_is_left(place: str) -> None:
    """25 a place, 100 in all: five kinds at five batches; the very object that was raised."""
    before = set(threading.enumerate())
    for kind, at in itertools.product(ERRORS, range(1, 6)):
        bomb = Bomb(kind("boom"), at)
        made = PLACES[place](bomb)
        with pytest.raises(BaseException) as caught:  # noqa: PT011 - of any kind
            made.run()
        assert caught.value is bomb.error
        assert set(threading.enumerate()) == before
        assert made.totals.read == 10 * (at - 1)


def test_a_loop_of_ones_own_that_breaks_off_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    for _ in range(20):
        settings = LoaderSettings(batch_rows=10, poll_timeout=0.01)
        with Loader(MemorySource.of(ROWS), schema=SCHEMA, settings=settings) as batches:
            next(iter(batches))
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize("place", ["source", "stage", "sink"])
@pytest.mark.parametrize("error", [StopIteration, StopAsyncIteration, GeneratorExit])
def test_what_ends_a_loop_elsewhere_is_an_error_here(
    place: str, error: type[BaseException]
) -> None:
    made = PLACES[place](Bomb(error("boom"), 2))
    with pytest.raises(HeadraceError, match=rf"raised {error.__name__} \(.*\), which would pass"):
        made.run()
    assert made.totals.read == 10


class Losing(Work):
    """Work that says of each batch that it has done one row less."""

    def process(self, batch: Batch) -> WorkResult:
        done = super().process(batch)
        return replace(done, learned=max(0, done.learned - 1))


def test_an_account_that_does_not_balance_ends_the_run() -> None:
    made = loop(MemorySource.of(ROWS), work=Losing())
    with pytest.raises(
        HeadraceError, match=r"does not balance: 10 read \+ 0 added are not 9 learned"
    ):
        made.run()
    assert made.mark.positions == {}
