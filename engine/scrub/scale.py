"""``standardize`` and ``normalize``: numbers to a common scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from engine.scrub.base import Base, ColumnSettings, as_floats
from engine.statistics import Extremes, Floats, Moments
from engine.types import Affine, Batch, Clip, Schema, Snapshot, Transform, UserError


class _Scale(Base):
    """A column becomes ``(x - shift) * scale``, with numbers learned from the batches before. Null
    stays null."""

    _state: Any
    _columns: list[str]

    def apply(self, batch: Batch) -> Batch:
        """Scale, then learn."""
        frame = batch.frame.with_columns(pl.col(self._columns).cast(pl.Float64))
        exprs = [(pl.col(t.column) - t.shift) * t.scale for t in self._affine()]
        if frame.height:
            self._state = self._state.update(frame, self._columns)
        return batch.with_frame(frame.with_columns(exprs))

    def transforms(self) -> Sequence[Transform]:
        """What `apply` would do to the next batch."""
        return self._affine()

    def snapshot(self) -> Snapshot:
        """The statistics."""
        return self._state.snapshot()

    def restore(self, value: Snapshot) -> None:
        """Back to them."""
        self._state = type(self._state).restore(value)

    def _affine(self) -> list[Affine]:
        shift, scale = self._shift_scale()
        return [
            Affine(column=c, shift=a, scale=b)
            for c, a, b in zip(self._columns, shift.tolist(), scale.tolist(), strict=True)
        ]

    def _shift_scale(self) -> tuple[Floats, Floats]:
        raise NotImplementedError


class Standardize(_Scale):
    """To mean 0 and standard deviation 1 (population). Where nothing was learned, or nothing
    varies, to 0."""

    class Settings(ColumnSettings):
        """Only `columns`."""

    settings: Standardize.Settings

    def bind(self, schema: Schema) -> Schema:
        """Raises: UserError for a column that is no number."""
        self._columns = self.numbers(self.settings.columns, schema)
        self._state = Moments.empty(len(self._columns))
        return as_floats(self._columns, schema)

    def _shift_scale(self) -> tuple[Floats, Floats]:
        deviation = np.sqrt(self._state.variance)
        varies = deviation > 0
        return self._state.mean, np.where(varies, 1 / np.where(varies, deviation, 1), 0.0)


class Normalize(_Scale):
    """From the smallest and largest value seen (or given) to [low, high]. Where nothing varies, to
    0.

    A value beyond what was seen lands outside the interval, unless `clip`.
    """

    class Settings(ColumnSettings):
        """
        Attributes:
            low, high: the interval.
            from_low, from_high: known bounds of the data, instead of learned ones.
            clip: keep what is beyond the bounds at the interval's ends. Counts ``clipped``.
        """

        low: float = 0.0
        high: float = 1.0
        from_low: float | None = None
        from_high: float | None = None
        clip: bool = False

    settings: Normalize.Settings

    def bind(self, schema: Schema) -> Schema:
        """Raises: UserError for a column that is no number, or an interval that is none."""
        settings = self.settings
        self._columns = self.numbers(settings.columns, schema)
        given = (settings.from_low, settings.from_high)
        if settings.low >= settings.high or (None not in given and given[0] >= given[1]):  # type: ignore[operator]
            raise UserError(f"{self.where} expects low < high and from_low < from_high.")
        self._state = Extremes.empty(len(self._columns))
        return as_floats(self._columns, schema)

    def apply(self, batch: Batch) -> Batch:
        """Scale, clip where asked, then learn."""
        if not self.settings.clip:
            return super().apply(batch)
        clips = self._clips()
        values = [pl.col(t.column).cast(pl.Float64) for t in clips]
        outside = [(v < t.low) | (v > t.high) for v, t in zip(values, clips, strict=True)]
        n = sum(batch.frame.select(e.sum().alias(str(i)) for i, e in enumerate(outside)).row(0))
        clipped = batch.frame.with_columns(
            v.clip(t.low, t.high) for v, t in zip(values, clips, strict=True)
        )
        done = super().apply(batch.with_frame(clipped))
        # Learned from what came, not from what was clipped.
        self._state = self._state.update(batch.frame, self._columns)
        return done.counted(self.name, clipped=n)

    def transforms(self) -> Sequence[Transform]:
        """Clips, where asked, and scales."""
        return [*(self._clips() if self.settings.clip else ()), *self._affine()]

    def _ends(self) -> tuple[Floats, Floats]:
        settings = self.settings
        low, high = self._state.low, self._state.high
        if settings.from_low is not None:
            low = np.full_like(low, settings.from_low)
        if settings.from_high is not None:
            high = np.full_like(high, settings.from_high)
        return low, high

    def _clips(self) -> list[Clip]:
        low, high = self._ends()
        known = low <= high
        low, high = np.where(known, low, -np.inf), np.where(known, high, np.inf)
        return [
            Clip(column=c, low=a, high=b)
            for c, a, b in zip(self._columns, low.tolist(), high.tolist(), strict=True)
        ]

    def _shift_scale(self) -> tuple[Floats, Floats]:
        # (x - shift) * scale = low + (x - a) * scale, so the shift takes the interval's start in.
        low, high = self._ends()
        settings = self.settings
        varies = high > low
        span = np.where(varies, high - low, 1.0)
        scale = (settings.high - settings.low) / span
        shift = np.where(varies, low - settings.low / scale, 0.0)
        return shift, np.where(varies, scale, 0.0)


__all__ = ["Normalize", "Standardize"]
