"""One side of the join: the keys that are known, and what waits, in memory and on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from engine.columnar.hashing import Hashes
from engine.running.late_labels.scale_table import ScaleTable
from engine.running.late_labels.segment import Frames, HeldSegment, Segment
from engine.running.late_labels.stored_segment import StoredSegment
from engine.running.saving.segment_files import SegmentFiles
from engine.scrub.key_store import NO_ROWS, KeyStore
from engine.types import Scales
from engine.types.arrays import Bools, Ints

ABSENT = -1
"""What is known of a key that is not."""
SEGMENT_ROWS, MAX_SEGMENTS = 1 << 16, 32
"""Rows of a segment in memory: the first number, or, if more wait, their number over the second."""
FILE_BYTES = 1 << 25
"""The bytes in memory of what becomes a file, at most."""
SCALE = "scale"
"""The frame with the scales that rows which are taken came with."""
KEY_BYTES = 24
"""Bytes of a key that is known."""
Place = tuple[Segment, Ints, Ints]
"""A segment, which of the rows that are asked for are in it, and which of its rows they are."""


class Side:
    """One side of the join.

    Args:
        kind: "rows" or "labels": what files are named by.
        files: where rows go for which there is no memory.
        scaled: the columns of the rows whose scale is kept: what is taken has a frame `SCALE`.

    Attributes:
        scales: the scales that what waits came with.
        known: key -> the time it was remembered with, and the number of what waits, or another
            number below 0.
        stored: what waits on disk, oldest first; each is older than what is held.
        held: what waits in memory, oldest first; neighbours of similar size are merged.
        next: the number of the next row.
        assumed: how many of the rows that wait may still be corrected only.
    """

    def __init__(
        self, kind: str, files: SegmentFiles | None = None, scaled: Sequence[str] = ()
    ) -> None:
        self.kind = kind
        self.scales = ScaleTable(scaled)
        self.known = KeyStore()
        self.stored: list[StoredSegment] = []
        self.held: list[HeldSegment] = []
        self.next = self.assumed = 0
        self._files = files

    def find(self, keys: Hashes, oldest: int) -> tuple[Ints, Ints]:
        """Return time and number of each key, shape (n,); ABSENT for one that is not known, or no
        longer since `oldest`."""
        present, times, numbers = self.known.find(keys)
        return times, np.where(present & (times >= oldest), numbers, ABSENT).astype(np.int64)

    def remember(self, keys: Hashes, times: Ints, numbers: Ints, oldest: int) -> None:
        """Know these keys by these times and numbers from now on."""
        self.known = self.known.add(keys, times, numbers, oldest=oldest)

    def add(self, times: Ints, frames: Frames, alive: Bools, scales: Scales = ()) -> None:
        """Keep those that wait; all of them get numbers."""
        self.scales.add(self.next, len(times), scales)
        numbers = np.arange(self.next, self.next + len(times))
        self.next += len(times)
        segment = HeldSegment.of(numbers, times, np.zeros(len(times), np.bool_), frames, alive)
        if segment.waiting:
            self._append(self.held, segment)

    def _append(self, segments: list[HeldSegment], segment: HeldSegment) -> None:
        """Add a segment; merge it with those before it as long as they are of similar size, and
        small beside all that waits: so a row is copied a few times, and old rows leave together."""
        merged: HeldSegment | None = segment
        while segments and merged is not None:
            older, newer = len(segments[-1].numbers), len(merged.numbers)
            if older > 4 * newer or older + newer > self._most_rows:
                break
            merged = HeldSegment.joined([segments.pop(), merged])
        if merged is not None:
            segments.append(merged)

    @property
    def _most_rows(self) -> int:
        """The most rows of a segment that is made of others."""
        return max(SEGMENT_ROWS, sum(held.waiting for held in self.held) // MAX_SEGMENTS)

    def take(self, numbers: Ints) -> Frames:
        """Return rows that wait, in this order; they wait no longer."""
        places = list(self._places(numbers))
        self._leave(places)
        return self._gathered(numbers, places)

    def drop(self, numbers: Ints) -> None:
        """Let rows wait no longer."""
        self._leave(list(self._places(numbers)))

    def gather(self, numbers: Ints) -> Frames:
        """Return rows that wait, in this order; they wait on."""
        return self._gathered(numbers, list(self._places(numbers)))

    def _gathered(self, numbers: Ints, places: Sequence[Place]) -> Frames:
        frames = _gathered(places)
        return {**frames, SCALE: self.scales.of(numbers)} if frames and self.scales else frames

    def _leave(self, places: Sequence[Place]) -> None:
        for segment, _, rows in places:
            self.assumed -= int(np.count_nonzero(segment.assumed[rows]))
            segment.leave(rows)

    def were_assumed(self, numbers: Ints) -> Bools:
        """Return which of these rows may still be corrected only, shape (n,)."""
        assumed = np.zeros(len(numbers), np.bool_)
        for segment, here, rows in self._places(numbers) if self.assumed else ():
            assumed[here] = segment.assumed[rows]
        return assumed

    def assume(self, oldest: int) -> Ints:
        """Let the rows that are older wait for a correction only; return the numbers of those that
        did not before."""
        numbers = self._older(oldest, sure=True)
        self.assumed += len(numbers)
        return numbers

    def expired(self, oldest: int) -> Ints:
        """Return the numbers of the rows that wait and are older, which have to leave."""
        return self._older(oldest)

    def _older(self, oldest: int, *, sure: bool = False) -> Ints:
        numbers = [NO_ROWS]
        for segment in self._segments:
            rows = segment.older(oldest, sure=sure)
            if len(rows):
                numbers.append(segment.numbers[rows])
        return np.concatenate(numbers)

    @property
    def _segments(self) -> Sequence[Segment]:
        return [*self.stored, *self.held]

    def _places(self, numbers: Ints) -> Iterator[Place]:
        """Yield where these rows are, segment by segment."""
        if not len(numbers):
            return
        order = np.argsort(numbers)
        ascending, segments = numbers[order], self._segments
        starts = np.searchsorted(ascending, [segment.first for segment in segments])
        ends = np.append(starts[1:], len(numbers))
        for at in np.flatnonzero(starts < ends).tolist():
            here = slice(starts[at], ends[at])
            yield segments[at], order[here], segments[at].find(ascending[here])

    def forget(self, most: int) -> Ints:
        """Forget the oldest keys if all that waits in memory and is known is more than so many
        bytes, an eighth of them at a time; return the numbers of their rows, which have to leave.
        """
        numbers = NO_ROWS
        if self.live_bytes > most:
            self._keep_scales()
        excess = self.live_bytes - most
        scale_bytes = self.scales.nbytes / max(1, self.waiting)
        while excess > 0 and self.known.runs:
            times = np.concatenate([run.order for run in self.known.runs])
            oldest = int(np.partition(times, len(times) // 8)[len(times) // 8])
            oldest += oldest == times.min()
            self.known = self.known.since(oldest)
            excess -= KEY_BYTES * (len(times) - len(self.known))
            for segment in self._segments:
                old = segment.older(oldest)
                if len(old):
                    fresh = np.setdiff1d(segment.numbers[old], numbers)
                    numbers = np.concatenate([numbers, fresh])
                    excess -= len(fresh) * (segment.row_bytes + scale_bytes)
        return numbers

    def spill(self, most: int) -> None:
        """If what waits in memory is more than so many bytes, write what came first to files, until
        half of it is left. Raises: HeadraceError if that cannot be written."""
        excess = self.held_bytes - most / 2
        if self._files is None or self.held_bytes <= most:
            return
        while excess > 0:
            count, nbytes = 0, 0.0
            while count < len(self.held) and nbytes < min(excess, FILE_BYTES):
                nbytes += self.held[count].live_bytes
                count += 1
            whole = HeldSegment.joined(self.held[:count])
            rows = max(1, int(FILE_BYTES / whole.row_bytes)) if whole is not None else 0
            for part in whole.split(rows) if whole is not None else ():
                self.stored.append(StoredSegment.write(self._files, self.kind, part))
            del self.held[:count]
            excess -= nbytes

    def tidy(self) -> None:
        """Give back the memory of what no longer waits, where that is the most of a segment."""
        self.stored = [segment for segment in self.stored if segment.waiting]
        if self.scales.due:
            self._keep_scales()
        sparse = [2 * segment.waiting < len(segment.alive) for segment in self.held]
        if not any(sparse):
            return
        kept: list[HeldSegment] = []
        for segment, compact in zip(self.held, sparse, strict=True):
            left = segment.compacted() if compact else segment
            if left.waiting:
                self._append(kept, left)
        self.held = kept

    def _keep_scales(self) -> None:
        """Drop the scales of which no row waits any longer."""
        numbers = [segment.numbers[segment.alive] for segment in self._segments]
        self.scales.keep(np.concatenate([NO_ROWS, *numbers]))

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(segment.waiting for segment in self._segments)  # asked from other threads

    @property
    def stored_rows(self) -> int:
        """How many wait on disk."""
        return sum(segment.waiting for segment in list(self.stored))

    @property
    def stored_bytes(self) -> int:
        """The bytes of their files."""
        return sum(segment.file.nbytes for segment in list(self.stored))

    @property
    def held_bytes(self) -> float:
        """The memory of what waits there."""
        return sum(segment.live_bytes for segment in self.held)

    @property
    def nbytes(self) -> int:
        """The memory of all segments, and of the keys."""
        held = sum(segment.row_bytes * len(segment.alive) for segment in self._segments)
        return int(held) + KEY_BYTES * len(self.known) + self.scales.nbytes

    @property
    def live_bytes(self) -> float:
        """The memory of what waits still, of the keys and of the scales."""
        held = sum(segment.row_bytes * segment.waiting for segment in self._segments)
        return float(held) + KEY_BYTES * len(self.known) + self.scales.nbytes

    def snapshot(self) -> dict[str, Any]:
        """Return plain values, which do not depend on how the rows lie in memory."""
        self.held = [left for one in self.held if (left := one.compacted()).waiting]
        self._keep_scales()
        whole, held = HeldSegment.joined(self.held), None
        if whole is not None:
            held = {
                "numbers": whole.numbers,
                "times": whole.times,
                "assumed": whole.assumed.copy(),
                "frames": dict(whole.frames),
            }
        return {
            "known": self.known.snapshot(),
            "held": held,
            "stored": [segment.snapshot() for segment in self.stored],
            "scales": self.scales.snapshot(),
            "next": self.next,
        }

    def restored(self, value: Mapping[str, Any]) -> Side:
        """Return the side of a `snapshot`."""
        side = Side(self.kind, self._files)
        side.known, side.next = KeyStore.restore(value["known"]), value["next"]
        side.scales = self.scales.restored(value["scales"])
        if value["stored"]:
            assert self._files is not None
            side.stored = [StoredSegment.restore(self._files, one) for one in value["stored"]]
        if (held := value["held"]) is not None:
            whole = HeldSegment.of(**held, alive=np.ones(len(held["numbers"]), np.bool_))
            side.held = whole.split(max(SEGMENT_ROWS, whole.waiting // MAX_SEGMENTS))
        side.assumed = sum(int(np.count_nonzero(s.assumed & s.alive)) for s in side._segments)
        return side


def _gathered(places: Sequence[Place]) -> Frames:
    """Return rows of segments in the order in which they were asked for; no frames for none."""
    if not places:
        return {}
    order = np.argsort(np.concatenate([here for _, here, _ in places]))
    parts = [segment.gather(rows) for segment, _, rows in places]
    return {
        name: pl.concat([part[name] for part in parts], how="diagonal")[order] for name in parts[0]
    }


__all__ = ["ABSENT", "SCALE", "Side"]
