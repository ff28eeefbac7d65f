"""Fills missing values, or rejects their rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, field_validator

from engine.columnar.kernels import fill_columns
from engine.columnar.statistics import Counts, Moments, Quantiles, Statistic
from engine.scrub.base import FittedStage, ForgetSettings, joined
from engine.scrub.columns import (
    RENAME,
    expand_columns,
    extended,
    holds,
    is_missing,
    nans,
    nulls,
    numbers,
    replaced,
    typed,
)
from engine.scrub.fusion import FILLED_BEFORE_LEARNING, FusedOp, Fusible
from engine.scrub.values.last_values import LastValues
from engine.types import (
    Batch,
    Fill,
    Names,
    Schema,
    Snapshot,
    Transform,
    UserError,
    require,
    type_name,
)
from engine.types.changes import Neutral

STATISTICS: dict[str, type[Statistic]] = {
    "mean": Moments,
    "median": Quantiles,
    "most_frequent": Counts,
}

NO_NUMBERS = 'set strategy = "constant" (and a \'value\') or "most_frequent", which fill text too'
"""What to do with a column that has no mean."""


class Missing(FittedStage, Fusible):
    """Fills missing values (null; NaN too in floating-point columns), or rejects their rows.

    A batch is filled with what was learned from the batches before it, the first 16 rows one by one
    and up to the 128th whole blocks with what the rows before taught. ``last`` alone always looks
    into the batch: a value may come from an earlier row of it, never from a later one, so its
    results do not depend on how the stream is cut.

    Types stay as they are, with one exception: numbers other than floating-point ones become
    Float64 where the value to fill in need not be whole (mean, median, a constant like 0.5).
    """

    class Settings(ForgetSettings):
        """``[scrub.NAME]`` with ``kind = "missing"``

        Attributes:
            columns: names or globs.
            strategy: constant, mean, median, most_frequent (of the 1,024 most frequent values),
                last (the last value of the same key), or drop (the row is rejected with reason
                ``missing``).
            value: for constant, and for the others while nothing is learned; by default 0, "" or
                false by the column's type, and for last: stays missing.
            by: for last, the key columns; none means one last value for all rows.
            keys: for last, how many keys are remembered, those seen last.
            indicator: add ``<column>_missing`` (Float32): 1 where the value was missing, else 0.
        """

        columns: Neutral[Names]
        strategy: Literal["constant", "mean", "median", "most_frequent", "last", "drop"] = "mean"
        value: bool | int | float | str | None = None
        by: Names = ()
        keys: int = Field(100_000, ge=1)
        indicator: bool = False

        @field_validator("value")
        @classmethod
        def _finite(cls, value: Any) -> Any:
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError("expected a finite number")
            return value

    def __init__(self, name: str, settings: Missing.Settings) -> None:
        super().__init__(name, settings)
        self.settings: Missing.Settings = settings
        self._schema: Schema = {}
        self._kinds: Schema = {}
        self._floats: Sequence[str] = ()
        """The columns of numbers that are floats afterwards."""
        self._wide = False
        """Whether all columns are Float64 afterwards."""
        self._last: LastValues | None = None

    # ------------------------------------------------------------------------------------- binding

    def bind(self, schema: Schema) -> Schema:
        settings = self.settings
        self._columns = expand_columns(settings.columns, schema, where=self.where)
        self._check(schema)
        self._schema = schema
        self._kinds = {column: self._kind(schema[column]) for column in self._columns}
        self._floats = [c for c, dtype in self._kinds.items() if dtype.is_float()]
        self._wide = all(dtype == pl.Float64 for dtype in self._kinds.values())
        after = {**schema, **self._kinds}
        if settings.indicator:
            flags = {f"{c}_missing": pl.Float32() for c in self._columns}
            remedy = f"take 'indicator' out, or {RENAME}"
            after = extended(after, flags, where=self.where, remedy=remedy)
        if settings.strategy in STATISTICS:
            self._begin(STATISTICS[settings.strategy].empty(len(self._columns)))
        if settings.strategy == "last" and self._last is None:
            self._last = LastValues(self._columns, settings.by, keys=settings.keys, schema=schema)
        return after

    def _check(self, schema: Schema) -> None:
        settings = self.settings
        if settings.strategy in ("mean", "median"):
            where = f"{self.where} strategy '{settings.strategy}'"
            numbers(self._columns, schema, where=where, remedy=NO_NUMBERS)
        if settings.strategy == "drop" and settings.indicator:
            raise UserError(f"{self.where} drops the rows it would indicate: set one of the two.")
        if settings.by and settings.strategy != "last":
            raise UserError(
                f"{self.where} has 'by', which only strategy 'last' uses: take it away."
            )
        learns = settings.rows_left(0) is not None or settings.forget_on is not None
        if settings.strategy not in STATISTICS and learns:
            raise UserError(
                f"{self.where} has 'learn', 'freeze_after' or 'forget_on', but strategy "
                f"'{settings.strategy}' learns no statistic: take it away."
            )
        require(schema, settings.by, where=f"{self.where} by")
        for column in self._columns:
            if column in settings.by:
                raise UserError(f"{self.where} fills column '{column}', which is its own key.")
            self._check_value(column, schema[column])

    def _check_value(self, column: str, dtype: pl.DataType) -> None:
        if self.settings.strategy == "drop":
            return
        default = _default(dtype)
        if default is None and self.settings.strategy != "last":
            raise UserError(
                f"{self.where} expects numbers, text or booleans in column '{column}', got "
                f"{type_name(dtype)}: "
                "use strategy 'last' or 'drop'."
            )
        value = self.settings.value
        fits = value is None or _suits(value, default)
        if value is not None and fits and self._kind(dtype).is_integer():
            fits = holds(dtype, int(value))
        if not fits:
            raise UserError(
                f"{self.where} value {value!r} does not fit column '{column}' of type "
                f"{type_name(dtype)}: "
                "set one of that type, or give the column a stage of its own."
            )

    def _kind(self, dtype: pl.DataType) -> pl.DataType:
        """Return the column's type afterwards."""
        value = self.settings.value
        fraction = isinstance(value, float) and not value.is_integer()
        fraction |= self.settings.strategy in ("mean", "median")
        if self.settings.strategy == "drop" or not fraction or dtype.is_float():
            return dtype
        return pl.Float64()

    # ------------------------------------------------------------------------------------ applying

    def apply(self, batch: Batch) -> Batch:
        if self.settings.strategy == "drop":
            return self._dropped(batch)
        done = self._by_last(batch) if self.settings.strategy == "last" else self._by_value(batch)
        if not self.settings.indicator:
            return done
        return done.with_frame(done.frame.with_columns(self._indicators(batch.frame)))

    def _by_last(self, batch: Batch) -> Batch:
        """Fill gaps with the last value of the same key."""
        assert self._last is not None
        frame = batch.frame
        gaps = [*nulls(frame, self._columns).values(), *nans(frame, self._columns).values()]
        values = self._last.fill(frame)
        if self.settings.value is not None:
            values = values.with_columns(self._fallback())
        left = sum(nulls(values, self._columns).values())
        done = batch.with_frame(frame.with_columns(values.get_columns()))
        return done.counted(self.name, filled=sum(gaps) - left)

    def _by_value(self, batch: Batch) -> Batch:
        """Fill gaps from the state of earlier rows, then learn from the batch."""
        parts, n, early, cold = [], 0, 0, self._cold(batch)
        for part in self._parts(batch):
            made, gaps = self._filled(part)
            parts.append(made)
            n += sum(gaps)
            if (unfitted := self._unfitted()) is not None:
                early += int(np.array(gaps)[unfitted].sum())
        self._learn(batch, cold)
        done = batch.with_frame(replaced(batch.frame, joined(parts)))
        return done.counted(
            self.name,
            filled=n,
            **({FILLED_BEFORE_LEARNING: early} if early else {}),
            **self._too_large.counts(),
        )

    @property
    def kinds(self) -> list[pl.DataType]:
        return list(self._kinds.values())

    def fused_op(self, batch: Batch) -> FusedOp | None:
        """Return the fused operation for one value per column; None while rows are learned one
        by one."""
        if self._cold(batch):
            return None
        unfitted = self._unfitted()
        if self.settings.strategy in ("last", "drop") or self.settings.indicator:
            return None
        values = self._values()
        if not all(isinstance(value, int | float) for value in values):
            return None
        fills = np.array(values, np.float64)
        return self._linked(batch, "fill", fills, fills, counts="filled", unfitted=unfitted)

    def _unfitted(self) -> NDArray[np.bool_] | None:
        """Return which columns are filled with a default, because no value was learned yet, shape
        (columns,); None if none are, or the pipeline gives the value."""
        if self._statistic is None or self.settings.value is not None:
            return None
        unfitted = _unlearned(self._statistic)
        return unfitted if unfitted.any() else None

    def _filled(self, frame: pl.DataFrame) -> tuple[list[pl.Series], list[int]]:
        """Return the columns without missing values, and how many were filled in each."""
        kinds, values = self._kinds, dict(zip(self._columns, self._values(), strict=True))
        columns = {name: frame.get_column(name) for name in self._columns}
        n = {name: column.null_count() for name, column in columns.items()}
        floats = self._floats
        filled, gaps = fill_columns([columns[c] for c in floats], [values[c] for c in floats])
        for name, column, gap in zip(floats, filled, gaps, strict=True):
            columns[name], n[name] = typed(column, kinds[name]), gap
        others = [name for name in columns if n[name] and name not in floats]
        if others:  # asked for at once: each question costs more than its answer
            fills = (pl.col(c).fill_null(pl.lit(values[c], dtype=kinds[c])) for c in others)
            columns |= frame.select(fills).to_dict()
        return list(columns.values()), list(n.values())

    def _indicators(self, frame: pl.DataFrame) -> list[pl.Series]:
        return frame.select(
            is_missing(c, self._schema[c]).cast(pl.Float32).alias(f"{c}_missing")
            for c in self._columns
        ).get_columns()

    def _dropped(self, batch: Batch) -> Batch:
        lost = {**nulls(batch.frame, self._columns), **nans(batch.frame, self._columns)}
        gaps = [column for column in self._columns if column in lost]
        if not gaps:
            return batch
        tests = [is_missing(column, self._schema[column]) for column in gaps]
        first = pl.coalesce(
            pl.when(t).then(pl.lit(f"Column '{column}' is missing."))
            for column, t in zip(gaps, tests, strict=True)
        )
        return batch.reject(
            ~pl.any_horizontal(tests), stage=self.name, reason="missing", detail=first
        )

    def _fallback(self) -> list[pl.Expr]:
        value = self.settings.value
        kinds = self._kinds.items()
        return [pl.col(c).cast(k).fill_null(pl.lit(value, dtype=k)) for c, k in kinds]

    # -------------------------------------------------------------------------------- what is known

    def remarks(self) -> list[str]:
        """Return a sentence for each column that never had a value, and was filled anyway, and one
        for each column with numbers that are too large to learn from."""
        if self.settings.strategy not in STATISTICS:
            return []
        empty = [
            c
            for c, x in zip(
                self._columns, _centers(self._statistic, len(self._columns)), strict=True
            )
            if x is None
        ]
        filled = dict(zip(self._columns, self._values(), strict=True))
        large = self._too_large.columns
        return [
            f"{self.where} found no value in column '{c}' to learn from, and filled "
            f"{'what is missing in it' if c in large else 'all of it'} with {filled[c]!r}: leave "
            "the column out, set a 'value', or, if its values lie inside of records, name their "
            "place in [source.paths]."
            for c in empty
        ] + super().remarks()

    def _values(self) -> list[Any]:
        """Return the current fill value of each column, in its type."""
        learned = self._statistic
        if isinstance(learned, Moments) and self._wide:  # as mostly, and without asking each
            default = float(self.settings.value or 0)
            return [*np.where(learned.count > 0, learned.mean, default).tolist()]
        defaults = [
            _default(self._schema[c]) if self.settings.value is None else self.settings.value
            for c in self._columns
        ]
        centers = _centers(learned, len(self._columns))
        values = (d if x is None else x for x, d in zip(centers, defaults, strict=True))
        return [_held(x, k) for x, k in zip(values, self._kinds.values(), strict=True)]

    def snapshot(self) -> Snapshot:
        """Return the statistic; for last a frame of keys and values; for constant and drop None."""
        return super().snapshot() if self._last is None else self._last.frame

    def merge(self, value: Snapshot) -> None:
        """Merge as every stage; of two last values, the other instance's stays."""
        if self._last is None:
            super().merge(value)
        else:
            self._last.merge(cast("pl.DataFrame", value))

    def restore(self, value: Snapshot) -> None:
        if self._last is None:
            super().restore(value)
        else:
            self._last.frame = cast("pl.DataFrame", value)

    def transforms(self) -> Sequence[Transform] | None:
        """Return one `Fill` per column; none for drop, which changes no value; None for last."""
        if self.settings.strategy == "last":
            return None
        if self.settings.strategy == "drop":
            return ()
        return [
            Fill(
                column=column,
                value=value if isinstance(value, str) else float(value),
                indicator=f"{column}_missing" if self.settings.indicator else None,
            )
            for column, value in zip(self._columns, self._values(), strict=True)
        ]


