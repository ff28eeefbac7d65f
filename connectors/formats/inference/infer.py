"""Infers the types of undeclared columns, with the casts that will read them.

A guess is what every value seen so far can be read as, and no more: a whole number only where its
text can be had back from it ("01234" is text), a time only where the cast takes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.exceptions import PolarsError

from connectors.formats.kernels.paths import JsonShape, PathStep, parse_path, value_at
from connectors.formats.values.casts import (
    BOOLEAN_WORDS,
    Coerce,
    cast,
    may_be_another,
    swap_points_and_commas,
)
from connectors.formats.walks import json_scan
from engine.types import RESERVED, Schema, Unit, element_type, is_deep

NULL_WORDS = (
    "NA", "N/A", "n/a", "#N/A", "NULL", "Null", "null", "None", "none", "-", "--", "?", ".", "\\N",
)  # fmt: skip
"""Words that often stand for a missing value among numbers or times."""
MAX_COLUMNS = 10_000
"""The most columns whose types are guessed: more are data in place of names."""
FIRST = 64
"""The values of a column that a type is tried with before all are."""
CURRENCY = "(?:[\u20ac$\u00a3\u00a5]|EUR|USD|GBP|CHF|JPY)"
OTHER_NUMBER = (
    rf"^[+-]?(?:{CURRENCY}\s*)?[+-]?\d{{1,3}}([.,' \u00a0\u202f]?\d{{3}})*([.,]\d+)?"
    rf"(?:\s*(?:%|{CURRENCY}))?$"
)
"""A number in any notation, perhaps a price or in percent."""
GROUPED = r"^[+-]?([1-9]\d{0,2}(\.\d{3})+|\d{1,3})$"
"""A whole number with points between thousands."""
ODD_SHARE = 0.1
"""The share of values up to which those that keep a column text are told: most likely they are
mistakes, or words for a missing value."""
NEWLINE = 10
NUMBERS = {int, float}
PADDED = r"^[+-]?0\d"
"""A number whose leading zeros or sign show that it is an identifier."""
DIGITS = r"^[+-]?\d+$"
WHOLE = re.compile(r"-?[0-9]+")
DATED = r"^\d{4}-\d\d-\d\d"
INTEGERS = (pl.Int64(), pl.UInt64())
MOMENTS = (pl.Date(), pl.Datetime("us"))
NANOSECONDS = r"[.,]\d{6}\d*[1-9]"
"""A fraction of a second that microseconds do not hold."""
NOTHING_YET = pl.Null()
UNITS: tuple[Unit, ...] = ("ms", "us", "ns")
RANGES: dict[pl.DataType, tuple[int, int]] = {
    pl.Int8(): (-(1 << 7), 1 << 7),
    pl.UInt8(): (0, 1 << 8),
    pl.Int16(): (-(1 << 15), 1 << 15),
    pl.UInt16(): (0, 1 << 16),
    pl.Int32(): (-(1 << 31), 1 << 31),
    pl.UInt32(): (0, 1 << 32),
    pl.Int64(): (-(1 << 63), 1 << 63),
    pl.UInt64(): (0, 1 << 64),
}
"""The ranges of integer types, the narrowest first: from, and below."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OddValues:
    """The values that make a column text: a few, or numbers in another notation.

    Attributes:
        value: the first of them.
        count: how many they are.
        seen: of so many.
        dtype: the type of the others.
        numbers: whether they are numbers in a notation that no cast reads.
    """

    value: str
    count: int
    seen: int
    dtype: pl.DataType
    numbers: bool = False

    @property
    def few(self) -> bool:
        """Whether most of the values are of another type."""
        return self.count <= ODD_SHARE * self.seen

    @property
    def commas(self) -> bool:
        """Whether the first of them is a number that certainly has a decimal comma."""
        return bool(re.fullmatch(r"[+-]?\d+,(\d{1,2}|\d{4,})|[+-]?0,\d+", self.value))


