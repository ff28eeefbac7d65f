"""What a model stands beside: predictions that need no model, each of the rows before a row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.types import Snapshot
from engine.types.arrays import Floats, Ints

LAST_VALUE = "last value"
MAJORITY, PREVIOUS_CLASS = "majority class", "last class"
BEFORE = "_label before"
"""The column of rows with the newest label that was known when each came; NaN for none."""


class Baselines:
    """The last value and columns of numbers, of a regression; of classes the majority class, the
    last class, and those of the learner.

    Args:
        columns: name -> column with the prediction, of a regression.
        learners: the learner's own, see `engine.types.Learner.baselines`.
        classes: how many there are; None for a regression.

    Attributes:
        names: of all, in the order of the predictions.
        last: the newest label, NaN before the first.
    """

    def __init__(
        self, columns: Mapping[str, str], learners: Sequence[str], *, classes: int | None
    ) -> None:
        self._columns = tuple(columns.values())
        self._learners = () if classes is None else tuple(learners)
        own = [LAST_VALUE] if classes is None else [MAJORITY, PREVIOUS_CLASS, *self._learners]
        self.names = [*columns, *own]
        self._regression = classes is None
        self.last: float = math.nan
        self._counts = np.zeros(max(classes or 0, 1), np.int64)

    def beside(
        self,
        frame: pl.DataFrame,
        guesses: Mapping[str, Ints],
        rows: int,
        before: Floats | None = None,
    ) -> pl.DataFrame:
        """Return the n rows with the classes that the learner's own baselines give them, and the
        newest label `before` each, if it is given."""
        none = np.full(rows, -1)
        own: dict[str, Any] = {_guess(name): guesses.get(name, none) for name in self._learners}
        if before is not None:
            own[BEFORE] = before
        if not own:
            return frame
        added = pl.DataFrame(own)
        return frame.hstack(added) if frame.width else added

    def predictions(self, frame: pl.DataFrame, target: NDArray[Any]) -> NDArray[Any]:
        """Return every baseline's prediction for each row, from the rows before it, shape (n, p);
        and learn the rows.

        Args:
            frame: the n rows, `beside` the learner's own.
            target: their labels, shape (n,).
        """
        before = np.concatenate([[self.last], target[:-1]])
        if BEFORE in frame.columns:
            before = frame.get_column(BEFORE).to_numpy()
        self.last = float(target[-1])
        if self._regression:
            columns = [pl.col(c).cast(pl.Float64) for c in self._columns]
            if not columns:
                return before[:, None]
            return np.column_stack([frame.select(columns).to_numpy(), before])
        seen = np.eye(len(self._counts), dtype=np.int64)[target]
        counts = self._counts + np.cumsum(seen, axis=0) - seen
        majority = np.where(counts.sum(axis=1) > 0, counts.argmax(axis=1), -1)
        self._counts = self._counts + seen.sum(axis=0)
        last = np.where(np.isnan(before), -1, before).astype(np.int64)
        own = [frame.get_column(_guess(name)).to_numpy() for name in self._learners]
        return np.stack([majority, last, *own], axis=1)

    def set_classes(self, sources: Ints, before: int) -> None:
        """Count these classes from now on; see `engine.types.Learner.set_classes`.

        Args:
            before: how many classes there were.
        """
        last = -1 if math.isnan(self.last) else int(self.last)
        number = new_numbers(sources, before)[last]
        self.last = math.nan if number < 0 else float(number)
        counts = np.append(self._counts[:before], 0)
        self._counts = counts[np.where(sources < 0, before, sources)]

    def snapshot(self) -> dict[str, Snapshot]:
        """Return the state as a plain value."""
        return {"last": self.last, "counts": self._counts}

    def restore(self, state: Mapping[str, Snapshot]) -> None:
        """Restore a `snapshot`."""
        self.last, self._counts = state["last"], state["counts"]


def new_numbers(sources: Ints, before: int) -> Ints:
    """Return the new number of each number before, -1 for one that has left; for -1, the last, as
    well."""
    numbers = np.full(before + 1, -1)
    kept = np.flatnonzero(sources >= 0)
    numbers[sources[kept]] = kept
    return numbers


def _guess(baseline: str) -> str:
    """Return the name of the column with a baseline's classes."""
    return f"_guess of {baseline}"


__all__ = ["BEFORE", "LAST_VALUE", "MAJORITY", "PREVIOUS_CLASS", "Baselines", "new_numbers"]
