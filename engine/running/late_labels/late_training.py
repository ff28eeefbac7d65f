"""Training on labels that come later than their rows."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.columnar.event_time import NEVER
from engine.columnar.hashing import Hashes, hashes
from engine.columnar.numeric_scale import NumericScale
from engine.loading.sources.label_steps import LabelSteps
from engine.loading.sources.label_times import LabelTimes
from engine.observing.metrics import observe_all
from engine.running.late_labels.label_join import (
    Arrivals,
    Frames,
    LabelJoin,
    Settled,
    concat_frames,
    height,
)
from engine.running.late_labels.scale_table import scale_of
from engine.running.late_labels.side import SCALE
from engine.running.work import Served, Training, WorkResult, joined_results
from engine.types import (
    DELAY,
    PARTITION,
    POSITION,
    Batch,
    Features,
    Mark,
    Rejects,
    Scales,
    Schema,
    Snapshot,
    Tensors,
    UserError,
    require,
    tensor,
    type_name,
)
from engine.types.arrays import Bools, Ints
from engine.user_code import calls

if TYPE_CHECKING:
    import torch

log = logging.getLogger("headrace.labels")
STAGE = "labels"
"""The stage of rejected rows and labels."""
CODE = "_code"
"""The column of waiting labels with the label as the model learns it: a number, or that of a class.
"""
BEFORE = "before"
"""The column beside the scores with the newest label that was known when a row came."""
ALONE_ROWS = 1_000
"""The rows in sequence that expire without a label, before a warning."""
NO_ROWS = pl.DataFrame(schema={PARTITION: pl.String(), POSITION: pl.Int64()})
UNMATCHED = (
    "No row with this key came within the horizon ([labels] horizon), or it had expired or was "
    "joined with a label already."
)
AGAIN = "A row with this key came less than a horizon ([labels] horizon) before."
SECOND = "A label of this key came less than a horizon ([labels] horizon) before."


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelColumns:
    """What rows and labels are joined by.

    Attributes:
        by: key column of the rows -> that of the labels.
        times: the times of both.
        target: the label's column.
    """

    by: Mapping[str, str]
    times: LabelTimes
    target: str

    def require(self, rows: Schema, labels: Schema) -> None:
        """Check the keys and times after the stages.

        Raises: UserError if one is missing, or rows and labels have other types of it.
        """
        require(rows, self.by, where="[labels] by, in the rows after the stages,")
        time = self.times.rows
        require(rows, [time.column], where="[labels] time, in the rows after the stages,")
        if rows[time.column] != time.dtype:
            raise UserError(
                f"[labels] time '{time.column}' is {type_name(time.dtype)} in the source and "
                f"{type_name(rows[time.column])} after the stages: name a column that none changes."
            )
        for mine, theirs in self.by.items():
            a, b = rows[mine], labels[theirs]
            if a != b and not (a.is_integer() and b.is_integer()):
                raise UserError(
                    f"[labels] by joins '{mine}' of the rows, which is {type_name(a)}, with "
                    f"'{theirs}' of the labels, which is {type_name(b)}: declare the same type in "
                    "[source.schema] and [labels.source.schema]."
                )
        if self.target in rows:
            raise UserError(
                f"[model] target '{self.target}' comes with the labels of [labels], and the rows "
                "have a column of that name, too: leave it out by declaring the others in "
                "[source.schema]."
            )

    def keys_of(self, frame: pl.DataFrame, *, labels: bool) -> tuple[Hashes, Bools]:
        """Return the hash of each row's key, and whether it has one, shape (n,)."""
        own = frame.select(self.by.values() if labels else self.by.keys())
        there = own.select(pl.all_horizontal(pl.all().is_not_null())).to_series().to_numpy()
        return hashes(own), there


