"""``outliers``: values too far out are clipped, flagged, or take their row with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import Field

from engine.scrub.base import Base, ColumnSettings, as_floats
from engine.statistics import Floats, Moments, Quantiles
from engine.types import Batch, Clip, Schema, Snapshot, Transform, UserError


class Outliers(Base):
    """Judges numbers by bounds: fixed ones, or learned from the batches before.

    ``zscore``: mean +- threshold standard deviations. ``iqr``: Tukey's fences (1977), quartiles +-
    factor times their
    distance, from a sketch with 1 % relative error. Learned bounds judge nothing before `min_rows`
    values. Infinity
    lies outside every bound; null and NaN are not judged. Values are learned as they come, outliers
    too. Counts
    ``clipped``, ``flagged`` or rejects with reason ``outlier``.
    """

    class Settings(ColumnSettings):
        """
        Attributes:
            method: bounds, zscore or iqr.
            low, high: for ``bounds``; either may be left out.
            threshold: standard deviations, for ``zscore``.
            factor: quartile distances, for ``iqr``.
            action: clip, reject, or flag (adds ``<column>_outlier``, Float32).
            min_rows: values to learn before anything is judged.
        """

        method: Literal["bounds", "zscore", "iqr"] = "zscore"
        low: float = -np.inf
        high: float = np.inf
        threshold: float = Field(4.0, gt=0)
        factor: float = Field(3.0, gt=0)
        action: Literal["clip", "reject", "flag"] = "clip"
        min_rows: int = Field(100, ge=1)

    settings: Outliers.Settings

    def bind(self, schema: Schema) -> Schema:
        """Raises: UserError for text columns, or bounds that bound nothing."""
        settings = self.settings
        self._columns = self.numbers(settings.columns, schema)
        if settings.method == "bounds" and not (
            settings.low < settings.high and np.isfinite([settings.low, settings.high]).any()
        ):
            raise UserError(
                f"{self.where} method 'bounds' expects low < high, one of them given, got low ="
                f" {settings.low}, high = {settings.high}."
            )
        d = len(self._columns)
        if settings.method != "bounds":
            kind = Moments if settings.method == "zscore" else Quantiles
            self._state = kind.empty(d)
        after = as_floats(self._columns, schema)
        flags = {f"{c}_outlier": pl.Float32() for c in self._columns}
        return {**after, **flags} if settings.action == "flag" else after

    def apply(self, batch: Batch) -> Batch:
        """Judge, then learn."""
        before = batch.frame.with_columns(pl.col(self._columns).cast(pl.Float64))
        low, high = self._bounds()
        outside = [
            (pl.col(c) < a) | ((pl.col(c) > b) & pl.col(c).is_not_nan())
            for c, a, b in zip(self._columns, low.tolist(), high.tolist(), strict=True)
        ]
        if self._state is not None and before.height:
            self._state = self._state.update(before, self._columns)
        return self._act(batch.with_frame(before), outside, low, high)

    def transforms(self) -> Sequence[Transform] | None:
        """Clips; a flag cannot be written into a model file, a rejected row needs none."""
        action = self.settings.action
        if action != "clip":
            return () if action == "reject" else None
        low, high = self._bounds()
        return [
            Clip(column=c, low=a, high=b)
            for c, a, b in zip(self._columns, low.tolist(), high.tolist(), strict=True)
        ]

    def snapshot(self) -> Snapshot:
        """The statistics; None for fixed bounds."""
        return None if self._state is None else self._state.snapshot()

    def restore(self, value: Snapshot) -> None:
        """Back to them."""
        if self._state is not None and value is not None:
            self._state = type(self._state).restore(value)

    _state: Any = None

    def _bounds(self) -> tuple[Floats, Floats]:
        settings, d = self.settings, len(self._columns)
        if settings.method == "bounds":
            return np.full(d, settings.low), np.full(d, settings.high)
        if settings.method == "zscore":
            middle, reach = self._state.mean, settings.threshold * np.sqrt(self._state.variance)
            low, high = middle - reach, middle + reach
        else:
            first, third = self._state.quantile(0.25), self._state.quantile(0.75)
            reach = settings.factor * (third - first)
            low, high = first - reach, third + reach
        judged = self._state.count >= settings.min_rows
        return np.where(judged, low, -np.inf), np.where(judged, high, np.inf)

    def _act(self, batch: Batch, outside: list[pl.Expr], low: Floats, high: Floats) -> Batch:
        if self.settings.action == "reject":
            keep = ~pl.any_horizontal(e.fill_null(False) for e in outside)
            detail = f"Expected {', '.join(self._columns)} within the bounds of {self.where}."
            return batch.reject(keep, stage=self.name, reason="outlier", detail=detail)
        n = sum(batch.frame.select(e.sum().alias(str(i)) for i, e in enumerate(outside)).row(0))
        if self.settings.action == "flag":
            flags = [
                e.fill_null(False).cast(pl.Float32).alias(f"{c}_outlier")
                for c, e in zip(self._columns, outside, strict=True)
            ]
            frame = batch.frame.with_columns(flags)
            return batch.with_frame(frame).counted(self.name, flagged=n)
        if not n:
            return batch.counted(self.name, clipped=0)
        clips = [
            # NaN is not judged: clip would keep it too, but compare says otherwise.
            pl.when(pl.col(c).is_nan()).then(pl.col(c)).otherwise(pl.col(c).clip(a, b)).alias(c)
            for c, a, b in zip(self._columns, low.tolist(), high.tolist(), strict=True)
        ]
        frame = batch.frame.with_columns(clips)
        return batch.with_frame(frame).counted(self.name, clipped=n)


__all__ = ["Outliers"]
