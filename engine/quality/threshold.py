"""The decision threshold of two classes: a probability, or the best one for a goal on held-out
rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from engine import types
from engine.quality.measures import BINS, bins, edges
from engine.types import Snapshot
from engine.types.arrays import Ints

MIN_ROWS = 10
"""The held-out rows of each class required to choose a threshold."""
RECHOOSE_GROWTH = 0.05
"""The growth of the held-out rows after which a threshold is chosen again."""


class ThresholdSettings(types.Settings):
    """``[model] threshold``: a probability, or one goal.

    Attributes:
        value: the probability of class 1 above which it is predicted.
        precision: aim: the largest recall with this precision or better.
        recall: aim: the best precision with this recall or better.
        f1: aim: the largest F1 of class 1.
        false_positive, false_negative: aim: the lowest cost, of one such mistake each.
    """

    value: float | None = Field(None, ge=0, lt=1)
    precision: float | None = Field(None, gt=0, le=1)
    recall: float | None = Field(None, gt=0, le=1)
    f1: bool = False
    false_positive: float | None = Field(None, gt=0)
    false_negative: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _check_one_aim(self) -> Self:
        costs = {self.false_positive is None, self.false_negative is None}
        if len(costs) > 1:
            raise ValueError("expected both costs")
        ways = [self.value, self.precision, self.recall, self.false_positive, self.f1 or None]
        if sum(way is not None for way in ways) != 1:
            raise ValueError("expected one of them")
        return self

    @classmethod
    def read(cls, given: Any) -> Self:
        """Parse the value of a pipeline file. Raises: ValueError with one sentence."""
        table = {"f1": True} if given == "f1" else given
        try:
            return cls.model_validate(
                table if isinstance(table, Mapping | cls) else {"value": table}
            )
        except ValidationError:
            raise ValueError(
                'expected a number from 0 to 1, "f1", {precision = 0.9}, {recall = 0.8} or '
                "{false_positive = 1, false_negative = 20}"
            ) from None

    @property
    def is_chosen(self) -> bool:
        """Whether the threshold is chosen for a goal, not given."""
        return self.value is None

    def choose(self, histogram: Ints) -> float:
        """Return the best threshold for the goal.

        Args:
            histogram: rows by true class and bin of class 1's probability, shape (2, BINS).
        """
        # Class 1 may begin at each bin, or nowhere.
        false, true = np.append(np.cumsum(histogram[:, ::-1], axis=1)[:, ::-1], [[0], [0]], axis=1)
        precision, recall = true / np.maximum(true + false, 1), true / max(1, int(true[0]))
        if self.precision is not None:
            worth = np.where(precision >= self.precision, 1 + recall, precision)
        elif self.recall is not None:
            worth = np.where(recall >= self.recall, 1 + precision, recall)
        elif self.f1:
            worth = 2 * true / np.maximum(2 * true + false + true[0] - true, 1)
        else:
            assert self.false_positive is not None
            assert self.false_negative is not None
            worth = -(self.false_positive * false + self.false_negative * (true[0] - true))
        first = int(worth.argmax())
        alike = worth[first:] == worth[first]  # no row lies between those: the middle is farthest
        last = first + int(np.append(alike, False).argmin()) - 1
        return float(np.append(edges(), 1.0)[(first + last) // 2])


class Threshold:
    """The threshold while a model is trained: given, or chosen again as held-out rows arrive.

    Args:
        settings: ``[model] threshold``.
        rows: how many held-out rows are kept, the newest.

    Attributes:
        value: now; 0.5 until there are ten rows of each class to choose by.
    """

    def __init__(self, settings: ThresholdSettings, rows: int) -> None:
        self.settings = settings
        self.value = 0.5 if settings.value is None else settings.value
        self._rows = rows
        self._target = np.empty(0, np.int64)
        self._scores = np.empty(0)
        self._new = 0

    def update(self, target: NDArray[Any], scores: NDArray[np.float64]) -> None:
        """Add held-out rows' classes and scores, shape (n,)."""
        if not self.settings.is_chosen:
            return
        self._target = np.append(self._target, target)[-self._rows :]
        self._scores = np.append(self._scores, scores)[-self._rows :]
        self._new += len(target)
        if self._new > RECHOOSE_GROWTH * len(self._target):
            self._new = 0
            self.value = choose_threshold(self.settings, self._target, self._scores) or self.value

    def snapshot(self) -> Snapshot:
        """Return a plain value."""
        return {
            "value": self.value, "target": self._target, "scores": self._scores, "new": self._new,
        }  # fmt: skip

    def restore(self, value: Snapshot) -> None:
        """Restore a `snapshot`; a given threshold keeps its current value."""
        if self.settings.is_chosen:
            self.value, self._new = value["value"], value["new"]
            self._target, self._scores = value["target"], value["scores"]


def choose_threshold(
    settings: ThresholdSettings, target: NDArray[Any], scores: NDArray[np.float64]
) -> float | None:
    """Return the best threshold for the goal on these rows; None if a class has too few."""
    counts = np.bincount(target, minlength=2)
    if counts.min() < MIN_ROWS:
        return None
    binned = np.bincount(target * BINS + bins(scores), minlength=2 * BINS)
    return settings.choose(binned.reshape(2, BINS))


__all__ = ["MIN_ROWS", "Threshold", "ThresholdSettings", "choose_threshold"]
