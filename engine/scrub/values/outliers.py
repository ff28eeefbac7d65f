"""Clips, flags or rejects values far from the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from engine.columnar.kernels import clip
from engine.columnar.statistics import Moments, Quantiles, Statistic
from engine.scrub.base import FittedStage, ForgetSettings
from engine.scrub.columns import RENAME, expand_columns, extended, holds, numbers, replaced, typed
from engine.scrub.fusion import FusedOp, Fusible
from engine.types import Batch, Clip, Names, Schema, Transform, UserError
from engine.types.changes import Neutral
from engine.types.plural import counted

INF = math.inf

STATISTICS: dict[str, type[Statistic]] = {"zscore": Moments, "iqr": Quantiles}


class Outliers(FittedStage, Fusible):
    """Tests numbers against bounds: given, mean +- threshold deviations, or quartiles -+ factor
    times their distance (Tukey, "Exploratory Data Analysis", 1977).

    A batch is tested against bounds learned from the batches before it. All finite numbers are
    learned, outliers too, so bounds follow a level that moves instead of clipping it for ever. A
    column without spread (deviation or quartile distance 0) is not tested. Infinity is an outlier
    where its side has a bound; null and NaN are none.

    Clipped whole numbers become Float64, unless the bounds are given, whole and of their type.
    """

    class Settings(ForgetSettings):
        """``[scrub.NAME]`` with ``kind = "outliers"``

        Attributes:
            columns: names or globs.
            method: bounds, zscore or iqr.
            action: clip (to the nearer bound), reject (the row, with reason ``outlier``) or flag
                (add ``<column>_outlier``, Float32: 1 or 0).
            low: smallest value that is kept, for `method` bounds; no limit unless given.
            high: largest value that is kept, for `method` bounds; no limit unless given.
            threshold [deviations]: for zscore, how many deviations.
            factor: for iqr, how many quartile distances.
            min_rows [numbers]: numbers a column must have learned before zscore or iqr test it.
        """

        columns: Neutral[Names]
        method: Literal["bounds", "zscore", "iqr"] = "zscore"
        action: Literal["clip", "reject", "flag"] = "clip"
        low: float = Field(-INF, allow_inf_nan=True)
        high: float = Field(INF, allow_inf_nan=True)
        threshold: float = Field(4.0, gt=0, allow_inf_nan=False)
        factor: float = Field(3.0, gt=0, allow_inf_nan=False)
        min_rows: int = Field(100, ge=1)

    untaught = "outliers stay as they are"

    def __init__(self, name: str, settings: Outliers.Settings) -> None:
        super().__init__(name, settings)
        self.settings: Outliers.Settings = settings
        self._schema: Schema = {}
        self._kinds: Schema = {}
        self._narrow = np.zeros(0, np.bool_)
        """Which columns are Float32."""
        self._made: tuple[Statistic | None, dict[str, pl.Expr]] | None = None
        self._looked = self._judged = False

    def bind(self, schema: Schema) -> Schema:
        settings = self.settings
        given = settings.low > -INF or settings.high < INF
        if settings.method == "bounds" and not (given and settings.low < settings.high):
            raise UserError(
                f"{self.where} expects low < high, got {settings.low} and {settings.high}: "
                "set 'low', 'high' or both."
            )
        if settings.method != "bounds" and given:
            raise UserError(
                f"{self.where} learns its bounds by method '{settings.method}': take 'low' and "
                "'high' away, or set method = \"bounds\"."
            )
        self._columns = expand_columns(settings.columns, schema, where=self.where)
        numbers(self._columns, schema, where=self.where)
        self._schema = schema
        self._kinds = {column: self._kind(schema[column]) for column in self._columns}
        self._narrow = np.array([dtype == pl.Float32 for dtype in self._kinds.values()])
        if settings.method in STATISTICS:
            self._begin(STATISTICS[settings.method].empty(len(self._columns)))
        if settings.action == "flag":
            flags = {f"{column}_outlier": pl.Float32() for column in self._columns}
            return extended(schema, flags, where=self.where, remedy=RENAME)
        return schema if settings.action == "reject" else {**schema, **self._kinds}

    def _kind(self, dtype: pl.DataType) -> pl.DataType:
        """Return the type in which values and bounds are compared; clipped values have it too."""
        settings = self.settings
        whole = settings.method == "bounds" and all(
            np.isinf(x) or (x.is_integer() and holds(dtype, int(x)))
            for x in (settings.low, settings.high)
        )
        return dtype if dtype.is_float() or whole else pl.Float64()

    def apply(self, batch: Batch) -> Batch:
        if not self._judged:
            self._note(batch, self._bounds())
        action = {"clip": self._clipped, "reject": self._rejected, "flag": self._flagged}
        done = action[self.settings.action](batch)
        self._learn(batch)
        return done.counted(self.name, **self._too_large.counts())

    @property
    def kinds(self) -> list[pl.DataType]:
        return list(self._kinds.values())

    def fused_op(self, batch: Batch) -> FusedOp | None:
        """Return the fused operation that clips."""
        if self.settings.action != "clip":
            return None
        bounds = self._bounds()
        self._note(batch, bounds)
        return self._linked(batch, "clip", *bounds, counts="clipped")

    def remarks(self) -> list[str]:
        """Return a remark if all rows came before anything was learned, so that none was tested."""
        remarks = super().remarks()
        if self._judged or not self._looked or not self._rows:
            return remarks
        return [
            *remarks,
            f"{self.where} tested none of {counted(self._rows, 'row')}: it tests a batch with "
            f"the ones before it, once they have min_rows = {self.settings.min_rows} numbers; a "
            "smaller [loader] batch_rows lets it begin earlier.",
        ]

    def _note(self, batch: Batch, bounds: NDArray[np.float64]) -> None:
        self._looked = self._looked or len(batch) > 0
        self._judged = self._judged or bool(np.isfinite(bounds).any())

    def _clipped(self, batch: Batch) -> Batch:
        casts = [pl.col(c).cast(k) for c, k in self._kinds.items() if k != self._schema[c]]
        frame = batch.frame.with_columns(casts) if casts else batch.frame
        low, high = self._bounds().tolist()
        columns, n = [], 0
        for i, column in enumerate(self._columns):
            within, outside = self._within(frame.get_column(column), low[i], high[i])
            n += outside
            if outside:
                columns.append(within)
        return batch.with_frame(replaced(frame, columns)).counted(self.name, clipped=n)

    def _within(self, column: pl.Series, low: float, high: float) -> tuple[pl.Series, int]:
        """Return the column within its bounds, and how many values were outside."""
        if low == -INF and high == INF:
            return column, 0
        if column.dtype in (pl.Float64, pl.Float32):
            clipped_column, n = clip(typed(column, pl.Float64()), low, high)
            return typed(clipped_column, column.dtype), n
        clipped_column = column.to_frame().select(self._clips()[column.name]).to_series()
        return clipped_column, int((clipped_column != column).sum())

    def _flagged(self, batch: Batch) -> Batch:
        tests = self._tests()
        none = pl.lit(0.0, dtype=pl.Float32)
        flags = {c: tests[c].cast(pl.Float32) if c in tests else none for c in self._columns}
        names = [f"{column}_outlier" for column in self._columns]
        frame = batch.frame.with_columns(
            flag.alias(name) for flag, name in zip(flags.values(), names, strict=True)
        )
        flagged = int(frame.select(pl.sum_horizontal(pl.col(names).sum())).item())
        return batch.with_frame(frame).counted(self.name, flagged=flagged)

    def _rejected(self, batch: Batch) -> Batch:
        tests = self._tests()
        if not tests:
            return batch
        low, high = (dict(zip(self._columns, x, strict=True)) for x in self._bounds())
        details = [
            pl.when(test).then(
                pl.format(f"Expected '{_plain(c)}' in {low[c]:g} ... {high[c]:g}; got {{}}.", c)
            )
            for c, test in tests.items()
        ]
        return batch.reject(
            ~pl.any_horizontal(tests.values()),
            stage=self.name,
            reason="outlier",
            detail=pl.coalesce(details),
        )

    def _clips(self) -> dict[str, pl.Expr]:
        """Return column -> its clipped values, for tested columns."""
        if self._made is None or self._made[0] is not self._statistic:
            bounds = zip(self._columns, *self._bounds().tolist(), strict=True)
            clips = {
                c: self._clip(c, low, high) for c, low, high in bounds if low > -INF or high < INF
            }
            self._made = (self._statistic, clips)
        return self._made[1]

    def _clip(self, column: str, low: float, high: float) -> pl.Expr:
        dtype = self._kinds[column]
        x = pl.col(column) if dtype == self._schema[column] else pl.col(column).cast(dtype)
        return x.clip(_bound(low, dtype), _bound(high, dtype))

    def _tests(self) -> dict[str, pl.Expr]:
        """Return column -> whether a value is outside (null and NaN are not), for tested
        columns."""
        return {
            column: (clip != pl.col(column)).fill_null(False)
            for column, clip in self._clips().items()
        }

    def _bounds(self) -> NDArray[np.float64]:
        """Return low and high of each column in its type, shape (2, columns)."""
        bounds = self._learned_bounds()
        if not self._narrow.any():
            return bounds
        return np.where(self._narrow, bounds.astype(np.float32).astype(np.float64), bounds)

    def _learned_bounds(self) -> NDArray[np.float64]:
        settings, statistic = self.settings, self._statistic
        if isinstance(statistic, Moments):
            reach = settings.threshold * statistic.deviation
            low, high = statistic.mean - reach, statistic.mean + reach
        elif isinstance(statistic, Quantiles):
            first, third = statistic.quantile(0.25, 0.75)
            reach = settings.factor * (third - first)
            low, high = first - reach, third + reach
        else:
            return np.repeat([[settings.low], [settings.high]], len(self._columns), axis=1)
        judged = (statistic.count >= settings.min_rows) & (reach > 0)
        return np.stack((np.where(judged, low, -INF), np.where(judged, high, INF)))

    def transforms(self) -> Sequence[Transform] | None:
        """Return one `Clip` per column; none for reject, which changes no value; None for flag."""
        if self.settings.action == "reject":
            return ()
        if self.settings.action == "flag":
            return None
        low, high = self._bounds().tolist()
        return [Clip(column=c, low=low[i], high=high[i]) for i, c in enumerate(self._columns)]


def _bound(value: float, dtype: pl.DataType) -> pl.Expr | float | None:
    if math.isinf(value):
        return None
    if dtype == pl.Float64:
        return value  # building a literal of a given type costs more than the clipping
    return pl.lit(int(value) if dtype.is_integer() else value, dtype=dtype)


def _plain(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


__all__ = ["Outliers"]
