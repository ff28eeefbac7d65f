"""The work on a batch: train on it, serve it, or only clean it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.observing.metrics import Metrics
from engine.quality.baselines import new_numbers
from engine.quality.evaluation import Evaluation
from engine.quality.headline import best_baseline
from engine.quality.measures import finite_rows
from engine.quality.threshold import Threshold, ThresholdSettings
from engine.running.classes.class_table import ClassRules, without_foresight
from engine.running.classes.growing_classes import GrowingClasses
from engine.running.held_rows import learned_apart, learned_in_turn
from engine.running.holdout import Holdout
from engine.running.refused_rows import without_step, without_unlearned, without_unscored
from engine.types import PART, Batch, Learner, Predictor, Rejects, Snapshot, Step
from engine.user_code import calls

Answer = Callable[[Batch, pl.DataFrame], None]
"""Writes rows with their answers, one for each of the batch's rows, which is not done yet."""
QUALITY_SECONDS = 1.0
"""The seconds between two exports of quality: computing it costs more than a batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkResult:
    """The result of a batch, beside its rejects: one row per row of the batch for the sink (None
    if their answers were written before), and how many rows were learned, predicted or only passed
    on.

    Where labels come later, `waiting` is how many more rows and labels wait for each other than
    before, `expired` how many rows wait no longer, and `matched` how many labels found their row.
    `event_time` is the newest time in the data so far, in seconds since the epoch, if known.
    `refused` are rows whose answers the sink can never take, although they count as learned or
    predicted.
    """

    batch: Batch
    rows: pl.DataFrame | None
    learned: int = 0
    predicted: int = 0
    cleaned: int = 0
    waiting: int = 0
    expired: int = 0
    matched: int = 0
    event_time: float | None = None
    refused: tuple[Rejects, ...] = ()

    @property
    def failed(self) -> tuple[Rejects, ...]:
        """The rows that go to the dead letters."""
        return (*self.batch.rejects, *self.refused)

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
    """How rows were served that are learned afterwards.

    Attributes:
        scores: what each was scored with, as in `engine.types.Step`.
        before: the newest label that was known when each came, as a number or that of its class;
            NaN for none; shape (n,). None of several targets.
        sure: whether their labels are sure enough to judge the scores by.
    """

    scores: NDArray[np.float64]
    before: NDArray[np.float64] | None
    sure: bool = True

    def renumbered(self, rows: slice, before: Sequence[str], now: Sequence[str]) -> Served:
        """Return how some of the rows were served, by the classes that there are now; a class that
        came since had no score."""
        places = {name: number for number, name in enumerate(before)}
        sources = np.array([places.get(name, -1) for name in now], np.int64)
        scores = np.pad(self.scores[rows], ((0, 0), (0, 1)))[:, sources]
        assert self.before is not None, "classes are of one target"
        last = np.nan_to_num(self.before[rows], nan=-1).astype(np.int64)
        last = new_numbers(sources, len(before))[last]
        return Served(scores=scores, before=np.where(last < 0, np.nan, last))


class Work(Protocol):
    """What the loop does with a batch: train, serve or only clean."""

    stage: str
    """``learn``, ``predict`` or ``clean``: its name in ``headrace_stage_seconds``."""

    def on_answer(self, answer: Answer) -> None:
        """Call `answer`, while a batch is processed, with rows that are answered before they are
        learned. Without it these answers are dropped: a rehearsal writes none."""
        return

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


class Training(Work):
    """Test-then-train: score the rows, add the error to the evaluation, learn the rows.

    Scores are those that rows get as they are learned, step by step. With `answers_first` they are
    those of the model before the batch: each row is answered with its own, before any step on the
    batch is taken, and judged by it. What is learned is the same, to the bit.

    Args:
        columns: to go to the sink, see `written`; None for all.
        emit_predictions: whether there is a sink that wants the predictions.
        answers_first: whether it gets them before the rows are learned. Rows may lack a label then.
        holdout: None learns from every row.
        threshold: of class 1; unless given, the features' own.
        class_rules: of classes that appear while it learns; unless given, each label is one.
    """

    stage = "learn"

    def __init__(
        self,
        learner: Learner,
        evaluation: Evaluation,
        *,
        columns: Sequence[str] | None = None,
        emit_predictions: bool = True,
        answers_first: bool = False,
        holdout: Holdout | None = None,
        threshold: Threshold | None = None,
        class_rules: ClassRules | None = None,
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
        self._answers_first = answers_first
        self._answer: Answer | None = None
        self._metrics = metrics or Metrics()
        self._reported_at = 0.0
        self._growing: GrowingClasses | None = None
        if most := learner.features.max_classes:
            rules = class_rules or ClassRules(most=most)
            self._growing = GrowingClasses(learner, evaluation, rules, self._metrics)
        if holdout is not None:
            self._metrics.watch_memory("holdout", lambda: holdout.nbytes)

    def on_answer(self, answer: Answer) -> None:
        self._answer = answer

    def process(self, batch: Batch) -> WorkResult:
        """Learn from a collated batch."""
        if not len(batch):
            return WorkResult(batch=batch, rows=batch.frame.clear())
        if self._growing is None:
            return self._process(batch)
        served = self._serve(batch) if self._answers_first else None
        names, at, results = self.learner.features.classes, 0, []
        for part, known in self._growing.parts(batch):
            classes, rows = self.learner.features.classes, slice(at, at + len(part))
            how = None if served is None else served.renumbered(rows, names, classes)
            results.append(self._process(part, known, how))
            at += len(part)
        return joined_results(batch, results)

    def _process(
        self,
        batch: Batch,
        known: int | None = None,
        served: Served | None = None,
    ) -> WorkResult:
        """Learn from rows, those that have a label.

        Args:
            known: classes that there were before, where they appear while the model learns.
            served: how they were served, if that was before.
        """
        if self._answers_first and served is None:
            served = self._serve(batch)
        labelled = _labelled(batch)
        held = self._hold(batch, labelled)
        step = self._learn(batch, labelled & ~held, served)
        if served is not None:
            step = replace(step, scores=served.scores)
        elif known is not None:
            step = replace(step, scores=without_foresight(step.scores, _target(batch), known))
        scores = step.scores  # of all rows, those that are refused below among them
        if served is None or served.sure:
            judged = labelled & ~step.refused
            self._evaluate(batch, step, judged, None if served is None else served.before)
        self._metrics.optimizer_steps.inc(step.steps)
        if step.skipped is not None:
            self._metrics.skipped_steps.labels(reason=step.skipped).inc()
            batch = without_step(batch, step.skipped)
            return WorkResult(batch=batch, rows=batch.frame)
        if step.not_learned is not None:
            self._metrics.skipped_steps.labels(reason="non_finite").inc()
        batch, step = without_unscored(*without_unlearned(batch, step))
        for name, rows in step.augmented.items():
            self._metrics.augmented_records.labels(augment=name).inc(rows)
        for outcome, times in step.challenges.items():
            self._metrics.challenges.labels(outcome=outcome).inc(times)
        batch = batch.counted("model", **step.counts) if step.counts else batch
        if step.steps:
            self.loss = step.loss
            self._metrics.loss.set(step.loss)
        answered = None if self._answers_first else self._predictions(batch, step.scores)
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
            "classes": None if self._growing is None else self._growing.snapshot(),
        }

    def load_state_dict(self, state: Mapping[str, Snapshot]) -> None:
        """Restore a state."""
        if self._growing is not None:
            self._growing.restore(state["classes"])
        with calls.Calling("model", self.learner):
            self.learner.load_state_dict(state["learner"])
        self.evaluation.load_state_dict(state["evaluation"])
        if self.holdout is not None and state["holdout"] is not None:
            self.holdout.restore(state["holdout"])
        self.threshold.restore(state["threshold"])
        self.evaluation.threshold = self.threshold.value

    def _serve(self, batch: Batch) -> Served:
        """Score rows and write their answers."""
        assert batch.tensors is not None
        scores = calls.predict(self.learner, batch.tensors)
        self._write_answers(batch, scores)
        newest = self.evaluation.newest_label
        before = None if newest is None else np.full(len(batch), newest)
        return Served(scores=scores, before=before)

    def _write_answers(self, batch: Batch, scores: NDArray[np.float64]) -> int:
        """Write the answers of the rows that have one; return how many have none."""
        there = finite_rows(scores)
        if not there.all():
            batch, scores = replace(batch, frame=batch.frame.filter(there)), scores[there]
        if self._answer is not None and len(batch):
            self._answer(batch, self._predictions(batch, scores))
        return int(np.count_nonzero(~there))

    def _hold(self, batch: Batch, labelled: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which rows are held out, shape (n,), and keep their raw rows."""
        if self.holdout is None:
            return np.zeros(len(batch), np.bool_)
        assert batch.raw is not None
        held = self.holdout.select(batch.raw) & labelled
        if held.any():
            self.holdout.add(batch.raw, held)
        return held

    def _learn(self, batch: Batch, train: NDArray[np.bool_], served: Served | None) -> Step:
        """Learn from these rows, without those of other parts; the rest are only scored."""
        assert batch.tensors is not None
        if PART in batch.frame.columns:
            train = train & (batch.frame.get_column(PART) == "train").to_numpy()
        if train.all():
            return calls.learn(self.learner, batch)
        given = None if served is None else served.scores
        if given is not None and batch.tensors.keys is None:  # with a state each row has its turn
            step = learned_apart(self.learner, batch, train, given)
        else:
            step = learned_in_turn(self.learner, batch, train)
        scores = step.scores if given is None else given
        scored_only = step.scored_only + int(finite_rows(scores[~train]).sum())
        return replace(step, scored_only=scored_only)

    def _evaluate(
        self,
        batch: Batch,
        step: Step,
        judged: NDArray[np.bool_],
        before: NDArray[np.float64] | None,
    ) -> None:
        """Add rows to the evaluation: those that have a label and are not refused."""
        frame, target, scores, raw = batch.frame, _target(batch), step.scores, batch.raw
        baselines = step.baselines
        if not judged.all():
            at = np.flatnonzero(judged)
            frame, target, scores = frame[at], target[at], scores[at]
            raw = None if raw is None else raw[at]
            baselines = {name: said[at] for name, said in baselines.items()}
            before = None if before is None else before[at]
        self.evaluation.update(frame, target, scores, raw, baselines, before)
        now = time.monotonic()
        if now - self._reported_at >= QUALITY_SECONDS:
            self._reported_at = now
            report_quality(self._metrics, self.evaluation.report())

    def _update_threshold(
        self, batch: Batch, held: NDArray[np.bool_], scores: NDArray[np.float64]
    ) -> None:
        """Choose the threshold again from the held-out rows, for the next batch on."""
        if not held.any():
            return
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