def odd_values(
    values: pl.Series,
    seen: int = 0,
    before: pl.DataType = NOTHING_YET,
    decimal: str = ".",
) -> OddValues | None:
    """Return the values that make these texts, none of them null, text, if they are few, or
    numbers in another notation.

    Args:
        seen: the values before these, which were all of one type.
        before: that type.
        decimal: the decimal point of numbers.
    """
    total = seen + len(values)
    for dtype in (pl.Float64(), *MOMENTS):
        swapped = decimal == "," and dtype.is_numeric()
        read = swap_points_and_commas(values) if swapped else values
        fits = cast(read, dtype, "lossless", written=True).is_not_null()
        odd = values.filter(~fits)
        if not len(odd):
            continue
        others = common_type(before, infer_type(values.filter(fits), decimal))
        of_numbers = dtype.is_numeric() and (others.is_numeric() or others == pl.Null)
        numbers = of_numbers and _are_numbers(odd)
        if numbers or (len(odd) <= ODD_SHARE * total and others not in (pl.String, pl.Null)):
            return OddValues(
                value=odd[0], count=len(odd), seen=total, dtype=others, numbers=numbers
            )
    return None


def _are_numbers(values: pl.Series) -> bool:
    """Return whether these are numbers in any notation, and no identifiers."""
    return bool(values.str.contains(OTHER_NUMBER).all() and not values.str.contains(PADDED).any())


@dataclass(slots=True, kw_only=True)
class ColumnEvidence:
    """What the values of one column have in common so far.

    Attributes:
        decimal: the decimal point of its numbers.
        dtype: the type of all of them; Null while there is none.
        without: the same of those that are none of `NULL_WORDS`.
        words: those of `NULL_WORDS` that were among them.
        seen: how many values were looked at before it was text.
        odd: the few that made it text.
        pointed: its first value with a point, empty without one.
        grouped: whether each value may be a whole number, with points between thousands.
    """

    decimal: str = "."
    dtype: pl.DataType = field(default_factory=pl.Null)
    without: pl.DataType = field(default_factory=pl.Null)
    words: set[str] = field(default_factory=set)
    seen: int = 0
    odd: OddValues | None = None
    pointed: str = ""
    grouped: bool = True

    def add(self, column: pl.Series) -> None:
        """Add values, as text."""
        if self.dtype == pl.String and self.without == pl.String:
            return
        values = column.drop_nulls().str.strip_chars()
        inferred = infer_type(values, self.decimal)
        self.dtype = common_type(self.dtype, inferred)
        if inferred == pl.String:
            missing = values.is_in(NULL_WORDS)
            self.words.update(values.filter(missing).unique())
            values = values.filter(~missing)
            inferred = infer_type(values, self.decimal) if missing.any() else inferred
            if inferred == pl.String and self.without != pl.String:
                self.odd = odd_values(values, self.seen, self.without, self.decimal)
        self.seen += len(values)
        self.without = common_type(self.without, inferred)
        self._look_for_groups(values)

    def _look_for_groups(self, values: pl.Series) -> None:
        if self.decimal == "," or not (self.without.is_numeric() or self.without == NOTHING_YET):
            self.grouped = False
        self.grouped = self.grouped and bool(values.str.contains(GROUPED).all())
        if self.grouped and not self.pointed:
            pointed = values.filter(values.str.contains(".", literal=True))
            self.pointed = pointed[0] if len(pointed) else ""

    def is_text(self, null_values: Collection[str]) -> bool:
        """Return whether it stays text (or has no value) with these words as null."""
        return self.without in (pl.String, pl.Null) or not self.words <= set(null_values)


