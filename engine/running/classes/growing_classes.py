"""Classes that come and go while a model learns: who has to know of them is told."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from engine.columnar.event_time import NEVER, Clock
from engine.observing.metrics import Metrics
from engine.quality.evaluation import Evaluation
from engine.running.classes.class_table import ClassRules, ClassTable
from engine.types import Batch, Learner, tensor
from engine.types.arrays import Ints
from engine.user_code import calls

log = logging.getLogger("headrace.run")


class GrowingClasses:
    """Numbers the labels of a stream, and tells learner and evaluation what classes there are.

    Which classes there are at a row depends on the rows before it, not on how they are cut into
    batches. What is counted, as of the stage ``model``: ``new_classes``; ``waiting_for_class``,
    rows whose label is not one yet; ``forgotten_labels``, whose count is lost because too many
    wait; ``expired_classes``, which were idle.

    Args:
        rules: when a label is a class.
    """

    def __init__(
        self, learner: Learner, evaluation: Evaluation, rules: ClassRules, metrics: Metrics
    ) -> None:
        self.table = ClassTable()
        self.rules = rules
        self._learner = learner
        self._evaluation = evaluation
        self._metrics = metrics
        self._clock = Clock()

    def parts(self, batch: Batch) -> Iterator[tuple[Batch, int]]:
        """Yield the batch with class numbers as its target, and how many classes were known before
        it. It comes in parts where a class has to leave.

        Collation leaves the numbers to whoever sees the rows in their order."""
        at, rules = 0, self.rules
        labels = batch.frame.get_column(str(self._learner.features.target))
        moments, counted = self._moments(batch), self.table
        while at < len(batch):
            if (idle := self.table.idle(int(moments[at]), rules)).any():
                self._expire(np.flatnonzero(~idle))
            table, numbers = self.table.with_labels(labels[at:], moments[at:], rules)
            rows = self.table.rows_before_leaving(numbers, moments[at:], rules)
            if not rows:
                self._drop()
                continue
            if rows < len(numbers):
                stop = at + rows
                table, numbers = self.table.with_labels(labels[at:stop], moments[at:stop], rules)
            known, counts = len(self.table.names), _counts(counted, table)
            counts["new_classes"] = len(table.names) - known
            self._tell(table)
            self.table = counted = table
            if counts["new_classes"]:
                self._set_classes([*range(known), *[-1] * counts["new_classes"]])
            there = {name: n for name, n in counts.items() if n}
            yield _part(batch, at, numbers).counted("model", **there), known
            at += rows

    def snapshot(self) -> dict[str, Any]:
        """Return the state as a plain value."""
        return {"table": self.table.snapshot(), "clock": self._clock.snapshot()}

    def restore(self, value: Mapping[str, Any]) -> None:
        """Restore a `snapshot`, and tell learner and evaluation."""
        self.table = ClassTable.restored(value["table"])
        self._clock = Clock.restore(value["clock"])
        self._metrics.classes_waiting.set(len(self.table.waiting))
        self._set_classes([-1] * len(self.table.names))

    def _moments(self, batch: Batch) -> Ints:
        """Return the moment of each row, shape (n,), and go on to the last."""
        column, idle = self.rules.time, self.rules.idle
        if column is None or idle is None:
            return np.arange(self.table.rows, self.table.rows + len(batch))
        raw = batch.raw is not None and column.column in batch.raw.columns
        times = column.read(batch.raw if raw else batch.frame)  # type: ignore[arg-type]
        self._clock, moments, _ = self._clock.walk(times, idle, at_once=False)
        if self.table.began == NEVER and (begun := moments > NEVER).any():
            self.table = replace(self.table, began=int(moments[begun.argmax()]))
        return moments

    def _expire(self, kept: Ints) -> None:
        """Let the other classes go, which were not seen for too long."""
        table = self.table.only(kept)
        gone = len(self.table.names) - len(kept)
        if not table.expired:
            log.info(
                "Class '%s' leaves, as it was not seen for longer than [model.grow] idle, and what "
                "was learned of it is forgotten. Others that do are counted as expired_classes.",
                min(set(self.table.names) - set(table.names)),
            )
        self.table = replace(table, expired=table.expired + gone)
        self._metrics.classes_left.labels(reason="idle").inc(gone)
        self._set_classes(kept.tolist())

    def _drop(self) -> None:
        """Let the class go that was not seen for longest."""
        if not self.table.left:
            log.warning(
                "[model] max_classes = %d is reached: from now on the class that was not seen for "
                "longest leaves when a new one comes, and what was learned of it is forgotten.",
                len(self.table.names),
            )
        self.table, kept = self.table.newest(len(self.table.names) - 1)
        self._metrics.classes_left.labels(reason="max_classes").inc()
        self._set_classes(kept.tolist())

    def _tell(self, table: ClassTable) -> None:
        """Tell of the labels that wait by now."""
        self._metrics.classes_waiting.set(len(table.waiting))
        if table.forgotten and not self.table.forgotten:
            log.warning(
                "[model] max_classes = %d labels wait for min_count = %d rows: from now on the one "
                "not seen for longest is forgotten when a new one comes, and counted as "
                "forgotten_labels.",
                self.rules.most,
                self.rules.min_count,
            )

    def _set_classes(self, sources: Sequence[int]) -> None:
        """Tell learner and evaluation the classes of the table."""
        names = self.table.names
        with calls.Calling("model", self._learner):
            self._learner.set_classes(names, sources)
        self._evaluation.set_classes(names, sources)
        self._metrics.classes.set(len(names))


def _counts(before: ClassTable, now: ClassTable) -> dict[str, int]:
    return {
        "waiting_for_class": now.waited - before.waited,
        "forgotten_labels": now.forgotten - before.forgotten,
        "expired_classes": now.expired - before.expired,
    }


def _part(batch: Batch, start: int, numbers: Ints) -> Batch:
    """Return the rows from `start` on that have these class numbers."""
    stop = start + len(numbers)
    assert batch.tensors is not None
    rows, target = slice(start, stop), tensor(numbers)
    return replace(
        batch,
        frame=batch.frame[rows],
        raw=None if batch.raw is None else batch.raw[rows],
        tensors=replace(batch.tensors.slice(start, stop), target=target, on_device=None),
        rejects=(),
        counts={},
        added=0,
    )


__all__ = ["GrowingClasses"]
