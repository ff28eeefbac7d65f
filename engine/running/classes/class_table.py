"""The classes that a model tells apart, where they appear while it learns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import polars as pl

from engine.columnar.event_time import NEVER, EventTime
from engine.types import class_indexes, label_value
from engine.types.arrays import Bools, Floats, Ints

Value = str | int | float
"""What makes labels equal: "1" and "1.0" have one."""


def _none() -> Ints:
    return np.empty(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRules:
    """When a label is a class.

    Attributes:
        most: classes; and labels that wait to be one.
        min_count: rows of a label until it is one, the last of them included.
        idle: how long a class may go unseen: in ticks of `time`, in rows without one; None: for
            ever.
        time: the column of the event time.
    """

    most: int
    min_count: int = 1
    idle: int | None = None
    time: EventTime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassTable:
    """Names of classes by their number. A value: new labels make a new one.

    Moments are what the age of a class is counted by: the number of a row, or the stream's time
    with it, which never goes back. `NEVER` is one before that began.

    Attributes:
        names: of the classes.
        last_seen: the newest row of each, shape (classes,).
        moments: of those rows, shape (classes,).
        waiting: labels that are no class yet, the one seen last at the end: value -> name, rows,
            moment of the last.
        began: the first moment that is not `NEVER`.
        rows: labels seen.
        waited: rows whose label was no class yet.
        forgotten: labels that wait no more because there were too many.
        left: classes that left because there were too many.
        expired: classes that left because they were not seen any more.
    """

    names: tuple[str, ...] = ()
    last_seen: Ints = field(default_factory=_none)
    moments: Ints = field(default_factory=_none)
    waiting: Mapping[Value, tuple[str, int, int]] = field(default_factory=dict)
    began: int = NEVER
    rows: int = 0
    waited: int = 0
    forgotten: int = 0
    left: int = 0
    expired: int = 0

    def with_labels(
        self, labels: pl.Series, moments: Ints, rules: ClassRules
    ) -> tuple[ClassTable, Ints]:
        """Return the table with these rows' classes, new ones at its end in the order in which they
        came; and the class number of each row, -1 without a class, shape (n,).

        Args:
            labels: of the next rows.
            moments: of them, shape (n,).
        """
        labels = labels.fill_nan(None) if labels.dtype.is_float() else labels
        numbers, table = class_indexes(labels, self.names), self
        new = np.flatnonzero((numbers < 0) & labels.is_not_null().to_numpy())
        if len(new) and rules.min_count == 1:
            table = replace(self, names=(*self.names, *_distinct(labels.gather(new))))
            numbers = class_indexes(labels, table.names)
        elif len(new):
            table, waits = self._admitting(labels.gather(new), moments[new], rules)
            numbers = class_indexes(labels, table.names)
            numbers[new[waits]] = -1
        more = len(table.names) - len(self.names)
        last_seen, seen = (
            np.append(known, np.full(more, -1)) for known in (self.last_seen, self.moments)
        )
        there = np.flatnonzero(numbers >= 0)
        last_seen[numbers[there]] = self.rows + there  # of equal ones the last counts
        seen[numbers[there]] = moments[there]
        rows = self.rows + len(labels)
        return replace(table, last_seen=last_seen, moments=seen, rows=rows), numbers

    def rows_before_leaving(self, numbers: Ints, moments: Ints, rules: ClassRules) -> int:
        """Return how many of the rows that come next there are before one for which a class has to
        leave.

        Args:
            numbers: as `with_labels` returns them.
            moments: of the rows, shape (n,), none of which is too late for a class of the table at
                the first row.
        """
        beyond = np.flatnonzero(numbers >= rules.most)
        rows = int(beyond[0]) if len(beyond) else len(numbers)
        if rules.idle is None or not rows:
            return rows
        there = np.flatnonzero(numbers >= 0)
        classes = np.concatenate([np.arange(len(self.names)), numbers[there]])
        at = np.concatenate([np.full(len(self.names), -1), there])
        seen = np.maximum(np.concatenate([self.moments, moments[there]]), self.began)
        order = np.lexsort((at, classes))
        classes, at, seen = classes[order], at[order], seen[order]
        again = np.full(len(at), len(numbers) - 1)  # the row by which a class is seen again
        again[:-1] = np.where(classes[1:] == classes[:-1], at[1:], again[:-1])
        late = np.searchsorted(moments, seen + rules.idle, side="right")
        return min(rows, int(late[late <= again].min(initial=rows)))

    def idle(self, moment: int, rules: ClassRules) -> Bools:
        """Return which classes have not been seen for too long at a moment, shape (classes,)."""
        if rules.idle is None:
            return np.zeros(len(self.names), np.bool_)
        late: Bools = moment - np.maximum(self.moments, self.began) > rules.idle
        return late

    def newest(self, most: int) -> tuple[ClassTable, Ints]:
        """Return the table with the classes seen last, and their numbers in this one."""
        kept = np.sort(np.argsort(self.last_seen)[-most:])
        return replace(self.only(kept), left=self.left + len(self.names) - len(kept)), kept

    def only(self, kept: Ints) -> ClassTable:
        """Return the table with the classes of these numbers."""
        return replace(
            self,
            names=tuple(self.names[number] for number in kept),
            last_seen=self.last_seen[kept],
            moments=self.moments[kept],
        )

    def snapshot(self) -> dict[str, Any]:
        """Return the state as a plain value."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        waiting = [list(entry) for entry in self.waiting.values()]
        return {**plain, "names": list(self.names), "waiting": waiting}

    @classmethod
    def restored(cls, value: Mapping[str, Any]) -> Self:
        """Return the table from a `snapshot`."""
        waiting = {_value(name): (name, count, seen) for name, count, seen in value["waiting"]}
        return cls(**{**value, "names": tuple(value["names"]), "waiting": waiting})

    def _admitting(
        self, labels: pl.Series, moments: Ints, rules: ClassRules
    ) -> tuple[ClassTable, Bools]:
        """Return the table with the names of those labels of rows that become classes, and which of
        the rows wait, shape (n,)."""
        waiting, forgotten = dict(self.waiting), self.forgotten
        admitted: dict[Value, str] = {}
        waits = np.zeros(len(labels), np.bool_)
        texts = labels.cast(pl.String).to_list()
        values = {text: _value(text) for text in set(texts)}
        for row, (text, moment) in enumerate(zip(texts, moments.tolist(), strict=True)):
            value = values[text]
            if value in admitted:
                continue
            name, count, seen = waiting.pop(value, (text, 0, moment))
            too_late = rules.idle is not None and moment - max(seen, self.began) > rules.idle
            count = 1 if too_late else count + 1
            if count >= rules.min_count:
                admitted[value] = name
                continue
            waiting[value], waits[row] = (name, count, moment), True
            if len(waiting) > rules.most:
                del waiting[next(iter(waiting))]
                forgotten += 1
        table = replace(
            self,
            names=(*self.names, *admitted.values()),
            waiting=waiting,
            waited=self.waited + int(waits.sum()),
            forgotten=forgotten,
        )
        return table, waits


def without_foresight(scores: Floats, numbers: Ints, known: int) -> Floats:
    """Return the probabilities that classes had without those of classes that had not come yet:
    the number of a new class is known before its first row is scored.

    Args:
        scores: probabilities of a batch, shape (n, classes).
        numbers: the class of each row, -1 without a label, shape (n,).
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
    by_value: dict[Value, str] = {}
    for text in texts:
        by_value.setdefault(_value(text), text)
    return list(by_value.values())


def _value(text: str) -> Value:
    value = label_value(text)
    return text if value is None else value


__all__ = ["ClassRules", "ClassTable", "without_foresight"]