class LateTraining(Training):
    """Scores rows when they come, and learns them when their labels come.

    Rows are kept as they were when they came, after the stages, with their score. When the label
    comes, that score is evaluated, never one of the model as it is by then, and the row is learned.

    The stream is cut into steps of its own (`LabelSteps`). What has its label by the end of a step
    is learned then, so each row is scored by a model that has learned all labels before its step,
    however the stream is cut into batches. With `answers_first` a row is answered once it is
    scored; else when it is learned.

    Args:
        join: of rows and labels.
        by: what they are joined by.
        collate: makes tensors of the features alone.
        collate_labels: makes tensors of the label alone.
        every: rows of a step.
        endless: whether the source may have nothing for now: a step ends there, too.
        on_missing: the label of rows whose horizon passes without one; None learns none.
        **training: of `Training`.
    """

    def __init__(
        self,
        *,
        join: LabelJoin,
        by: LabelColumns,
        collate: Callable[[Batch], Batch],
        collate_labels: Callable[[Batch], Batch],
        every: int,
        endless: bool = False,
        on_missing: pl.Series | None = None,
        **training: Any,
    ) -> None:
        """Raises: UserError if the model cannot learn `on_missing`."""
        super().__init__(**training)
        self.join = join
        self._by = by
        self._collate = collate
        self._collate_labels = collate_labels
        self._every = every
        self._endless = endless
        self._missing = None if on_missing is None else self._missing_label(on_missing)
        self._corrects = by.times.corrections is not None
        self._newest = math.nan
        self._alone = 0
        self._warned_of_memory = self._warned_of_labels = False
        metrics = self._metrics
        metrics.watch_memory("waiting rows", lambda: join.nbytes)
        metrics.watch(
            metrics.waiting_rows, lambda: join.rows.waiting - join.rows.assumed, side="rows"
        )
        metrics.watch(metrics.waiting_rows, lambda: join.labels.waiting, side="labels")
        metrics.watch(metrics.waiting_disk_rows, lambda: join.rows.stored_rows, side="rows")
        metrics.watch(metrics.waiting_disk_rows, lambda: join.labels.stored_rows, side="labels")
        metrics.watch(metrics.waiting_disk_bytes, lambda: join.rows.stored_bytes, side="rows")
        metrics.watch(metrics.waiting_disk_bytes, lambda: join.labels.stored_bytes, side="labels")

    def process(self, batch: Batch) -> WorkResult:
        """Score the rows of a collated batch and join them with labels, step by step; learn what
        has its label where a step begins."""
        waiting, order = self.join.waiting, LabelSteps.of(batch.pieces, self._every)
        tensors, labelled = batch.tensors, self._collated_labels(batch)
        batch, rows, at = self._rows(batch, order)
        labelled, labels = self._labels(labelled, order)
        duplicate_rows = np.zeros(len(rows), np.bool_)
        duplicate_labels = np.zeros(len(labels), np.bool_)
        settled: list[WorkResult] = []
        ahead = unanswered = 0
        steps = zip(order.split(rows.turns), order.split(labels.turns), strict=True)
        for step, (own, theirs) in enumerate(steps):
            if step:
                settled.append(self._settle())
            scored = self._served(rows.take(own), tensors, at[own])
            added = self.join.add(scored, labels.take(theirs))
            if self._answers_first:
                unanswered += self._answer_rows(batch, scored, ~added.duplicate_rows)
            duplicate_rows[own] = added.duplicate_rows
            duplicate_labels[theirs] = added.duplicate_labels
            ahead += added.ahead
        if self._endless and not batch.raw_rows and self.join.unsettled:
            settled.append(self._settle())
        batch = batch.reject(~duplicate_rows, stage=STAGE, reason="duplicate", detail=AGAIN)
        labelled = labelled.reject(
            ~duplicate_labels, stage=STAGE, reason="duplicate", detail=SECOND
        )
        batch = replace(batch, rejects=(*batch.rejects, *labelled.rejects))
        counts = {"ahead": ahead, "unanswered": unanswered}
        batch = batch.counted(STAGE, **{name: n for name, n in counts.items() if n})
        return self._result(batch, settled, waiting)

    def finish(self) -> WorkResult | None:
        """Learn what has its label after the last record of the source."""
        if not self.join.unsettled:
            return None
        waiting = self.join.waiting
        return self._result(_batch(NO_ROWS), [self._settle()], waiting)

    def _result(self, batch: Batch, settled: list[WorkResult], waiting: int) -> WorkResult:
        done = joined_results(batch, settled)
        return replace(done, waiting=self.join.waiting - waiting, event_time=self._event_time())

    def _event_time(self) -> float | None:
        """Return the newest time of rows and labels, in seconds since the epoch, if known."""
        clock, seconds = self.join.clock, self._by.times.seconds
        return None if seconds is None or clock == NEVER else clock * seconds

    def state_dict(self) -> dict[str, Snapshot]:
        """Return the state of the training, and what waits."""
        late = {"join": self.join.snapshot(), "newest": self._newest}
        return {**super().state_dict(), "labels": late}

    def load_state_dict(self, state: Mapping[str, Snapshot]) -> None:
        """Restore a state."""
        super().load_state_dict({k: v for k, v in state.items() if k != "labels"})
        self.join.restore(state["labels"]["join"])
        self._newest = state["labels"]["newest"]

    def _rows(self, batch: Batch, order: LabelSteps) -> tuple[Batch, Arrivals, Ints]:
        """Return the rows with a key and a time, and which of the batch's they are, shape (n,)."""
        times = self._by.times.of_rows(batch.frame)
        keys, there = self._by.keys_of(batch.frame, labels=False)
        batch = _without_time_or_key(replace(batch, tensors=None), times, there)
        good = np.flatnonzero(there & (times > NEVER))
        frames = {"frame": batch.frame}
        if batch.raw is not None:
            frames["raw"] = batch.raw
        turns = order.records_of(batch.frame)
        rows = Arrivals(
            keys=keys[good], times=times[good], turns=turns, frames=frames, scales=batch.scales
        )
        return batch, rows, good

    def _served(self, rows: Arrivals, tensors: Tensors | None, at: Ints) -> Arrivals:
        """Score rows, which are at these places of a batch's tensors."""
        scores = np.empty((0,))
        if len(rows):
            assert tensors is not None
            some = tensors if len(tensors) == len(at) else tensors.take(at)
            scores = calls.predict(self.learner, some)
        before = pl.repeat(self._newest, len(rows), dtype=pl.Float64, eager=True)
        served = _as_frame(scores).with_columns(before.alias(BEFORE))
        return replace(rows, frames={**rows.frames, "served": served})

    def _answer_rows(self, batch: Batch, rows: Arrivals, keep: Bools) -> int:
        """Write the answers to some of the rows that came with a batch; return how many of them
        have none."""
        frame, served = rows.frames["frame"].filter(keep), rows.frames["served"].filter(keep)
        scores = _as_served(served, self.learner.features).scores
        return self._write_answers(replace(batch, frame=frame), scores)

    def _collated_labels(self, batch: Batch) -> Batch:
        """Return the labels that the model can learn."""
        assert batch.labels is not None, "the loader decodes labels"
        labels = self._collate_labels(_batch(batch.labels))
        assert labels.tensors is not None
        assert labels.tensors.target is not None
        code = pl.Series(CODE, labels.tensors.target.numpy())
        return replace(labels, frame=labels.frame.with_columns(code), tensors=None)

    def _labels(self, labels: Batch, order: LabelSteps) -> tuple[Batch, Arrivals]:
        """Return those with a key and a time."""
        times = self._by.times.of_labels(labels.frame)
        keys, there = self._by.keys_of(labels.frame, labels=True)
        labels = _without_time_or_key(labels, times, there)
        good = there & (times > NEVER)
        turns, frames = order.records_of(labels.frame), {"frame": labels.frame}
        return labels, Arrivals(keys=keys[good], times=times[good], turns=turns, frames=frames)

    def _missing_label(self, label: pl.Series) -> pl.DataFrame:
        """Return the label of rows that get none, as those that come. Raises: UserError"""
        place = {PARTITION: [STAGE], POSITION: [0]}
        frame = label.to_frame().hstack(pl.DataFrame(place))
        labels = self._collate_labels(_batch(frame))
        if labels.rejects:
            (detail,) = labels.rejects[0].rows["detail"]
            raise UserError(f"[labels] on_missing is no label that the model can learn: {detail}")
        assert labels.tensors is not None
        assert labels.tensors.target is not None
        code = pl.Series(CODE, labels.tensors.target.numpy())
        return labels.frame.select(self._by.target).with_columns(code)

    def _settle(self) -> WorkResult:
        """Learn the rows that have their label by now; let leave what has waited for too long."""
        settled = self.join.settle()
        pairs = len(settled.corrected)
        if pairs:
            self._newest = float(settled.labels["frame"].get_column(CODE)[-1])
        self._warn(settled)
        # A row that was learned with another label is one more.
        added = int(np.count_nonzero(settled.corrected))
        batch = _batch(NO_ROWS, added=added, rejects=_unmatched(settled.unmatched))
        done = joined_results(self._counted(batch, settled), list(self._learned(settled)))
        expired = height(settled.expired) if self._missing is None else 0
        expired += settled.forgotten_rows - settled.forgotten_assumed
        return replace(done, expired=expired, matched=pairs)

    def _learned(self, settled: Settled) -> Iterator[WorkResult]:
        """Learn the rows that have their label now, and those whose label is missing.

        Rows that a later label may correct are learned at once, and evaluated when theirs is sure.
        """
        rows = settled.rows
        labels = [self._found_labels(settled)] if rows else []
        if self._missing is not None and settled.expired:
            missing = self._missing_labels(settled.expired)
            if self._corrects:
                self._evaluate_rows(settled.expired, missing)
            else:
                rows, labels = concat_frames(rows, settled.expired), [*labels, missing]
        if rows:
            ready, served = self._ready(rows, pl.concat(labels))
            yield self._process(ready, served=served)
        if settled.assumed:
            missing = self._missing_labels(settled.assumed)
            ready, served = self._ready(settled.assumed, missing)
            yield self._process(ready, served=replace(served, sure=False))

    def _evaluate_rows(self, rows: Frames, labels: pl.DataFrame) -> None:
        ready, served = self._ready(rows, labels)
        codes, scores = labels.get_column(CODE).to_numpy(), served.scores
        self.evaluation.update(ready.frame, codes, scores, ready.raw, before=served.before)

    def _found_labels(self, settled: Settled) -> pl.DataFrame:
        """Return label, code and delay of the pairs."""
        found, times = settled.labels["frame"], self._by.times
        delays = times.of_labels(found) - times.of_rows(settled.rows["frame"])
        delay = pl.Series(DELAY, delays * (times.seconds or 1.0), pl.Float64)
        if times.seconds is not None:
            observe_all(self._metrics.label_delay_seconds, np.maximum(delay.to_numpy(), 0.0))
        return found.select(self._by.target, CODE).with_columns(delay)

    def _missing_labels(self, rows: Frames) -> pl.DataFrame:
        """Return the same of rows whose label is missing."""
        assert self._missing is not None
        labels = self._missing[np.zeros(rows["frame"].height, np.int64)]
        return labels.with_columns(pl.lit(None, pl.Float64).alias(DELAY))

    def _ready(self, rows: Frames, labels: pl.DataFrame) -> tuple[Batch, Served]:
        """Return rows with their labels, as a collated batch without rejects, and how they were
        served. Their tensors are in the scale of now, that of the row that came last."""
        late, raw = labels.select(self._by.target, DELAY), rows.get("raw")
        raw = None if raw is None else raw.with_columns(late)
        now = self.join.rows.scales.newest()
        ready = _batch(rows["frame"].with_columns(late), raw=raw, scales=now)
        ready = self._collate(ready)
        assert ready.tensors is not None
        assert not ready.rejects, "rows were collated when they came"
        codes = tensor(labels.get_column(CODE).to_numpy(writable=True))
        served = _as_served(rows["served"], self.learner.features)
        numeric = self._rescaled(ready.tensors.numeric, rows.get(SCALE), now)
        return replace(ready, tensors=replace(ready.tensors, numeric=numeric, target=codes)), served

    def _rescaled(
        self, numeric: torch.Tensor, came: pl.DataFrame | None, now: Scales
    ) -> torch.Tensor:
        """Return numeric features, shape (n, d), from the scale that each row came with in that of
        now."""
        if came is None:
            return numeric
        names, scaled = list(self.learner.features.numeric), self.join.rows.scales.columns
        a, b = scale_of(came).to(NumericScale.of(scaled, now))
        rescaled, at = numeric.numpy().copy(), [names.index(name) for name in scaled]
        rescaled[:, at] = np.nan_to_num(a * rescaled[:, at] + b, nan=0.0, posinf=0.0, neginf=0.0)
        return tensor(rescaled)

    def _counted(self, batch: Batch, settled: Settled) -> Batch:
        """Count what leaves early, or is learned without a label of its own."""
        assumed = settled.assumed if self._corrects else settled.expired
        counts = {
            "forgotten": settled.forgotten_rows + settled.forgotten_labels,
            "on_missing": 0 if self._missing is None else height(assumed),
            "corrected": int(np.count_nonzero(settled.corrected)),
        }
        return batch.counted(STAGE, **{name: n for name, n in counts.items() if n})

    def _warn(self, settled: Settled) -> None:
        """Warn once of rows that leave early, and of rows none of which finds its label."""
        forgotten = settled.forgotten_rows + settled.forgotten_labels
        if forgotten and not self._warned_of_memory:
            self._warned_of_memory = True
            log.warning(
                "What has to be in memory of the rows and labels that wait for each other, about "
                "30 bytes of each that is on disk, is more than an eighth of [loader] "
                "memory_budget, so the oldest expire before their horizon, %s so far: raise the "
                "budget, or shorten the horizon.",
                f"{forgotten:,}",
            )
        self._alone = 0 if settled.rows else self._alone + height(settled.expired)
        silent = self._missing is None and self._alone >= ALONE_ROWS
        if silent and not self._warned_of_labels:
            self._warned_of_labels = True
            log.warning(
                "%s rows in sequence have expired without a label: compare the keys ([labels] by) "
                "and times of rows and labels, and the horizon, or see what became of the labels.",
                f"{self._alone:,}",
            )


