"""Streams of events for joins, and what rows should get of them, by brute force."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import polars as pl

from connectors.formats.values.columns import Columns
from engine.columnar.event_time import AGREE
from engine.scrub.joining.stage import Join
from engine.scrub.side_source import SideSource
from engine.types import EndOfStream, Mark, Records, Schema, SharedSource, Source, expand_schema
from tests.scrub.conftest import schema_of

NEVER = -(10**12)


class Event(NamedTuple):
    key: str | None
    at: int | None
    x: int


class InOrder(Source):
    """Partitions that are read one after the other, as files, `each` events at a time. It ends."""

    times: ClassVar[pl.DataType] = pl.Int64()

    def __init__(self, logs: Mapping[str, Sequence[Event]], each: int = 3) -> None:
        super().__init__(None)
        self.logs, self.each = logs, each
        self.format = Columns()
        self._next = dict.fromkeys(logs, 0)

    def schema(self, declared: Schema) -> Schema:
        return expand_schema(declared, schema_of(events_frame([], self.times)))

    def seek(self, mark: Mark) -> None:
        self._next = {name: mark.positions.get(name, 0) for name in self.logs}

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        for name in self.logs:
            if (records := self.some(name, max_rows)) is not None:
                return records
        raise EndOfStream

    def some(self, name: str, most: int) -> Records | None:
        """The next events of a partition; None if there are none now."""
        at = self._next[name]
        events = self.logs[name][at : at + min(self.each, most)]
        if not events:
            return None
        self._next[name] += len(events)
        return Records(
            partition=name,
            positions=np.arange(at, at + len(events)),
            next=self._next[name],
            values=events_frame(events, self.times),
            arrived=time.monotonic(),
        )


class Partitions(InOrder, SharedSource):
    """Partitions that are written side by side, as those of a topic: read in turns. It never
    ends."""

    shares_partitions = tracks_owners = partitions_lost = is_revoking = False
    endless = True
    turn = 0

    def unbounded(self) -> bool:
        return self.endless

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        for _ in self.logs:
            self.turn = (self.turn + 1) % len(self.logs)
            if (records := self.some(list(self.logs)[self.turn], max_rows)) is not None:
                return records
        return None

    def lag(self, mark: Mark) -> Mapping[str, int]:
        return {name: len(log) - mark.positions.get(name, 0) for name, log in self.logs.items()}

    def is_rebalancing(self) -> bool:
        return False

    def unavailable_reason(self) -> str | None:
        return None

    def release_partitions(self) -> None:
        return

    def resume_after_rebalance(self, mark: Mark) -> Mark:
        return mark

    def reset_offsets(self) -> None:
        return

    def was_committed(self, positions: Mapping[str, int]) -> bool | None:
        return True

    def counts(self) -> Mapping[str, int]:
        return {}

    def keep_alive(self) -> None:
        return


def events_frame(events: Sequence[Event], times: pl.DataType) -> pl.DataFrame:
    schema = {"key": pl.String, "at": pl.Int64, "x": pl.Int64}
    return pl.DataFrame(events, schema=schema, orient="row").with_columns(pl.col("at").cast(times))


def rows_frame(
    rows: Sequence[tuple[str | None, int | None]], times: pl.DataType = InOrder.times
) -> pl.DataFrame:
    frame = pl.DataFrame(rows, schema={"key": pl.String, "at": pl.Int64}, orient="row")
    place = pl.int_range(pl.len(), dtype=pl.Int64).alias("_position")
    columns = pl.lit("p").alias("_partition"), place, "key", pl.col("at").cast(times)
    return frame.select(columns)


def stage_of(source: InOrder, **options: Any) -> Join:
    """A bound join with these events; each time it opens the source it is another one."""
    given = {"by": ["key"], "time": "at", "within": 10, **options}
    stage = Join("s", Join.Settings(source={"kind": "memory"}, **given))
    stage.side = SideSource(
        "scrub.s.source", lambda whole: type(source)(source.logs, source.each), {}
    )
    stage.bind(schema_of(rows_frame([], source.times)))
    return stage


def clocks_of(times: Sequence[int], *, begins: int) -> list[int]:
    """The clock with each time, where none is far ahead: it begins with so many of them."""
    return [NEVER if n < begins else max(times[:n]) for n in range(1, len(times) + 1)]


def expected(
    rows: Sequence[tuple[str | None, int | None]],
    partitions: Sequence[Sequence[Event]],
    *,
    within: int,
    wait: int = 0,
    lateness: int = 0,
) -> list[int | None]:
    """What each row gets, by a search through all events.

    Args:
        partitions: those that have a clock of their own.
    """
    seen: list[tuple[int, Event, int]] = []
    for log in partitions:
        events = [(e.at, e) for e in log if e.key is not None and e.at is not None]
        clocks = clocks_of([at for at, _ in events], begins=AGREE)
        seen += [(at, e, clock) for (at, e), clock in zip(events, clocks, strict=True)]
    clocks = clocks_of([at for _, at in rows if at is not None], begins=1)
    got: list[int | None] = []
    for key, at in rows:
        clock = clocks.pop(0) if at is not None else NEVER
        if key is None or at is None:
            got.append(None)
            continue
        floor, until = clock - lateness - within, at + wait + lateness
        own = [(t, e) for t, e, then in seen if e.key == key and then <= until and t >= floor]
        before = [(t, e.x) for t, e in own if at - within <= t <= at]
        after = [(t, e.x) for t, e in own if at < t <= at + wait]
        newest, first = max(before, default=(None, None))[0], min(after, default=(None, None))[0]
        if newest is not None:
            got.append([x for t, x in before if t == newest][-1])
        else:
            got.append(next((x for t, x in after if t == first), None))
    return got
