"""Reads the events of a join, as far as each batch of rows needs them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

from engine.columnar.event_time import NEVER, Clock
from engine.columnar.hashing import hashes
from engine.scrub.features.lookup_fit import Fit
from engine.scrub.joining.recent_events import SPARE, Events, RecentEvents
from engine.scrub.joining.settings import Lengths
from engine.scrub.odd_records import OddRecords
from engine.scrub.side_source import READ_ROWS, WAIT_SECONDS, SideSource
from engine.types import POSITION, EndOfStream, Records, Schema, Snapshot

IN_ORDER = ""
"""The partition whose clock counts where partitions are read one after the other."""


class EventReader:
    """Reads events until they are newer than what rows need, and keeps them.

    An event is seen at the time of its partition's clock: the newest time up to it in the
    partition. A topic's partitions are written side by side, so each has a clock of its own; files
    are read one after the other, and share one. So what is seen by a time does not depend on how
    much is read at once, nor in which order the partitions are.

    Args:
        side: the source.
        schema: its columns.
        fit: how they fit the rows.
    """

    def __init__(
        self, side: SideSource, schema: Schema, fit: Fit, lengths: Lengths, recent: RecentEvents
    ) -> None:
        self._side, self._schema, self._fit = side, schema, fit
        self._lengths, self._recent = lengths, recent
        self._name = f"[{side.section}]"
        self._odd = OddRecords(self._name)
        self._clocks: dict[str, Clock] = {}
        self._order = 0
        self._answered = NEVER
        """What rows needed at most that have been joined."""
        self._ended = False
        # What is read ahead must not push out what rows ask for.
        self._at_once = max(1, min(READ_ROWS, recent.most // SPARE))

    def advance(self, need: int, oldest: int, until: float) -> Mapping[str, int]:
        """Read until the clock of each partition is after `need`, or there are no more events.
        Return what was counted.

        Args:
            oldest: no row asks for an older event again.
            until: `time.monotonic` seconds up to which to wait for events that have not come yet.
        """
        self._recent.expire(oldest)
        counts: Counter[str] = Counter()
        timeout = 0.0
        while not self._ended and self._behind(need):
            try:
                records = self._side.next_records(timeout, self._at_once)
            except EndOfStream:
                self._ended = True
                break
            self._side.keep_alive()
            timeout = 0.0
            if records is not None:
                counts.update(self._take(records, oldest))
                continue
            left = 0.0 if self._side.is_trial else until - time.monotonic()
            more = any(self._lag(name) for name in self._behind(need))
            if left <= 0 and not more:
                break
            timeout = WAIT_SECONDS if more else min(WAIT_SECONDS, left)
        self._answered = max(self._answered, need)
        return counts

    def remarks(self) -> Iterator[str]:
        """Yield a sentence for each kind of odd record."""
        yield from self._odd.remarks()

    @property
    def is_mostly_odd(self) -> bool:
        """Whether at least half of the records that were read have no use."""
        return self._odd.are_most

    def snapshot(self) -> Snapshot:
        """Return the place in the source, the clocks, and what was counted."""
        return {
            "source": self._side.snapshot(),
            "clocks": {name: clock.snapshot() for name, clock in self._clocks.items()},
            "order": self._order,
            "answered": self._answered,
            "odd": self._odd.snapshot(),
        }

    def restore(self, value: Snapshot) -> None:
        """Read on from a `snapshot`."""
        self._side.go_to(value["source"])
        self._clocks = {name: Clock.restore(state) for name, state in value["clocks"].items()}
        self._order, self._answered = value["order"], value["answered"]
        self._odd.restore(value["odd"])
        self._ended = False

    # ------------------------------------------------------------------------------------ inside

    def _behind(self, need: int) -> list[str]:
        """Return the partitions whose next event may be one that is needed."""
        lags = self._side.lags()
        names = [IN_ORDER] if lags is None else list(lags)
        return [name for name in names if self._clock(name).time <= need]

    def _lag(self, name: str) -> int:
        lags = self._side.lags()
        return 0 if lags is None else lags.get(name, 0)

    def _clock(self, name: str) -> Clock:
        return self._clocks.get(name) or Clock()

    def _take(self, records: Records, oldest: int) -> Mapping[str, int]:
        """Keep events; return what was counted."""
        if not len(records):
            return {}  # a gap: only its position counts
        self._odd.note_read(len(records))
        frame, rejects = self._side.decode(records, self._schema)
        rows = self._fit.rows(frame.select(list(self._schema)), self._name)
        assert rows.valid is not None, "a join has a time"
        kept = np.flatnonzero(rows.whole)
        at = np.searchsorted(records.positions, frame.get_column(POSITION).to_numpy())
        self._odd.note_rejects(rejects, records)
        self._odd.note_keyless(records, at[~rows.whole])
        name = IN_ORDER if self._side.lags() is None else records.partition
        times = rows.valid[kept]
        clock, seen, ahead = self._clock(name).walk(times, self._lengths.ahead, at_once=False)
        self._clocks[name] = clock
        order = self._order + at[kept]
        self._order += len(records)
        events = Events(
            keys=hashes(rows.keys)[kept],
            times=times,
            seen=seen,
            order=order,
            columns=rows.columns[kept],
        )
        lateness = self._lengths.lateness
        late = (seen > NEVER) & (times < seen - lateness)
        missed = (seen <= self._answered) & (times <= self._answered - lateness)
        return {
            "events": len(kept),
            "events_late": int(late.sum()),
            "events_missed": int(missed.sum()),
            "events_ahead": ahead,
            "unreadable": len(records) - len(kept),
            "events_forgotten": self._recent.add(events, oldest),
        }


__all__ = ["EventReader"]
