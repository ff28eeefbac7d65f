"""Scales numbers to a common scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from engine.columnar.kernels import scale_columns
from engine.columnar.statistics import (
    Extremes,
    FadingMoments,
    Moments,
    Quantiles,
    Statistic,
    inverse,
)
from engine.scrub.base import FittedStage, ForgetSettings
from engine.scrub.columns import expand_columns, numbers
from engine.scrub.fusion import FusedOp, Fusible
from engine.types import Affine, Batch, Clip, Names, Scale, Schema, Transform, UserError
from engine.types.changes import Neutral


class Scaled(FittedStage, Fusible):
    """``(x - shift) * scale`` in Float64 for each column, with learned numbers; see
    `FittedStage` for the first rows."""

    def __init__(self, name: str, settings: ForgetSettings) -> None:
        super().__init__(name, settings)
        self._schema: Schema = {}
        self._computed: tuple[Statistic | None, NDArray[np.float64]] | None = None

    def _bound(self, columns: Sequence[str], schema: Schema) -> Schema:
        self._columns = expand_columns(columns, schema, where=self.where)
        numbers(self._columns, schema, where=self.where)
        self._schema = schema
        return {**schema, **dict.fromkeys(self._columns, pl.Float64())}

    def apply(self, batch: Batch) -> Batch:
        return self._passed(batch)

    def _changed(self, frame: pl.DataFrame) -> list[pl.Series]:
        return scale_columns([frame.get_column(c) for c in self._columns], *self._numbers())

    def _noted(self) -> Scale:
        return self._scale(*self._numbers())

    @property
    def scaled(self) -> Sequence[str]:
        """All its columns."""
        return self._columns

    @property
    def kinds(self) -> list[pl.DataType]:
        return [pl.Float64()] * len(self._columns)

    def fused_op(self, batch: Batch) -> FusedOp | None:
        """Return the fused operation that scales; None while rows are learned one by one."""
        if self._cold(batch):
            return None
        return self._linked(batch, "scale", *self._numbers(), scale=self._noted())

    def _numbers(self) -> NDArray[np.float64]:
        """Return shift and scale of each column, shape (2, columns); computed once a state."""
        if self._computed is None or self._computed[0] is not self._statistic:
            self._computed = self._statistic, self._compute()
        return self._computed[1]

    def _compute(self) -> NDArray[np.float64]:
        """Return what `_numbers` keeps."""
        raise NotImplementedError

    def transforms(self) -> Sequence[Transform] | None:
        """Return one `Affine` per column."""
        shift, scale = self._numbers().tolist()
        return [
            Affine(column=column, shift=shift[i], scale=scale[i])
            for i, column in enumerate(self._columns)
        ]


class Standardize(Scaled):
    """z-score: ``(x - mean) / deviation`` (population) over earlier
    batches; 0 if a column does not vary. The first 16 rows are scaled by the rows before and
    themselves, up to the 128th whole blocks by those before. Null stays null, NaN stays NaN.

    With a half-life, mean and deviation follow a level that moves: see
    `engine.columnar.statistics.FadingMoments`. Without, a thousandth row moves them by a
    thousandth.
    """

    class Settings(ForgetSettings):
        """``[scrub.NAME]`` with ``kind = "standardize"``

        Attributes:
            columns: names or globs.
            halflife [numbers]: after how many newer numbers of its column a number counts half; by
                default all count the same.
        """

        columns: Neutral[Names]
        halflife: float | None = Field(None, ge=1, allow_inf_nan=False)

    def __init__(self, name: str, settings: Standardize.Settings) -> None:
        super().__init__(name, settings)
        self.settings: Standardize.Settings = settings

    def bind(self, schema: Schema) -> Schema:
        after = self._bound(self.settings.columns, schema)
        n, halflife = len(self._columns), self.settings.halflife
        self._begin(FadingMoments.empty(n, halflife) if halflife else Moments.empty(n))
        return after

    def _compute(self) -> NDArray[np.float64]:
        assert isinstance(self._statistic, Moments | FadingMoments)
        return np.stack((self._statistic.mean, inverse(self._statistic.deviation)))


class Normalize(Scaled):
    """Min-max scaling: the smallest number of earlier batches becomes
    `low`, the largest `high`, or the given `from_low` and `from_high`; 0 if a column does not vary.
    The first 16 rows are scaled by the rows before and themselves, up to the 128th whole blocks by
    those before. Null stays null, NaN stays NaN."""

    class Settings(ForgetSettings):
        """``[scrub.NAME]`` with ``kind = "normalize"``

        Attributes:
            columns: names or globs.
            low: start of the interval.
            high: end of the interval.
            from_low: number that goes to `low`, instead of a learned one.
            from_high: number that goes to `high`, instead of a learned one.
            clip: keep results within the interval.
        """

        columns: Neutral[Names]
        low: float = Field(0.0, allow_inf_nan=False)
        high: float = Field(1.0, allow_inf_nan=False)
        from_low: float | None = Field(None, allow_inf_nan=False)
        from_high: float | None = Field(None, allow_inf_nan=False)
        clip: bool = False

    def __init__(self, name: str, settings: Normalize.Settings) -> None:
        super().__init__(name, settings)
        self.settings: Normalize.Settings = settings

    def bind(self, schema: Schema) -> Schema:
        settings = self.settings
        _ascending(settings.low, settings.high, f"{self.where} expects low < high")
        after = self._bound(settings.columns, schema)
        if settings.from_low is None or settings.from_high is None:
            self._begin(Extremes.empty(len(self._columns)))
        else:
            where = f"{self.where} expects from_low < from_high"
            _ascending(settings.from_low, settings.from_high, where)
        return after

    def apply(self, batch: Batch) -> Batch:
        done = super().apply(batch)
        if not self.settings.clip:
            return done
        low, high = self.settings.low, self.settings.high
        x = pl.col(self._columns)
        outside = ((x < low) | ((x > high) & x.is_not_nan())).sum()
        clipped = sum(done.frame.select(outside).row(0)) if len(done) else 0
        frame = done.frame.with_columns(x.clip(low, high)) if clipped else done.frame
        return done.with_frame(frame).counted(self.name, clipped=clipped)

    def fused_op(self, batch: Batch) -> FusedOp | None:
        """Return no fused operation with `clip`, which counts."""
        return None if self.settings.clip else super().fused_op(batch)

    def _compute(self) -> NDArray[np.float64]:
        settings = self.settings
        low, high = self._extremes()
        seen = np.isfinite(low) & np.isfinite(high)
        low, high = np.where(seen, low, 0.0), np.where(seen, high, 0.0)
        scale = inverse(np.maximum(high - low, 0.0)) * (settings.high - settings.low)
        shift = low - np.divide(settings.low, scale, where=scale > 0, out=np.zeros_like(low))
        return np.stack((shift, scale))

    def _extremes(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        settings, n = self.settings, len(self._columns)
        learned = self._statistic
        if not isinstance(learned, Extremes):
            learned = Extremes.empty(n)
        low = learned.low if settings.from_low is None else np.full(n, settings.from_low)
        high = learned.high if settings.from_high is None else np.full(n, settings.from_high)
        return low, high

    def transforms(self) -> Sequence[Transform] | None:
        """Return one `Affine` per column, and a `Clip` if values are clipped to the interval."""
        transforms_out = list(super().transforms() or ())
        if self.settings.clip:
            low, high = self.settings.low, self.settings.high
            transforms_out += [Clip(column=column, low=low, high=high) for column in self._columns]
        return transforms_out


class Robust(Scaled):
    """``(x - median) / (high quantile - low quantile)`` over earlier batches:
    by default the interquartile range, which outliers cannot move while they are less than a
    quarter of the numbers. 0 if a column does not vary; if only the quantiles are equal (most
    values the same), ``x - median``. The first 16 rows are scaled by the rows before and
    themselves, up to the 128th whole blocks by those before. Null stays null, NaN stays NaN.

    Quantiles come from a t-digest (`engine.columnar.statistics.Quantiles`): median and both
    quantiles are those of a rank within 0.5 % of the wanted one, mostly within 0.05 %.
    """

    class Settings(ForgetSettings):
        """``[scrub.NAME]`` with ``kind = "robust"``

        Attributes:
            columns: names or globs.
            low [share]: share (0-1) of the numbers below the low quantile.
            high [share]: share of the numbers below the high quantile.
        """

        columns: Neutral[Names]
        low: float = Field(0.25, ge=0, le=1)
        high: float = Field(0.75, ge=0, le=1)

    def __init__(self, name: str, settings: Robust.Settings) -> None:
        super().__init__(name, settings)
        self.settings: Robust.Settings = settings

    def bind(self, schema: Schema) -> Schema:
        settings = self.settings
        _ascending(settings.low, settings.high, f"{self.where} expects low < high")
        after = self._bound(settings.columns, schema)
        self._begin(Quantiles.empty(len(self._columns)))
        return after

    def _compute(self) -> NDArray[np.float64]:
        learned = self._statistic
        assert isinstance(learned, Quantiles)
        low, median, high = learned.quantile(self.settings.low, 0.5, self.settings.high)
        width = np.where((high <= low) & (learned.low < learned.high), 1.0, high - low)
        return np.stack((np.nan_to_num(median), inverse(np.nan_to_num(width))))


def _ascending(low: float, high: float, sentence: str) -> None:
    if not low < high:
        raise UserError(f"{sentence}, got {low:g} and {high:g}.")


__all__ = ["Normalize", "Robust", "Standardize"]
