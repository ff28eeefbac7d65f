"""The newest rows of a stream, which trees are trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.columnar.numeric_scale import NumericScale
from engine.types import Features
from models.learners.trees.forest import Rows, Target

Kept = NDArray[np.float32] | NDArray[np.float64]
"""Rows as they were before stages scaled them, shape (n, numeric + categories)."""


class TrainingWindow:
    """The newest rows of a stream with their targets, kept as they were before stages scaled them
    and returned in any scale.

    Args:
        features: of a row.
        most: how many rows are kept.
    """

    def __init__(self, features: Features, most: int) -> None:
        self.most = most
        self._numbers = len(features.numeric)
        self._scaled = bool(features.scaled)
        width = self._numbers + len(features.categories)
        self._ring: Kept = np.empty((most, width + 1), _dtype(features))  # the target comes last
        self._seen = 0

    @property
    def nbytes(self) -> int:
        """The bytes of the rows."""
        return self._ring[: min(self._seen, self.most)].nbytes

    @property
    def capacity_bytes(self) -> int:
        """The bytes of a full window."""
        return self._ring.nbytes

    def unscaled(self, rows: Rows, scale: NumericScale) -> Kept:
        """Return rows of this scale as the window keeps them: numbers of before, float64; the rows
        themselves if no stage scales any."""
        if not self._scaled:
            return rows
        numbers = scale.undo(rows[:, : self._numbers].astype(np.float64))
        return np.concatenate((numbers, rows[:, self._numbers :].astype(np.float64)), axis=1)

    def add(self, rows: Kept, target: NDArray[Any]) -> None:
        """Keep a copy of these rows, over the oldest."""
        rows, target = rows[-self.most :], target[-self.most :]
        places = (self._seen + np.arange(len(rows))) % self.most
        self._ring[places, :-1], self._ring[places, -1] = rows, target
        self._seen += len(rows)

    def newest(self, scale: NumericScale, count: int | None = None) -> tuple[Rows, Target]:
        """Return the newest rows in this scale, and their targets, oldest first."""
        kept = self.snapshot(count)
        rows, target = kept[:, :-1], kept[:, -1].astype(np.float32)
        if not self._scaled:
            return np.ascontiguousarray(rows, np.float32), target
        numbers = scale.apply(rows[:, : self._numbers].astype(np.float64))
        whole = np.concatenate((numbers, rows[:, self._numbers :]), axis=1)
        return whole.astype(np.float32), target

    def renumber(self, numbers: NDArray[np.int64]) -> None:
        """Give kept rows the new numbers of their classes, by the old ones; drop those of -1."""
        kept = self.snapshot()
        target = numbers[kept[:, -1].astype(np.int64)]
        if not np.array_equal(target, kept[:, -1]):
            kept[:, -1] = target
            self.restore(kept[target >= 0])

    def snapshot(self, count: int | None = None) -> Kept:
        """Return a copy of the newest rows, all unless `count` is given, with the target as the
        last column, oldest first."""
        held = min(self._seen, self.most)
        count = held if count is None else min(count, held)
        return self._ring[(self._seen - count + np.arange(count)) % self.most]

    def restore(self, kept: Kept) -> None:
        """Keep the rows of a `snapshot`, and no others."""
        self._seen = 0
        self.add(kept[:, :-1], kept[:, -1])


def row_bytes(features: Features) -> int:
    """Return the bytes of a row in a window."""
    width = len(features.numeric) + len(features.categories) + 1
    return width * int(np.dtype(_dtype(features)).itemsize)


def _dtype(features: Features) -> Any:
    """Return the type of kept numbers: rows that are scaled after they were kept need more."""
    return np.float64 if features.scaled else np.float32


__all__ = ["Kept", "TrainingWindow", "row_bytes"]