def _batch(frame: pl.DataFrame, **fields: Any) -> Batch:
    """Return a batch of rows that were read before, and moves no mark."""
    return Batch(frame=frame, mark=Mark(), arrived=0.0, **fields)


def _without_time_or_key(batch: Batch, times: Ints, there: Bools) -> Batch:
    batch = batch.reject(
        there, stage=STAGE, reason="no_key", detail="Expected a key ([labels] by), got null."
    )
    return batch.reject(
        times[there] > NEVER,
        stage=STAGE,
        reason="no_time",
        detail="Expected an event time ([labels] time), got null.",
    )


def _unmatched(labels: Frames) -> tuple[Rejects, ...]:
    if not labels:
        return ()
    frame = labels["frame"].drop(CODE)
    keep = np.zeros(frame.height, np.bool_)
    return _batch(frame).reject(keep, stage=STAGE, reason="unmatched", detail=UNMATCHED).rejects


def _as_served(frame: pl.DataFrame, features: Features) -> Served:
    """Return how rows were served that wait, or did."""
    scores = frame.drop(BEFORE).to_numpy()
    if len(features.score_shape(0)) == 1:
        scores = scores[:, 0]
    return Served(scores=scores, before=frame.get_column(BEFORE).to_numpy())


def _as_frame(scores: NDArray[np.float64]) -> pl.DataFrame:
    """Return scores, shape (n,) or (n, k), as a frame."""
    columns = scores.reshape(len(scores), -1) if len(scores) else scores.reshape(0, 1)
    return pl.DataFrame({str(i): column for i, column in enumerate(columns.T)})


__all__ = ["LabelColumns", "LateTraining"]
