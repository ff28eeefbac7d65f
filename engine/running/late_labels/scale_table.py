"""The scales that rows came with, for as long as any of them waits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from engine.columnar.numeric_scale import NumericScale
from engine.types import Scale, Scales, even_parts
from engine.types.arrays import Floats, Ints

SHIFT, FACTOR = "shift", "factor"
LEAST = 64
"""The scales among which none is looked for that can go."""


class ScaleTable:
    """The scales of rows, by the rows' numbers: a scale is that of all rows from its first one to
    the first one of the next. So a row holds nothing of it, wherever it lies.

    Args:
        columns: those that a stage has put on a scale; none: there is nothing to keep.

    Attributes:
        columns: as given.
    """

    def __init__(self, columns: Sequence[str] = ()) -> None:
        self.columns = tuple(columns)
        self._size = 0
        self._first: Ints = np.empty(0, np.int64)
        """The first row of each scale, ascending; the array has room for more."""
        self._numbers: Floats = np.empty((0, 2, len(self.columns)))
        """Shift and factor of each column over all stages."""
        self._due = LEAST

    def __len__(self) -> int:
        return self._size

    def add(self, first: int, rows: int, scales: Scales) -> None:
        """Know the scales of rows that came, which are numbered from `first` on."""
        if not self.columns or not rows:
            return
        for part, own in even_parts(scales, rows):
            scale = NumericScale.of(self.columns, own)
            numbers = np.stack((scale.shift, scale.factor))
            if not self._size or numbers.tobytes() != self._numbers[self._size - 1].tobytes():
                self._append(first + part.start, numbers)

    def _append(self, first: int, numbers: Floats) -> None:
        if self._size == len(self._first):
            room = max(LEAST, 2 * self._size)
            self._first = np.resize(self._first, room)
            self._numbers = np.resize(self._numbers, (room, *self._numbers.shape[1:]))
        self._first[self._size], self._numbers[self._size] = first, numbers
        self._size += 1

    def of(self, rows: Ints) -> pl.DataFrame:
        """Return shift and factor of rows by their numbers, shape (n, columns) each."""
        numbers = self._numbers[self._places(rows)]
        return pl.DataFrame({SHIFT: numbers[:, 0], FACTOR: numbers[:, 1]})

    def newest(self) -> Scales:
        """Return the scales of the row that came last."""
        if not self._size:
            return ()
        shift, factor = self._numbers[self._size - 1].copy()
        return (Scale(columns=self.columns, shift=shift, factor=factor),)

    @property
    def due(self) -> bool:
        """Whether so many scales have come that it is time to look for those that can go."""
        return self._size > self._due

    def keep(self, rows: Ints) -> None:
        """Drop the scales that none of these rows has; the newest one stays."""
        if not self._size:
            return
        used = np.zeros(self._size, np.bool_)
        used[self._places(rows)] = used[-1] = True
        self._first = self._first[: self._size][used]
        self._numbers = self._numbers[: self._size][used]
        self._size = len(self._first)
        self._due = max(LEAST, 2 * self._size)

    def _places(self, rows: Ints) -> Ints:
        return np.searchsorted(self._first[: self._size], rows, side="right") - 1

    @property
    def nbytes(self) -> int:
        """The bytes held in memory."""
        return self._first.nbytes + self._numbers.nbytes

    def snapshot(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "first": self._first[: self._size].copy(),
            "numbers": self._numbers[: self._size].copy(),
        }

    def restored(self, value: Mapping[str, Any]) -> ScaleTable:
        """Return the table of a `snapshot`."""
        table = ScaleTable(self.columns)
        table._first, table._numbers = value["first"], value["numbers"]
        table._size = len(table._first)
        table._due = max(LEAST, 2 * table._size)
        return table


def scale_of(rows: pl.DataFrame) -> NumericScale:
    """Return the scale of each row, as the table gave it."""
    shift, factor = (rows.get_column(name).to_numpy() for name in (SHIFT, FACTOR))
    return NumericScale(shift=shift, factor=factor, named=np.ones(shift.shape[1], np.bool_))


__all__ = ["ScaleTable", "scale_of"]
