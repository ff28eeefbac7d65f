"""Joins rows with the labels that come for them later, by key, within a horizon of event time.

Both sides wait for each other in memory. A key is known by a row that waits, by a row that has its
label, or by a label that waits. The walk over the rows and labels that come is compiled; what waits
lies in a few segments of columns.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numba
import numpy as np
import polars as pl

from engine.columnar.hashing import Hashes
from engine.scrub.event_time import NEVER
from engine.scrub.key_store import NO_ROWS, KeyStore
from engine.types import Snapshot
from engine.types.arrays import Bools, Ints

Frames = Mapping[str, pl.DataFrame]
"""What is kept of rows, by name: frames of as many rows each."""

ABSENT, MATCHED, GONE = -1, -2, -3
"""What is known of a key that has no number of what waits: nothing, that its row has its label, or
that its label has its row."""
SEGMENT_ROWS, MAX_SEGMENTS = 1 << 16, 32
"""Rows of a segment: the first number, or, if more wait, their number over the second."""
ROW_BYTES, KEY_BYTES = 26, 24
"""Bytes of a row beside its frames; of a key that is known."""
NO_PAIRS: Ints = np.empty((2, 0), np.int64)
COUNTERS = 2
N_PAIRS, N_AHEAD = range(COUNTERS)
AGREE = 8
"""The records in sequence that have to be far ahead before the clock is."""
NONE_AHEAD: Ints = np.array([0, -NEVER])
"""How many records in sequence are far ahead, and the earliest of their times."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Arrivals:
    """Rows, or labels, that come together.

    Attributes:
        keys: hash of each one's key, shape (n,).
        times: event times in ticks, shape (n,).
        turns: when each was read, among the rows and labels that come together, shape (n,); of the
            same turn rows come before labels.
        frames: what is to be kept of them.
    """

    keys: Hashes
    times: Ints
    turns: Ints
    frames: Frames

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, at: Ints) -> Arrivals:
        """Return some of them; `at` is ascending."""
        if len(at) == len(self):
            return self
        frames = {name: frame[at] for name, frame in self.frames.items()}
        return Arrivals(
            keys=self.keys[at], times=self.times[at], turns=self.turns[at], frames=frames
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Added:
    """What became at once of rows and labels that came.

    Attributes:
        duplicate_rows, duplicate_labels: which of them have a key that is known, shape (n,).
        ahead: rows and labels whose time is further ahead than a horizon.
    """

    duplicate_rows: Bools
    duplicate_labels: Bools
    ahead: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Settled:
    """What no longer waits.

    Attributes:
        rows, labels: the pairs that were found, in the order in which they were completed.
        corrected: which of the pairs have a row that was `assumed` before, shape (pairs,).
        assumed: rows whose horizon passed without a label, which a later one may still correct;
            these wait on.
        expired: rows whose horizon passed without a label; with corrections, those that were
            assumed and that no label has corrected.
        unmatched: labels that leave without a row.
        forgotten_rows: rows that left before their horizon, because there were too many.
        forgotten_assumed: how many of these were assumed.
        forgotten_labels: labels that did; they are among `unmatched`.
    """

    rows: Frames
    labels: Frames
    corrected: Bools
    assumed: Frames
    expired: Frames
    unmatched: Frames
    forgotten_rows: int
    forgotten_assumed: int
    forgotten_labels: int


@dataclass(slots=True, eq=False)
class Segment:
    """Rows that came one after another, some of which still wait.

    Attributes:
        numbers: of the rows, ascending, shape (n,).
        alive: which of them still wait, shape (n,).
        assumed: which of them may still be corrected only, shape (n,).
        earliest: no row that waits has an earlier time.
        row_bytes: of a row, on average.
    """

    numbers: Ints
    keys: Hashes
    times: Ints
    assumed: Bools
    frames: Frames
    alive: Bools
    earliest: int
    row_bytes: float = 0.0

    def __post_init__(self) -> None:
        held = sum(int(frame.estimated_size()) for frame in self.frames.values())
        self.row_bytes = held / max(len(self.numbers), 1) + ROW_BYTES

    @classmethod
    def of(
        cls,
        numbers: Ints,
        keys: Hashes,
        times: Ints,
        assumed: Bools,
        frames: Frames,
        alive: Bools,
    ) -> Segment:
        """Return a segment of some of these rows."""
        if not alive.all():
            numbers, keys, times = numbers[alive], keys[alive], times[alive]
            assumed, mask = assumed[alive], pl.Series(alive)
            frames = {name: frame.filter(mask) for name, frame in frames.items()}
        earliest, alive = int(times.min()) if len(times) else 0, np.ones(len(numbers), np.bool_)
        return cls(numbers, keys, times, assumed.copy(), frames, alive, earliest)

    def compacted(self) -> Segment:
        """Return the rows that wait."""
        return Segment.of(
            self.numbers, self.keys, self.times, self.assumed, self.frames, self.alive
        )

    def split(self, rows: int) -> list[Segment]:
        """Return the same as segments of at most so many rows."""
        parts = [slice(at, at + rows) for at in range(0, len(self.numbers), rows)]
        return [
            Segment.of(
                self.numbers[part],
                self.keys[part],
                self.times[part],
                self.assumed[part],
                {name: frame[part] for name, frame in self.frames.items()},
                self.alive[part],
            )
            for part in parts
        ]

    @classmethod
    def joined(cls, segments: Sequence[Segment]) -> Segment | None:
        """Return what waits in several segments as one; None without any."""
        parts = [part for s in segments if len((part := s.compacted()).numbers)]
        if len(parts) < 2:
            return parts[0] if parts else None
        frames = {
            name: pl.concat([part.frames[name] for part in parts], how="diagonal", rechunk=True)
            for name in parts[0].frames
        }
        return cls(
            np.concatenate([part.numbers for part in parts]),
            np.concatenate([part.keys for part in parts]),
            np.concatenate([part.times for part in parts]),
            np.concatenate([part.assumed for part in parts]),
            frames,
            np.concatenate([part.alive for part in parts]),
            min(part.earliest for part in parts),
        )


Place = tuple[Segment, Ints, Ints]
"""A segment, which of the rows that are asked for are in it, and which of its rows they are."""


@dataclass(slots=True, eq=False)
class Side:
    """One side of the join: the keys that are known, and what waits.

    Attributes:
        known: key -> the time it was remembered with, and the number of what waits, or MATCHED, or
            GONE.
        segments: what waits, oldest first; neighbours of similar size are merged.
        next: the number of the next row.
        waiting: how many wait.
        assumed: how many of these may still be corrected only.
    """

    known: KeyStore = field(default_factory=KeyStore)
    segments: list[Segment] = field(default_factory=list)
    next: int = 0
    waiting: int = 0
    assumed: int = 0

    def find(self, keys: Hashes, oldest: int) -> tuple[Ints, Ints]:
        """Return time and number of each key, shape (n,); ABSENT for one that is not known, or no
        longer since `oldest`."""
        present, times, numbers = self.known.find(keys)
        return times, np.where(present & (times >= oldest), numbers, ABSENT).astype(np.int64)

    def remember(self, keys: Hashes, times: Ints, numbers: Ints, oldest: int) -> None:
        """Know these keys by these times and numbers from now on."""
        self.known = self.known.add(keys, times, numbers, oldest=oldest)

    def add(self, arrivals: Arrivals, alive: Bools) -> None:
        """Keep those that wait; all of them get numbers."""
        numbers = np.arange(self.next, self.next + len(arrivals))
        self.next += len(arrivals)
        no = np.zeros(len(arrivals), np.bool_)
        segment = Segment.of(numbers, arrivals.keys, arrivals.times, no, arrivals.frames, alive)
        if not len(segment.numbers):
            return
        self.waiting += len(segment.numbers)
        self._append(self.segments, segment)

    def _append(self, segments: list[Segment], segment: Segment) -> None:
        """Add a segment; merge it with those before it as long as they are of similar size, and
        small beside all that waits: so a row is copied a few times, and old rows leave together."""
        merged: Segment | None = segment
        while segments and merged is not None:
            older, newer = len(segments[-1].numbers), len(merged.numbers)
            if older > 4 * newer or older + newer > self.most_rows:
                break
            merged = Segment.joined([segments.pop(), merged])
        if merged is not None:
            segments.append(merged)

    @property
    def most_rows(self) -> int:
        """The most rows of a segment that is made of others."""
        return max(SEGMENT_ROWS, self.waiting // MAX_SEGMENTS)

    def take(self, numbers: Ints) -> Frames:
        """Return rows that wait, in this order; they wait no longer."""
        places = list(self._places(numbers))
        for segment, _, rows in places:
            segment.alive[rows] = False
            self.assumed -= int(np.count_nonzero(segment.assumed[rows]))
        self.waiting -= len(numbers)
        return _gathered(places)

    def gather(self, numbers: Ints) -> Frames:
        """Return the same; they wait on."""
        return _gathered(list(self._places(numbers)))

    def were_assumed(self, numbers: Ints) -> Bools:
        """Return which of these rows may still be corrected only, shape (n,)."""
        assumed = np.zeros(len(numbers), np.bool_)
        for segment, here, rows in self._places(numbers) if self.assumed else ():
            assumed[here] = segment.assumed[rows]
        return assumed

    def assume(self, oldest: int) -> Ints:
        """Let the rows that are older wait for a correction only; return the numbers of those that
        did not before."""
        due = [NO_ROWS]
        for segment in self.segments:
            if segment.earliest < oldest:
                old = segment.alive & ~segment.assumed & (segment.times < oldest)
                segment.assumed |= old
                due.append(segment.numbers[old])
        numbers = np.concatenate(due)
        self.assumed += len(numbers)
        return numbers

    def _places(self, numbers: Ints) -> Iterator[Place]:
        """Yield where these rows are, segment by segment."""
        if not len(numbers):
            return
        order = np.argsort(numbers)
        ascending = numbers[order]
        for segment in self.segments:
            start, stop = np.searchsorted(ascending, segment.numbers[[0, -1]] + (0, 1))
            if start < stop:
                rows = np.searchsorted(segment.numbers, ascending[start:stop])
                yield segment, order[start:stop], rows

    def expired(self, oldest: int) -> Ints:
        """Return the numbers of the rows that wait and are older."""
        numbers = [NO_ROWS]
        for segment in self.segments:
            if segment.earliest >= oldest:
                continue
            old = segment.alive & (segment.times < oldest)
            numbers.append(segment.numbers[old])
            left = segment.times[segment.alive & ~old]
            segment.earliest = int(left.min()) if len(left) else oldest
        return np.concatenate(numbers)

    def forget(self, most: int) -> Ints:
        """Forget the oldest keys if all that waits and is known is more than so many bytes, an
        eighth of them at a time; return the numbers of their rows."""
        numbers = [NO_ROWS]
        excess = self.live_bytes - most
        while excess > 0 and self.known.runs:
            times = np.concatenate([run.order for run in self.known.runs])
            oldest = int(np.partition(times, len(times) // 8)[len(times) // 8])
            oldest += oldest == times.min()
            self.known = self.known.since(oldest)
            excess -= KEY_BYTES * (len(times) - len(self.known))
            for segment in self.segments:
                old = segment.alive & (segment.times < oldest)
                fresh = np.setdiff1d(segment.numbers[old], np.concatenate(numbers))
                numbers.append(fresh)
                excess -= len(fresh) * segment.row_bytes
        return np.concatenate(numbers)

    def tidy(self) -> None:
        """Give back the memory of what no longer waits, where that is the most of a segment."""
        sparse = [2 * np.count_nonzero(s.alive) < len(s.alive) for s in self.segments]
        if not any(sparse):
            return
        kept: list[Segment] = []
        for segment, compact in zip(self.segments, sparse, strict=True):
            left = segment.compacted() if compact else segment
            if len(left.numbers):
                self._append(kept, left)
        self.segments = kept

    @property
    def nbytes(self) -> int:
        """The bytes of what waits, and of the keys."""
        segments = list(self.segments)  # asked from other threads
        held = sum(segment.row_bytes * len(segment.numbers) for segment in segments)
        return int(held) + KEY_BYTES * len(self.known)

    @property
    def live_bytes(self) -> float:
        """The bytes of what waits still, and of the keys."""
        held = sum(s.row_bytes * np.count_nonzero(s.alive) for s in self.segments)
        return float(held) + KEY_BYTES * len(self.known)

    def snapshot(self) -> dict[str, Any]:
        """Return plain values, which do not depend on how the rows lie in memory."""
        self.segments = [segment.compacted() for segment in self.segments]
        self.segments = [segment for segment in self.segments if len(segment.numbers)]
        whole = Segment.joined(self.segments)
        rows = None
        if whole is not None:
            rows = {
                "numbers": whole.numbers,
                "keys": whole.keys,
                "times": whole.times,
                "assumed": whole.assumed.copy(),
                "frames": dict(whole.frames),
            }
        return {"known": self.known.snapshot(), "rows": rows, "next": self.next}

    @classmethod
    def restore(cls, value: Mapping[str, Any]) -> Side:
        """Return the side of a `snapshot`."""
        side = cls(known=KeyStore.restore(value["known"]), next=value["next"])
        if (rows := value["rows"]) is not None:
            whole = Segment.of(**rows, alive=np.ones(len(rows["numbers"]), np.bool_))
            side.waiting = len(whole.numbers)
            side.assumed = int(np.count_nonzero(whole.assumed))
            side.segments = whole.split(side.most_rows)
        return side


class LabelJoin:
    """Joins rows with labels.

    A row and a label with one key belong together if their times are at most a horizon apart; the
    first of several labels counts, in the order in which they are read. A row whose key stood in a
    row up to a horizon earlier is a duplicate, and so is a label. After that the key may come
    again.

    The clock is the newest time of rows and labels. Times more than a horizon ahead move it only
    where several in sequence are, so that one far in the future expires nothing; for the same
    reason nothing expires before as many have come. What is older than a horizon and the lateness
    expires when it is settled. So all outcomes depend on the order of rows and labels
    and on when they are settled, and not on how many are added at a time.

    Args:
        horizon, lateness: in ticks.
        most: bytes that what waits may hold, and the keys. What does not wait any longer may hold
            as many before its memory is given back.
        corrections: in ticks: if given, a label may come so much later than its row instead of a
            horizon; after the horizon, rows are `Settled.assumed`.
    """

    def __init__(
        self, *, horizon: int, lateness: int, most: int, corrections: int | None = None
    ) -> None:
        self._assumes = corrections is not None
        self._horizon = horizon if corrections is None else corrections
        self._kept = self._horizon + lateness
        self._assumed_after = horizon
        self._most = most
        self.clock = self.oldest = NEVER
        """The newest time, and that before which all has expired."""
        self._lead = NONE_AHEAD
        self.rows, self.labels = Side(), Side()
        self.pairs = NO_PAIRS
        """Numbers of rows and labels that belong together and were not settled yet."""
        _compile()

    @property
    def waiting(self) -> int:
        """How many rows and labels wait or are not settled, without those that wait for a
        correction only."""
        return self.rows.waiting - self.rows.assumed + self.labels.waiting

    @property
    def unsettled(self) -> bool:
        """Whether there are pairs, or what has expired, since it was settled last."""
        return self.pairs.shape[1] > 0 or self.oldest < self.clock - self._kept

    def add(self, rows: Arrivals, labels: Arrivals) -> Added:
        """Join what waits with these rows and labels, and these among themselves."""
        keys, group = np.unique(np.concatenate((rows.keys, labels.keys)), return_inverse=True)
        times = np.concatenate((rows.times, labels.times))
        row_times, row_numbers = self.rows.find(keys, self.oldest)
        label_times, label_numbers = self.labels.find(keys, self.oldest)
        was = row_times.copy(), row_numbers.copy(), label_times.copy(), label_numbers.copy()
        order = np.argsort(np.concatenate((rows.turns, labels.turns)), kind="stable")
        duplicates = np.zeros(len(group), np.bool_)
        pairs, counts = np.empty((2, len(group)), np.int64), np.zeros(COUNTERS, np.int64)
        self._lead = self._lead.copy()
        self.clock = _walk(
            order, group, times, len(rows), self.rows.next, self.labels.next, row_times,
            row_numbers, label_times, label_numbers, self._horizon, self.clock,
            self._kept, self.oldest == NEVER, self._lead, duplicates, pairs, counts,
        )  # fmt: skip
        n = len(rows)
        self.rows.add(rows, ~duplicates[:n])
        self.labels.add(labels, ~duplicates[n:])
        self._remember(self.rows, keys, (row_times, row_numbers), was[:2])
        self._remember(self.labels, keys, (label_times, label_numbers), was[2:])
        self.pairs = np.concatenate((self.pairs, pairs[:, : counts[N_PAIRS]]), axis=1)
        return Added(
            duplicate_rows=duplicates[:n],
            duplicate_labels=duplicates[n:],
            ahead=int(counts[N_AHEAD]),
        )

    def settle(self) -> Settled:
        """Return the pairs that were found, and what has waited for too long."""
        known = self.rows.next + self.labels.next >= AGREE
        self.oldest = self.clock - self._kept if known else NEVER
        assumed_before = self.clock - self._assumed_after if known and self._assumes else NEVER
        pairs, self.pairs = self.pairs, NO_PAIRS
        corrected = self.rows.were_assumed(pairs[0])
        rows, labels = self.rows.take(pairs[0]), self.labels.take(pairs[1])
        assumed = self.rows.gather(self.rows.assume(assumed_before))
        expired = self.rows.take(self.rows.expired(self.oldest))
        unmatched = self.labels.take(self.labels.expired(self.oldest))
        many_rows = self._too_many(self.rows, self.labels)
        forgotten_assumed = int(np.count_nonzero(self.rows.were_assumed(many_rows)))
        self.rows.take(many_rows)
        many_labels = self._too_many(self.labels, self.rows)
        unmatched = concat_frames(unmatched, self.labels.take(many_labels))
        for side in (self.rows, self.labels):
            side.tidy()
        return Settled(
            rows=rows,
            labels=labels,
            corrected=corrected,
            assumed=assumed,
            expired=expired,
            unmatched=unmatched,
            forgotten_rows=len(many_rows),
            forgotten_assumed=forgotten_assumed,
            forgotten_labels=len(many_labels),
        )

    def _remember(
        self, side: Side, keys: Hashes, now: tuple[Ints, Ints], was: Sequence[Ints]
    ) -> None:
        """Know keys as they are after the walk."""
        times, numbers = now
        changed = (numbers != was[1]) | (times != was[0])
        side.remember(keys[changed], times[changed], numbers[changed], self.oldest)

    def _too_many(self, side: Side, other: Side) -> Ints:
        """Return what has to leave a side: each may hold half, and what the other one leaves."""
        return side.forget(max(self._most // 2, self._most - int(other.live_bytes)))

    @property
    def nbytes(self) -> int:
        """The bytes held."""
        return self.rows.nbytes + self.labels.nbytes

    def snapshot(self) -> Snapshot:
        """Return plain values."""
        return {
            "clock": self.clock,
            "oldest": self.oldest,
            "lead": self._lead,
            "pairs": self.pairs,
            "rows": self.rows.snapshot(),
            "labels": self.labels.snapshot(),
        }

    def restore(self, value: Snapshot) -> None:
        """Restore a `snapshot`."""
        self.clock, self.oldest, self.pairs = value["clock"], value["oldest"], value["pairs"]
        self._lead = value["lead"]
        self.rows = Side.restore(value["rows"])
        self.labels = Side.restore(value["labels"])


def _gathered(places: Sequence[Place]) -> Frames:
    """Return rows of segments in the order in which they were asked for; no frames for none."""
    if not places:
        return {}
    order = np.argsort(np.concatenate([here for _, here, _ in places]))
    parts = [
        {name: frame[rows] for name, frame in segment.frames.items()} for segment, _, rows in places
    ]
    return {
        name: pl.concat([part[name] for part in parts], how="diagonal")[order] for name in parts[0]
    }


def concat_frames(first: Frames, second: Frames) -> Frames:
    """Return the rows of both."""
    if not first or not second:
        return first or second
    return {name: pl.concat([frame, second[name]], how="diagonal") for name, frame in first.items()}


def height(frames: Frames) -> int:
    """Return how many rows there are."""
    return next(iter(frames.values())).height if frames else 0


@functools.cache
def _compile() -> None:
    """Compile the walk now, so that the first batch does not wait for it."""
    none, duplicates = NO_ROWS, np.empty(0, np.bool_)
    _walk(
        none, none, none, 0, 0, 0, none, none, none, none, 1, NEVER, 1, False, NONE_AHEAD.copy(),
        duplicates, NO_PAIRS.copy(), np.zeros(COUNTERS, np.int64),
    )  # fmt: skip


@numba.njit(nogil=True, cache=True)
def _walk(  # type: ignore[no-untyped-def]
    order, group, times, rows, first_row, first_label, row_times, row_numbers, label_times,
    label_numbers, horizon, clock, kept, young, lead, duplicates, pairs, counts,
):  # fmt: skip
    """Walk over rows (those below `rows`) and labels; return the clock after them.

    What is known of the keys is changed in place. `pairs` gets the numbers of rows and labels that
    belong together. What a newer one of the same key replaces is no longer known, and expires by
    its time. While the clock is `young`, a time that would have expired sets it back: it may have
    begun with one far in the future.
    """
    for i in order:
        key, time = group[i], times[i]
        if clock == NEVER or (young and clock - time > kept):
            clock = time
        elif time - clock > horizon:
            counts[N_AHEAD] += 1
            lead[0], lead[1] = lead[0] + 1, min(lead[1], time)
            if lead[0] == AGREE:
                clock = lead[1]
                lead[0], lead[1] = 0, -NEVER
        else:
            clock = max(clock, time)
            lead[0], lead[1] = 0, -NEVER
        number = row_numbers[key]
        label = label_numbers[key]
        if i < rows:
            if number != ABSENT and time - row_times[key] <= horizon:
                duplicates[i] = True
                continue
            row_times[key], row_numbers[key] = time, first_row + i
            if label < 0 or abs(time - label_times[key]) > horizon:
                continue
        else:
            near = number != ABSENT and abs(time - row_times[key]) <= horizon
            if near and number == MATCHED:
                duplicates[i] = True
                continue
            if not (near and number >= 0):
                if label >= 0 and time - label_times[key] <= horizon:
                    duplicates[i] = True
                else:
                    label_times[key], label_numbers[key] = time, first_label + i - rows
                continue
            label = first_label + i - rows
        pairs[0, counts[N_PAIRS]] = row_numbers[key]
        pairs[1, counts[N_PAIRS]] = label
        counts[N_PAIRS] += 1
        row_numbers[key] = MATCHED
        if i < rows:
            label_numbers[key] = GONE
    return clock


__all__ = ["Added", "Arrivals", "Frames", "LabelJoin", "Settled", "concat_frames", "height"]
