"""The result of a survey: figures of each column, and sentences for the reader."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.columnar.kernels import MAX_ABS
from engine.columnar.statistics import Counts, Quantiles
from engine.explore.distinct import ERROR
from engine.explore.notation import DECIMAL_COMMA, reading, truth
from engine.explore.survey import MAX_CORRELATED, VALUES, Column, Survey, TimeSlice
from engine.explore.time_axis import certain_formats
from engine.types import type_name
from engine.types.arrays import Floats
from engine.types.plural import counted

BINS = 40
FEW = 200
"""Up to so many whole numbers, each bar of a histogram stands for as many of them."""
TOP = 8
FENCE = 3.0
"""Outliers lie this many interquartile ranges beyond the quartiles (Tukey's far out values)."""
DRIFT = 0.2
"""The population stability index of a slice against the whole above which a column drifts
(Siddiqi, 2006)."""
STRONG = 0.9
RARE = 0.5
"""A class with less than this part of an equal share is rare."""
MAX_COLUMNS_NAMED = 4
"""The most columns a sentence names."""
MAX_CLASSES = 10
"""The most values of a column that may be classes."""
COUNTED = 50
"""The least rows from which a column of consecutive numbers counts as a counter."""
KEY_NAME = re.compile(
    r"(?i:(^|[_. -])(id|uuid|guid|key|zip|zipcode|postcode|phone|iban)$)|[a-z]Id$"
)
"""Names of columns whose numbers are identifiers."""
QUANTILES = (0, 0.005, 0.01, 0.25, 0.5, 0.75, 0.99, 0.995, 1)
DECILES = tuple(n / 10 for n in range(1, 10))


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """A numeric column over the stream, one number per slice.

    Attributes:
        low, median, high: its quantiles 0.1, 0.5 and 0.9; None where a slice has no number.
        missing: share of rows.
    """

    low: tuple[float | None, ...]
    median: tuple[float | None, ...]
    high: tuple[float | None, ...]
    missing: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnProfile:
    """The profile of a column.

    Attributes:
        name, kind: its name and type, as a pipeline file writes it.
        missing: rows without a value, null or NaN.
        infinite: rows; `too_large`: rows with a finite number that no stage can learn from, nor
            mean and deviation hold.
        distinct: different values; `exact` or with a standard error of 0.8 %.
        top: values and how often they occur, most frequent first; empty where too many differ.
        others: rows with other values than those.
        special: how its texts write numbers, where no cast reads them; `reader`: what does.
        reads: whether its texts read as numbers, and lose nothing as such.
        time_kind: ``datetime`` or ``date``, if its texts read as those but for a few.
        date_formats: how its texts write dates, for strptime; several where each may be it.
        decimal_comma: whether a setting of the source reads these numbers.
        but: which of its texts are no numbers or times, for the end of a sentence.
        mean, deviation: of numbers; None if all are too large.
        quantiles: 0, 0.01, 0.25, 0.5, 0.75, 0.99 and 1, of numbers.
        outliers: rows beyond `FENCE` quartile distances, about.
        edges, bars: of the histogram between the quantiles 0.005 and 0.995: n + 1 numbers, n
        shares.
        drift: largest population stability index of a slice against the whole.
        timeline: over the stream.
        shortest, longest, length: of texts and bytes, in bytes; the last is the mean.
        first, last: of times.
    """

    name: str
    kind: str
    missing: int
    infinite: int = 0
    too_large: int = 0
    distinct: int = 0
    exact: bool = False
    top: tuple[tuple[str, int], ...] = ()
    others: int = 0
    special: str = ""
    reader: str = ""
    decimal_comma: bool = False
    reads: bool = False
    time_kind: str = ""
    date_formats: tuple[str, ...] = ()
    but: str = ""
    mean: float | None = None
    deviation: float | None = None
    quantiles: tuple[float, ...] = ()
    outliers: int = 0
    edges: tuple[float, ...] = ()
    bars: tuple[float, ...] = ()
    drift: float | None = None
    timeline: Timeline | None = None
    shortest: int | None = None
    longest: int | None = None
    length: float | None = None
    first: str | None = None
    last: str | None = None

    @property
    def numeric(self) -> bool:
        """Whether the column has numbers."""
        return bool(self.quantiles)

    @property
    def whole(self) -> bool:
        """Whether its type is an integer type."""
        return self.kind.startswith(("int", "uint"))

    def key(self, rows: int) -> str | None:
        """Why its numbers are identifiers and not quantities; None if they may be quantities."""
        if not (self.numeric and self.whole):
            return None
        if KEY_NAME.search(self.name):
            return "its name says that it is a key"
        span = self.quantiles[-1] - self.quantiles[0] + 1
        if rows >= COUNTED and min(self.distinct, span) >= 0.97 * rows and span <= 1.03 * rows:
            return "it counts the rows"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeProfile:
    """When the rows happened.

    Attributes:
        column: what the time is made of.
        first, last: ISO 8601.
        step: seconds between neighbours, None where there is no usual one.
        late: rows behind an earlier row's time.
        repeated: rows at a time that an earlier row had.
        off: rows between two steps.
        unknown: rows without a time.
        missing: steps that no row has, of `steps`.
        gaps: the longest ones: first step, and how many.
    """

    column: str
    first: str
    last: str
    step: float | None
    late: int
    repeated: int
    off: int
    unknown: int
    missing: int
    steps: int
    gaps: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """All that is known of a source after one pass.

    Attributes:
        name: of the file or pipeline.
        rows: seen.
        columns: their figures.
        repeated: rows that were there before, all columns equal.
        times: None where no column tells a time.
        related: names, and Pearson's correlation of each pair, None if there is none.
        target: column with the label, where a pipeline names it.
        stages: stage -> what it did, e.g. ``{"filled": 7, "rejected: duplicate": 3}``.
        rejected: reason -> records that could not be read; `details`: what the first was told.
        unreadable: more of the records than a run allows could not be read.
        sentences: what to know.
        suggestion: a ``[scrub]`` section, TOML.
        found: how the source found its rows to be written, as settings.
        left_out: what was not looked at, in sentences.
    """

    name: str
    rows: int
    columns: tuple[ColumnProfile, ...]
    repeated: int
    times: TimeProfile | None
    related: tuple[tuple[str, ...], tuple[tuple[float | None, ...], ...]]
    target: str | None = None
    stages: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    rejected: Mapping[str, int] = field(default_factory=dict)
    details: Mapping[str, str] = field(default_factory=dict)
    unreadable: bool = False
    sentences: tuple[str, ...] = ()
    suggestion: str = ""
    found: str = ""
    left_out: tuple[str, ...] = ()

    @property
    def commas(self) -> tuple[ColumnProfile, ...]:
        """The columns that the source itself reads with a decimal comma: those it would read
        so, if it reads no number with a decimal point."""
        points = any(column.kind.startswith("float") for column in self.columns)
        return () if points else tuple(c for c in self.columns if c.decimal_comma)

    def plain(self) -> dict[str, Any]:
        """Return the findings as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantileTables:
    """The digests' quantiles of all numeric columns, computed once: a digest computes all
    columns at a time, so a query per column would cost the square of their number.

    Attributes:
        digest: of all rows.
        quantiles: at `QUANTILES`, shape (9, columns); `deciles`: shape (9, columns).
        slices: of the stream.
        timeline: quantiles 0.1, 0.5, 0.9 of each slice, shape (slices, 3, columns).
        counts: numbers of each slice, shape (slices, columns).
    """

    digest: Quantiles
    quantiles: Floats
    deciles: Floats
    slices: Sequence[TimeSlice]
    timeline: Floats
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, survey: Survey) -> QuantileTables:
        """Return the tables of the numeric columns of a survey."""
        digest, slices, columns = survey.digest, survey.slices, len(survey.numeric)
        parts = [part.digest.quantile(0.1, 0.5, 0.9) for part in slices]
        counts = [part.digest.count for part in slices]
        return cls(
            digest=digest,
            quantiles=digest.quantile(*QUANTILES),
            deciles=digest.quantile(*DECILES),
            slices=slices,
            timeline=np.array(parts).reshape(len(slices), 3, columns),
            counts=np.array(counts, np.int64).reshape(len(slices), columns),
        )


def column_profiles(survey: Survey) -> tuple[ColumnProfile, ...]:
    """Return the profile of every column."""
    ranks = QuantileTables.of(survey)
    places = {name: j for j, name in enumerate(survey.numeric)}
    return tuple(
        _numbers(survey, ranks, places[name], name, column)
        if name in places
        else _others(survey, name, column)
        for name, column in survey.columns.items()
    )


def times(survey: Survey) -> TimeProfile | None:
    """Return order and gaps."""
    clock = survey.clock
    if clock is None or survey.time is None or not clock.rows:
        return None
    assert clock.low is not None
    assert clock.high is not None
    gaps = sorted(clock.gaps(), key=lambda gap: -gap.steps)[:TOP] if clock.missing else []
    return TimeProfile(
        column=survey.time,
        first=moment(clock.low),
        last=moment(clock.high),
        step=clock.step / 1e6 if clock.step else None,
        late=clock.late,
        repeated=clock.repeated,
        off=clock.off,
        unknown=clock.unknown,
        missing=clock.missing,
        steps=clock.steps,
        gaps=tuple((moment(gap.start), gap.steps) for gap in gaps),
    )


def related(survey: Survey) -> tuple[tuple[str, ...], tuple[tuple[float | None, ...], ...]]:
    """Return the names of numeric columns, and their correlations."""
    names = tuple(survey.numeric[:MAX_CORRELATED])
    rows = survey.pairs.correlation.tolist()
    return names, tuple(tuple(_known(x) for x in row) for row in rows)


def sentences(findings: Findings) -> Iterator[str]:
    """Return sentences to know before learning from the data."""
    if not findings.rows:
        yield "No row could be read." if findings.rejected else "There are no rows."
    yield from _unread(findings)
    if not findings.rows:
        return
    if findings.repeated:
        copies = counted(findings.repeated, "row is a copy", "rows are copies")
        yield f"{copies} of an earlier row{_percent(findings.repeated, findings.rows)}."
    if findings.times is not None:
        yield from _of_times(findings.times, findings.rows)
    if findings.found:
        yield f"The first rows are written with {findings.found}, and all are read so."
    yield from _of_columns(findings.columns, findings.rows, findings.commas)
    yield from _of_classes(findings)
    yield from _of_pairs(findings)


def _unread(findings: Findings) -> Iterator[str]:
    total = findings.rows + sum(findings.rejected.values())
    for reason, n in findings.rejected.items():
        detail = findings.details.get(reason)
        yield (
            f"{n:,} of {counted(total, 'record')} could not be read: {reason}."
            f"{f' The first: {detail}' if detail else ''}"
        )


def left_out(survey: Survey, limit: int | None) -> Iterator[str]:
    """Return sentences about what was not examined."""
    if limit is not None and survey.rows >= limit:
        yield f"Rows after the first {survey.rows:,}: --rows was reached."
    if survey.seen.full:
        yield (
            "Copies of rows that came after the first 5.9 million different ones: those are found "
            "only if they copy one of these."
        )
    for name, column in survey.columns.items():
        if column.distinct is None:
            yield f"The inside of column '{name}' ({type_name(column.dtype)})."
    many = [n for n, c in survey.columns.items() if c.counts is None and c.distinct is not None]
    if many:
        yield (
            f"Which values are frequent in {counted(len(many), 'column')} with {VALUES} different "
            f"ones or more; how many differ is known within {ERROR:.1%} (one standard error)."
        )
    if len(survey.numeric) > MAX_CORRELATED:
        yield f"Correlations of the columns after the first {MAX_CORRELATED} numeric ones."
    if survey.clock is None:
        nearly = next((n for n, c in survey.columns.items() if c.time_kind), None)
        either = next((n for n, c in survey.columns.items() if len(_formats(survey, c)) > 1), None)
        why = "no column looks like a time"
        if either is not None:
            why = f"whether the day or the month comes first in '{either}' is not certain"
        if nearly is not None:
            why = f"not all of '{nearly}' reads as a time"
        yield f"Order and gaps in time: {why}; --time says what it is."
    elif survey.clock.cut:
        far = counted(survey.clock.cut, "row that is", "rows that are")
        yield f"Gaps in time around {far} far from all others."
    elif survey.clock.rows and not survey.clock.step:
        yield "Gaps in time: there is no usual step between the rows."
    if survey.numeric:
        yield (
            "Numbers by rank: quantiles, histograms and outliers come from digests and are right "
            "within 0.5 % of the rows."
        )


def moment(microseconds: int) -> str:
    """Return ISO 8601 without a zone, as in the data."""
    at = datetime.fromtimestamp(microseconds // 1_000_000, UTC).replace(tzinfo=None)
    return at.replace(microsecond=microseconds % 1_000_000).isoformat(sep=" ")


# ----------------------------------------------------------------------------------------- columns


def _numbers(
    survey: Survey, ranks: QuantileTables, j: int, name: str, column: Column
) -> ColumnProfile:
    common = _common(survey, name, column)
    common |= {"infinite": column.infinite, "too_large": column.too_large}
    digest, quantiles = ranks.digest, ranks.quantiles[:, j].copy()
    count, learnable = int(digest.count[j]), bool(survey.moments.count[j])
    if not count:
        return ColumnProfile(**common)
    if column.low is not None:  # the digest leaves out the largest
        extremes: Any = column.low, column.high
        quantiles[[0, -1]] = extremes
    low, tail, first, median, third, high = (quantiles[i] for i in (0, 2, 3, 4, 5, 6))
    reach = FENCE * (third - first)
    outside = 0.0
    if reach > 0:
        inner = digest.below(j, np.array([first - reach, third + reach]))
        outside = float(inner[0] + 1 - inner[1])
    ends = float(quantiles[1]), float(quantiles[7])
    edges, bars = (
        _histogram(digest, j, *ends) if column.counts is None else _bars(column.counts, *ends)
    )
    return ColumnProfile(
        **common,
        mean=float(survey.moments.mean[j]) if learnable else None,
        deviation=float(survey.moments.deviation[j]) if learnable else None,
        quantiles=tuple(float(x) for x in (low, tail, first, median, third, high, quantiles[8])),
        outliers=round(outside * count),
        edges=edges,
        bars=bars,
        drift=_drift(ranks, j),
        timeline=_timeline(ranks, j),
    )


def _others(survey: Survey, name: str, column: Column) -> ColumnProfile:
    common = _common(survey, name, column)
    known = survey.rows - column.null
    shortest, total, longest = column.lengths or (None, 0, None)
    return ColumnProfile(
        **common,
        **_special(survey, name, column),
        shortest=shortest,
        longest=longest,
        length=total / known if column.lengths and known else None,
        first=None if column.low is None else str(column.low),
        last=None if column.high is None else str(column.high),
    )


def _formats(survey: Survey, column: Column) -> tuple[str, ...]:
    return certain_formats(column.dates or {}, survey.rows - column.null)


def _special(survey: Survey, name: str, column: Column) -> dict[str, Any]:
    best = reading(
        column.notations,
        survey.rows - column.null,
        column.numbers,
        column.words,
        null_values=survey.null_values,
        decimal=survey.decimal,
    )
    if formats := _formats(survey, column):
        return {"date_formats": formats}
    if best is None and column.time_kind:
        known = survey.rows - column.null
        times = reading((), known, column.moments, column.words, null_values=survey.null_values)
        return {"time_kind": column.time_kind, "but": times.but} if times and times.but else {}
    if best is None or (best.plain and column.padded):
        return {}
    if best.notation is None:
        return {"reads": True, "but": best.but}
    return {
        "special": best.notation.words,
        "reader": best.read(name),
        "decimal_comma": survey.null_values and best.notation is DECIMAL_COMMA,
        "but": best.but,
    }


def _common(survey: Survey, name: str, column: Column) -> dict[str, Any]:
    distinct = column.distinct
    figures_common: dict[str, Any] = {
        "name": name,
        "kind": type_name(column.dtype),
        "missing": column.null + column.nan,
        "distinct": 0 if distinct is None else min(distinct.count, survey.rows - column.null),
    }
    if column.counts is not None:
        table = column.counts.tables[0]
        top = [(_text(v), int(n)) for v, n in table.head(TOP).iter_rows()]
        rest = int(table["count"].sum()) - sum(n for _, n in top) if table.height else 0
        figures_common |= {
            "distinct": table.height,
            "exact": True,
            "top": tuple(top),
            "others": rest,
        }
    return figures_common


def _histogram(
    digest: Quantiles, j: int, low: float, high: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if not low < high:
        return (), ()
    edges = np.linspace(low, high, BINS + 1)
    below = digest.below(j, np.concatenate(([np.nextafter(low, -np.inf)], edges[1:])))
    shares = np.diff(below)
    return tuple(edges.tolist()), tuple(np.maximum(shares, 0).tolist())


def _bars(counts: Counts, low: float, high: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the histogram of numbers that are counted individually."""
    if not low < high:
        return (), ()
    table = counts.tables[0]
    values, n = table["value"].cast(pl.Float64).to_numpy(), table["count"].to_numpy()
    bins, ends = BINS, (low, high)
    first, last = math.floor(low), math.ceil(high)
    if last - first < FEW and (values == np.floor(values)).all():
        # As many whole numbers in each bar, or 24 hours in 20 bars have four of twice the height.
        wide = math.ceil((last - first + 1) / (BINS // 2))
        bins = math.ceil((last - first + 1) / wide)
        ends = (first - 0.5, first - 0.5 + bins * wide)
    heights, edges = np.histogram(values, bins, ends, weights=n)
    return tuple(edges.tolist()), tuple((heights / n.sum()).tolist())


def _timeline(ranks: QuantileTables, j: int) -> Timeline:
    low, median, high = (tuple(map(_known, ranks.timeline[:, i, j])) for i in range(3))
    missing = tuple(float(part.missing[j]) / part.rows for part in ranks.slices)
    return Timeline(low=low, median=median, high=high, missing=missing)


def _drift(ranks: QuantileTables, j: int) -> float | None:
    """Return the drift over slices with at least a quarter of the largest slice's rows."""
    if len(ranks.slices) < 2:
        return 0.0
    edges = np.unique(ranks.deciles[:, j])
    whole = _shares(ranks.digest, j, edges)
    most = max(part.rows for part in ranks.slices)
    indexes = [0.0]
    for part, n in zip(ranks.slices, ranks.counts[:, j].tolist(), strict=True):
        if 4 * part.rows < most or n < 100:
            continue
        own = (_shares(part.digest, j, edges) * n + 0.5) / (n + 0.5 * len(whole))
        base = (whole * n + 0.5) / (n + 0.5 * len(whole))
        indexes.append(float(((own - base) * np.log(own / base)).sum()))
    return max(indexes)


def _shares(digest: Quantiles, j: int, edges: Floats) -> Floats:
    below = np.concatenate(([0.0], digest.below(j, edges), [1.0]))
    return np.maximum(np.diff(below), 0.0)


# --------------------------------------------------------------------------------------- sentences


def _of_times(times: TimeProfile, rows: int) -> Iterator[str]:
    if times.late:
        late = counted(times.late, "row is", "rows are")
        yield f"{late} out of order by {times.column}{_percent(times.late, rows)}."
    if times.unknown:
        yield f"{counted(times.unknown, 'row has', 'rows have')} no time in {times.column}."
    if times.step is None:
        return
    step = _duration(times.step)
    if 0 < times.repeated <= 0.1 * rows:
        same = counted(times.repeated, "row has", "rows have")
        yield f"{same} a time in {times.column} that an earlier row had."
    elif times.repeated:
        each = rows / max(1, rows - times.repeated)
        yield f"Several rows share a time in {times.column}, {each:.1f} on average."
    if times.off:
        yield f"{counted(times.off, 'row lies', 'rows lie')} between two steps of {step}."
    if times.missing:
        longest = ", ".join(f"{n:,} from {at}" for at, n in times.gaps[:3])
        yield (
            f"{times.missing:,} of {counted(times.steps, 'step')} of {step} "
            f"{'has' if times.missing == 1 else 'have'} no row; the longest gaps: "
            f"{longest}."
        )


def _of_columns(
    columns: Sequence[ColumnProfile], rows: int, commas: Sequence[ColumnProfile]
) -> Iterator[str]:
    """Return one sentence per kind of problem, the worst columns first."""
    void = [c for c in columns if c.missing == rows]
    if void:
        yield "No value at all in " + _listed(void, lambda c: repr(c.name))
    lacking = sorted((c for c in columns if 0 < c.missing < rows), key=lambda c: -c.missing)
    if lacking:
        yield "Values are missing in " + _listed(
            lacking,
            lambda c: f"{c.name!r} ({counted(c.missing, 'row')}{_percent(c.missing, rows)})",
        )
    infinite = sorted((c for c in columns if c.infinite), key=lambda c: -c.infinite)
    if infinite:
        yield "Numbers are infinite in " + _listed(
            infinite, lambda c: f"{c.name!r} ({counted(c.infinite, 'row')})"
        )
    large = sorted((c for c in columns if c.too_large), key=lambda c: -c.too_large)
    if large:
        yield f"Numbers are too large to learn from, {MAX_ABS:g} or more, in " + _listed(
            large, lambda c: f"{c.name!r} ({counted(c.too_large, 'row')})"
        )
    constant = [c for c in columns if c.exact and c.distinct == 1 and rows > 1]
    if constant:
        yield "Always the same value in " + _listed(
            constant, lambda c: f"{c.name!r} ({c.top[0][0]})"
        )
    yield from _of_texts(columns, commas)
    keys = [c for c in columns if c.key(rows)]
    if keys:
        yield "Numbers that name things instead of measuring them, in " + _listed(
            keys, lambda c: f"{c.name!r} ({c.key(rows)})"
        )
    far = [c for c in columns if c.outliers >= max(1, 0.001 * rows)]
    if far:
        yield (
            f"Values lie more than {FENCE:g} quartile distances beyond the quartiles in "
            + _listed(
                sorted(far, key=lambda c: -c.outliers),
                lambda c: f"{c.name!r} (about {c.outliers:,}{_percent(c.outliers, rows)})",
            )
        )
    moving = [c for c in columns if (c.drift or 0) > DRIFT]
    if moving:
        yield "Values drift over the stream in " + _listed(
            sorted(moving, key=lambda c: -(c.drift or 0)),
            lambda c: f"{c.name!r} (stability index {c.drift:.2f})",
        )


def _of_texts(columns: Sequence[ColumnProfile], commas: Sequence[ColumnProfile]) -> Iterator[str]:
    """Return one sentence per kind of text that means numbers or truth values."""
    numbers = [c for c in columns if c.reads]
    if numbers:
        yield "Text that reads as numbers, to be declared so in [source.schema], in " + _listed(
            numbers, lambda c: f"{c.name!r}{c.but}"
        )
    for kind in ("datetime", "date"):
        if those := [c for c in columns if c.time_kind == kind]:
            yield f"Text that reads as {kind}, to be declared so in [source.schema], in " + _listed(
                those, lambda c: f"{c.name!r}{c.but}"
            )
    if dates := [c for c in columns if c.date_formats]:
        yield "Text that reads as dates, for a 'derive' stage to read, in " + _listed(
            dates, lambda c: f"{c.name!r} ({' or '.join(c.date_formats)})"
        )
    if commas:
        yield 'Numbers with a decimal comma, which [source] decimal = "," reads, in ' + _listed(
            commas, lambda c: f"{c.name!r}{c.but}"
        )
    special = [c for c in columns if c.special and c not in commas]
    if special:
        yield (
            "Text that writes numbers as no cast reads them, for a 'derive' stage to read, in "
            + _listed(special, lambda c: f"{c.name!r} ({c.special}{c.but})")
        )
    yield from _of_truths(columns)


def _of_truths(columns: Sequence[ColumnProfile]) -> Iterator[str]:
    truths = {c.name: pair for c in columns if (pair := _truth(c)) is not None}
    if truths:
        name, (yes, no) = next(iter(truths.items()))
        yield (
            f"Text that says true and false, in "
            f"{', '.join(map(repr, list(truths)[:MAX_COLUMNS_NAMED]))} "
            f"({yes!r}, {no!r}): as it is for a 'categories' stage or as [model] classes; a number "
            f"by a 'derive' stage, {name} = \"CASE WHEN {name} = '{yes}' THEN 1 ELSE 0 END\"."
        )


def _truth(column: ColumnProfile) -> tuple[str, str] | None:
    known = column.kind == "string" and column.exact and not column.others
    return truth({value for value, _ in column.top}) if known else None


def _listed(columns: Sequence[ColumnProfile], say: Callable[[ColumnProfile], str]) -> str:
    """Name the first few, count the others."""
    names = ", ".join(map(say, columns[:MAX_COLUMNS_NAMED]))
    rest = len(columns) - MAX_COLUMNS_NAMED
    more = counted(rest, "more column")
    return f"{names} and {more}." if rest > 0 else f"{names}."


def _percent(n: int, of: int) -> str:
    return f", {n / of:.1%}" if n >= 0.001 * of else ""


def _of_classes(findings: Findings) -> Iterator[str]:
    for column in classes(findings):
        if findings.target not in (None, column.name):
            continue
        value, n = column.top[-1]
        known = findings.rows - column.missing
        if n < RARE * known / column.distinct:
            yield (
                f"The values of '{column.name}' are unbalanced: {value!r} is that of "
                f"{counted(n, 'row')} only, 1 in {known / n:,.0f}."
            )


def classes(findings: Findings) -> list[ColumnProfile]:
    """Return columns whose values may be classes: the target, or those with 2 to 10 integer
    values."""
    return [
        column
        for column in findings.columns
        if column.exact
        and 2 <= column.distinct <= min(MAX_CLASSES, len(column.top))
        and (column.name == findings.target or not column.kind.startswith(("float", "dec")))
    ]


def _of_pairs(findings: Findings) -> Iterator[str]:
    names, rows = findings.related
    pairs = [
        (abs(r), names[i], names[j], r)
        for i, row in enumerate(rows)
        for j, r in enumerate(row[:i])
        if r is not None and abs(r) >= STRONG
    ]
    for _, a, b, r in sorted(pairs, reverse=True)[:TOP]:
        yield f"Columns '{b}' and '{a}' say nearly the same: correlation {r:.2f}."
    if len(pairs) > TOP:
        yield f"So do {len(pairs) - TOP:,} more pairs."


def _duration(seconds: float) -> str:
    for unit, size in (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1)):
        if seconds >= size and seconds % size == 0:
            n = int(seconds // size)
            return f"one {unit}" if n == 1 else f"{n} {unit}s"
    return f"{seconds:g} s"


def _known(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None


def _text(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


__all__ = [
    "BINS",
    "DRIFT",
    "ColumnProfile",
    "Findings",
    "TimeProfile",
    "Timeline",
    "classes",
    "column_profiles",
    "left_out",
    "moment",
    "related",
    "sentences",
    "times",
]
