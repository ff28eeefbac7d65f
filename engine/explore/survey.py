"""One-pass column statistics in bounded memory."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.columnar.expressions import expression
from engine.columnar.hashing import hashes, mix
from engine.columnar.kernels import MAX_ABS
from engine.columnar.statistics import MAX_WIDTH, Counts, Moments, Quantiles, matrix
from engine.errors import first_line
from engine.explore.distinct import DistinctCounter, RowSet
from engine.explore.notation import MOST_WORDS, counts, words
from engine.explore.time_axis import (
    TimeAxis,
    date_counts,
    date_formats,
    find_time,
    time_count,
    time_kind,
)
from engine.types import RESERVED, Schema, UserError, type_name
from engine.types.arrays import Floats

SLICES = 32
"""The most slices of the stream, each with its own digests; above it, slices double in length."""
FIRST_SLICE = 256
"""The rows of the first slices."""
VALUES = 256
"""The distinct values of a column that are counted individually."""
MAX_CORRELATED = 64
"""The most numeric columns with correlations: the first ones."""


@dataclass(slots=True)
class TimeSlice:
    """A slice of the stream.

    Attributes:
        rows: of it.
        missing: column -> null or NaN.
        digest: of the numeric columns.
    """

    rows: int
    missing: NDArray[np.int64]
    digest: Quantiles

    def join(self, later: TimeSlice) -> TimeSlice:
        """Return both slices as one."""
        return TimeSlice(
            self.rows + later.rows,
            self.missing + later.missing,
            self.digest.merge(later.digest),
        )


@dataclass(slots=True)
class Column:
    """Statistics common to all column types.

    Attributes:
        dtype: its type.
        known: values that `counts` should sum up to.
        null: values that are null; `nan`: NaN; `infinite`: infinite; `too_large`: finite, but of a
            size that no stage can learn from.
        distinct: how many different ones.
        counts: of each value, None where there are too many different ones.
        numbers: texts that read as numbers.
        notations: texts that each of `engine.explore.notation.NOTATIONS` reads.
        words: texts without a digit -> how many; None where there are many different ones.
        padded: of `numbers`, those with zeros in front ("01234"), which a number would lose.
        time_kind: what its first texts read as, see `engine.explore.time_axis.time_kind`; None
            before the first; `moments`: texts that do.
        dates: format of dates -> texts that have it, see `engine.explore.time_axis.DATES`; None
            before the first text.
        low, high: smallest and largest, of times and of finite floats.
        lengths: of texts and bytes, in bytes: fewest, sum, most.
    """

    dtype: pl.DataType
    known: int = 0
    null: int = 0
    nan: int = 0
    infinite: int = 0
    too_large: int = 0
    distinct: DistinctCounter | None = None
    counts: Counts | None = None
    numbers: int = 0
    notations: tuple[int, ...] = ()
    words: dict[str, int] | None = field(default_factory=dict)
    padded: int = 0
    time_kind: str | None = None
    moments: int = 0
    dates: dict[str, int] | None = None
    low: object = None
    high: object = None
    lengths: tuple[int, int, int] | None = None


class Survey:
    """The columns of a stream with a given schema.

    Attributes:
        null_values: whether the source can be told which words mean a missing value.
        decimal: the decimal point with which it reads numbers.
        rows: seen.
        columns: name -> what is known of it.
        numeric: names of the columns of numbers.
        moments: of those.
        seen: rows that were there before.
        clock: the rows' times; None where no column tells.
        time: what the time is made of.
    """

    def __init__(self, schema: Schema, *, null_values: bool = True, decimal: object = ".") -> None:
        self.null_values = null_values
        self.decimal = decimal
        self.schema = {c: k for c, k in schema.items() if c not in RESERVED}
        self.rows = 0
        self.numeric = [c for c, dtype in self.schema.items() if dtype.is_numeric()]
        self.columns = {c: _column(dtype) for c, dtype in self.schema.items()}
        self.moments = Moments.empty(len(self.numeric))
        self.pairs = PairwiseMoments(len(self.numeric[:MAX_CORRELATED]))
        self.seen = RowSet()
        self.clock: TimeAxis | None = None
        self.time: str | None = None
        self._times: pl.Expr | None = None
        self._slices: list[TimeSlice] = []
        self._slice_rows = FIRST_SLICE

    def update(self, frame: pl.DataFrame, *, time: str | None = None) -> None:
        """Add rows.

        Args:
            time: a SQL expression for their time, where the columns do not tell by themselves.
        """
        if not frame.height:
            return
        if not self.rows:
            self._look_for_time(frame, time)
        self._hash(frame)
        for name, column in self.columns.items():
            _add(column, frame.get_column(name))
        self._numbers(frame[self.numeric].cast(pl.Float64))
        if self.clock is not None and self._times is not None:
            self.clock.update(frame.select(self._times).to_series())
        self.rows += frame.height

    def close(self) -> None:
        """End the survey: no more rows."""
        if self.clock is not None:
            self.clock.close()

    @property
    def slices(self) -> list[TimeSlice]:
        """Return the slices in order, equally long except the last."""
        return self._slices

    @property
    def digest(self) -> Quantiles:
        """Return the statistics of all rows."""
        whole = Quantiles.empty(len(self.numeric))
        for part in self._slices:
            whole = whole.merge(part.digest)
        return whole

    def _look_for_time(self, frame: pl.DataFrame, given: str | None) -> None:
        expression = find_time(frame) if given is None else (given, as_time(frame, given))
        if expression is not None:
            self.time, self._times = expression
            self.clock = TimeAxis()

    def _hash(self, frame: pl.DataFrame) -> None:
        total = np.zeros(frame.height, np.uint64)
        for name, column in self.columns.items():
            values = frame.get_column(name)  # `select` looks at every column of the frame
            hashed = hashes(values.to_frame())
            if column.distinct is not None:
                column.distinct.update(hashed[values.is_not_null().to_numpy()])
            total = mix(total * np.uint64(31) + hashed)
        self.seen.update(total)

    def _numbers(self, frame: pl.DataFrame) -> None:
        if not self.numeric:
            return
        self.moments = self.moments.update(frame)
        rows = matrix(frame, MAX_WIDTH)
        self.pairs.update(matrix(frame[:, :MAX_CORRELATED]))
        missing = np.isnan(rows)
        start = 0
        while start < frame.height:
            last = self._slices[-1] if self._slices else None
            room = self._slice_rows - (last.rows if last else self._slice_rows)
            stop = min(frame.height, start + (room or self._slice_rows))
            part = TimeSlice(
                stop - start,
                missing[:, start:stop].sum(axis=1),
                Quantiles.of(frame[start:stop], MAX_WIDTH),
            )
            if last is not None and room:
                self._slices[-1] = last.join(part)
            else:
                self._slices.append(part)
            if len(self._slices) > SLICES:
                self._slices = list(_halved(self._slices))
                self._slice_rows *= 2
            start = stop


class PairwiseMoments:
    """Sums over the rows in which both columns of a pair have a number. Numbers are taken
    relative to the first block's mean, so that large ones lose no digits.

    Args:
        columns: how many.
    """

    def __init__(self, columns: int) -> None:
        self._shift: Floats | None = None
        self._n, self._x, self._xx, self._xy = (np.zeros((columns, columns)) for _ in range(4))

    def update(self, rows: Floats) -> None:
        """Add numbers, shape (columns, n), NaN for missing ones."""
        present = ~np.isnan(rows)
        if self._shift is None:
            count = np.maximum(present.sum(axis=1), 1)
            self._shift = np.where(present, rows, 0.0).sum(axis=1) / count
        mask = present.astype(np.float64)
        x = np.where(present, rows - self._shift[:, None], 0.0)
        self._n += mask @ mask.T
        self._x += x @ mask.T
        self._xx += (x * x) @ mask.T
        self._xy += x @ x.T

    @property
    def correlation(self) -> Floats:
        """Return Pearson's correlation, shape (columns, columns); NaN if a column does not vary,
        or the two share fewer than two rows."""
        n = np.maximum(self._n, 1)
        together = self._xy - self._x * (self._x.T / n)
        alone = np.maximum(self._xx - self._x * (self._x / n), 0.0)
        size = np.sqrt(np.where(alone <= 1e-12 * self._xx, 0.0, alone))
        known = (size > 0) & (size.T > 0) & (self._n > 1)
        # The product of two sums of squares may overflow where their roots do not.
        shares = np.divide(together, size, where=known, out=np.zeros_like(size))
        shares = np.divide(shares, size.T, where=known, out=shares)
        return np.where(known, np.clip(shares, -1, 1), np.nan)


def as_time(frame: pl.DataFrame, sql: str) -> pl.Expr:
    """Return microseconds since 1970 of a SQL expression for a time or a date.

    Raises: UserError if it gives none.
    """
    expr = expression(sql, "--time")
    try:
        dtype = frame.head(1).select(expr).dtypes[0]
    except pl.exceptions.PolarsError as error:
        raise UserError(
            f"--time '{sql}' is no expression over the columns: {first_line(error)}."
        ) from None
    if not dtype.is_temporal():
        raise UserError(
            f"--time '{sql}' expects a time or a date, got {type_name(dtype)}: declare the column, "
            "as in --set source.schema.NAME=datetime, or take another."
        )
    return expr.cast(pl.Datetime("us")).dt.epoch("us")


def _halved(slices: list[TimeSlice]) -> Iterator[TimeSlice]:
    for first in range(0, len(slices), 2):
        pair = slices[first : first + 2]
        yield pair[0].join(pair[1]) if len(pair) == 2 else pair[0]


def _column(dtype: pl.DataType) -> Column:
    nested = dtype.is_nested() or dtype == pl.Object
    return Column(
        dtype=dtype,
        distinct=None if nested else DistinctCounter(),
        counts=None if nested or dtype == pl.Binary else Counts.empty(1, VALUES),
        lengths=None,
    )


def _add(column: Column, values: pl.Series) -> None:
    column.null += values.null_count()
    dtype = column.dtype
    known = len(values) - values.null_count()
    if dtype.is_float():
        finite = values.filter(values.is_finite())
        infinite = 0 if len(finite) == known else int(values.is_infinite().sum())
        nan = known - len(finite) - infinite
        known -= nan
        column.infinite += infinite
        column.nan += nan
        column.too_large += int((finite.abs() >= MAX_ABS).sum())
        _stretch(column, finite)
    if column.counts is not None:
        column.known += known
        column.counts = column.counts.update(values.to_frame())
        if column.counts.tables[0]["count"].sum() != column.known:
            column.counts = None  # some were forgotten: there are too many different ones
    if dtype == pl.String:
        numbers = values.filter(values.cast(pl.Float64, strict=False).is_not_null())
        column.numbers += len(numbers)
        column.notations = _sums(column.notations, counts(values))
        column.words = _few(column.words, values)
        if column.time_kind is None and values.null_count() < len(values):
            column.time_kind = time_kind(values)
            column.dates = date_formats(values)
        column.dates = date_counts(values, column.dates or {})
        if column.time_kind:
            column.moments += time_count(values, column.time_kind)
        column.padded += int(numbers.str.contains(r"^[+-]?0\d").sum())
    if dtype in (pl.String, pl.Binary):
        _measure(column, values)
    elif dtype.is_temporal():
        _stretch(column, values)


def _stretch(column: Column, values: pl.Series) -> None:
    ends: list[Any] = [column.low, column.high, values.min(), values.max()]
    ends = [end for end in ends if end is not None]
    column.low, column.high = min(ends, default=None), max(ends, default=None)


def _few(known: dict[str, int] | None, values: pl.Series) -> dict[str, int] | None:
    """Return the words among more values; None if they are many."""
    if known is None:
        return None
    more = words(values)
    counts = {word: known.get(word, 0) + more.get(word, 0) for word in {**known, **more}}
    return counts if len(counts) <= MOST_WORDS else None


def _sums(a: tuple[int, ...], b: list[int]) -> tuple[int, ...]:
    return tuple(map(operator.add, a, b)) if a else tuple(b)


def _measure(column: Column, values: pl.Series) -> None:
    sizes = values.str.len_bytes() if column.dtype == pl.String else values.bin.size("b")
    sizes = sizes.drop_nulls()
    if len(sizes):
        low, total, high = int(sizes.min()), int(sizes.sum()), int(sizes.max())  # type: ignore[arg-type]
        a, b, c = column.lengths or (low, 0, high)
        column.lengths = (min(a, low), b + total, max(c, high))


__all__ = [
    "MAX_CORRELATED",
    "SLICES",
    "VALUES",
    "Column",
    "PairwiseMoments",
    "Survey",
    "TimeSlice",
    "as_time",
]
