"""Adds columns computed by SQL expressions."""

from __future__ import annotations

import re

import polars as pl
from polars.exceptions import PolarsError
from pydantic import Field

from engine import types
from engine.columnar.expressions import expression, first, shown
from engine.types import RESERVED, Batch, Schema, Stage, Transform, UserError, require

OTHER_ROWS_OPS = re.compile(
    r'"(Agg|Over|Quantile|SortBy|Sort|Filter|Slice|Explode)":|"(Len|Unique|Reverse)"'
    r'|"(Cum|Rolling|Ewm|Shift|Diff|Rank|Interpolate|FillNullWithStrategy)\w*"'
)
"""Operations of a serialized expression whose result depends on other rows."""
OVERFLOWING_OPS = re.compile(r'"(Plus|Minus|Multiply|Mul|Pow)"')
"""Operations that overflow silently when integers exceed their type."""


class Derived:
    """Columns derived together."""

    def __init__(self) -> None:
        self._all: dict[str, pl.Expr] = {}
        self._widened: list[pl.Expr] = []
        self._whole: set[str] = set()

    def add(self, name: str, parsed: pl.Expr, wide: tuple[str, ...], dtype: pl.DataType) -> None:
        """Add a column of type `dtype`; `wide` columns are read as 128-bit integers."""
        self._all[name] = parsed
        if wide:
            self._widened.append(parsed.cast(dtype))  # strict: what does not fit is an error
            self._whole.update(wide)

    def of(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the frame with the derived columns, in order. Raises: PolarsError if a row
        fails."""
        if not self._widened:
            return frame.with_columns(self._all.values())
        wide = frame.with_columns(pl.col(sorted(self._whole)).cast(pl.Int128))
        widened = wide.select(self._widened).to_dict()
        return frame.with_columns([widened.get(name, e) for name, e in self._all.items()])


class Derive(Stage):
    """Adds or replaces columns by polars' SQL expressions, in order: later ones may use earlier
    ones.

    Every row for itself: an expression that looks at other rows (sum, avg, over ...) is refused, as
    its results would depend on how the stream is cut, and on the future. A row on which an
    expression fails (a text that is no date, a product beyond 64 bits) is rejected alone, with
    reason ``invalid``.
    """

    class Settings(types.Settings):
        """``[scrub.NAME]`` with ``kind = "derive"``

        Attributes:
            columns: name = "SQL expression", in order.
        """

        columns: dict[str, str] = Field(min_length=1)

    def __init__(self, name: str, settings: Derive.Settings) -> None:
        super().__init__(name, settings)
        self.settings: Derive.Settings = settings
        self._steps: list[Derived] = []

    def bind(self, schema: Schema) -> Schema:
        frame = pl.DataFrame(schema=schema)
        self._steps, here = [], set[str]()
        for column, sql in self.settings.columns.items():
            parsed = self._parsed(column, sql)
            used = set(parsed.meta.root_names())
            require(dict(frame.schema), sorted(used), where=f"{self.where} column '{column}'")
            wide = _wide(parsed, frame)
            frame = self._evaluate(frame, column, sql, parsed)
            if not self._steps or column in here or used & here:
                self._steps.append(Derived())
                here = set()
            self._steps[-1].add(column, parsed, wide, frame.schema[column])
            here.add(column)
        return dict(frame.schema)

    def _parsed(self, column: str, sql: str) -> pl.Expr:
        if column in RESERVED:
            raise UserError(f"{self.where} derives column '{column}', which headrace itself adds.")
        where = f"{self.where} column '{column}'"
        parsed = expression(sql, where).alias(column)
        if OTHER_ROWS_OPS.search(_tree(parsed)):
            raise UserError(
                f'{where} = "{shown(sql)}" looks at other rows: '
                "an expression may only use values of its own row."
            )
        return parsed

    def _evaluate(self, frame: pl.DataFrame, column: str, sql: str, e: pl.Expr) -> pl.DataFrame:
        try:
            return frame.with_columns(e)
        except PolarsError as error:
            where = f"{self.where} column '{column}' = \"{shown(sql)}\""
            raise UserError(f"{where} cannot be done: {first(error)}.") from None

    def apply(self, batch: Batch) -> Batch:
        try:
            return batch.with_frame(self._evaluated(batch.frame))
        except PolarsError:
            failures = dict(self._failures(batch.frame, 0))
        rows = pl.int_range(pl.len())
        detail = pl.Series([failures.get(i) for i in range(len(batch))], dtype=pl.String)
        batch = batch.reject(
            ~rows.is_in(list(failures)), stage=self.name, reason="invalid", detail=detail
        )
        return batch.with_frame(self._evaluated(batch.frame))

    def _evaluated(self, frame: pl.DataFrame) -> pl.DataFrame:
        for step in self._steps:
            frame = step.of(frame)
        return frame

    def _failures(self, frame: pl.DataFrame, at: int) -> list[tuple[int, str]]:
        """Return row number and error of each failing row, by bisection."""
        try:
            self._evaluated(frame)
        except PolarsError as error:
            if frame.height == 1:
                return [(at, f"{first(error)}.")]
            half = frame.height // 2
            return [
                *self._failures(frame.head(half), at),
                *self._failures(frame.slice(half), at + half),
            ]
        return []

    def transforms(self) -> list[Transform] | None:
        """Return None: SQL is not written into a model file."""
        return None


def _tree(parsed: pl.Expr) -> str:
    return str(parsed.meta.serialize(format="json"))


def _wide(parsed: pl.Expr, frame: pl.DataFrame) -> tuple[str, ...]:
    """Return integer columns that an expression adds or multiplies, to read as 128-bit integers:
    their own type would overflow silently."""
    if not OVERFLOWING_OPS.search(_tree(parsed)):
        return ()
    whole = tuple(c for c in parsed.meta.root_names() if frame.schema[c].is_integer())
    try:
        frame.with_columns(pl.col(whole).cast(pl.Int128)).with_columns(parsed)
    except PolarsError:
        return ()  # inside a function that takes 64 bits only
    return whole


__all__ = ["Derive"]