class TypeInference:
    """Infers the types of text columns as more of their rows are seen.

    Attributes:
        decimal: the decimal point of their numbers.
    """

    def __init__(self, decimal: str = ".") -> None:
        self.decimal = decimal
        self._columns: dict[str, ColumnEvidence] = {}

    def add(self, frame: pl.DataFrame) -> None:
        """Add rows, all columns as text; columns may be missing."""
        for column in frame.columns:
            if column not in RESERVED:
                evidence = self._columns.setdefault(column, ColumnEvidence(decimal=self.decimal))
                evidence.add(frame.get_column(column))

    @property
    def null_values(self) -> tuple[str, ...]:
        """Return the words that stand for a missing value: they alone keep a column from being
        numbers or times, and occur in no text column."""
        columns = [c for c in self._columns.values() if c.words]
        words_found = {word for column in columns for word in column.words}
        while text := [c for c in columns if c.is_text(words_found) and c.words & words_found]:
            words_found = words_found.difference(*(column.words for column in text))
        return tuple(word for word in NULL_WORDS if word in words_found)

    @property
    def blank(self) -> list[str]:
        """Return the columns without any value."""
        return [column for column, types in self._columns.items() if types.dtype == pl.Null]

    @property
    def odd(self) -> dict[str, OddValues]:
        """Return column -> the few values that make it text, if any."""
        return {column: evidence.odd for column, evidence in self._columns.items() if evidence.odd}

    @property
    def grouped(self) -> dict[str, str]:
        """Return column -> its first value with a point, where every point may stand between
        thousands."""
        return {
            column: evidence.pointed
            for column, evidence in self._columns.items()
            if evidence.grouped and evidence.pointed
        }

    @property
    def words(self) -> dict[str, set[str]]:
        """Return column -> its values among `NULL_WORDS`, if any."""
        return {
            column: evidence.words for column, evidence in self._columns.items() if evidence.words
        }

    def schema(self, null_values: Iterable[str] = ()) -> Schema:
        """Return the types with these words as null; text for a column without values."""
        known = set(null_values)
        types: Schema = {}
        for column, evidence in self._columns.items():
            dtype = evidence.without if evidence.words <= known else evidence.dtype
            types[column] = pl.String() if dtype == pl.Null else dtype
        return types


def infer_type(values: pl.Series, decimal: str = ".") -> pl.DataType:
    """Return the type of these texts, none of them null; Null without any."""
    if not len(values):
        return pl.Null()
    if decimal == ",":
        number = infer_type(swap_points_and_commas(values))
        other = number if number.is_numeric() else infer_type(values)
        return pl.String() if other.is_numeric() and other != number else other
    first = values[
        0
    ]  # which rules out most types at no cost, as each file has thousands of columns
    if first.strip().lower() in BOOLEAN_WORDS and _all(values, pl.Boolean(), strict=True):
        return pl.Boolean()
    for integer in INTEGERS if WHOLE.fullmatch(first) else ():
        if _same_text(values.head(FIRST), integer) and _same_text(values, integer):
            return integer
    if _all(values, pl.Float64()) and _are_floats(values):
        return pl.Float64()
    return _moment(values, MOMENTS)


def _moment(texts: pl.Series, kinds: Iterable[pl.DataType]) -> pl.DataType:
    """Return the first of these types of moments that accepts all texts, in nanoseconds where they
    have some; text if none does."""
    found = next((dtype for dtype in kinds if _all(texts, dtype)), pl.String())
    if isinstance(found, pl.Datetime) and texts.str.contains(NANOSECONDS).any():
        return pl.Datetime("ns") if _all(texts, pl.Datetime("ns")) else found
    return found


def _all(values: pl.Series, dtype: pl.DataType, *, strict: bool = False) -> bool:
    """Return whether the cast accepts every one."""
    coerce: Coerce = "strict" if strict else "lossless"
    parts = (values.head(FIRST), values) if len(values) > 4 * FIRST else (values,)
    return all(cast(part, dtype, coerce, written=True).null_count() == 0 for part in parts)


def _same_text(values: pl.Series, integer: pl.DataType) -> bool:
    """Return whether every text equals the number it stands for, written out."""
    return bool(values.cast(integer, strict=False).cast(pl.String).eq_missing(values).all())


def _are_floats(values: pl.Series) -> bool:
    """Return whether they are floats, not ids of digits only; at least one has a digit."""
    digits = values.str.contains(r"\d")
    ids = values.str.contains(DIGITS)
    return bool(digits.any() and not ids.all() and not values.str.contains(PADDED).any())


class JsonTypeInference:
    """Infers the types of the keys of JSON objects as more of them are seen.

    Args:
        paths: column -> where its value is; one that leads to no value has no type.

    Attributes:
        schema: the types so far.
        odd: column -> the few values that make it text, if any.
    """

    def __init__(self, paths: Mapping[str, str]) -> None:
        self._paths = paths
        self._seen = 0
        self.schema: Schema = {}
        self.odd: dict[str, OddValues] = {}

    def add(self, lines: bytes) -> Schema:
        """Add objects, one per line; return the types of these alone."""
        objects = JsonColumns(lines, self._paths)
        for name, (steps, column) in objects.columns.items():
            before = self.schema.get(name, NOTHING_YET)
            if column.dtype == pl.String and before != pl.String:
                few = odd_values(column.drop_nulls(), self._seen, before)
                if (
                    few
                    and few.dtype.is_numeric()
                    and (before != NOTHING_YET or objects.has_number(steps))
                ):
                    self.odd[name] = few
        types = objects.types()
        self.schema = common_schema(self.schema, types)
        self._seen += lines.count(b"\n")
        return types


