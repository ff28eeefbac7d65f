"""The work on a batch: train on it, serve it, or only clean it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.observing.metrics import Metrics
from engine.quality.evaluation import Evaluation
from engine.quality.measures import finite_rows
from engine.quality.report import best_baseline
from engine.quality.threshold import Threshold, ThresholdSettings
from engine.running.class_table import ClassTable, without_foresight
from engine.running.holdout import Holdout
from engine.types import PART, Batch, Learner, Predictor, Rejects, Snapshot, Step, tensor
from engine.user_code import calls

log = logging.getLogger("headrace.run")
QUALITY_SECONDS = 1.0
"""The seconds between two exports of quality: computing it costs more than a batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkResult:
    """The result of a batch, beside its rejects: one row per row of the batch for the sink, and
    how many rows were learned, predicted or only passed on.

    Where labels come later, `waiting` is how many more rows and labels wait for each other than
    before, `expired` how many rows wait no longer, and `matched` how many labels found their row.
    `event_time` is the newest time in the data so far, in seconds since the epoch, if known.
    """

    batch: Batch
    rows: pl.DataFrame
    learned: int = 0
    predicted: int = 0
    cleaned: int = 0
    waiting: int = 0
    expired: int = 0
    matched: int = 0
    event_time: float | None = None

    @property
    def rows_in(self) -> int:
        """Rows that came to an end here: read, or added by stages."""
        return self.batch.raw_rows + self.batch.added

    @property
    def outcomes(self) -> dict[str, int]:
        """Outcome -> rows, for those that there are."""
        outcomes = {
            "learned": self.learned, "predicted": self.predicted, "cleaned": self.cleaned,
            "rejected": sum(map(len, self.batch.rejects)), "added": self.batch.added,
        }  # fmt: skip
        return {name: rows for name, rows in outcomes.items() if rows}

    @property
    def changed(self) -> bool:
        """Whether a row or a label came to an end here."""
        return bool(len(self.batch) or self.batch.rejects or self.expired or self.matched)

    def with_rejects(self, refused: Rejects) -> WorkResult:
        """Return a copy that also counts the rows the sink rejected."""
        n = len(refused)
        batch = replace(self.batch, rejects=(*self.batch.rejects, refused))
        return replace(
            self,
            batch=batch,
            predicted=max(0, self.predicted - n),
            cleaned=max(0, self.cleaned - n),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """How rows were served whose labels came later.

    Attributes:
        scores: what each was scored with, as in `engine.types.Step`.
        before: the newest label that was known when each came, as a number or that of its class;
            NaN for none; shape (n,).
        sure: whether their labels are sure enough to judge the scores by.
    """

    scores: NDArray[np.float64]
    before: NDArray[np.float64]
    sure: bool = True


class Work(Protocol):
    """What the loop does with a batch: train, serve or only clean."""

    stage: str
    """``learn``, ``predict`` or ``clean``: its name in ``headrace_stage_seconds``."""

    def process(self, batch: Batch) -> WorkResult:
        """Process one batch, which may be empty."""
        ...

    def finish(self) -> WorkResult | None:
        """Process what waited for more records, as the source has no more; None for nothing."""
        ...

    def state_dict(self) -> dict[str, Snapshot]:
        """Return its part of the checkpoint."""
        ...

    def load_state_dict(self, state: Mapping[str, Snapshot]) -> None:
        """Restore the state of this work."""
        ...


class Training:
    """Test-then-train: score the rows, add the error to the evaluation, learn the rows.

    Args:
        columns: to go to the sink, see `written`; None for all.
        answers: whether there is a sink that wants the predictions.
        holdout: None learns from every row.
        threshold: of class 1; unless given, the features' own.
    """

    stage = "learn"

    def __init__(
        self,
        learner: Learner,
        evaluation: Evaluation,
        *,
        columns: Sequence[str] | None = None,
        emit_predictions: bool = True,
        holdout: Holdout | None = None,
        threshold: Threshold | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.learner = learner
        self.evaluation = evaluation
        self.holdout = holdout
        given = ThresholdSettings(value=learner.features.threshold)
        self.threshold = threshold or Threshold(given, 0)
        self.class_table = ClassTable() if learner.features.max_classes else None
        self.loss = float("nan")
        self._columns = columns
        self._emit_predictions = emit_predictions
        self._metrics = metrics or Metrics()
        self._reported_at = 0.0
        if holdout is not None:
            self._metrics.watch_memory("holdout", lambda: holdout.nbytes)

    def process(self, batch: Batch) -> WorkResult:
        """Learn from a collated batch."""
        if not len(batch):
            return WorkResult(batch=batch, rows=batch.frame.clear())
        if self.class_table is None:
            return self._process(batch)
        return joined_results(
            batch, [self._process(part, known) for part, known in self._parts(batch)]
        )

    def _process(
        self,
        batch: Batch,
        known: int | None = None,
        served: Served | None = None,
    ) -> WorkResult:
        """Learn from rows with a target.

        Args:
            known: classes that there were before, where they appear while the model learns.
            served: how they were served, if their labels came later.
        """
        held = self._hold(batch)
        step = self._learn(batch, held)
        if served is not None:
            step = replace(step, scores=served.scores)
        if known is not None:
            step = replace(step, scores=without_foresight(step.scores, _target(batch), known))
        scores = step.scores  # of all rows, those that are refused below among them
        if served is None or served.sure:
            self._evaluate(batch, step, None if served is None else served.before)
        self._metrics.optimizer_steps.inc(step.steps)
        if step.skipped is not None:
            return self._skip(batch, step.skipped)
        if step.not_learned is not None:
            batch, step = self._refused(batch, step, step.not_learned)
        batch, step = self._scored(batch, step)
        for name, rows in step.augmented.items():
            self._metrics.augmented_records.labels(augment=name).inc(rows)
        for outcome, times in step.challenges.items():
            self._metrics.challenges.labels(outcome=outcome).inc(times)
        batch = batch.counted("model", **step.counts) if step.counts else batch
        if step.steps:
            self.loss = step.loss
            self._metrics.loss.set(step.loss)
        answered = self._predictions(batch, step.scores)
        self._update_threshold(batch, held, scores)
        return WorkResult(
            batch=batch,
            rows=answered,
            learned=len(batch) - step.scored_only,
            predicted=step.scored_only,
        )

    def finish(self) -> WorkResult | None:
        """Return None: nothing waits."""
        return None

    def state_dict(self) -> dict[str, Snapshot]:
        """Return learner, evaluation, threshold and held-out rows."""
        return {
            "learner": calls.state_dict(self.learner),
            "evaluation": self.evaluation.state_dict(),
            "holdout": None if self.holdout is None else self.holdout.snapshot(),
            "threshold": self.threshold.snapshot(),
            "classes": None if self.class_table is None else self.class_table.snapshot(),
        }

    def load_state_dict(self, state: Mapping[str, Snapshot]) -> None:
        """Restore a state."""
        if self.class_table is not None:
            self.class_table = ClassTable.restored(state["classes"])
            self._set_classes([-1] * len(self.class_table.names))
        with calls.Calling("model", self.learner):
            self.learner.load_state_dict(state["learner"])
        self.evaluation.load_state_dict(state["evaluation"])
        if self.holdout is not None and state["holdout"] is not None:
            self.holdout.restore(state["holdout"])
        self.threshold.restore(state["threshold"])
        self.evaluation.threshold = self.threshold.value

    def _parts(self, batch: Batch) -> Iterator[tuple[Batch, int]]:
        """Yield the batch with class numbers as its target, and how many classes were known before
        it. It comes in parts where a class has to leave for a new one.

        Collation leaves the numbers to whoever sees the rows in their order."""
        assert self.class_table is not None
        features, at = self.learner.features, 0
        labels = batch.frame.get_column(str(features.target))
        while at < len(batch):
            table, numbers = self.class_table.with_labels(labels[at:])
            beyond = np.flatnonzero(numbers >= features.max_classes)
            rows = int(beyond[0]) if len(beyond) else len(numbers)
            if not rows:
                self._drop_class()
                continue
            if rows < len(numbers):
                table, numbers = self.class_table.with_labels(labels[at : at + rows])
            known, self.class_table = len(self.class_table.names), table
            if new := len(table.names) - known:
                self._set_classes([*range(known), *[-1] * new])
            yield _part(batch, at, numbers), known
            at += rows

    def _drop_class(self) -> None:
        """Let the class go that was not seen for longest."""
        assert self.class_table is not None
        if not self.class_table.left:
            log.warning(
                "[model] max_classes = %d is reached: from now on the class that was not seen for "
                "longest leaves when a new one comes, and what was learned of it is forgotten.",
                len(self.class_table.names),
            )
        self.class_table, kept = self.class_table.newest(len(self.class_table.names) - 1)
        self._metrics.classes_left.inc()
        self._set_classes(kept.tolist())

    def _set_classes(self, sources: Sequence[int]) -> None:
        """Tell learner and evaluation the classes of the table."""
        classes = self.class_table
        assert classes is not None
        with calls.Calling("model", self.learner):
            self.learner.set_classes(classes.names, sources)
        self.evaluation.set_classes(classes.names, sources)
        self._metrics.classes.set(len(classes.names))

    def _hold(self, batch: Batch) -> NDArray[np.bool_]:
        """Return which rows are held out, shape (n,), and keep their raw rows."""
        if self.holdout is None:
            return np.zeros(len(batch), np.bool_)
        assert batch.raw is not None
        held = self.holdout.select(batch.raw)
        if held.any():
            self.holdout.add(batch.raw, held)
        return held

    def _learn(self, batch: Batch, held: NDArray[np.bool_]) -> Step:
        """Learn from the training rows; held-out rows and those of other parts are only scored."""
        assert batch.tensors is not None
        train = ~held
        if PART in batch.frame.columns:
            train &= (batch.frame.get_column(PART) == "train").to_numpy()
        if train.all():
            return calls.learn(self.learner, batch)
        if batch.tensors.keys is not None:
            return self._learn_in_order(batch, train)
        rest, learned = np.flatnonzero(~train), np.flatnonzero(train)
        predicted = calls.predict(self.learner, batch.tensors.take(rest))
        own = batch.tensors.take(learned)
        step = calls.learn(self.learner, replace(batch, frame=batch.frame[learned], tensors=own))
        scores = np.empty((len(train), *predicted.shape[1:]))
        scores[rest], scores[train] = predicted, step.scores
        not_learned = None
        if step.not_learned is not None:
            not_learned = np.zeros(len(train), np.bool_)
            not_learned[train] = step.not_learned
        baselines = {}
        for name, said in step.baselines.items():
            baselines[name] = np.full(len(train), -1)
            baselines[name][train] = said
        skipped = None if step.skipped == "empty" else step.skipped
        scored_only = step.scored_only + int(finite_rows(predicted).sum())
        return replace(
            step,
            scores=scores,
            skipped=skipped,
            not_learned=not_learned,
            scored_only=scored_only,
            baselines=baselines,
        )

    def _learn_in_order(self, batch: Batch, train: NDArray[np.bool_]) -> Step:
        """Let a model with a state see every row in its turn, and learn from some of them."""
        tensors = replace(batch.tensors, learned=tensor(train))  # type: ignore[type-var]
        step = calls.learn(self.learner, replace(batch, tensors=tensors))
        scored_only = step.scored_only + int(finite_rows(step.scores[~train]).sum())
        return replace(step, scored_only=scored_only)

    def _skip(self, batch: Batch, reason: str) -> WorkResult:
        self._metrics.skipped_steps.labels(reason=reason).inc()
        detail = (
            "The step's loss or gradient was not finite, so nothing was learned from these rows."
        )
        keep = pl.repeat(False, len(batch), eager=True)
        batch = batch.reject(keep, stage="learn", reason=reason, detail=detail)
        return WorkResult(batch=batch, rows=batch.frame)

    def _refused(
        self, batch: Batch, step: Step, not_learned: NDArray[np.bool_]
    ) -> tuple[Batch, Step]:
        """Drop the rows that could not be learned."""
        self._metrics.skipped_steps.labels(reason="non_finite").inc()
        batch = batch.reject(
            pl.Series(~not_learned),
            stage="learn",
            reason="non_finite",
            detail="The row's loss or gradient was not finite, so nothing was learned from it.",
        )
        return batch, replace(step, scores=step.scores[~not_learned], not_learned=None)

    def _scored(self, batch: Batch, step: Step) -> tuple[Batch, Step]:
        """Drop the rows without a finite score."""
        there = finite_rows(step.scores)
        if there.all():
            return batch, step
        batch = batch.reject(
            pl.Series(there),
            stage="predict",
            reason="non_finite",
            detail="Expected a finite score, got one that is none, so the row has no answer.",
        )
        scored_only = min(step.scored_only, len(batch))
        return batch, replace(step, scores=step.scores[there], scored_only=scored_only)

    def _evaluate(
        self, batch: Batch, step: Step, before: NDArray[np.float64] | None = None
    ) -> None:
        frame, target = batch.frame, _target(batch)
        self.evaluation.update(frame, target, step.scores, batch.raw, step.baselines, before=before)
        now = time.monotonic()
        if now - self._reported_at >= QUALITY_SECONDS:
            self._reported_at = now
            report_quality(self._metrics, self.evaluation.report())

    def _update_threshold(
        self, batch: Batch, held: NDArray[np.bool_], scores: NDArray[np.float64]
    ) -> None:
        """Choose the threshold again from the held-out rows, for the next batch on."""
        held = held & finite_rows(scores)
        if held.any():
            self.threshold.update(_target(batch)[held], scores[held])
            self.evaluation.threshold = self.threshold.value

    def _predictions(self, batch: Batch, scores: NDArray[np.float64]) -> pl.DataFrame:
        if not self._emit_predictions:
            return batch.frame
        features = replace(self.learner.features, threshold=self.threshold.value)
        rows = batch.frame.with_columns(features.prediction_columns(scores))
        return rows[written(rows.columns, self._columns, features.prediction_names)]


def _part(batch: Batch, start: int, numbers: NDArray[np.int64]) -> Batch:
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


def joined_results(batch: Batch, parts: Sequence[WorkResult]) -> WorkResult:
    """Return the result of a batch from those of its parts, whose rejects, counts and added rows
    are their own."""
    frames = [part.batch.frame for part in parts if len(part.batch)]
    rows = [part.rows for part in parts if len(part.rows)]
    whole = replace(
        batch,
        frame=pl.concat(frames, how="diagonal") if frames else batch.frame.clear(),
        raw=None,
        tensors=None,
        rejects=(*batch.rejects, *(reject for part in parts for reject in part.batch.rejects)),
        added=batch.added + sum(part.batch.added for part in parts),
    )
    for part in parts:
        for (stage, name), n in part.batch.counts.items():
            whole = whole.counted(stage, **{name: n})
    return WorkResult(
        batch=whole,
        rows=pl.concat(rows, how="diagonal") if rows else whole.frame.clear(),
        learned=sum(part.learned for part in parts),
        predicted=sum(part.predicted for part in parts),
        expired=sum(part.expired for part in parts),
        matched=sum(part.matched for part in parts),
    )


def _target(batch: Batch) -> NDArray[Any]:
    """Return the labels of a batch: numbers, or class numbers, shape (n,)."""
    assert batch.tensors is not None
    assert batch.tensors.target is not None
    target: NDArray[Any] = batch.tensors.target.numpy()
    return target


class Serving:
    """Predict, add the model's columns, pass on.

    Args:
        columns: to go to the sink, see `written`; None for all.
    """

    stage = "predict"

    def __init__(self, predictor: Predictor, columns: Sequence[str] | None = None) -> None:
        self.predictor = predictor
        self._columns = columns

    def process(self, batch: Batch) -> WorkResult:
        """Predict a batch of raw columns."""
        asked = batch.frame.columns
        batch = self.predictor.predict(batch)
        rows = batch.frame
        new = [column for column in rows.columns if column not in asked]
        rows = rows[written(rows.columns, self._columns, new)]
        return WorkResult(batch=batch, rows=rows, predicted=len(batch))

    def finish(self) -> WorkResult | None:
        """Return None: nothing waits."""
        return None

    def state_dict(self) -> dict[str, Snapshot]:
        """Return what the model carries from row to row; else an empty state: it does not
        change."""
        if not self.predictor.carries_state:
            return {}
        return {"predictor": self.predictor.snapshot()}

    def load_state_dict(self, state: Mapping[str, Snapshot]) -> None:
        """Restore what the model carries."""
        if self.predictor.carries_state:
            self.predictor.restore(state["predictor"])


class Cleaning:
    """Pass clean rows on."""

    stage = "clean"

    def __init__(self, columns: Sequence[str] | None = None) -> None:
        self._columns = columns

    def process(self, batch: Batch) -> WorkResult:
        """Keep the requested columns."""
        rows = batch.frame if self._columns is None else batch.frame.select(self._columns)
        return WorkResult(batch=batch, rows=rows, cleaned=len(batch))

    def finish(self) -> WorkResult | None:
        """Return None: nothing waits."""
        return None

    def state_dict(self) -> dict[str, Snapshot]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Snapshot]) -> None:
        """Restore nothing."""


def written(columns: Iterable[str], asked: Sequence[str] | None, added: Iterable[str]) -> list[str]:
    """Return the columns for a sink: all; or the requested ones together with those the model
    added, unless some of the latter are requested by name."""
    if asked is None:
        return list(columns)
    more = [] if set(asked) & set(added) else added
    return [*asked, *more]


def report_quality(metrics: Metrics, report: Mapping[str, Any]) -> None:
    """Write an evaluation's numbers to `headrace_quality` and `headrace_baseline_quality`."""
    for window in ("all", "window"):
        group = report.get(window, {})
        for name, value in group.items():
            if isinstance(value, int | float):
                metrics.quality.labels(metric=name, window=window).set(value)
        for name, value in group.get("baselines", {}).get(best_baseline(group), {}).items():
            if name in group:
                metrics.baseline_quality.labels(metric=name, window=window).set(value)


__all__ = [
    "Cleaning",
    "Served",
    "Serving",
    "Training",
    "Work",
    "WorkResult",
    "joined_results",
    "report_quality",
    "written",
]