def joined_results(batch: Batch, parts: Sequence[WorkResult]) -> WorkResult:
    """Return the result of a batch from those of its parts, whose rejects, counts and added rows
    are their own."""
    frames = [part.batch.frame for part in parts if len(part.batch)]
    rows = [part.rows for part in parts if part.rows is not None and len(part.rows)]
    before = any(part.rows is None for part in parts)
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
    nothing = None if before else whole.frame.clear()
    return WorkResult(
        batch=whole,
        rows=pl.concat(rows, how="diagonal") if rows else nothing,
        learned=sum(part.learned for part in parts),
        predicted=sum(part.predicted for part in parts),
        expired=sum(part.expired for part in parts),
        matched=sum(part.matched for part in parts),
    )


def _labelled(batch: Batch) -> NDArray[np.bool_]:
    """Return which rows of a batch have a label, shape (n,)."""
    assert batch.tensors is not None
    return batch.tensors.labelled


def _target(batch: Batch) -> NDArray[Any]:
    """Return the labels of a batch: numbers, or class numbers, shape (n,)."""
    assert batch.tensors is not None
    assert batch.tensors.target is not None
    target: NDArray[Any] = batch.tensors.target.numpy()
    return target


class Serving(Work):
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


class Cleaning(Work):
    """Pass clean rows on."""

    stage = "clean"

    def __init__(self, columns: Sequence[str] | None = None) -> None:
        self._columns = columns

    def process(self, batch: Batch) -> WorkResult:
        """Keep the requested columns."""
        rows = batch.frame if self._columns is None else batch.frame[list(self._columns)]
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
    "Answer",
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
