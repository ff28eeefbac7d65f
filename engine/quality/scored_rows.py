"""Rows with their labels and the scores that they had before they were learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.quality.baselines import BEFORE, new_numbers
from engine.quality.measures import finite_rows
from engine.types import Features, predicted_classes
from engine.types.arrays import Bools, Floats, Ints
from engine.types.snapshots import FieldsSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRows(FieldsSnapshot):
    """Rows: a frame of the columns that are needed of them, targets (n,), scores (n,) or (n, k). Of
    several targets both are (n, k), a target NaN where a row has none."""

    frame: pl.DataFrame
    target: NDArray[Any]
    scores: Floats

    def __len__(self) -> int:
        return len(self.target)

    @property
    def nbytes(self) -> int:
        """The bytes of all arrays and columns."""
        return self.target.nbytes + self.scores.nbytes + int(self.frame.estimated_size())

    @property
    def knows_before(self) -> bool:
        """Whether the frame says what label was known when each row came."""
        return BEFORE in self.frame.columns

    @property
    def scored(self) -> Bools:
        """Which rows have a finite score, shape (n,)."""
        return finite_rows(self.scores)

    def only(self, mask: Bools) -> ScoredRows:
        """Return the rows where the mask, shape (n,), is true."""
        frame = self.frame.filter(mask) if self.frame.width else self.frame
        return ScoredRows(frame=frame, target=self.target[mask], scores=self.scores[mask])

    def newest(self, count: int) -> ScoredRows:
        """Return the last rows, so many at most."""
        return ScoredRows(
            frame=self.frame.tail(count), target=self.target[-count:], scores=self.scores[-count:]
        )

    def of_target(self, number: int) -> ScoredRows:
        """Return the rows that have a label of one of several targets; all, if there is one."""
        if self.target.ndim == 1:
            return self
        target, scores = self.target[:, number], self.scores[:, number]
        one = ScoredRows(frame=self.frame, target=target, scores=scores)
        return one.only(np.isfinite(target))

    def errors(self, baselines: NDArray[Any], features: Features, threshold: float) -> Floats:
        """Return the error of the model and of each baseline, NaN where there is none, shape
        (n, 1 + p): how far a number is off, or whether a class is wrong."""
        if features.task == "regression":
            predictions = np.column_stack([features.points(self.scores), baselines])
            errors: Floats = np.abs(predictions - self.target[:, None])
            return errors
        predicted = predicted_classes(self.scores, threshold)
        wrong = np.where(baselines >= 0, baselines != self.target[:, None], np.nan)
        return np.column_stack([predicted != self.target, wrong]).astype(np.float64)

    def renumbered(self, sources: Ints, before: int) -> ScoredRows:
        """Return the rows with the classes' new numbers, without those of classes that have left;
        see `engine.types.Learner.set_classes`. The frame's columns are classes too.

        Args:
            before: how many classes there were.
        """
        numbers = new_numbers(sources, before)
        predicted = predicted_classes(self.scores)
        target = numbers[self.target]
        keep = (target >= 0) & ((predicted < 0) | (numbers[predicted] >= 0))
        scores = np.pad(_widened(self.scores, before)[keep], ((0, 0), (0, 1)))
        scores = scores[:, np.where(sources < 0, before, sources)]
        guesses = self.frame.select(
            pl.Series(name, numbers[self.frame.get_column(name).to_numpy()])
            for name in self.frame.columns
        )
        return ScoredRows(frame=guesses.filter(keep), target=target[keep], scores=scores)


def concatenated(parts: Sequence[ScoredRows], classes: int) -> ScoredRows:
    """Return all rows; their classes are more now, where some came later."""
    return ScoredRows(
        frame=pl.concat([part.frame for part in parts]),
        target=np.concatenate([part.target for part in parts]),
        scores=np.concatenate([_widened(part.scores, classes) for part in parts]),
    )


def _widened(scores: Floats, classes: int) -> Floats:
    if scores.ndim == 1 or scores.shape[1] >= classes:
        return scores
    return np.pad(scores, ((0, 0), (0, classes - scores.shape[1])))


__all__ = ["ScoredRows", "concatenated"]
