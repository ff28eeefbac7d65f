"""The steps in which rows are scored and labels are learned, where labels come later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from engine.loading.sources.labelled_source import is_of_labels
from engine.types import PARTITION, POSITION, Records
from engine.types.arrays import Ints

STEP_LABELS = 4_096
"""The labels of a step, if no row begins another before: so that many labels and no rows wait for
nothing."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelSteps:
    """The records of a batch in the order in which they were read, cut into steps.

    A step begins with each `every`-th row of the stream, and with each `labels`-th label. So where
    it begins does not depend on where batches do.

    Attributes:
        pieces: the records.
        steps: of each of them, ascending, shape (n,). Those of step 0 go on with the step that was
            begun before the batch.
    """

    pieces: Sequence[Records]
    steps: Ints

    @classmethod
    def of(cls, pieces: Sequence[Records], every: int, labels: int = STEP_LABELS) -> LabelSteps:
        """Return the steps of the rows and labels of a batch."""
        begins = [np.empty(0, np.bool_)]
        for piece in pieces:
            numbers = np.arange(piece.counted, piece.counted + len(piece))
            begins.append(numbers % (labels if is_of_labels(piece) else every) == 0)
        return cls(pieces=pieces, steps=np.cumsum(np.concatenate(begins)))

    def records_of(self, frame: pl.DataFrame) -> Ints:
        """Return the number of the record that each row was made of, shape (n,); all 0 where the
        records are unknown."""
        records = np.zeros(frame.height, np.int64)
        if not self.pieces:
            return records
        starts = np.cumsum([0, *map(len, self.pieces)])
        column, positions = frame.get_column(PARTITION), frame.get_column(POSITION).to_numpy()
        for partition in column.unique():
            own = [at for at, piece in enumerate(self.pieces) if piece.partition == partition]
            numbers = np.concatenate([np.arange(starts[at], starts[at + 1]) for at in own])
            places = np.concatenate([self.pieces[at].positions for at in own])
            rows = (column == partition).to_numpy()
            records[rows] = numbers[np.searchsorted(places, positions[rows], "right") - 1]
        return records

    def split(self, records: Ints) -> list[Ints]:
        """Return the indices of the records that are in each step, ascending, step by step."""
        if not len(self.steps):
            return [np.arange(len(records))]
        steps = self.steps[records]
        order = np.argsort(steps, kind="stable")
        bounds = np.searchsorted(steps[order], np.arange(1, self.steps[-1] + 1))
        return np.split(order, bounds)


__all__ = ["LabelSteps"]
