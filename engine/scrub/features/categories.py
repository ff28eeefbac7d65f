"""Turns text into codes for an embedding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import polars as pl
from pydantic import Field

from engine.columnar.hashing import hashes
from engine.scrub.base import LearnSettings, cold_rows, parts_of
from engine.scrub.columns import expand_columns
from engine.scrub.event_time import NEVER, EventTime
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
    require,
    type_name,
)
from engine.types.arrays import Ints
from engine.types.changes import Neutral


class Categories(Stage):
    """Replaces values by codes (Int64); code 0 is null, and every value that has no code.

    ``vocabulary``: values get the codes 1, 2, ... in order of first appearance, until `size` are
    taken. A value is learned after the batch it first stands in: there it is still unknown. The
    first rows of a stream are learned as the stage goes through them, so that a small source has
    codes, too. With `min_count` a value is unknown until so many rows had it; at most `size` values
    wait, those seen last. With `idle` a value that is not seen any more loses its code (counted as
    ``forgotten``), which another value gets once no new code is left: a model goes on from what it
    has learned of that code.
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
                the newest.
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
        self._newest = NEVER
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
        left, codes = self._left, [self._coded_part(*part) for part in self._parts(batch.frame)]
        columns = [pl.concat(parts, rechunk=True) for parts in zip(*codes, strict=True)]
        unknown = sum(int((column == 0).sum()) for column in columns)
        done = batch.with_frame(batch.frame.with_columns(columns))
        forgotten = self._left - left
        counts = {"unknown": unknown} | ({"forgotten": forgotten} if forgotten else {})
        return done.counted(self.name, **counts)

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
        if settings.idle is None:
            if settings.time is not None:
                raise UserError(f"{self.where} time is for 'idle': set that, or take time out.")
            return
        if settings.time is not None:
            require(schema, [settings.time], where=self.where)
            dtype = schema[settings.time]
            self._time = EventTime(column=settings.time, dtype=dtype, where=self.where)
            self._idle = self._time.ticks("idle", settings.idle)
        elif isinstance(settings.idle, int):
            self._idle = settings.idle
        else:
            raise UserError(
                f"{self.where} expects a number of rows for 'idle' without a 'time', got "
                f"{settings.idle!r}: name the column of the time."
            )
        if self._idle < 1:
            raise UserError(f"{self.where} expects a positive 'idle', got {settings.idle!r}.")

    @property
    def _left(self) -> int:
        return sum(vocabulary.left for vocabulary in self._known.values())

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
        times = self._times(frame.head(rows))
        self._newest = max(self._newest, int(times.max()))
        self._rows += rows
        timeless = self._idle is None or self._newest == NEVER
        rules = {"size": self.settings.size, "min_count": self.settings.min_count}
        self._known = {
            text.name: self._known[text.name].learned(
                text.head(rows), code.head(rows), times, **rules,
                oldest=None if timeless else self._newest - (self._idle or 0),
            )
            for text, code in zip(texts, codes, strict=True)
        }  # fmt: skip

    def _times(self, frame: pl.DataFrame) -> Ints:
        """Return when each training row came: its time, or its number."""
        if self._time is None:
            return np.arange(self._rows, self._rows + frame.height)
        times = self._time.read(frame)
        return np.where(times == NEVER, max(self._newest, int(times.max())), times)

    def snapshot(self) -> Snapshot:
        """Return the rows seen, the newest time and each column's vocabulary; None for hash."""
        if self.settings.method == "hash":
            return None
        known = {column: each.snapshot() for column, each in self._known.items()}
        return {"rows": self._rows, "newest": self._newest, "known": known}

    def restore(self, value: Snapshot) -> None:
        if value is not None:
            self._rows, self._newest = value["rows"], value["newest"]
            known = value["known"]
            self._known = {column: Vocabulary.restored(known[column]) for column in self._columns}

    def transforms(self) -> Sequence[Transform] | None:
        """Return one `Codes` per column; None for hash, which no model file can contain."""
        if self.settings.method == "hash":
            return None
        return [Codes(column=c, values=self._known[c].known()) for c in self._columns]


__all__ = ["Categories"]
