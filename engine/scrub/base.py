"""What the stages share: names for error sentences, and state that is a value."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
from pydantic import Field

from engine.columnar.statistics import Extremes, Moments, Statistic
from engine.scrub.columns import replaced
from engine.scrub.fusion import FusedOp
from engine.scrub.side_source import SideStage
from engine.scrub.too_large import TooLarge
from engine.types import PART, Batch, Name, Scale, Settings, Snapshot, Stage, UserError, training
from engine.types.arrays import Floats
from engine.types.changes import Neutral
from engine.user_code.calls import Calling

SINGLE_ROWS, COLD_ROWS = 16, 128
"""The first rows of a stream have no earlier batches. A scaling or filling stage learns the first
16 one by one, each before it is transformed, and up to the 128th in blocks as long as all rows
before them: one by one, 128 rows of 32 columns cost as much as 300,000 later ones."""
DETECTORS = ("adwin", "page_hinkley", "psi")
"""The names a 'drift' stage counts under."""


class LearnSettings(Settings):
    """Settings of every stage that learns.

    Attributes:
        learn: false applies what a checkpoint holds and learns nothing more.
        freeze_after [rows]: rows after which nothing more is learned; exact to the row.
    """

    learn: Neutral[bool] = True
    freeze_after: Neutral[int | None] = Field(None, ge=1)

    def rows_left(self, rows: int) -> int | None:
        """Return how many more rows may be learned after `rows`; None for all."""
        if not self.learn:
            return 0
        return None if self.freeze_after is None else max(self.freeze_after - rows, 0)


class ForgetSettings(LearnSettings):
    """Settings of a stage whose statistic can start anew.

    Attributes:
        forget_on: name of a 'drift' stage before this one: where that detects drift in a batch,
            what the batches before taught is forgotten, after the batch was transformed with it and
            before it is learned from; `freeze_after` counts from there.
    """

    forget_on: Neutral[Name | None] = None


def cold_rows(settings: LearnSettings, seen: int, rows: int) -> int:
    """Return how many of a batch's rows are first rows of a stream, which a stage learns as it goes
    through them.

    Args:
        seen: the rows it has learned.
        rows: those of the batch.
    """
    left = settings.rows_left(seen)
    cold = max(0, min(COLD_ROWS - seen, rows))
    return cold if left is None else min(cold, left)


def parts_of(
    frame: pl.DataFrame, cold: int, seen: Callable[[], int]
) -> Iterator[tuple[pl.DataFrame, Literal["before", "after", "later"]]]:
    """Yield the parts of a batch, each to be transformed with the current state, and when each is
    learned: first rows one by one before they are transformed, then in blocks as long as all rows
    seen, after it, so that they are as good as any other and no row is changed by later ones; the
    rest with the whole batch.

    Args:
        cold: the first rows among them, see `cold_rows`.
        seen: returns the rows that are learned by now.
    """
    at = 0
    while at < cold:
        single = seen() < SINGLE_ROWS
        part = frame[at : at + 1 if single else min(at + seen(), cold)]
        yield part, "before" if single else "after"
        at += part.height
    if at < len(frame) or not at:
        yield frame[at:] if at else frame, "later"


class FittedStage(Stage):
    """A stage whose state is one statistic over its columns and the number of rows it has learned.

    `bind` of the stage sets `_columns` and calls `_begin`; its `apply` ends with `_learn`, or is
    `_passed`.

    Attributes:
        untaught: what becomes of values in a first batch, of which it has learned nothing, for a
            sentence; empty if it does to them all that it can.
    """

    untaught: ClassVar[str] = ""

    _columns: Sequence[str] = ()
    _statistic: Statistic | None = None
    _nothing: Statistic | None = None
    _rows = 0

    def __init__(self, name: str, settings: Any) -> None:
        super().__init__(name, settings)
        self._too_large = TooLarge()

    def _begin(self, statistic: Statistic) -> None:
        self._nothing = statistic
        if self._statistic is None:
            self._statistic = statistic

    def _learn(self, batch: Batch, start: int = 0) -> None:
        """Learn from the training rows of the batch as it came, before this stage changed it;
        the rows before `start` are already learned."""
        if self._drifted(batch):
            self._statistic, self._rows, start = self._nothing, 0, 0
        self._take(batch.frame[start:] if start else batch.frame)

    def _take(self, frame: pl.DataFrame) -> None:
        """Learn from the training rows of the frame."""
        if self._statistic is None:
            return
        frame = training(frame)
        left = self.settings.rows_left(self._rows)
        rows = self._block(frame.head(frame.height if left is None else left))
        if rows.height:
            before, self._statistic = self._statistic, self._statistic.update(rows)
            if self._statistic.may_have_ignored(rows, before):
                self._too_large.note(rows, self._statistic.limit)
            self._rows += rows.height

    def _cold(self, batch: Batch) -> int:
        """Return how many rows of the batch are first rows, which it learns as it goes through
        them."""
        return 0 if self._statistic is None else cold_rows(self.settings, self._rows, len(batch))

    def _parts(self, batch: Batch) -> Iterator[pl.DataFrame]:
        """Yield the parts of the batch, see `parts_of`; the rest is not learned here."""
        for part, when in parts_of(batch.frame, self._cold(batch), lambda: self._rows):
            if when == "before":
                self._take(part)
            yield part
            if when == "after":
                self._take(part)

    def _passed(self, batch: Batch) -> Batch:
        """Return the batch transformed with the state of earlier rows; then learn from it."""
        cold = self._cold(batch)
        done = [(self._changed(part), self._noted(), part.height) for part in self._parts(batch)]
        parts, noted, rows = zip(*done, strict=True)
        scales = [scale for scale in noted if scale is not None]
        scale = Scale.joined(scales, rows) if scales else None
        self._learn(batch, cold)
        changed = batch.with_frame(replaced(batch.frame, joined(parts)), scale=scale)
        return changed.counted(self.name, **self._too_large.counts())

    def _changed(self, frame: pl.DataFrame) -> list[pl.Series]:
        """Return the stage's columns, transformed with the current state."""
        raise NotImplementedError

    def _noted(self) -> Scale | None:
        """Return the scale of a transformation with the current state, if it is one."""
        return None

    @property
    def columns(self) -> Sequence[str]:
        """The columns it learns from."""
        return self._columns

    def learn(self, statistic: Any, rows: int) -> None:
        """Learn from `rows` rows with this statistic."""
        assert self._statistic is not None
        self._statistic = self._statistic.merge(statistic)
        self._rows += rows

    @property
    def moving(self) -> Sequence[str]:
        learns = self._statistic is not None and self.settings.rows_left(self._rows) != 0
        return self.scaled if learns else ()

    def _scale(self, shift: Floats, factor: Floats) -> Scale:
        """Return the scale of columns that become ``(x - shift) * factor``."""
        if self._statistic is not None and not self._rows:
            shift = np.full_like(shift, np.nan)
        return Scale(columns=tuple(self._columns), shift=shift, factor=factor)

    def _linked(self, batch: Batch, op: Any, a: Floats, b: Floats, **more: Any) -> FusedOp | None:
        """Return the stage's fused operation, see `engine.scrub.fusion`; None if it learns what
        fusion cannot give, or not from all rows."""
        learns: Any = None if self._statistic is None else type(self._statistic)
        left = self.settings.rows_left(self._rows)
        if left == 0:
            learns = None
        elif learns is not None and (
            learns not in (Moments, Extremes)
            or (left is not None and left < len(batch))
            or PART in batch.frame.columns
        ):
            return None
        if self.settings.forget_on is not None:
            return None
        return FusedOp(kind=op, a=a, b=b, learns=learns, **more)

    def _block(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the block the statistic learns from."""
        return frame[list(self._columns)]

    def _drifted(self, batch: Batch) -> bool:
        """Return whether the stage named by `forget_on` detected drift in this batch.

        Raises: UserError when that stage has not looked at it.
        """
        name = self.settings.forget_on
        if name is None or not self.settings.learn:
            return False
        counts = [batch.counts.get((name, detector)) for detector in DETECTORS]
        if all(n is None for n in counts):
            raise UserError(
                f"{self.where} forgets on '{name}', but no 'drift' stage of that name stands before"
                f" it: put [scrub.{name}] before {self.where}, or take 'forget_on' away."
            )
        return any(counts)

    def remarks(self) -> list[str]:
        """Return a sentence if the stage applies a state it was never allowed to learn, and one
        for each column with numbers that are too large to learn from."""
        if self._statistic is None or self.settings.learn or self._rows:
            limit = math.inf if self._statistic is None else self._statistic.limit
            return list(self._too_large.remarks(self.where, limit))
        return [
            f"{self.where} has learn = false, and has learned nothing yet that it could apply: let "
            "it learn in a first run, and resume that."
        ]

    def snapshot(self) -> Snapshot:
        """Return ``rows`` and the statistic's fields; None if nothing is ever learned."""
        if self._statistic is None:
            return None
        return {"rows": self._rows, **self._statistic.snapshot()}

    def merge(self, value: Snapshot) -> None:
        """Learn what another instance of this stage learned, from its snapshot: as if its rows
        had come after this one's. The stage must be bound, to the same columns."""
        if self._statistic is None:
            assert value is None
            return
        fields = dict(value)
        self._rows += fields.pop("rows")
        self._statistic = self._statistic.merge(self._statistic.restore(fields))

    def restore(self, value: Snapshot) -> None:
        """Restore a `snapshot`; the stage must be bound."""
        if self._statistic is None:
            assert value is None
            return
        fields = dict(value)
        self._rows = fields.pop("rows")
        self._statistic = self._statistic.restore(fields)


def joined(parts: Sequence[list[pl.Series]]) -> list[pl.Series]:
    """Join the columns of consecutive parts."""
    if len(parts) == 1:
        return parts[0]
    return pl.concat(map(pl.DataFrame, parts), rechunk=True).get_columns()


def snapshots(stages: Iterable[Stage]) -> dict[str, Snapshot]:
    """Return name -> state of the stages that have one: what a mark stores."""
    states = {stage.name: _snapshot(stage) for stage in stages}
    return {name: state for name, state in states.items() if state is not None}


def _snapshot(stage: Stage) -> Snapshot:
    with Calling(f"scrub.{stage.name}", stage):
        return stage.snapshot()


def restore(stages: Iterable[Stage], states: Mapping[str, Snapshot]) -> None:
    """Restore the stages from `snapshots`. Raises: KeyError if one is missing."""
    for stage in stages:
        # What has read nothing beside the stream yet has no place there.
        if stage.snapshot() is not None or (isinstance(stage, SideStage) and stage.name in states):
            state = states[stage.name]
            with Calling(f"scrub.{stage.name}", stage):
                stage.restore(state)


__all__ = [
    "DETECTORS",
    "FittedStage",
    "ForgetSettings",
    "LearnSettings",
    "cold_rows",
    "joined",
    "parts_of",
    "restore",
    "snapshots",
]
