"""What came of the rows of a batch."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from engine.types import Step


class BatchProgress:
    """Accumulates the scores and outcomes of one batch over its optimizer steps.

    Attributes:
        not_learned: rows that nothing was learned from, bool, shape (n,).
        steps: taken.
        changed: augment -> rows that it changed.
        counts: what else is counted, see `Step.counts`.
    """

    def __init__(self, rows: int) -> None:
        self.not_learned = np.zeros(rows, np.bool_)
        self.steps = 0
        self.changed: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self._losses: list[float] = []
        self._waiting: list[NDArray[np.int64]] = []

    def waits(self, rows: NDArray[np.int64]) -> None:
        """Note that the rows of these numbers wait for their step."""
        self._waiting.append(rows)

    def step_taken(self, loss: float) -> None:
        """Note that a step on the waiting rows was taken."""
        self._waiting.clear()
        self._losses.append(loss)
        self.steps += 1

    def step_failed(self) -> int:
        """Note that the step failed; return how many of its rows are of this batch."""
        rows = np.concatenate([*self._waiting, np.empty(0, np.int64)])
        self._waiting.clear()
        self.not_learned[rows] = True
        return len(rows)

    def step(self, scores: NDArray[np.float64]) -> Step:
        """Return the finished `Step`."""
        not_learned = self.not_learned if self.not_learned.any() else None
        return Step(
            scores=scores,
            loss=sum(self._losses) / len(self._losses) if self._losses else float("nan"),
            steps=self.steps,
            skipped="non_finite" if not_learned is not None and not_learned.all() else None,
            not_learned=not_learned,
            augmented=self.changed,
            counts=self.counts,
        )


__all__ = ["BatchProgress"]
