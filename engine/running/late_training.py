"""Training on labels that come later than their rows."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.columnar.hashing import Hashes, hashes
from engine.loading.sources.label_times import LabelTimes
from engine.observing.metrics import observe_all
from engine.running.label_join import Arrivals, Frames, Joined, LabelJoin, concat_frames
from engine.running.work import Served, Training, WorkResult, joined_results
from engine.scrub.event_time import NEVER
from engine.types import (
    DELAY,
    PARTITION,
    POSITION,
    Batch,
    Mark,
    Records,
    Rejects,
    Schema,
    Snapshot,
    UserError,
    require,
    tensor,
    type_name,
)
from engine.types.arrays import Bools, Ints
from engine.user_code import calls

log = logging.getLogger("headrace.labels")
STAGE = "labels"
"""The stage of rejected rows and labels."""
SAME_BATCH = "same_batch"
"""The counter of labels that came in the batch of their row, so it was scored without those that
came between the two."""
CODE = "_code"
"""The column of waiting labels with the label as the model learns it: a number, or that of a class.
"""
BEFORE = "before"
"""The column beside the scores with the newest label that was known when a row came."""
ALONE_ROWS = 1_000
"""The rows in sequence that expire without a label, before a warning."""
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

    Args:
        join: of rows and labels.
        by: what they are joined by.
        collate: makes tensors of the features alone.
        collate_labels: makes tensors of the label alone.
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
        on_missing: pl.Series | None = None,
        **training: Any,
    ) -> None:
        """Raises: UserError if the model cannot learn `on_missing`."""
        super().__init__(**training)
        self.join = join
        self._by = by
        self._collate = collate
        self._collate_labels = collate_labels
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

    def process(self, batch: Batch) -> WorkResult:
        """Score the rows of a collated batch, and learn those that have their label now."""
        assert batch.labels is not None, "the loader decodes labels"
        batch, rows = self._rows(batch)
        labelled, labels = self._labels(batch)
        joined = self.join.join(rows, labels)
        if joined.pairs:
            self._newest = float(joined.labels["frame"].get_column(CODE)[-1])
        batch = batch.reject(~joined.duplicate_rows, stage=STAGE, reason="duplicate", detail=AGAIN)
        labelled = labelled.reject(
            ~joined.duplicate_labels, stage=STAGE, reason="duplicate", detail=SECOND
        )
        rejects = (*batch.rejects, *labelled.rejects, *_unmatched(joined.unmatched))
        done = self._learned(self._counted(batch, joined), joined)
        expired = 0 if self._missing is not None else joined.expired["frame"].height
        # A row that was learned with another label is one more.
        added = done.batch.added + int(np.count_nonzero(joined.corrected))
        return replace(
            done,
            batch=replace(done.batch, rejects=(*rejects, *done.batch.rejects), added=added),
            waiting=joined.waiting,
            expired=expired + joined.forgotten_rows,
            matched=joined.pairs,
            event_time=self._event_time(),
        )

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

    def _rows(self, batch: Batch) -> tuple[Batch, Arrivals]:
        """Score the rows; return those with a key and a time."""
        scores = np.empty((0,))
        if len(batch):
            assert batch.tensors is not None
            scores = calls.predict(self.learner, batch.tensors)
        batch = replace(batch, tensors=None)
        times = self._by.times.of_rows(batch.frame)
        keys, there = self._by.keys_of(batch.frame, labels=False)
        batch = _without_time_or_key(batch, times, there)
        good = there & (times > NEVER)
        before = pl.repeat(self._newest, len(batch), dtype=pl.Float64, eager=True)
        served = _as_frame(scores[good]).with_columns(before.alias(BEFORE))
        frames = {"frame": batch.frame, "served": served}
        if batch.raw is not None:
            frames["raw"] = batch.raw
        turns = _turns(batch.frame, batch.pieces)
        return batch, Arrivals(keys=keys[good], times=times[good], turns=turns, frames=frames)

    def _labels(self, batch: Batch) -> tuple[Batch, Arrivals]:
        """Return the labels that the model can learn, with a key and a time."""
        assert batch.labels is not None
        labels = self._collate_labels(
            Batch(frame=batch.labels, mark=batch.mark, arrived=batch.arrived)
        )
        assert labels.tensors is not None
        assert labels.tensors.target is not None
        frame = labels.frame.with_columns(pl.Series(CODE, labels.tensors.target.numpy()))
        labels = replace(labels, frame=frame, tensors=None)
        times = self._by.times.of_labels(frame)
        keys, there = self._by.keys_of(frame, labels=True)
        labels = _without_time_or_key(labels, times, there)
        good = there & (times > NEVER)
        turns, frames = _turns(labels.frame, batch.pieces), {"frame": labels.frame}
        return labels, Arrivals(keys=keys[good], times=times[good], turns=turns, frames=frames)

    def _missing_label(self, label: pl.Series) -> pl.DataFrame:
        """Return the label of rows that get none, as those that come. Raises: UserError"""
        place = {PARTITION: [STAGE], POSITION: [0]}
        frame = label.to_frame().hstack(pl.DataFrame(place))
        labels = self._collate_labels(Batch(frame=frame, mark=Mark(), arrived=0.0))
        if labels.rejects:
            (detail,) = labels.rejects[0].rows["detail"]
            raise UserError(f"[labels] on_missing is no label that the model can learn: {detail}")
        assert labels.tensors is not None
        assert labels.tensors.target is not None
        code = pl.Series(CODE, labels.tensors.target.numpy())
        return labels.frame.select(self._by.target).with_columns(code)

    def _learned(self, batch: Batch, joined: Joined) -> WorkResult:
        """Learn the rows that have their label now, and those whose label is missing.

        Rows that a later label may correct are learned at once, and evaluated when theirs is sure.
        """
        rows, labels, expired = joined.rows, self._found_labels(joined), joined.expired
        if self._missing is None:
            return self._learn_rows(batch, rows, labels)
        missing = self._missing_labels(expired)
        if not self._corrects:
            both = pl.concat([labels, missing])
            return self._learn_rows(batch, concat_frames(rows, expired), both)
        self._evaluate_rows(batch, expired, missing)
        missing = self._missing_labels(joined.assumed)
        parts = [
            self._learn_rows(batch, rows, labels),
            self._learn_rows(batch, joined.assumed, missing, sure=False),
        ]
        return joined_results(replace(batch, rejects=()), parts)

    def _learn_rows(
        self, batch: Batch, rows: Frames, labels: pl.DataFrame, *, sure: bool = True
    ) -> WorkResult:
        ready, served = self._ready(batch, rows, labels)
        if served is None:
            return super().process(ready)
        return self._process(ready, served=replace(served, sure=sure))

    def _evaluate_rows(self, batch: Batch, rows: Frames, labels: pl.DataFrame) -> None:
        ready, served = self._ready(batch, rows, labels)
        if served is not None:
            codes, scores = labels.get_column(CODE).to_numpy(), served.scores
            self.evaluation.update(ready.frame, codes, scores, ready.raw, before=served.before)

    def _found_labels(self, joined: Joined) -> pl.DataFrame:
        """Return label, code and delay of the pairs."""
        found, times = joined.labels["frame"], self._by.times
        delays = times.of_labels(found) - times.of_rows(joined.rows["frame"])
        delay = pl.Series(DELAY, delays * (times.seconds or 1.0), pl.Float64)
        if times.seconds is not None:
            observe_all(self._metrics.label_delay_seconds, np.maximum(delay.to_numpy(), 0.0))
        return found.select(self._by.target, CODE).with_columns(delay)

    def _missing_labels(self, rows: Frames) -> pl.DataFrame:
        """Return the same of rows whose label is missing."""
        assert self._missing is not None
        labels = self._missing[np.zeros(rows["frame"].height, np.int64)]
        return labels.with_columns(pl.lit(None, pl.Float64).alias(DELAY))

    def _ready(
        self, batch: Batch, rows: Frames, labels: pl.DataFrame
    ) -> tuple[Batch, Served | None]:
        """Return rows with their labels, as a collated batch without rejects, and how they were
        served; None without rows."""
        target, raw = labels.get_column(self._by.target), rows.get("raw")
        ready = replace(
            batch,
            frame=rows["frame"].with_columns(target, labels.get_column(DELAY)),
            raw=None if raw is None else raw.with_columns(target),
            rejects=(),
            scales=(),  # each row has the scale of when it came
        )
        if not len(ready):
            return ready, None
        ready = self._collate(ready)
        assert ready.tensors is not None
        assert not ready.rejects, "rows were collated when they came"
        codes = tensor(labels.get_column(CODE).to_numpy(writable=True))
        scores = rows["served"].drop(BEFORE).to_numpy()
        if self.learner.features.task != "multiclass":
            scores = scores[:, 0]
        served = Served(scores=scores, before=rows["served"].get_column(BEFORE).to_numpy())
        return replace(ready, tensors=replace(ready.tensors, target=codes)), served

    def _counted(self, batch: Batch, joined: Joined) -> Batch:
        """Count what leaves early, is ahead or is learned without a label of its own."""
        forgotten = joined.forgotten_rows + joined.forgotten_labels
        assumed = joined.assumed if self._corrects else joined.expired
        counts = {
            "forgotten": forgotten,
            "ahead": joined.ahead,
            SAME_BATCH: joined.together,
            "on_missing": 0 if self._missing is None else assumed["frame"].height,
            "corrected": int(np.count_nonzero(joined.corrected)),
        }
        self._warn(joined, forgotten)
        counts = {name: n for name, n in counts.items() if n}
        return batch.counted(STAGE, **counts) if counts else batch

    def _warn(self, joined: Joined, forgotten: int) -> None:
        """Warn once of rows that leave early, and of rows none of which finds its label."""
        if forgotten and not self._warned_of_memory:
            self._warned_of_memory = True
            log.warning(
                "The rows and labels that wait for each other take more than a quarter of [loader] "
                "memory_budget, so the oldest expire before their horizon, %s so far: raise the "
                "budget, or shorten the horizon.",
                f"{forgotten:,}",
            )
        self._alone = 0 if joined.pairs else self._alone + joined.expired["frame"].height
        silent = self._missing is None and self._alone >= ALONE_ROWS
        if silent and not self._warned_of_labels:
            self._warned_of_labels = True
            log.warning(
                "%s rows in sequence have expired without a label: compare the keys ([labels] by) "
                "and times of rows and labels, and the horizon, or see what became of the labels.",
                f"{self._alone:,}",
            )


def _turns(frame: pl.DataFrame, pieces: Sequence[Records]) -> Ints:
    """Return which of a batch's records each row comes from, shape (n,)."""
    turns = np.zeros(frame.height, np.int64)
    own: dict[str, list[int]] = {}
    for turn, piece in enumerate(pieces):
        own.setdefault(piece.partition, []).append(turn)
    if not own or not frame.height:
        return turns
    numbers = dict(zip(own, range(len(own)), strict=True))
    column = frame.get_column(PARTITION).replace_strict(numbers, return_dtype=pl.Int64)
    partitions, positions = column.to_numpy(), frame.get_column(POSITION).to_numpy()
    for partition in np.unique(partitions).tolist():
        rows, at = partitions == partition, list(own.values())[partition]
        starts = [pieces[turn].positions[0] for turn in at]
        turns[rows] = np.array(at)[np.searchsorted(starts, positions[rows], "right") - 1]
    return turns


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
    frame = labels["frame"]
    if not frame.height:
        return ()
    keep = np.zeros(frame.height, np.bool_)
    gone = Batch(frame=frame.drop(CODE), mark=Mark(), arrived=0.0)
    return gone.reject(keep, stage=STAGE, reason="unmatched", detail=UNMATCHED).rejects


def _as_frame(scores: NDArray[np.float64]) -> pl.DataFrame:
    """Return scores, shape (n,) or (n, k), as a frame."""
    columns = scores.reshape(len(scores), -1) if len(scores) else scores.reshape(0, 1)
    return pl.DataFrame({str(i): column for i, column in enumerate(columns.T)})


__all__ = ["LabelColumns", "LateTraining"]
