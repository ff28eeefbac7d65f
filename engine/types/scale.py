"""The scale that stages put numbers on, which moves with the stream."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl

from engine.types.arrays import Bools, Floats, Ints


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scale:
    """The scale a stage applied in one batch: ``(x - shift) * factor``. Other batches may have
    other numbers, so kept rows are rescaled with these.

    Attributes:
        columns: names.
        shift, factor: a number for each, float64, shape (columns,), or (parts, columns) where parts
            of the batch have their own. A shift of NaN: nothing was known of the column yet.
        part: of which part each row is, shape (n,); None if all rows have one scale.
    """

    columns: tuple[str, ...]
    shift: Floats
    factor: Floats
    part: Ints | None = None

    @classmethod
    def joined(cls, scales: Sequence[Scale], rows: Sequence[int]) -> Scale:
        """Return the scale of parts that follow one another, of so many rows each."""
        if len(scales) == 1:
            return scales[0]
        return cls(
            columns=scales[0].columns,
            shift=np.stack([scale.shift for scale in scales]),
            factor=np.stack([scale.factor for scale in scales]),
            part=np.repeat(np.arange(len(scales)), rows),
        )

    @property
    def last(self) -> Scale:
        """The scale of the last row; of no rows, that of the last part."""
        if self.part is None:
            return self
        at = self.part[-1] if len(self.part) else -1
        return Scale(columns=self.columns, shift=self.shift[at], factor=self.factor[at])


Scales = tuple[Scale, ...]
"""What the stages applied, in their order."""


def scales_of_rows(scales: Scales, rows: Ints | Bools | pl.Series | slice) -> Scales:
    """Return the scales of some of the rows of a batch."""
    if all(scale.part is None for scale in scales):
        return scales
    rows = rows if isinstance(rows, slice) else np.asarray(rows)
    return tuple(
        scale if scale.part is None else dataclasses.replace(scale, part=scale.part[rows])
        for scale in scales
    )


def even_parts(scales: Scales, rows: int) -> list[tuple[slice, Scales]]:
    """Return the parts of a batch whose rows have one scale, in order, with that."""
    parts = [scale.part for scale in scales if scale.part is not None]
    if not parts or not rows:
        return [(slice(0, rows), tuple(scale.last for scale in scales) if parts else scales)]
    changes = np.any([np.diff(part) != 0 for part in parts], axis=0)
    ends = [0, *(np.flatnonzero(changes) + 1).tolist(), rows]
    cuts = [slice(*pair) for pair in pairwise(ends)]
    return [(cut, tuple(scale.last for scale in scales_of_rows(scales, cut))) for cut in cuts]


__all__ = ["Scale", "Scales", "even_parts", "scales_of_rows"]