def infer_json_types(lines: bytes, paths: Mapping[str, str] | None = None) -> Schema:
    """Infer the types of the keys of JSON objects, one per line; text for a key with values of
    several kinds, or nested too deep. Lines no reader accepts (not an object, a duplicate key,
    half of a surrogate pair) do not count, but a key that only they have is a column.

    Args:
        paths: column -> where its value is; one that leads to no value here has no type.
    """
    return JsonColumns(lines, paths or {}).types()


class TooManyColumns(ValueError):
    """So many columns that their types are not guessed; it has their number."""


class JsonColumns:
    """The columns of JSON objects, one per line, in types that hold all their values.

    Args:
        paths: see `infer_json_types`.

    Attributes:
        columns: column -> the path to its value, and the values.

    Raises: TooManyColumns.
    """

    def __init__(self, lines: bytes, paths: Mapping[str, str]) -> None:
        bounds, verdicts = _judged(lines)
        data = np.frombuffer(lines, np.uint8)
        good = (verdicts < json_scan.BROKEN) & ~json_scan.halved_pairs(data, bounds)
        self._objects = _objects(lines, bounds, verdicts, good)
        frame = _inferred(self._objects)
        if frame.width > MAX_COLUMNS:
            raise TooManyColumns(frame.width)
        again = json_scan.twice(data, bounds, frame.columns) & good
        if again.any():
            self._objects = _objects(lines, bounds, verdicts, good & ~again)
            frame = _inferred(self._objects)
        refused = (verdicts < json_scan.BROKEN) & (~good | again)
        odd = _inferred(_objects(lines, bounds, verdicts, refused))
        self._refused = odd.drop(frame.columns, strict=False)
        self.columns: dict[str, tuple[tuple[PathStep, ...], pl.Series]] = {
            column.name: ((column.name,), column) for column in frame.get_columns()
        }
        for name, path in paths.items():
            self.columns.pop(name, None)
            steps = parse_path(path, name)
            with suppress(PolarsError):  # it leads to nothing
                self.columns[name] = steps, frame.select(value_at(steps).alias(name)).to_series()

    def types(self) -> Schema:
        """Return the types of the columns, after those that only refused lines have."""
        types = {
            name: pl.String() if self._is_another(steps, column) else _resolved_type(column)
            for name, (steps, column) in self.columns.items()
        }
        return {**{c.name: _resolved_type(c) for c in self._refused.get_columns()}, **types}

    def has_number(self, steps: tuple[PathStep, ...]) -> bool:
        """Return whether one of the first values at a path is a number, not text with one."""
        rows = (_object(line) for line in islice(self._objects.splitlines(), FIRST))
        return any(type(_at(row, steps)) in NUMBERS for row in rows)

    def _is_another(self, steps: tuple[PathStep, ...], column: pl.Series) -> bool:
        """Return whether integers among fractions exceed float64: then their text counts."""
        if column.dtype != pl.Float64 or not may_be_another(column):
            return False
        rows = (_object(line, number=str) for line in self._objects.splitlines())
        texts = [_at(row, steps) for row in rows]
        words = pl.Series([text for text in texts if isinstance(text, str)], dtype=pl.String())
        return cast(words, pl.Float64()).null_count() > 0


def _objects(
    lines: bytes, bounds: NDArray[np.int64], verdicts: NDArray[np.int64], good: NDArray[np.bool_]
) -> bytes:
    """Return the good lines, without what is nested too deep."""
    shallow = b"".join(lines[a:b] for a, b in _runs(good & (verdicts < json_scan.DEEP), bounds))
    deep = np.flatnonzero(good & (verdicts == json_scan.DEEP)).tolist()
    return shallow + b"".join(_shallow(lines[bounds[i] : bounds[i + 1]]) for i in deep)


