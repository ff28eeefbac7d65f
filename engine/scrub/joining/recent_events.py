"""The events that rows are joined with: sorted runs, merged as they grow.

Events come in the order in which they were read and become one immutable run, as in a
log-structured merge tree (O'Neil et al., 1996). A run that is more than an eighth as large as the
one before it is merged into that, and what is too old for every row to come is left out then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numba
import numpy as np
import polars as pl

from engine.columnar.event_time import NEVER
from engine.columnar.hash_index import HashIndex
from engine.columnar.hashing import Hashes
from engine.types import Snapshot
from engine.types.arrays import Bools, Ints, read_only

MERGED = 8
"""A run is merged into one that is not this many times as large."""
SPARE = 16
"""One of so many events is forgotten when there are too many, so that this is not done each
time."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Events:
    """Events in some order; n of them.

    Attributes:
        keys: the hash of each one's key, shape (n,).
        times: when each happened, in ticks of the rows' time, shape (n,).
        seen: the clock of its partition when it was read, shape (n,).
        order: its place among all that were read, shape (n,).
        columns: what rows get of it.
    """

    keys: Hashes
    times: Ints
    seen: Ints
    order: Ints
    columns: pl.DataFrame

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, at: Ints | Bools) -> Self:
        """Return some of them: by their places, or where true."""
        columns = self.columns.filter(at) if at.dtype == np.bool_ else self.columns[at]
        return type(self)(
            keys=self.keys[at],
            times=self.times[at],
            seen=self.seen[at],
            order=self.order[at],
            columns=columns,
        )

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the events of all, one after the other."""
        return cls(
            keys=np.concatenate([part.keys for part in parts]),
            times=np.concatenate([part.times for part in parts]),
            seen=np.concatenate([part.seen for part in parts]),
            order=np.concatenate([part.order for part in parts]),
            columns=pl.concat([part.columns for part in parts]),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Asked:
    """What n rows ask for: an event of their key of the times [oldest, newest] that was read when
    the clock of its partition was at most `until`. The newest up to the row's own time; if there is
    none, the oldest after it.

    Attributes:
        keys: the hash of each row's key, shape (n,).
        whole: which have a key and a time, shape (n,); the others find nothing.
        times: their own, shape (n,).
        oldest, newest, until: in ticks, shape (n,).
        floor: no later row asks for an event before it, shape (n,).
    """

    keys: Hashes
    whole: Bools
    times: Ints
    oldest: Ints
    newest: Ints
    until: Ints
    floor: Ints


class RecentEvents:
    """Events by key and time.

    Args:
        columns: what rows get of an event, of any height.

    Attributes:
        most: events that are kept; of more, the oldest are forgotten.
    """

    def __init__(self, most: int, columns: pl.DataFrame) -> None:
        self.most, self._empty = most, columns.clear()
        self._runs: list[_SortedEvents] = []

    def __len__(self) -> int:
        """The number of events."""
        return sum(len(run.events) for run in self._runs)

    @property
    def nbytes(self) -> int:
        """The bytes held."""
        return sum(run.nbytes for run in self._runs)

    @property
    def columns(self) -> pl.DataFrame:
        """What rows get, by the numbers that `find` returns."""
        frames = [run.events.columns for run in self._runs] or [self._empty]
        return frames[0] if len(frames) == 1 else pl.concat(frames, rechunk=False)

    def add(self, events: Events, oldest: int) -> int:
        """Keep these events; no row asks for any before `oldest` again. Return how many were
        forgotten, as there are too many."""
        self._append(events, oldest)
        while len(self._runs) > 1 and len(self._runs[-1]) * MERGED > len(self._runs[-2]):
            last = [self._runs.pop().events, self._runs.pop().events]
            self._append(Events.joined(last[::-1]), oldest)
        return self._forget(oldest) if len(self) > self.most else 0

    def expire(self, oldest: int) -> None:
        """Drop runs of which no row asks for an event again: none is of `oldest` or later."""
        self._runs = [run for run in self._runs if run.newest >= oldest]

    def find(self, asked: Asked) -> Ints:
        """Return the row of `columns` that each row gets, -1 for none; shape (n,)."""
        n, start = len(asked.keys), 0
        best = np.full((2, n), -1)  # before the row, after it
        times, order = np.zeros((2, n), np.int64), np.zeros((2, n), np.int64)
        for run in self._runs:
            found = run.find(asked)
            at = np.maximum(found, 0)
            when, place = run.events.times[at], run.events.order[at]
            same = (when == times) & (best >= 0)
            better = np.stack((when[0] > times[0], when[1] < times[1])) | (best < 0)
            better |= same & np.stack((place[0] > order[0], place[1] < order[1]))
            better &= found >= 0
            best[better] = found[better] + start
            times[better], order[better] = when[better], place[better]
            start += len(run)
        chosen: Ints = np.where(best[0] >= 0, best[0], best[1])
        return chosen

    def snapshot(self) -> Snapshot:
        """Return plain values: the runs, which never change."""
        return [
            {
                "keys": run.events.keys,
                "times": run.events.times,
                "seen": run.events.seen,
                "order": run.events.order,
                "columns": run.events.columns,
            }
            for run in self._runs
        ]

    def restore(self, value: Snapshot) -> None:
        """Restore a `snapshot`."""
        self._runs = [_SortedEvents(Events(**run)) for run in value]

    def _append(self, events: Events, oldest: int) -> None:
        kept = events.take(events.times >= oldest)
        if len(kept):
            self._runs.append(_SortedEvents.of(kept))

    def _forget(self, oldest: int) -> int:
        """Forget the oldest events; return how many."""
        every = Events.joined([run.events for run in self._runs])
        every = every.take(every.times >= oldest)
        gone = max(0, len(every) - self.most)
        if gone:
            gone += self.most // SPARE
            kept = np.ones(len(every), np.bool_)
            kept[np.lexsort((every.order, every.times))[:gone]] = False
            every = every.take(kept)
        self._runs = []
        self._append(every, oldest)
        return gone


class _SortedEvents:
    """Events in the order of keys, then of times, then as they were read."""

    def __init__(self, events: Events) -> None:
        self.events = events
        self.newest = int(events.times.max())
        new_key = np.append(True, events.keys[1:] != events.keys[:-1])
        self._starts = np.append(np.flatnonzero(new_key), len(events))
        self._index = HashIndex(events.keys[self._starts[:-1]])

    @classmethod
    def of(cls, events: Events) -> Self:
        """Return a run of events in any order."""
        by = np.lexsort((events.order, events.times, events.keys))
        return cls(events.take(by))

    def __len__(self) -> int:
        return len(self.events)

    @property
    def nbytes(self) -> int:
        """The bytes held: the columns, four numbers for each event, and the index."""
        frame = int(self.events.columns.estimated_size())
        return frame + 32 * len(self) + self._starts.nbytes + self._index.nbytes

    def find(self, asked: Asked) -> Ints:
        """Return the event of each row before it, and after it; -1 for none. Shape (2, n)."""
        place = self._index.find(asked.keys)
        place[~asked.whole] = -1
        found = np.full((2, len(place)), -1)
        events = self.events
        _find(
            read_only(place), read_only(asked.times), read_only(asked.oldest),
            read_only(asked.newest), read_only(asked.until), read_only(self._starts),
            read_only(events.times), read_only(events.seen), found,
        )  # fmt: skip
        return found


@numba.njit(nogil=True, cache=True)
def _find(  # type: ignore[no-untyped-def]
    place, row_times, oldest, newest, until, starts, times, seen, found
):  # fmt: skip
    for i in range(place.shape[0]):
        if place[i] < 0 or row_times[i] == NEVER:
            continue
        first, end = starts[place[i]], starts[place[i] + 1]
        low, high = first, end
        while low < high:
            middle = (low + high) // 2
            if times[middle] <= row_times[i]:
                low = middle + 1
            else:
                high = middle
        at = low - 1
        while at >= first and times[at] >= oldest[i] and found[0, i] < 0:
            if seen[at] <= until[i]:
                found[0, i] = at
            at -= 1
        at = low
        while at < end and times[at] <= newest[i] and found[0, i] < 0 and found[1, i] < 0:
            if seen[at] <= until[i] and times[at] >= oldest[i]:
                found[1, i] = at
            at += 1


__all__ = ["Asked", "Events", "RecentEvents"]
