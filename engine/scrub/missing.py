"""``missing``: fill what is not there, or let the row go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import polars as pl

from engine.scrub.base import Base, ColumnSettings, spread
from engine.statistics import Counts, Moments, Quantiles
from engine.types import Batch, Fill, Schema, Snapshot, Transform, UserError

Strategy = Literal["constant", "mean", "median", "most_frequent", "last", "drop"]


class Missing(Base):
    """Fills null, and NaN in float columns, by what the batches before taught.

    ``mean``, ``median`` (1 % relative error) and ``most_frequent`` fall back to `value` until
    something was learned.
    ``last`` is the newest value before in the stream, of the same key. ``drop`` rejects the row,
    reason ``missing``.
    With `indicator`, ``<column>_missing`` (Float32) says 1.0 where it was missing. Counts
    ``filled``.
    """

    class Settings(ColumnSettings):
        """
        Attributes:
            strategy: constant, mean, median, most_frequent, last or drop.
            value: the constant, and the fallback; 0 for numbers and "" for text unless given.
            indicator: add a column that says where something was missing.
            by: key columns for ``last``; empty: one key.
        """

        strategy: Strategy = "mean"
        value: float | str | None = None
        indicator: bool = False
        by: tuple[str, ...] = ()

    settings: Missing.Settings

    def bind(self, schema: Schema) -> Schema:
        """Raises: UserError for a strategy that does not fit a column's type."""
        strategy = self.settings.strategy
        self._columns = spread(self.settings.columns, schema, where=self.where)
        self._by = spread(self.settings.by, schema, where=f"{self.where} by")
        if strategy in ("mean", "median"):
            self.numbers(self._columns, schema)
        self._kinds = {
            c: pl.Float64()
            if strategy in ("mean", "median") and not schema[c].is_float()
            else schema[c]
            for c in self._columns
        }
        self._fallbacks = {c: self._fallback(c, schema[c]) for c in self._columns}
        self._clear(schema)
        after = {**schema, **self._kinds}
        return {**after, **{c: pl.Float32() for c in self._indicators()}}

    def apply(self, batch: Batch) -> Batch:
        """Fill (or drop), then learn."""
        frame = batch.frame.with_columns(self._present(c) for c in self._columns)
        learn_from = frame
        nulls = frame.select(pl.col(self._columns).null_count()).row(0)
        if self.settings.strategy == "drop":
            keep = pl.all_horizontal(pl.col(c).is_not_null() for c in self._columns)
            return batch.with_frame(frame).reject(keep, stage=self.name, reason="missing")
        if self.settings.indicator:
            frame = frame.with_columns(
                pl.col(c).is_null().cast(pl.Float32).alias(name)
                for c, name in zip(self._columns, self._indicators(), strict=True)
            )
        if any(nulls):
            frame = self._fill(frame)
        self._learn(learn_from)
        return batch.with_frame(frame).counted(self.name, filled=sum(nulls))

    def transforms(self) -> Sequence[Transform] | None:
        """Fills by constants; ``last`` depends on other rows."""
        strategy = self.settings.strategy
        if strategy == "last":
            return None
        if strategy == "drop":
            return ()
        values = self._values()
        indicators: list[str] | list[None] = self._indicators() or [None] * len(self._columns)
        return [
            Fill(column=c, value=values[c], indicator=i)
            for c, i in zip(self._columns, indicators, strict=True)
        ]

    def snapshot(self) -> Snapshot:
        """Statistics, or for ``last`` a row a key."""
        state = self._state
        if isinstance(state, dict):
            return {c: counts.snapshot() for c, counts in state.items()}
        return state.snapshot() if isinstance(state, Moments | Quantiles) else state

    def restore(self, value: Snapshot) -> None:
        """Back to it."""
        strategy = self.settings.strategy
        if strategy == "mean":
            self._state = Moments.restore(value)
        elif strategy == "median":
            self._state = Quantiles.restore(value)
        elif strategy == "most_frequent":
            self._state = {c: Counts.restore(v) for c, v in value.items()}
        else:
            self._state = value

    _state: Any = None

    def _clear(self, schema: Schema) -> None:
        strategy, d = self.settings.strategy, len(self._columns)
        if strategy == "mean":
            self._state = Moments.empty(d)
        elif strategy == "median":
            self._state = Quantiles.empty(d)
        elif strategy == "most_frequent":
            self._state = {c: Counts.empty(schema[c]) for c in self._columns}
        elif strategy == "last":
            kinds = {c: schema[c] for c in [*self._by, *self._columns]}
            self._state = pl.DataFrame(schema=kinds)

    def _fallback(self, column: str, kind: pl.DataType) -> float | str:
        value = self.settings.value
        if value is None:
            return "" if kind == pl.String else 0.0
        if isinstance(value, str) != (kind == pl.String):
            raise UserError(
                f"{self.where} value {value!r} does not fit column '{column}' of type {kind}: "
                "give a value of that type."
            )
        return value

    def _present(self, column: str) -> pl.Expr:
        expr = pl.col(column).cast(self._kinds[column])
        return expr.fill_nan(None) if self._kinds[column].is_float() else expr

    def _indicators(self) -> list[str]:
        return [f"{c}_missing" for c in self._columns] if self.settings.indicator else []

    def _values(self) -> dict[str, float | str]:
        """What to fill with now."""
        strategy = self.settings.strategy
        if strategy == "mean":
            learned = dict(zip(self._columns, self._state.mean.tolist(), strict=True))
            seen = self._state.count
        elif strategy == "median":
            learned = dict(zip(self._columns, self._state.quantile(0.5).tolist(), strict=True))
            seen = self._state.count
        elif strategy == "most_frequent":
            learned = {c: counts.most_frequent() for c, counts in self._state.items()}
            seen = [value is not None for value in learned.values()]
        else:
            return self._fallbacks
        return {
            c: learned[c] if n else self._fallbacks[c]
            for c, n in zip(self._columns, seen, strict=True)
        }

    def _fill(self, frame: pl.DataFrame) -> pl.DataFrame:
        if self.settings.strategy == "last":
            frame = self._fill_last(frame)
        values = self._values()
        return frame.with_columns(
            pl.col(c).fill_null(pl.lit(values[c]).cast(self._kinds[c])) for c in self._columns
        )

    def _fill_last(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Forward within the batch, then from the last value before it."""
        order = pl.col(self._columns).forward_fill()
        frame = frame.with_columns(order.over(self._by) if self._by else order)
        before = self._state
        if not before.height:
            return frame
        if not self._by:
            return frame.with_columns(pl.col(c).fill_null(before[c][0]) for c in self._columns)
        joined = frame.select(self._by).join(
            before, on=self._by, how="left", nulls_equal=True, maintain_order="left"
        )
        return frame.with_columns(pl.col(c).fill_null(joined[c]) for c in self._columns)

    def _learn(self, frame: pl.DataFrame) -> None:
        strategy = self.settings.strategy
        if not frame.height:
            return
        if strategy in ("mean", "median"):
            self._state = self._state.update(frame, self._columns)
        elif strategy == "most_frequent":
            self._state = {c: n.update(frame.get_column(c)) for c, n in self._state.items()}
        elif strategy == "last":
            names = [*self._by, *self._columns]
            rows = pl.concat([self._state, frame.select(names)])
            last = pl.col(self._columns).drop_nulls().last()
            self._state = (
                rows.group_by(self._by, maintain_order=True).agg(last)
                if self._by
                else rows.select(last)
            )


__all__ = ["Missing"]