def _inferred(objects: bytes) -> pl.DataFrame:
    """Return the objects in types that hold all their values."""
    if not objects:
        return pl.DataFrame()
    try:
        return pl.read_ndjson(objects, infer_schema_length=None)
    except PolarsError:  # values of several kinds under one key
        return _by_key(objects)


def _at(value: Any, steps: tuple[PathStep, ...]) -> Any:
    """Return the value at a path of an object; None if a step is missing."""
    for step in steps:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def spans_lines(lines: bytes) -> bool:
    """Return whether these are lines of JSON objects that span several lines: the first begins a
    list, or begins an object and none is complete."""
    first = lines.lstrip().partition(b"\n")[0].rstrip()
    _, verdicts = _judged(lines)
    return first == b"[" or bool((verdicts >= json_scan.BROKEN).all() and first[:1] == b"{")


def split_broken(lines: bytes) -> tuple[bytes, pl.DataFrame]:
    """Return the lines that are JSON objects, and the others: ``number`` (from 1), ``why`` and
    ``text``."""
    bounds, verdicts = _judged(lines)
    data = np.frombuffer(lines, np.uint8)
    good = verdicts < json_scan.BROKEN
    kept = b"".join(lines[a:b] for a, b in _runs(good, bounds))
    at = np.flatnonzero(~good)
    scanned = json_scan.Tree(JsonShape.of({}, {})).scan(data, bounds)
    texts = [lines[bounds[i] : bounds[i + 1]].decode("utf-8", "replace").rstrip() for i in at]
    columns = {"number": at + 1, "text": pl.Series(texts, dtype=pl.String)}
    return kept, pl.DataFrame(columns).with_columns(
        why=json_scan.words(data, bounds[:-1], scanned, at)
    )