def _unlearned(statistic: Statistic) -> NDArray[np.bool_]:
    """Return for which columns no value was learned yet, shape (columns,)."""
    unlearned: NDArray[np.bool_]
    if isinstance(statistic, Moments):
        unlearned = statistic.count == 0
    elif isinstance(statistic, Quantiles):
        unlearned = statistic.low > statistic.high
    else:
        assert isinstance(statistic, Counts)
        unlearned = np.array([table.is_empty() for table in statistic.tables])
    return unlearned


def _centers(statistic: Statistic | None, columns: int) -> list[Any]:
    """Return each column's mean, median or most frequent value; None where nothing was learned."""
    if isinstance(statistic, Counts):
        return statistic.top
    if isinstance(statistic, Moments):
        means = np.where(statistic.count > 0, statistic.mean, np.nan)
    elif isinstance(statistic, Quantiles):
        means = statistic.quantile(0.5)[0]
    else:
        return [None] * columns
    return [None if math.isnan(x) else x for x in means.tolist()]


def _held(value: Any, dtype: pl.DataType) -> Any:
    """Return the value in the column's type."""
    if dtype.is_integer():
        return int(value)
    if not dtype.is_float():
        return value
    return float(np.float32(value)) if dtype == pl.Float32 else float(value)


def _default(dtype: pl.DataType) -> Any:
    if dtype.is_numeric():
        return 0
    return {pl.String: "", pl.Boolean: False}.get(dtype.base_type())


def _suits(value: Any, default: Any) -> bool:
    if isinstance(value, bool) or isinstance(default, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    return isinstance(value, str) == isinstance(default, str) and default is not None


__all__ = ["Missing"]
