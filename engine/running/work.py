"""The work on a batch: train on it, serve it, or only clean it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine import calls
from engine.observing.metrics import Metrics
from engine.quality.evaluation import Evaluation
from engine.quality.measures import finite_rows
from engine.quality.threshold import Threshold, ThresholdSettings
from engine.running.holdout import Holdout
from engine.running.report import best_baseline
from engine.types import PART, Batch, Learner, Predictor, Rejects, Snapshot, Step

QUALITY_SECONDS = 1.0
"""The seconds between two exports of quality: computing it costs more than a batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkResult:
    """The result of a batch, beside its rejects: one row per row of the batch for the sink, and
    how many rows were learned, predicted or only passed on."""

    batch: Batch
    rows: pl.DataFrame
    learned: int = 0
    predicted: int = 0
    cleaned: int = 0

    @property
    def rows_in(self) -> int:
        """Rows that came to an end here: read, or added by stages."""
        return self.batch.raw_rows + self.batch.added

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


class Work(Protocol):
    """What the loop does with a batch: train, serve or only clean."""

    stage: str
    """``learn``, ``predict`` or ``clean``: its name in ``headrace_stage_seconds``."""

    def process(self, batch: Batch) -> WorkResult:
        """Process one batch, which may be empty."""
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
        held = self._hold(batch)
        step = self._learn(batch, held)
        scores = step.scores  # of all rows, those that are refused below among them
        self._evaluate(batch, step.scores)
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

    def state_dict(self) -> dict[str, Snapshot]:
        """Return learner, evaluation, threshold and held-out rows."""
        return {
            "learner": calls.state_dict(self.learner),
            "evaluation": self.evaluation.state_dict(),
            "holdout": None if self.holdout is None else self.holdout.snapshot(),
            "threshold": self.threshold.snapshot(),
        }

    def load_state_dict(self, state: Mapping[str, Snapshot]) -> None:
        """Restore a state."""
        with calls.Calling("model", self.learner):
            self.learner.load_state_dict(state["learner"])
        self.evaluation.load_state_dict(state["evaluation"])
        if self.holdout is not None and state["holdout"] is not None:
            self.holdout.restore(state["holdout"])
        self.threshold.restore(state["threshold"])
        self.evaluation.threshold = self.threshold.value

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
        skipped = None if step.skipped == "empty" else step.skipped
        scored_only = step.scored_only + int(finite_rows(predicted).sum())
        return replace(
            step, scores=scores, skipped=skipped, not_learned=not_learned, scored_only=scored_only
        )

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

    def _evaluate(self, batch: Batch, scores: NDArray[np.float64]) -> None:
        assert batch.tensors is not None
        assert batch.tensors.target is not None
        target = batch.tensors.target.numpy()
        self.evaluation.update(batch.frame, target, scores, batch.raw)
        now = time.monotonic()
        if now - self._reported_at >= QUALITY_SECONDS:
            self._reported_at = now
            report_quality(self._metrics, self.evaluation.report())

    def _update_threshold(
        self, batch: Batch, held: NDArray[np.bool_], scores: NDArray[np.float64]
    ) -> None:
        """Choose the threshold again from the held-out rows, for the next batch on."""
        assert batch.tensors is not None
        assert batch.tensors.target is not None
        held = held & finite_rows(scores)
        if held.any():
            self.threshold.update(batch.tensors.target.numpy()[held], scores[held])
            self.evaluation.threshold = self.threshold.value

    def _predictions(self, batch: Batch, scores: NDArray[np.float64]) -> pl.DataFrame:
        if not self._emit_predictions:
            return batch.frame
        features = replace(self.learner.features, threshold=self.threshold.value)
        rows = batch.frame.with_columns(features.prediction_columns(scores))
        return rows[written(rows.columns, self._columns, features.prediction_names)]


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

    def state_dict(self) -> dict[str, Snapshot]:
        """Return an empty state: a serving model does not change."""
        return {}

    def load_state_dict(self, state: Mapping[str, Snapshot]) -> None:
        """Restore nothing."""


class Cleaning:
    """Pass clean rows on."""

    stage = "clean"

    def __init__(self, columns: Sequence[str] | None = None) -> None:
        self._columns = columns

    def process(self, batch: Batch) -> WorkResult:
        """Keep the requested columns."""
        rows = batch.frame if self._columns is None else batch.frame.select(self._columns)
        return WorkResult(batch=batch, rows=rows, cleaned=len(batch))

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


__all__ = ["Cleaning", "Serving", "Training", "Work", "WorkResult", "report_quality", "written"]
