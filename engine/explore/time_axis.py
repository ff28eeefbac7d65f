"""When the rows happened: their order, their step, and the gaps between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.types import RESERVED

PAGE = 1 << 16
PAGES = 1_024
"""The most pages of 65,536 steps each: 64 MiB of observed steps."""
SAMPLE = 10_000
FIRST_TEXTS = 50
NAMES = ("time", "timestamp", "ts", "date", "datetime", "event_time", "created_at")
SECONDS = (1e9, 5e9)
"""Integers in this range, in a column with such a name, are seconds since 1970; a thousand times
larger ones are milliseconds."""


ISO = "%Y-%m-%d"
DATES = {
    ISO: r"^\d{4}-\d{1,2}-\d{1,2}$",
    "%d.%m.%Y": r"^\d{1,2}\.\d{1,2}\.\d{4}$",
    "%d.%m.%y": r"^\d\d\.\d\d\.\d\d$",
    "%m/%d/%Y": r"^\d{1,2}/\d{1,2}/\d{4}$",
    "%d/%m/%Y": r"^\d{1,2}/\d{1,2}/\d{4}$",
    "%m/%d/%y": r"^\d{1,2}/\d{1,2}/\d\d$",
    "%d/%m/%y": r"^\d{1,2}/\d{1,2}/\d\d$",
    "%d-%m-%Y": r"^\d{1,2}-\d{1,2}-\d{4}$",
    "%m-%d-%Y": r"^\d{1,2}-\d{1,2}-\d{4}$",
    "%Y/%m/%d": r"^\d{4}/\d{1,2}/\d{1,2}$",
}
"""How dates are written, for strptime -> the pattern that they have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Steps without a row.

    Attributes:
        start: the first of them, microseconds since 1970.
        steps: how many.
    """

    start: int
    steps: int


def find_time(frame: pl.DataFrame) -> tuple[str, pl.Expr] | None:
    """Find the time of a row from its columns: return the columns it is made of, and an
    expression for microseconds since 1970; None if no column looks like a time.

    Args:
        frame: the first rows.
    """
    schema = {c: k for c, k in frame.schema.items() if c not in RESERVED}
    for column, dtype in schema.items():
        if isinstance(dtype, pl.Datetime):
            return column, pl.col(column).dt.epoch("us")
    dates = [c for c, dtype in schema.items() if dtype == pl.Date]
    texts = [c for c, dtype in schema.items() if dtype == pl.String]
    days = {c: pl.col(c) for c in dates}
    for column in texts:
        whole = pl.col(column).str.to_datetime(strict=False, time_unit="us")
        if _reads(frame, column, whole) and _reads(frame, column, pl.col(column).str.find("T| ")):
            return column, whole.dt.replace_time_zone(None).dt.epoch("us")
        fitting = [f for f in DATES if _reads(frame, column, _date(column, f))]
        if len(fitting) == 1:  # of several, none is certain
            days[column] = _date(column, fitting[0])
    for column, date in days.items():
        day = date.cast(pl.Datetime("us"))
        for hour in texts:
            if hour != column and _reads(frame, hour, _hours(hour)):
                return f"{column} + {hour}", day.dt.epoch("us") + _hours(hour)
        return column, day.dt.epoch("us")
    for column, dtype in schema.items():
        if dtype.is_integer() and column.lower() in NAMES and frame.height:
            values = frame.get_column(column).drop_nulls()
            for unit in (1, 1_000):
                if len(values) and values.is_between(SECONDS[0] * unit, SECONDS[1] * unit).all():
                    return column, pl.col(column).cast(pl.Int64) * (1_000_000 // unit)
    return None


def _date(column: str, written: str = ISO) -> pl.Expr:
    return pl.col(column).str.extract(DATES[written], 0).str.to_date(written, strict=False)


KINDS = {
    "datetime": pl.coalesce(
        pl.col("x").str.to_datetime(f"%Y-%m-%d{between}{clock}", strict=False)
        for between in (" ", "T")
        for clock in ("%H:%M:%S%.f", "%H:%M")
    ),
    "date": _date("x"),
}
"""What texts read as -> what reads a column x of them; null where it does not."""


def _hours(column: str) -> pl.Expr:
    """Return microseconds since midnight of texts like ``6:00`` or ``06:00-06:59``."""
    parts = pl.col(column).str.extract_groups(r"^(\d{1,2}):(\d{2})")
    hour = parts.struct.field("1").cast(pl.Int64, strict=False)
    minute = parts.struct.field("2").cast(pl.Int64, strict=False)
    return (hour * 60 + minute) * 60_000_000


def _reads(frame: pl.DataFrame, column: str, expr: pl.Expr) -> bool:
    """Return whether the expression has a value for nearly every text of the column. A few texts
    are tried first: most columns are not times, and matching a pattern on all rows is slow."""
    texts = frame.get_column(column).head(SAMPLE).drop_nulls().to_frame()
    try:
        return (
            texts.height > 0
            and _share(texts.head(FIRST_TEXTS), expr) >= 0.5
            and _share(texts, expr) >= 0.99
        )
    except pl.exceptions.PolarsError:
        return False


def _share(texts: pl.DataFrame, expr: pl.Expr) -> float:
    return 1 - texts.select(expr).to_series().null_count() / texts.height


def time_kind(texts: pl.Series) -> str:
    """Return what most of the first texts of a column read as: ``datetime``, ``date`` or ""."""
    first = texts.drop_nulls().head(FIRST_TEXTS)
    return next((kind for kind in KINDS if 2 * time_count(first, kind) > len(first)), "")


def time_count(texts: pl.Series, kind: str) -> int:
    """Return how many texts read as a ``datetime`` or ``date``."""
    try:
        return int(texts.to_frame("x").select(KINDS[kind].is_not_null().sum()).item())
    except pl.exceptions.PolarsError:  # no format fits the first of them
        return 0


def date_formats(texts: pl.Series) -> dict[str, int]:
    """Return the formats of dates, other than ISO, that most of the first texts of a column have,
    each with 0, to count."""
    first = texts.drop_nulls().head(FIRST_TEXTS)
    counts = date_counts(first, dict.fromkeys(DATES, 0))
    return {f: 0 for f, n in counts.items() if f != ISO and 2 * n > len(first)}


def date_counts(texts: pl.Series, before: dict[str, int]) -> dict[str, int]:
    """Add the texts that each format of dates reads to the count before."""
    if not before:
        return before
    read = texts.to_frame("x").select(_date("x", f).is_not_null().sum().alias(f) for f in before)
    return {f: n + int(read[f].item()) for f, n in before.items()}


def certain_formats(counts: dict[str, int], known: int) -> tuple[str, ...]:
    """Return the formats that read nearly all texts of a column; several where each may be it."""
    most = max(counts.values(), default=0)
    return tuple(f for f, n in counts.items() if n == most and known and n >= 0.99 * known)


class TimeAxis:
    """The times of a stream.

    Attributes:
        rows: with a time; `unknown` had none.
        late: with a time before that of an earlier row.
        step: the usual distance between neighbours in time, microseconds; 0 if there is none,
            None while too little is known.
        repeated: rows at a step that an earlier row had.
        off: rows that are not at a step.
        cut: rows that were too far off to be counted.
    """

    def __init__(self) -> None:
        self.rows = self.unknown = self.late = self.repeated = self.off = self.cut = 0
        self.low: int | None = None
        self.high: int | None = None
        self.step: int | None = None
        self._origin = 0
        self._waiting: list[NDArray[np.int64]] = []
        self._pages: dict[int, NDArray[np.bool_]] = {}

    def update(self, times: pl.Series) -> None:
        """Add rows in order, by their microseconds since 1970."""
        known = times.drop_nulls().cast(pl.Int64).to_numpy()
        self.unknown += times.null_count()
        if not len(known):
            return
        before = known[0] if self.high is None else self.high
        newest = np.maximum.accumulate(np.append(before, known))
        self.late += int((known < newest[:-1]).sum())
        self.low = int(min(known.min(), known[0] if self.low is None else self.low))
        self.high = int(newest[-1])
        self.rows += len(known)
        if self.step is not None:
            self._mark(known)
            return
        self._waiting.append(known)
        if sum(map(len, self._waiting)) >= SAMPLE:
            self._fit_step()

    def close(self) -> None:
        """End the axis: no more rows. A step that most rows do not lie at is none."""
        if self.step is None and self._waiting:
            self._fit_step()
        if 2 * self.off > self.rows:
            self.step = self.off = self.repeated = self.cut = 0
            self._pages = {}

    @property
    def steps(self) -> int:
        """The number of steps from the first to the last time."""
        if not self.step or self.low is None or self.high is None:
            return 0
        return (self.high - self.low) // self.step + 1

    @property
    def missing(self) -> int:
        """The number of steps between the first and the last time without a row."""
        return max(0, self.steps - sum(int(page.sum()) for page in self._pages.values()))

    def gaps(self) -> Iterator[Gap]:
        """Return all gaps in order."""
        if not self.step:
            return
        slots = [
            number * PAGE + np.flatnonzero(page) for number, page in sorted(self._pages.items())
        ]
        filled = np.concatenate(slots) if slots else np.empty(0, np.int64)
        for at in np.flatnonzero(np.diff(filled) > 1):
            first = int(filled[at]) + 1
            yield Gap(
                start=self._origin + first * self.step, steps=int(filled[at + 1] - filled[at]) - 1
            )

    def _fit_step(self) -> None:
        """Find the step, and mark the rows that waited for it."""
        known = np.concatenate(self._waiting)
        self._waiting = []
        apart = np.diff(np.unique(known))
        if not len(apart):
            return
        values, counts = np.unique(apart, return_counts=True)
        if counts.max() < 0.5 * len(apart):
            self.step = 0  # there is none
            return
        self.step, self._origin = int(values[counts.argmax()]), int(known[0])
        self._mark(known)

    def _mark(self, known: NDArray[np.int64]) -> None:
        if not self.step:
            return
        slot, rest = np.divmod(known - self._origin, self.step)
        self.off += int((rest != 0).sum())
        slot = slot[rest == 0]
        number, place = np.divmod(slot, PAGE)
        turns = number[np.diff(number, prepend=number[:1] - 1) != 0]  # most rows stand in order
        for n in np.unique(turns).tolist():
            at = place[number == n]
            page = self._pages.get(n)
            if page is None:
                if len(self._pages) == PAGES:
                    self.cut += len(at)
                    continue
                page = self._pages[n] = np.zeros(PAGE, np.bool_)
            before = np.count_nonzero(page)
            page[at] = True
            self.repeated += len(at) - int(np.count_nonzero(page) - before)


__all__ = [
    "Gap", "TimeAxis", "certain_formats", "date_counts", "date_formats", "find_time", "time_count",
    "time_kind",
]  # fmt: skip
