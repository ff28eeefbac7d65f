"""Joins rows with the labels that come for them later, by key, within a horizon of event time.

Both sides wait for each other, in memory or, where that is full, on disk. A key is known by a row
that waits, by a row that has its label, or by a label that waits. The walk over the rows and labels
that come is compiled; what waits lies in a few segments of columns.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import polars as pl

from engine.columnar.event_time import NEVER, Clock
from engine.columnar.hashing import Hashes
from engine.running.late_labels.segment import Frames
from engine.running.late_labels.side import ABSENT, Side
from engine.running.saving.segment_files import SegmentFiles
from engine.scrub.key_store import NO_ROWS
from engine.types import Scales, Snapshot, scales_of_rows
from engine.types.arrays import Bools, Ints

MATCHED, GONE = -2, -3
"""What is known of a key whose row has its label, and of one whose label has its row."""
NO_PAIRS: Ints = np.empty((2, 0), np.int64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Arrivals:
    """Rows, or labels, that come together.

    Attributes:
        keys: hash of each one's key, shape (n,).
        times: event times in ticks, shape (n,).
        turns: when each was read, among the rows and labels that come together, shape (n,); of the
            same turn rows come before labels.
        frames: what is to be kept of them.
        scales: what stages scaled their columns with.
    """

    keys: Hashes
    times: Ints
    turns: Ints
    frames: Frames
    scales: Scales = ()

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, at: Ints) -> Arrivals:
        """Return some of them; `at` is ascending."""
        if len(at) == len(self):
            return self
        frames = {name: frame[at] for name, frame in self.frames.items()}
        return Arrivals(
            keys=self.keys[at],
            times=self.times[at],
            turns=self.turns[at],
            frames=frames,
            scales=scales_of_rows(self.scales, at),
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
        rows, labels: the pairs that were found, in the order in which they were completed. Beside
            the frames that were kept of rows is one with the scales they came with, `side.SCALE`.
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


class LabelJoin:
    """Joins rows with labels.

    A row and a label with one key belong together if their times are at most a horizon apart; the
    first of several labels counts, in the order in which they are read. A row whose key stood in a
    row up to a horizon earlier is a duplicate, and so is a label. After that the key may come
    again.

    The clock is the newest time of rows and labels (`engine.columnar.event_time.Clock`): one more
    than a horizon ahead, which may be wrong, expires nothing, and nothing expires before eight have
    come. What is older than a horizon and the lateness expires when it is settled. So all outcomes
    depend on the order of rows and labels and on when they are settled, and not on how many are
    added at a time.

    Args:
        horizon, lateness: in ticks.
        most: bytes of memory that what waits may hold, and the keys; beyond it the oldest are
            forgotten. What does not wait any longer may hold as many before its memory is given
            back.
        corrections: in ticks: if given, a label may come so much later than its row instead of a
            horizon; after the horizon, rows are `Settled.assumed`.
        files: where rows and labels go of which there are more than `held` bytes in memory. None
            keeps all in memory.
        scaled: the rows' columns that a stage has put on a scale.
    """

    def __init__(
        self,
        *,
        horizon: int,
        lateness: int,
        most: int,
        corrections: int | None = None,
        files: SegmentFiles | None = None,
        held: int = 0,
        scaled: Sequence[str] = (),
    ) -> None:
        self._assumes = corrections is not None
        self._horizon = horizon if corrections is None else corrections
        self._kept = self._horizon + lateness
        self._assumed_after = horizon
        self._most, self._held = most, held
        self._clock = Clock()
        self.oldest = NEVER
        """The time before which all has expired."""
        self.rows, self.labels = Side("rows", files, scaled), Side("labels", files)
        self.pairs = NO_PAIRS
        """Numbers of rows and labels that belong together and were not settled yet."""
        _compile()

    @property
    def clock(self) -> int:
        """The newest time; NEVER before it is known."""
        return self._clock.time

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
        self._clock, _, ahead = self._clock.walk(times[order], self._horizon, at_once=False)
        duplicates, pairs = np.zeros(len(group), np.bool_), np.empty((2, len(group)), np.int64)
        found = _walk(
            order, group, times, len(rows), self.rows.next, self.labels.next, row_times,
            row_numbers, label_times, label_numbers, self._horizon, duplicates, pairs,
        )  # fmt: skip
        n = len(rows)
        self.rows.add(rows.times, rows.frames, ~duplicates[:n], rows.scales)
        self.labels.add(labels.times, labels.frames, ~duplicates[n:])
        self._remember(self.rows, keys, (row_times, row_numbers), was[:2])
        self._remember(self.labels, keys, (label_times, label_numbers), was[2:])
        self.pairs = np.concatenate((self.pairs, pairs[:, :found]), axis=1)
        return Added(
            duplicate_rows=duplicates[:n],
            duplicate_labels=duplicates[n:],
            ahead=ahead,
        )

    def settle(self) -> Settled:
        """Return the pairs that were found, and what has waited for too long. Raises: HeadraceError
        if what waits cannot be written to disk, or read from there."""
        known = self.clock > NEVER
        self.oldest = self.clock - self._kept if known else NEVER
        assumed_before = self.clock - self._assumed_after if known and self._assumes else NEVER
        pairs, self.pairs = self.pairs, NO_PAIRS
        corrected = self.rows.were_assumed(pairs[0])
        rows, labels = self.rows.take(pairs[0]), self.labels.take(pairs[1])
        assumed = self.rows.gather(self.rows.assume(assumed_before))
        expired = self.rows.take(self.rows.expired(self.oldest))
        unmatched = self.labels.take(self.labels.expired(self.oldest))
        self._spill()
        many_rows = self._too_many(self.rows, self.labels)
        forgotten_assumed = int(np.count_nonzero(self.rows.were_assumed(many_rows)))
        self.rows.drop(many_rows)
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

    def _spill(self) -> None:
        """Let each side hold half in memory, and what the other one leaves."""
        for side, other in ((self.rows, self.labels), (self.labels, self.rows)):
            side.spill(max(self._held // 2, self._held - int(other.held_bytes)))

    def _too_many(self, side: Side, other: Side) -> Ints:
        """Return what has to leave a side: each may hold half, and what the other one leaves."""
        return side.forget(max(self._most // 2, self._most - int(other.live_bytes)))

    @property
    def nbytes(self) -> int:
        """The bytes held in memory."""
        return self.rows.nbytes + self.labels.nbytes

    def snapshot(self) -> Snapshot:
        """Return plain values."""
        return {
            "clock": self._clock.snapshot(),
            "oldest": self.oldest,
            "pairs": self.pairs,
            "rows": self.rows.snapshot(),
            "labels": self.labels.snapshot(),
        }

    def restore(self, value: Snapshot) -> None:
        """Restore a `snapshot`."""
        self._clock = Clock.restore(value["clock"])
        self.oldest, self.pairs = value["oldest"], value["pairs"]
        self.rows = self.rows.restored(value["rows"])
        self.labels = self.labels.restored(value["labels"])


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
    Clock().walk(none, 1, at_once=False)
    _walk(none, none, none, 0, 0, 0, none, none, none, none, 1, duplicates, NO_PAIRS.copy())


@numba.njit(nogil=True, cache=True)
def _walk(  # type: ignore[no-untyped-def]
    order, group, times, rows, first_row, first_label, row_times, row_numbers, label_times,
    label_numbers, horizon, duplicates, pairs,
):  # fmt: skip
    """Walk over rows (those below `rows`) and labels; return how many pairs were found.

    What is known of the keys is changed in place. `pairs` gets the numbers of rows and labels that
    belong together. What a newer one of the same key replaces is no longer known, and expires by
    its time.
    """
    found = 0
    for i in order:
        key, time = group[i], times[i]
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
        pairs[0, found] = row_numbers[key]
        pairs[1, found] = label
        found += 1
        row_numbers[key] = MATCHED
        if i < rows:
            label_numbers[key] = GONE
    return found


__all__ = ["Added", "Arrivals", "Frames", "LabelJoin", "Settled", "concat_frames", "height"]