def _judged(lines: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where lines begin and end, and their verdicts from
    `connectors.formats.walks.json_scan`."""
    data = np.frombuffer(lines, np.uint8)
    bounds = np.concatenate([[0], np.flatnonzero(data == NEWLINE) + 1]).astype(np.int64)
    if bounds[-1] < len(data):
        bounds = np.append(bounds, len(data))
    return bounds, json_scan.Tree(JsonShape.of({}, {})).scan(data, bounds).verdicts


def _runs(keep: NDArray[np.bool_], bounds: NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Return runs of adjacent lines to keep: from, to."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], keep, [False]]).astype(np.int8)))
    for first, end in edges.reshape(-1, 2).tolist():
        yield int(bounds[first]), int(bounds[end])


def _by_key(lines: bytes) -> pl.DataFrame:
    """Return each key's values separately: of several kinds, they are text."""
    rows = [row for line in lines.splitlines() if (row := _object(line)) is not None]
    column_types = {}
    for key in dict.fromkeys(key for row in rows for key in row if _is_text(key)):
        values = [row.get(key) for row in rows]
        texts = [None if value is None else "" for value in values]
        types = {type(value) for value in values if value is not None}
        try:
            if types == NUMBERS:
                values = [None if value is None else float(value) for value in values]
            plain = types == NUMBERS or (len(types) == 1 and types != {str})
            column_types[key] = pl.Series(key, values if plain else texts)
        except (PolarsError, TypeError, OverflowError, UnicodeEncodeError):
            column_types[key] = pl.Series(key, texts)
    return pl.DataFrame(column_types)


def _shallow(line: bytes) -> bytes:
    """Return the object with text in place of lists and objects; nothing if it is not an object."""
    row = _object(line)
    if row is None:
        return b""
    flat = {key: "" if isinstance(value, list | dict) else value for key, value in row.items()}
    return json.dumps(flat).encode() + b"\n"


def _is_text(key: str) -> bool:
    """Return whether it has no half of a surrogate pair."""
    return not any("\ud800" <= sign <= "\udfff" for sign in key)


def _object(line: bytes, number: Callable[[str], Any] | None = None) -> dict[str, Any] | None:
    try:
        row = json.loads(line, parse_int=number, parse_float=number)
    except (ValueError, RecursionError):  # objects in objects, beyond all measure
        return None
    return row if isinstance(row, dict) else None


def _resolved_type(column: pl.Series) -> pl.DataType:
    """Return a declarable type: 128-bit integers become 64-bit ones if they fit."""
    if column.dtype == pl.Int128:
        fits = column.is_between(0, (1 << 64) - 1).all()
        return pl.UInt64() if fits else pl.String()
    if column.dtype == pl.String:
        return _json_moment(column.drop_nulls())
    return pl.String() if is_deep(column.dtype) else _without_null(column.dtype)


def _json_moment(texts: pl.Series) -> pl.DataType:
    """Return the type of JSON text: a time, if every text is an ISO 8601 time. A number written
    as text is text."""
    dated = bool(len(texts)) and bool(texts.head(FIRST).str.contains(DATED).all())
    if not dated or not texts.str.contains(DATED).all():
        return pl.String()
    # Midnights are dates too, but whoever writes the time has other times.
    kinds = MOMENTS if texts.str.contains(DATED + r"\s*$").all() else MOMENTS[1:]
    return _moment(texts, kinds)


def _without_null(dtype: pl.DataType) -> pl.DataType:
    """Return text for a column without values, so that later ones may be of any type."""
    if isinstance(dtype, pl.List):
        return pl.List(_without_null(element_type(dtype)))
    if isinstance(dtype, pl.Struct):
        fields = dtype.to_schema()
        fields_out = {c: _without_null(field_type) for c, field_type in fields.items()}  # type: ignore[arg-type]
        return pl.Struct(fields_out) if fields_out else pl.String()
    return pl.String() if dtype == pl.Int128 else dtype


def common_type(a: pl.DataType, b: pl.DataType) -> pl.DataType:
    """Return the narrowest type that holds the values of both; text without another."""
    if a == b or b == pl.Null:
        return a
    if a == pl.Null:
        return b
    if a.is_integer() and b.is_integer():
        return _common_integer(a, b)
    if isinstance(a, pl.Decimal) and isinstance(b, pl.Decimal):
        return _common_decimal(a, b)
    for first, other in ((a, b), (b, a)):
        if isinstance(first, pl.Decimal) and other.is_integer():
            return _common_decimal(first, pl.Decimal(20, 0))
        if isinstance(first, pl.Datetime) and other == pl.Date:
            return first
    if a.is_numeric() and b.is_numeric():
        return pl.Float64()
    if isinstance(a, pl.Datetime) and isinstance(b, pl.Datetime):
        unit = _finer(a.time_unit, b.time_unit)
        return pl.Datetime(unit, a.time_zone if a.time_zone == b.time_zone else None)
    if isinstance(a, pl.Duration) and isinstance(b, pl.Duration):
        return pl.Duration(_finer(a.time_unit, b.time_unit))
    if isinstance(a, pl.List) and isinstance(b, pl.List):
        return pl.List(common_type(element_type(a), element_type(b)))
    if isinstance(a, pl.Struct) and isinstance(b, pl.Struct):
        return pl.Struct(common_schema(a.to_schema(), b.to_schema()))  # type: ignore[arg-type]
    return pl.String()


def common_schema(a: Schema, b: Schema) -> Schema:
    """Return the columns of both, in types that hold the values of both."""
    return {**a, **{c: common_type(a.get(c, pl.Null()), dtype) for c, dtype in b.items()}}


def _common_integer(a: pl.DataType, b: pl.DataType) -> pl.DataType:
    if a not in RANGES or b not in RANGES:  # of 128 bits
        return pl.Decimal(38, 0)
    low, high = min(RANGES[a][0], RANGES[b][0]), max(RANGES[a][1], RANGES[b][1])
    fits = (dtype for dtype, (least, end) in RANGES.items() if least <= low and high <= end)
    return next(fits, pl.Decimal(38, 0))


def _common_decimal(a: pl.Decimal, b: pl.Decimal) -> pl.DataType:
    scale = max(a.scale, b.scale)
    whole = max(a.precision - a.scale, b.precision - b.scale)
    return pl.Decimal(min(38, whole + scale), scale)


def _finer(a: Unit, b: Unit) -> Unit:
    return max(a, b, key=UNITS.index)


__all__ = [
    "TypeInference",
    "common_schema",
    "common_type",
    "infer_json_types",
    "infer_type",
    "spans_lines",
]
