"""Values far from the others: clip them, mark them, or let their rows go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from engine.scrub.columns import extended, numbers, spread
from engine.scrub.stage import Learned, LearnSettings
from engine.statistics import Moments, Quantiles, Statistic
from engine.types import Batch, Clip, Schema, Transform, UserError

STATISTICS: dict[str, type[Statistic]] = {"zscore": Moments, "iqr": Quantiles}


class Outliers(Learned):
    """Judges numbers by bounds: given, mean +- threshold deviations, or quartiles -+ factor times
    their distance (Tukey, "Exploratory Data Analysis", 1977).

    A batch is judged by what was learned from the batches before it. Learned from are all finite
    numbers, outliers too: so bounds follow a level that moves, instead of clipping it for ever.
    A column without spread (deviation or quartile distance 0) is not judged. Infinity is an
    outlier where its side has a bound; null and NaN are none.

    Clipped whole numbers become Float64, unless the bounds are given and whole.
    """

    class Settings(LearnSettings):
        """``[scrub.NAME]`` with ``kind = "outliers"``

        Attributes:
            columns: names or globs.
            method: bounds, zscore or iqr.
            action: clip (to the nearer bound), reject (the row, with reason ``outlier``) or flag
                (add ``<column>_outlier``, Float32: 1 or 0).
            low: for bounds; none by default.
            high: for bounds; none by default.
            threshold: for zscore, how many deviations.
            factor: for iqr, how many quartile distances.
            min_rows: numbers a column must have learned before zscore or iqr judge it.
        """

        columns: tuple[str, ...]
        method: Literal["bounds", "zscore", "iqr"]
        action: Literal["clip", "reject", "flag"] = "clip"
        low: float = Field(-np.inf, allow_inf_nan=True)
        high: float = Field(np.inf, allow_inf_nan=True)
        threshold: float = Field(4.0, gt=0, allow_inf_nan=False)
        factor: float = Field(3.0, gt=0, allow_inf_nan=False)
        min_rows: int = Field(100, ge=1)

    def __init__(self, name: str, settings: Outliers.Settings) -> None:
        super().__init__(name, settings)
        self.settings: Outliers.Settings = settings
        self._schema: Schema = {}
        self._known: tuple[Statistic | None, NDArray[np.float64]] | None = None

    def bind(self, schema: Schema) -> Schema:
        settings = self.settings
        given = settings.low > -np.inf or settings.high < np.inf
        if settings.method == "bounds" and not (given and settings.low <= settings.high):
            raise UserError(
                f"{self.where} expects bounds low <= high, got {settings.low} and {settings.high}: "
                "set 'low', 'high' or both."
            )
        if settings.method != "bounds" and given:
            raise UserError(
                f"{self.where} learns its bounds by method '{settings.method}': take 'low' and "
                "'high' away, or set method = \"bounds\"."
            )
        self._columns = spread(settings.columns, schema, where=self.where)
        numbers(self._columns, schema, where=self.where)
        self._schema = schema
        if settings.method in STATISTICS:
            self._begin(STATISTICS[settings.method].empty(len(self._columns)))
        if settings.action == "flag":
            flags = {f"{column}_outlier": pl.Float32() for column in self._columns}
            return extended(schema, flags, where=self.where)
        return {**schema, **{c: self._kind(schema[c]) for c in self._columns}}

    def _kind(self, kind: pl.DataType) -> pl.DataType:
        settings = self.settings
        whole = settings.method == "bounds" and all(
            np.isinf(x) or x.is_integer() for x in (settings.low, settings.high)
        )
        return kind if kind.is_float() or settings.action != "clip" or whole else pl.Float64()

    def apply(self, batch: Batch) -> Batch:
        tests = self._tests()
        outside = dict(zip(tests, batch.frame.select(tests.values()).row(0), strict=True))
        done = {"clip": self._clipped, "reject": self._rejected, "flag": self._flagged}[
            self.settings.action
        ](batch, outside)
        self._learn(batch.frame)
        return done

    def _tests(self) -> dict[str, pl.Expr]:
        """Column -> how many of its values lie outside, for those that are judged."""
        low, high = self._bounds()
        judged = np.isfinite(low) | np.isfinite(high)
        return {
            column: _outside(column, self._schema[column], low[i], high[i]).sum().alias(column)
            for i, column in enumerate(self._columns)
            if judged[i]
        }

    def _clipped(self, batch: Batch, outside: dict[str, int]) -> Batch:
        low, high = self._bounds()
        expressions = []
        for i, column in enumerate(self._columns):
            kind = self._kind(self._schema[column])
            x = pl.col(column)
            if kind != self._schema[column]:
                x = x.cast(kind)
            if outside.get(column):
                x = x.clip(_bound(low[i], kind), _bound(high[i], kind))
            if outside.get(column) or kind != self._schema[column]:
                expressions.append(x)
        frame = batch.frame.with_columns(expressions) if expressions else batch.frame
        return batch.with_frame(frame).counted(self.name, clipped=sum(outside.values()))

    def _flagged(self, batch: Batch, outside: dict[str, int]) -> Batch:
        low, high = self._bounds()
        frame = batch.frame.with_columns(
            (
                _outside(c, self._schema[c], low[i], high[i])
                if outside.get(c)
                else pl.lit(0.0, dtype=pl.Float32)
            )
            .cast(pl.Float32)
            .alias(f"{c}_outlier")
            for i, c in enumerate(self._columns)
        )
        return batch.with_frame(frame).counted(self.name, flagged=sum(outside.values()))

    def _rejected(self, batch: Batch, outside: dict[str, int]) -> Batch:
        low, high = self._bounds()
        at = [i for i, column in enumerate(self._columns) if outside.get(column)]
        if not at:
            return batch
        columns = [self._columns[i] for i in at]
        tests = [
            _outside(c, self._schema[c], low[i], high[i]) for i, c in zip(at, columns, strict=True)
        ]
        details = [
            pl.when(test).then(
                pl.format(f"Expected '{_plain(c)}' in {low[i]:g} ... {high[i]:g}; got {{}}.", c)
            )
            for i, c, test in zip(at, columns, tests, strict=True)
        ]
        return batch.reject(
            ~pl.any_horizontal(tests),
            stage=self.name,
            reason="outlier",
            detail=pl.coalesce(details),
        )

    def _bounds(self) -> NDArray[np.float64]:
        """Low and high of each column as its type holds them, shape (2, columns)."""
        if self._known is None or self._known[0] is not self._statistic:
            bounds = np.array(self._learned_bounds())
            for i, column in enumerate(self._columns):
                if self._schema[column] == pl.Float32:
                    bounds[:, i] = bounds[:, i].astype(np.float32)
            self._known = (self._statistic, bounds)
        return self._known[1]

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
        return np.stack((np.where(judged, low, -np.inf), np.where(judged, high, np.inf)))

    def transforms(self) -> Sequence[Transform] | None:
        """One `Clip` a column; none for reject, which changes no value; None for flag."""
        if self.settings.action == "reject":
            return ()
        if self.settings.action == "flag":
            return None
        low, high = self._bounds().tolist()
        return [Clip(column=c, low=low[i], high=high[i]) for i, c in enumerate(self._columns)]


def _outside(column: str, kind: pl.DataType, low: float, high: float) -> pl.Expr:
    """True where the value lies outside; false for null and NaN (which polars sorts above all)."""
    x = pl.col(column)
    above = (x > high) & x.is_not_nan() if kind.is_float() else x > high
    return ((x < low) | above).fill_null(False)


def _bound(value: float, kind: pl.DataType) -> pl.Expr | None:
    if np.isinf(value):
        return None
    return pl.lit(int(value) if kind.is_integer() else float(value), dtype=kind)


def _plain(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


__all__ = ["Outliers"]
