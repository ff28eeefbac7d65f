"""New columns by SQL expressions."""

from __future__ import annotations

import re

import polars as pl
from polars.exceptions import PolarsError
from pydantic import Field

from engine import types
from engine.scrub.stage import Stateless
from engine.types import RESERVED, Batch, Schema, Transform, UserError, require

LOOKS_AROUND = re.compile(
    r'"(Agg|Over|Quantile|SortBy|Sort|Filter|Slice|Explode)":|"(Len|Unique|Reverse)"'
    r'|"(Cum|Rolling|Ewm|Shift|Diff|Rank|Interpolate|FillNullWithStrategy)\w*"'
)
"""Parts of a serialized expression whose result depends on other rows."""


class Derive(Stateless):
    """Adds or replaces columns by polars' SQL expressions, in order: later ones may use earlier
    ones.

    Every row for itself: an expression that looks at other rows (sum, avg, over ...) is refused, as
    its results would depend on how the stream is cut, and on the future. A row on which an
    expression fails (a text that is no date) is rejected alone, with reason ``invalid``.
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
        self._steps: list[list[pl.Expr]] = []

    def bind(self, schema: Schema) -> Schema:
        frame = pl.DataFrame(schema=schema)
        self._steps, here = [], set[str]()
        for column, sql in self.settings.columns.items():
            expression = self._parsed(column, sql)
            used = set(expression.meta.root_names())
            require(dict(frame.schema), sorted(used), where=f"{self.where} column '{column}'")
            frame = self._tried(frame, column, sql, expression)
            if not self._steps or column in here or used & here:
                self._steps.append([])
                here = set()
            self._steps[-1].append(expression)
            here.add(column)
        return dict(frame.schema)

    def _parsed(self, column: str, sql: str) -> pl.Expr:
        if column in RESERVED:
            raise UserError(f"{self.where} derives column '{column}', which headrace itself adds.")
        try:
            expression = pl.sql_expr(sql).alias(column)
            around = LOOKS_AROUND.search(str(expression.meta.serialize(format="json")))
        except PolarsError as error:
            raise UserError(self._sentence(column, sql, "is no SQL expression", error)) from None
        if around:
            raise UserError(
                f"{self.where} column '{column}' = \"{sql}\" looks at other rows: "
                "an expression may only use values of its own row."
            )
        return expression

    def _tried(self, frame: pl.DataFrame, column: str, sql: str, e: pl.Expr) -> pl.DataFrame:
        try:
            return frame.with_columns(e)
        except PolarsError as error:
            raise UserError(self._sentence(column, sql, "cannot be done", error)) from None

    def _sentence(self, column: str, sql: str, what: str, error: PolarsError) -> str:
        return f"{self.where} column '{column}' = \"{sql}\" {what}: {_first(error)}."

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
            frame = frame.with_columns(step)
        return frame

    def _failures(self, frame: pl.DataFrame, at: int) -> list[tuple[int, str]]:
        """Row number and complaint of each row that fails, by bisection."""
        try:
            self._evaluated(frame)
        except PolarsError as error:
            if frame.height == 1:
                return [(at, f"{_first(error)}.")]
            half = frame.height // 2
            return [
                *self._failures(frame.head(half), at),
                *self._failures(frame.slice(half), at + half),
            ]
        return []

    def transforms(self) -> list[Transform] | None:
        """None: SQL is not written into a model file."""
        return None


def _first(error: PolarsError) -> str:
    return str(error).split("\n", 1)[0].strip().rstrip(".")


__all__ = ["Derive"]
