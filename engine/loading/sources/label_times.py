"""The times of rows and of the labels that come later, in one unit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from engine.columnar.event_time import NEVER, EventTime
from engine.config import LabelSettings
from engine.types import NANOSECONDS, Schema, UserError, require, type_name
from engine.types.arrays import Ints

LONGEST = 1 << 58
"""More ticks than any horizon has."""
SPANS = 64
"""Spans of the longest time that a row waits: labels are read up to one of them after the rows that
they are older than, or small pieces of both would have to be read in turn."""
LATE_SHARE = 8
"""The lateness is this share of the longest time that a row waits unless it is given: 1/8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelTimes:
    """The time columns of rows and labels, read in the finer ticks of the two.

    Attributes:
        rows, labels: the columns.
        scales: common ticks of a tick of each.
        seconds: of a common tick; None where the times are integers, of which it is unknown.
        horizon, corrections: of `LabelSettings`, in common ticks.
        span: how much later than the rows before them labels may be read, in common ticks.
        lateness: of `LabelSettings`, and the span, in common ticks.
    """

    rows: EventTime
    labels: EventTime
    scales: tuple[int, int]
    seconds: float | None
    horizon: int
    corrections: int | None
    span: int
    lateness: int

    @property
    def kept(self) -> int:
        """How long a row or a label waits, in common ticks."""
        return (self.corrections or self.horizon) + self.lateness

    @classmethod
    def of(cls, settings: LabelSettings, rows: Schema, labels: Schema) -> LabelTimes:
        """Return the times of two sources with these columns.

        Raises: UserError if one has no such column, the two cannot be compared, or the horizon fits
            neither.
        """
        a = require_time_of_rows(settings, rows)
        b = require_time_of_labels(settings, labels)
        a_tick, b_tick = a.nanoseconds, b.nanoseconds
        if (a_tick is None) != (b_tick is None):
            raise UserError(
                f"[labels] compares the times of rows and labels, and '{a.column}' of the rows is "
                f"{type_name(a.dtype)}, '{b.column}' of the labels {type_name(b.dtype)}: declare "
                "both as datetimes, or both as integers."
            )
        whole = a_tick is None or b_tick is None
        a_tick, b_tick = a_tick or 1, b_tick or 1
        finer = a if a_tick <= b_tick else b
        horizon = _duration(finer, "horizon", settings.horizon)
        corrections = None
        if settings.corrections is not None:
            corrections = _duration(finer, "corrections", settings.corrections)
            if corrections <= horizon or settings.on_missing is None:
                raise UserError(
                    "[labels] 'corrections' is for labels that come after the horizon and correct "
                    "'on_missing': expected both, and a longer time than the horizon, got "
                    f"{settings.corrections!r}."
                )
        longest = corrections or horizon
        lateness = longest // LATE_SHARE
        if settings.lateness is not None:
            lateness = _duration(finer, "lateness", settings.lateness, least=0)
        tick, span = min(a_tick, b_tick), max(longest // SPANS, 1)
        scales = a_tick // tick, b_tick // tick
        return cls(
            rows=a,
            labels=b,
            scales=scales,
            seconds=None if whole else tick / NANOSECONDS["s"],
            horizon=horizon,
            corrections=corrections,
            span=span,
            lateness=lateness + span,
        )

    def of_rows(self, frame: pl.DataFrame) -> Ints:
        """Return the times of rows, shape (n,); NEVER for none and for what is too far away."""
        return _scaled(self.rows.read(frame), self.scales[0])

    def of_labels(self, frame: pl.DataFrame) -> Ints:
        """Return the times of labels, shape (n,), as `of_rows`."""
        return _scaled(self.labels.read(frame), self.scales[1])


def require_time_of_rows(settings: LabelSettings, schema: Schema) -> EventTime:
    """Return the time of the rows. Raises: UserError if there is none of that name or type."""
    return _column("time", settings.time, schema, "source")


def require_time_of_labels(settings: LabelSettings, schema: Schema) -> EventTime:
    """Return the time of the labels. Raises: as `require_time_of_rows`."""
    key = "time" if settings.label_time is None else "label_time"
    return _column(key, settings.time_of_labels, schema, "labels.source")


def _column(key: str, name: str, schema: Schema, section: str) -> EventTime:
    """Return a column of a source. It is needed before any stage, so no stage can make it."""
    require(schema, [name], where=f"[labels] {key}, in [{section}],")
    dtype = schema[name]
    if not (dtype.is_integer() or isinstance(dtype, pl.Datetime | pl.Date)):
        raise UserError(
            f"[labels] {key} expects a datetime, date or integer in column '{name}' of "
            f"[{section}], got {type_name(dtype)}: declare it, as in "
            f'[{section}.schema] {name} = "datetime", or name another column.'
        )
    return EventTime(column=name, dtype=dtype, where="[labels]")


def _duration(time: EventTime, key: str, value: str | int, *, least: int = 1) -> int:
    ticks = time.ticks(key, value)
    if not least <= ticks < LONGEST:
        raise UserError(
            f"[labels] expects a '{key}' of {least} to 2**58 ticks of column '{time.column}', got "
            f"{value!r}."
        )
    return ticks


def _scaled(times: Ints, scale: int) -> Ints:
    if scale == 1:
        return times
    return np.where(np.abs(times) >= -NEVER // scale, NEVER, times * scale)


__all__ = ["LabelTimes", "require_time_of_labels", "require_time_of_rows"]
