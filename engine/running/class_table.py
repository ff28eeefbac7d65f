"""The classes that a model tells apart, where they appear while it learns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import polars as pl

from engine.types import class_indexes, label_value
from engine.types.arrays import Floats, Ints


def _none() -> Ints:
    return np.empty(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassTable:
    """Names of classes by their number. A value: new labels make a new one.

    Attributes:
        names: of the classes.
        last_seen: the newest row of each, shape (classes,).
        rows: labels seen.
        left: classes that left because there were too many.
    """

    names: tuple[str, ...] = ()
    last_seen: Ints = field(default_factory=_none)
    rows: int = 0
    left: int = 0

    def with_labels(self, labels: pl.Series) -> tuple[ClassTable, Ints]:
        """Return the table with these rows' classes, new ones at its end in the order in which they
        came; and the class number of each row, shape (n,).

        Args:
            labels: without nulls.
        """
        names = self.names
        numbers = class_indexes(labels, names)
        if (numbers < 0).any():
            names = (*names, *_distinct(labels.filter(pl.Series(numbers < 0))))
            numbers = class_indexes(labels, names)
        last_seen = np.append(self.last_seen, np.full(len(names) - len(self.names), -1))
        last_seen[numbers] = self.rows + np.arange(len(labels))  # of equal ones the last counts
        rows = self.rows + len(labels)
        return ClassTable(names=names, last_seen=last_seen, rows=rows, left=self.left), numbers

    def newest(self, most: int) -> tuple[ClassTable, Ints]:
        """Return the table with the classes seen last, and their numbers in this one."""
        kept = np.sort(np.argsort(self.last_seen)[-most:])
        table = ClassTable(
            names=tuple(self.names[number] for number in kept),
            last_seen=self.last_seen[kept],
            rows=self.rows,
            left=self.left + len(self.names) - len(kept),
        )
        return table, kept

    def snapshot(self) -> dict[str, Any]:
        """Return the state as a plain value."""
        return {
            "names": list(self.names),
            "last_seen": self.last_seen,
            "rows": self.rows,
            "left": self.left,
        }

    @classmethod
    def restored(cls, value: Mapping[str, Any]) -> Self:
        """Return the table from a `snapshot`."""
        return cls(**{**value, "names": tuple(value["names"])})


def without_foresight(scores: Floats, numbers: Ints, known: int) -> Floats:
    """Return the probabilities that classes had without those of classes that had not come yet:
    the number of a new class is known before its first row is scored.

    Args:
        scores: probabilities of a batch, shape (n, classes).
        numbers: the class of each row, shape (n,).
        known: classes that were there before the batch.
    """
    if scores.shape[1] == known or not len(scores):
        return scores
    first = np.full(scores.shape[1], -1)
    came, rows = np.unique(numbers, return_index=True)
    first[came[came >= known]] = rows[came >= known]
    early = (np.arange(len(scores))[:, None] <= first) & (scores > 0)
    touched = early.any(axis=1)  # the others stay as they are, to the bit
    left = np.where(early[touched], 0.0, scores[touched])
    total = left.sum(axis=1, keepdims=True)
    scores = scores.copy()
    scores[touched] = left / np.where(total > 0, total, 1.0)
    return scores


def _distinct(labels: pl.Series) -> list[str]:
    """Return the labels as text, of equal ones ("1", "1.0") the first."""
    texts = labels.cast(pl.String).unique(maintain_order=True).to_list()
    by_value: dict[Any, str] = {}
    for text in texts:
        value = label_value(text)
        by_value.setdefault(text if value is None else value, text)
    return list(by_value.values())


__all__ = ["ClassTable", "without_foresight"]
