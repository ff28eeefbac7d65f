"""Rows that came one after another, some of which still wait: in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl

from engine.types.arrays import Bools, Ints

Frames = Mapping[str, pl.DataFrame]
"""What is kept of rows, by name: frames of as many rows each."""
ROW_BYTES = 18
"""Bytes of a row beside its frames."""


class Segment(Protocol):
    """Rows that came one after another, some of which still wait, wherever they lie.

    Attributes:
        alive: which of them still wait, shape (n,).
        assumed: which of them may still be corrected only, shape (n,).
        waiting: how many still wait.
        row_bytes: memory of a row, on average.
    """

    alive: Bools
    assumed: Bools
    waiting: int
    row_bytes: float

    @property
    def numbers(self) -> Ints:
        """The numbers of the rows, ascending, shape (n,)."""
        ...

    @property
    def first(self) -> int:
        """The number of the first row."""
        ...

    def find(self, numbers: Ints) -> Ints:
        """Return which rows have these numbers, shape (m,)."""
        ...

    def older(self, oldest: int, *, sure: bool = False) -> Ints:
        """Return the rows that wait and are older, ascending. Each is returned once: it leaves.

        Args:
            sure: without those that are assumed. What is returned is assumed then.
        """
        ...

    def gather(self, rows: Ints) -> Frames:
        """Return some of the rows, in this order."""
        ...

    def leave(self, rows: Ints) -> None:
        """Let rows wait no longer."""
        ...


@dataclass(slots=True, eq=False)
class HeldSegment:
    """A segment in memory.

    Attributes:
        numbers: of the rows, ascending, shape (n,).
        times: in ticks, shape (n,).
        earliest: no row that waits has an earlier time.
    """

    numbers: Ints
    times: Ints
    assumed: Bools
    frames: Frames
    alive: Bools
    earliest: int
    waiting: int = 0
    row_bytes: float = 0.0

    def __post_init__(self) -> None:
        held = sum(int(frame.estimated_size()) for frame in self.frames.values())
        self.row_bytes = held / max(len(self.numbers), 1) + ROW_BYTES
        self.waiting = int(np.count_nonzero(self.alive))

    @classmethod
    def of(
        cls, numbers: Ints, times: Ints, assumed: Bools, frames: Frames, alive: Bools
    ) -> HeldSegment:
        """Return a segment of some of these rows."""
        if not alive.all():
            numbers, times, assumed = numbers[alive], times[alive], assumed[alive]
            mask = pl.Series(alive)
            frames = {name: frame.filter(mask) for name, frame in frames.items()}
        earliest, alive = int(times.min()) if len(times) else 0, np.ones(len(numbers), np.bool_)
        return cls(numbers, times, assumed.copy(), frames, alive, earliest)

    def compacted(self) -> HeldSegment:
        """Return the rows that wait."""
        return HeldSegment.of(self.numbers, self.times, self.assumed, self.frames, self.alive)

    def split(self, rows: int) -> list[HeldSegment]:
        """Return the same as segments of at most so many rows."""
        parts = [slice(at, at + rows) for at in range(0, len(self.numbers), rows)]
        return [
            HeldSegment.of(
                self.numbers[part],
                self.times[part],
                self.assumed[part],
                {name: frame[part] for name, frame in self.frames.items()},
                self.alive[part],
            )
            for part in parts
        ]

    @classmethod
    def joined(cls, segments: Sequence[HeldSegment]) -> HeldSegment | None:
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
            np.concatenate([part.times for part in parts]),
            np.concatenate([part.assumed for part in parts]),
            frames,
            np.concatenate([part.alive for part in parts]),
            min(part.earliest for part in parts),
        )

    @property
    def first(self) -> int:
        """The number of the first row."""
        return int(self.numbers[0])

    @property
    def live_bytes(self) -> float:
        """The memory of the rows that wait."""
        return self.row_bytes * self.waiting

    def find(self, numbers: Ints) -> Ints:
        """Return which rows have these numbers, shape (m,)."""
        return np.searchsorted(self.numbers, numbers)

    def older(self, oldest: int, *, sure: bool = False) -> Ints:
        """Return the rows that wait and are older, ascending."""
        if self.earliest >= oldest:
            return np.empty(0, np.int64)
        old = self.alive & (self.times < oldest)
        if sure:
            old &= ~self.assumed
            self.assumed |= old
            return np.flatnonzero(old)
        left = self.times[self.alive & ~old]
        self.earliest = int(left.min()) if len(left) else oldest
        return np.flatnonzero(old)

    def gather(self, rows: Ints) -> Frames:
        """Return some of the rows, in this order."""
        return {name: frame[rows] for name, frame in self.frames.items()}

    def leave(self, rows: Ints) -> None:
        """Let rows wait no longer."""
        self.alive[rows] = False
        self.waiting -= len(rows)


__all__ = ["Frames", "HeldSegment", "Segment"]
