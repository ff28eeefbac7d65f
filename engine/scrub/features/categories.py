"""Turns text into codes for an embedding."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import polars as pl
from pydantic import Field

from engine.columnar.event_time import NEVER, Clock, EventTime, bound_idle
from engine.columnar.hashing import hashes
from engine.scrub.base import LearnSettings, cold_rows, parts_of
from engine.scrub.columns import expand_columns
from engine.scrub.features.vocabulary import Vocabulary
from engine.types import (
    PART,
    Batch,
    Codes,
    Name,
    Names,
    Schema,
    Snapshot,
    Stage,
    Transform,
    UserError,
    type_name,
)
from engine.types.arrays import Ints
from engine.types.changes import Neutral

log = logging.getLogger("headrace.scrub")


class Categories(Stage):
    """Replaces values by codes (Int64); code 0 is null, and every value that has no code.

    ``vocabulary``: values get the codes 1, 2, ... in order of first appearance, until `size` are
    taken. A value is learned after the batch it first stands in: there it is still unknown. The
    first rows of a stream are learned as the stage goes through them, so that a small source has
    codes, too. With `min_count` a value is unknown until so many rows had it; at most `size` values
    wait, those seen last; others start again (``dropped``). With `idle` a value that is not seen
    any more loses its code (counted as ``forgotten``), which another value gets once no new code is
    left (``reused``): a model goes on from what it has learned of that code.
    ``hash``: a value's code is 1 + its hash modulo `size`, the same in every process; nothing is
    learned, values may share a code.

    Whole numbers, booleans, dates are taken as their text.
    """

    class Settings(LearnSettings):
        """``[scrub.NAME]`` with ``kind = "categories"``

        Attributes:
            columns: names or globs.
            method: vocabulary or hash.
            size: values that get a code of their own, or number of buckets; codes are 0 ... size.
            min_count [rows]: rows with a value before it gets a code.
            idle: how far the stream's time moves on after a value's last row until it loses its
                code: a duration ("30d"), or an integer where time is one; rows without `time`.
                Never unless given.
            time: a datetime, date or integer column, for `idle`; a row without a time counts as
                the newest. The stream's time is the newest, except that times more than `idle`
                ahead of it count only once eight in sequence are.
        """

        columns: Neutral[Names]
        method: Literal["vocabulary", "hash"] = "vocabulary"
        size: int = Field(1_000, ge=1, le=1 << 31)
        min_count: int = Field(1, ge=1)
        idle: str | int | None = None
        time: Name | None = None

    def __init__(self, name: str, settings: Categories.Settings) -> None:
        super().__init__(name, settings)
        self.settings: Categories.Settings = settings
        self._columns: tuple[str, ...] = ()
        self._rows = 0
        self._clock = Clock()
        self._time: EventTime | None = None
        self._idle: int | None = None
        self._known: Mapping[str, Vocabulary] = {}

    def bind(self, schema: Schema) -> Schema:
        self._columns = expand_columns(self.settings.columns, schema, where=self.where)
        for column in self._columns:
            if schema[column].is_float() or schema[column] == pl.Binary:
                raise UserError(
                    f"{self.where} expects text or whole numbers in column '{column}', got "
                    f"{type_name(schema[column])}: round it with a 'derive' stage, or take it out."
                )
        self._bind_idle(schema)
        if not self._known:
            self._known = dict.fromkeys(self._columns, Vocabulary())
        return {**schema, **dict.fromkeys(self._columns, pl.Int64())}

    def vocabulary_sizes(self) -> dict[str, int]:
        """Return column -> number of its codes, 0 included."""
        return dict.fromkeys(self._columns, self.settings.size + 1)

    def apply(self, batch: Batch) -> Batch:
        before = self._counts
        codes = [self._coded_part(*part) for part in self._parts(batch.frame)]
        columns = [pl.concat(parts, rechunk=True) for parts in zip(*codes, strict=True)]
        unknown = sum(int((column == 0).sum()) for column in columns)
        done = batch.with_frame(batch.frame.with_columns(columns))
        self._tell(before)
        more = {name: n - before[name] for name, n in self._counts.items() if n > before[name]}
        return done.counted(self.name, unknown=unknown, **more)

    def _parts(self, frame: pl.DataFrame) -> Iterator[tuple[pl.DataFrame, bool]]:
        """Yield the parts of a batch, and whether each is learned before it is coded."""
        learns = self.settings.method == "vocabulary"
        cold = cold_rows(self.settings, self._rows, len(frame)) if learns else 0
        for part, when in parts_of(frame, cold, lambda: self._rows):
            yield part, when == "before"

    def _coded_part(self, frame: pl.DataFrame, first: bool) -> list[pl.Series]:
        """Return the codes of the part; learn its values."""
        texts = frame.select(pl.col(self._columns).cast(pl.String)).get_columns()
        if self.settings.method == "hash":
            return [self._hashed(text) for text in texts]
        codes = [self._coded(text) for text in texts]
        self._learn(frame, texts, codes)
        return [self._coded(text) for text in texts] if first else codes

    def _bind_idle(self, schema: Schema) -> None:
        settings = self.settings
        given = {"min_count", "idle", "time"} & settings.model_fields_set
        if settings.method == "hash" and given:
            raise UserError(
                f"{self.where} {min(given)} is for method 'vocabulary', and method is 'hash', "
                "which learns nothing: take one of them out."
            )
        self._time, self._idle = bound_idle(settings.idle, settings.time, schema, self.where)

    @property
    def _counts(self) -> Counter[str]:
        """What all columns' vocabularies counted so far."""
        return sum((Counter(known.counts) for known in self._known.values()), Counter[str]())

    def _tell(self, before: Mapping[str, int]) -> None:
        """Tell of the first code that was reused, and of the first value that waits no more."""
        now = self._counts
        if now["reused"] and not before["reused"]:
            log.warning(
                "%s has given the code of a forgotten value to another, as no new one is left of "
                "size = %d: a model goes on from what it has learned of that code. All of them are "
                "counted as 'reused'; a larger size makes them rarer.",
                self.where,
                self.settings.size,
            )
        if now["dropped"] and not before["dropped"]:
            log.warning(
                "%s has size = %d values that wait for min_count = %d rows: of more, those seen "
                "last are kept, and the others start again. They are counted as 'dropped'.",
                self.where,
                self.settings.size,
                self.settings.min_count,
            )

    def _coded(self, text: pl.Series) -> pl.Series:
        return self._known[text.name].codes(text)

    def _hashed(self, text: pl.Series) -> pl.Series:
        buckets = hashes(text.to_frame()) % np.uint64(self.settings.size)
        codes = np.where(text.is_null().to_numpy(), 0, buckets.astype(np.int64) + 1)
        return pl.Series(text.name, codes)

    def _learn(
        self, frame: pl.DataFrame, texts: Sequence[pl.Series], codes: Sequence[pl.Series]
    ) -> None:
        """Learn from the training rows of a batch."""
        if PART in frame.columns:
            keep = frame.get_column(PART) == "train"
            texts, codes = ([column.filter(keep) for column in part] for part in (texts, codes))
            frame = frame.filter(keep)
        left = self.settings.rows_left(self._rows)
        rows = frame.height if left is None else min(left, frame.height)
        if not rows:
            return
        times, newest = self._times(frame.head(rows))
        self._rows += rows
        rules = {"size": self.settings.size, "min_count": self.settings.min_count}
        self._known = {
            text.name: self._known[text.name].learned(
                text.head(rows), code.head(rows), times, **rules,
                newest=newest, idle=None if newest == NEVER else self._idle,
            )
            for text, code in zip(texts, codes, strict=True)
        }  # fmt: skip

    def _times(self, frame: pl.DataFrame) -> tuple[Ints, int]:
        """Return when each training row came, its time or its number, and the newest by now: NEVER
        until that is known."""
        if self._time is None or self._idle is None:
            return np.arange(self._rows, self._rows + frame.height), self._rows + frame.height - 1
        times = self._time.read(frame)
        self._clock, clocks, _ = self._clock.walk(times, self._idle, at_once=False)
        newest = np.where(clocks == NEVER, times.max(), clocks)
        return np.where(times == NEVER, newest, times), self._clock.time

    def snapshot(self) -> Snapshot:
        """Return the rows seen, the clock and each column's vocabulary; None for hash."""
        if self.settings.method == "hash":
            return None
        known = {column: each.snapshot() for column, each in self._known.items()}
        return {"rows": self._rows, "clock": self._clock.snapshot(), "known": known}

    def restore(self, value: Snapshot) -> None:
        if value is not None:
            self._rows, self._clock = value["rows"], Clock.restore(value["clock"])
            known = value["known"]
            self._known = {column: Vocabulary.restored(known[column]) for column in self._columns}

    def transforms(self) -> Sequence[Transform] | None:
        """Return one `Codes` per column; None for hash, which no model file can contain."""
        if self.settings.method == "hash":
            return None
        return [Codes(column=c, values=self._known[c].known()) for c in self._columns]


__all__ = ["Categories"]
