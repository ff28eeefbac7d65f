"""Adds columns computed by SQL expressions."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from typing import Any

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
INTEGER = re.compile(r"U?Int[0-9]+")
INTEGER_CAST = re.compile(r'"dtype":\{"Literal":"U?Int[0-9]+"\}')


@dataclass(frozen=True, slots=True, kw_only=True)
class Wide:
    """An expression on 128-bit integers, and the integer columns to be read as such."""

    expression: pl.Expr
    columns: tuple[str, ...]


class Derived:
    """Columns derived together."""

    def __init__(self) -> None:
        self._all: dict[str, pl.Expr] = {}
        self._widened: list[pl.Expr] = []
        self._whole: set[str] = set()

    def add(self, name: str, parsed: pl.Expr, wide: Wide | None, dtype: pl.DataType) -> None:
        """Add a column of type `dtype`, computed in 128-bit integers where `wide` says how."""
        self._all[name] = parsed
        if wide is not None:
            self._widened.append(wide.expression.cast(dtype))  # strict: a misfit is an error
            self._whole.update(wide.columns)

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
            try:
                wide = _wide(parsed, frame)
            except RecursionError:
                raise UserError(
                    f"{self.where} column '{column}' casts to integers amid too many terms: derive "
                    "parts of it as columns of their own."
                ) from None
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


def _wide(parsed: pl.Expr, frame: pl.DataFrame) -> Wide | None:
    """Return an expression that adds or multiplies, on 128-bit integers: the type of its columns
    and casts would overflow silently. None if there is nothing to widen."""
    tree = _tree(parsed)
    if not OVERFLOWING_OPS.search(tree):
        return None
    columns = tuple(c for c in parsed.meta.root_names() if frame.schema[c].is_integer())
    if INTEGER_CAST.search(tree):
        text = json.dumps(_widen(json.loads(tree))).encode()
        parsed = pl.Expr.deserialize(io.BytesIO(text), format="json")
    wide = Wide(expression=parsed, columns=columns)
    try:
        frame.with_columns(pl.col(columns).cast(pl.Int128)).with_columns(wide.expression)
    except PolarsError:
        return None  # inside a function that takes 64 bits only
    return wide


def _widen(node: Any) -> Any:
    """Return the tree of an expression whose casts to integers are cast on to 128 bits."""
    if isinstance(node, list):
        return [_widen(part) for part in node]
    if not isinstance(node, dict):
        return node
    widened = {key: _widen(part) for key, part in node.items()}
    cast = node.get("Cast")
    if cast is None or not INTEGER.fullmatch(str(cast["dtype"].get("Literal"))):
        return widened
    return {"Cast": {"expr": widened, "dtype": {"Literal": "Int128"}, "options": "Strict"}}


__all__ = ["Derive"]
