"""SQL expressions over the values of a row: each row for itself, no integer overflows."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl
from polars.exceptions import PolarsError

from engine.columnar.expressions import expression, first, shown
from engine.types import Schema, UserError, require, type_name

HOLDS = "where"
"""The column of a condition."""

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


class RowExpressions:
    """Columns that SQL expressions add or replace, in order: later ones may use earlier ones.

    Args:
        columns: name -> SQL expression.
        schema: the columns there are.
        where: name -> how error sentences name its expression.

    Attributes:
        schema: the columns there are then.

    Raises: UserError for what is no expression over a row's own values, or cannot be done.
    """

    def __init__(
        self, columns: Mapping[str, str], schema: Schema, *, where: Callable[[str], str]
    ) -> None:
        frame = pl.DataFrame(schema=schema)
        self._steps, here = list[Derived](), set[str]()
        for column, sql in columns.items():
            parsed = _parsed(column, sql, where(column))
            used = set(parsed.meta.root_names())
            require(dict(frame.schema), sorted(used), where=where(column))
            try:
                wide = _wide(parsed, frame)
            except RecursionError:
                raise UserError(
                    f"{where(column)} casts to integers amid too many terms: derive parts of it "
                    "as columns of their own."
                ) from None
            frame = _evaluate(frame, sql, parsed, where(column))
            if not self._steps or column in here or used & here:
                self._steps.append(Derived())
                here = set()
            self._steps[-1].add(column, parsed, wide, frame.schema[column])
            here.add(column)
        self.schema: Schema = dict(frame.schema)

    def of(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the frame with the columns. Raises: PolarsError if a row fails."""
        for step in self._steps:
            frame = step.of(frame)
        return frame

    def failures(self, frame: pl.DataFrame) -> dict[int, str]:
        """Return number and error of each row that fails, by bisection."""
        return dict(self._failures(frame, 0))

    def _failures(self, frame: pl.DataFrame, at: int) -> list[tuple[int, str]]:
        try:
            self.of(frame)
        except PolarsError as error:
            if frame.height < 2:
                if not frame.height:
                    raise
                return [(at, f"{first(error)}.")]
            half = frame.height // 2
            return [
                *self._failures(frame.head(half), at),
                *self._failures(frame.slice(half), at + half),
            ]
        return []


def _parsed(column: str, sql: str, where: str) -> pl.Expr:
    parsed = expression(sql, where).alias(column)
    if OTHER_ROWS_OPS.search(_tree(parsed)):
        raise UserError(
            f'{where} = "{shown(sql)}" looks at other rows: '
            "an expression may only use values of its own row."
        )
    return parsed


def _evaluate(frame: pl.DataFrame, sql: str, parsed: pl.Expr, where: str) -> pl.DataFrame:
    try:
        return frame.with_columns(parsed)
    except PolarsError as error:
        raise UserError(f'{where} = "{shown(sql)}" cannot be done: {first(error)}.') from None


def _tree(parsed: pl.Expr) -> str:
    return str(parsed.meta.serialize(format="json"))


def _wide(parsed: pl.Expr, frame: pl.DataFrame) -> Wide | None:
    """Return an expression that adds or multiplies, on 128-bit integers: the type of its columns
    and casts would overflow silently. None if there is nothing to widen."""
    tree = _tree(parsed)
    if not OVERFLOWING_OPS.search(tree):
        return None
    columns = tuple(c for c in parsed.meta.root_names() if frame.schema[c].is_integer())
    casts = INTEGER_CAST.search(tree)
    if not columns and not casts:
        return None  # the same expression again, of floats
    if casts:
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


class Condition:
    """A SQL condition on a row's own values.

    Args:
        where: how error sentences name it.

    Attributes:
        columns: those that it reads.

    Raises: UserError for what is none.
    """

    def __init__(self, sql: str, schema: Schema, *, where: str) -> None:
        self._holds = RowExpressions({HOLDS: sql}, schema, where=lambda _: where)
        self.columns = frozenset(expression(sql, where).meta.root_names())
        dtype = self._holds.schema[HOLDS]
        if dtype != pl.Boolean:
            raise UserError(
                f'{where} = "{shown(sql)}" expects true or false, got {type_name(dtype)}.'
            )

    def holds(self, frame: pl.DataFrame) -> tuple[pl.Series, dict[int, str]]:
        """Return for which rows it holds, bool, shape (n,), and number and error of those on which
        it fails. For these it does not hold, nor where it is null."""
        try:
            return self._mask(frame), {}
        except PolarsError:
            failures = self._holds.failures(frame)
        fails = pl.Series([row in failures for row in range(frame.height)], dtype=pl.Boolean)
        mask = pl.repeat(False, frame.height, eager=True)
        mask = mask.scatter((~fails).arg_true(), self._mask(frame.filter(~fails)))
        return mask, failures

    def _mask(self, frame: pl.DataFrame) -> pl.Series:
        return self._holds.of(frame).get_column(HOLDS).fill_null(False)


__all__ = ["Condition", "RowExpressions"]
