"""Counts values that a model lacks and answers without, and reports columns that stop coming."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import polars as pl
from numpy.typing import NDArray

from engine.types import MISSING_VALUES, Schema
from engine.types.plural import counted

log = logging.getLogger("headrace.predictor")

NAMED = 50
"""The columns that are counted by name; a wide table must not become a metric for each column."""
OTHERS = "other columns"
UNKNOWN_VALUES = "unknown "
"""Begins the names of counts of categories without a code; the column follows."""
MAX_FLOAT32 = 3.4028235e38
GONE_ROWS = 1_000
"""The rows without a value after which a column is reported."""
RENAMED_ROWS = 100
"""The same, where another column has values whose name differs by case alone."""


class MissingValues:
    """Counts nulls and NaN in the columns that a model reads, and categories without a code.

    Args:
        columns: that it reads.
        vocabularies: column -> the categories that have a code, where they are known.
    """

    def __init__(
        self,
        columns: Sequence[str],
        vocabularies: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        self._columns = columns
        self._coded = {name: frozenset((*values, "")) for name, values in vocabularies.items()}
        self._twins: dict[str, str] = {}
        self._gone = dict.fromkeys(columns, 0)
        self._told: set[str] = set()
        self._filled: set[str] = set()
        """Columns that lacked a value in a row with an answer."""

    def bind(self, schema: Schema) -> None:
        """Find the columns whose names differ by case alone from those that the model reads."""
        others = {name.casefold(): name for name in schema if name not in self._gone}
        self._twins = {c: others[c.casefold()] for c in self._columns if c.casefold() in others}

    def count(self, frame: pl.DataFrame, feed: Mapping[str, NDArray[Any]]) -> dict[str, int]:
        """Return what to count of rows that are answered, by event; warn of columns without a
        value, once each.

        Args:
            feed: of these rows; text as Python strings, "" for null.
        """
        counts: dict[str, int] = {}
        for at, name in enumerate(self._columns):
            column = frame.get_column(name)
            n = column.null_count()
            if column.dtype.is_float() and math.isnan(column.sum()):  # the cheapest look for NaN
                n += int(column.is_nan().sum())
            shown = name if at < NAMED else OTHERS
            if n:
                self._filled.add(name)
                event = f"{MISSING_VALUES}{shown}"
                counts[event] = counts.get(event, 0) + n
            if name in self._coded and (n_unknown := _unknown(feed.get(name), self._coded[name])):
                event = f"{UNKNOWN_VALUES}{shown}"
                counts[event] = counts.get(event, 0) + n_unknown
            if n < len(column):
                self._gone[name] = 0
            elif n:
                self._gone[name] += n
                self._warn(name, frame)
        return counts

    def reasons(self, frame: pl.DataFrame) -> pl.Series:
        """Return for each row, shape (n,), why the model has no finite score for it, as a
        sentence."""
        return _reasons(frame, [name for name in self._columns if name not in self._filled])

    def _warn(self, name: str, frame: pl.DataFrame) -> None:
        rows, twin = self._gone[name], self._twins.get(name)
        renamed = twin is not None and frame.get_column(twin).null_count() < frame.height
        if name in self._told or rows < (RENAMED_ROWS if renamed else GONE_ROWS):
            return
        self._told.add(name)
        last = f"Column '{name}' has no value in the last {counted(rows, 'row')}"
        if renamed:
            log.warning(
                "%s, where '%s' has: the model reads '%s' and answers without it. Write both under "
                "that name, or add a 'derive' stage with columns.%s = 'COALESCE(\"%s\", \"%s\")'.",
                last, twin, name, name, name, twin,
            )  # fmt: skip
        else:
            log.warning(
                "%s: the model answers without it. See that it is still written under that name.",
                last,
            )


def _unknown(values: NDArray[Any] | None, known: frozenset[str]) -> int:
    """Return how many values, Python strings of shape (n,), are not known."""
    texts = [] if values is None else values.tolist()
    if known.issuperset(texts):
        return 0
    return sum(n for value, n in Counter(texts).items() if value not in known)


def _reasons(frame: pl.DataFrame, columns: Sequence[str]) -> pl.Series:
    schema = frame.schema
    large = _named({c: _is_too_large(c) for c in columns if schema[c].is_float()})
    missing = _named({c: _is_missing(c, schema[c]) for c in columns})
    advice = "in the pipeline that trains the model helps."
    sentence = (
        pl.when(large != "")
        .then(
            pl.format(
                "Expected a finite score: the number in {} is infinite or too large for float32; a "
                f"[scrub.outliers] {advice}", large,
            )
        )
        .when(missing != "")
        .then(
            pl.format(
                f"Expected a finite score: no value is in {{}}; a [scrub.missing] {advice}", missing
            )
        )
        .otherwise(
            pl.lit(
                "Expected a finite score: a list has no value, or a number in it is missing or "
                "infinite, or numbers become too large for float32."
            )
        )
    )  # fmt: skip
    return frame.select(sentence).to_series()


def _named(rows: Mapping[str, pl.Expr]) -> pl.Expr:
    """Return the names of the columns of which a row is true, as words; "" of none."""
    if not rows:
        return pl.lit("")
    names = [pl.when(mask).then(pl.lit(f"'{name}'")) for name, mask in rows.items()]
    joined = pl.concat_str(names, separator=", ", ignore_nulls=True)
    return pl.when(joined != "").then(pl.lit("column ") + joined).otherwise(pl.lit(""))


def _is_too_large(name: str) -> pl.Expr:
    column = pl.col(name)
    return (column.abs() > MAX_FLOAT32) & column.is_not_nan()


def _is_missing(name: str, dtype: pl.DataType) -> pl.Expr:
    column = pl.col(name)
    return column.is_null() | column.is_nan() if dtype.is_float() else column.is_null()


__all__ = ["MissingValues"]
