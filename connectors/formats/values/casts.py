"""Casts that never lose information silently: a value that does not fit rejects its row, with
the reason.

One rule for all formats. A value is taken where it equals one of the declared type, however it is
written: "12.0" is the integer 12, "true" a bool, 5 the text "5". Integers and decimals are taken by
their digits, never through floats. A number with a point or an exponent becomes the nearest float,
but one written as a whole number, which may be an id, must be had back from it: 9007199254740993 is
no float64, 9007199254740993.0 is rounded. Times are cut to the declared
unit. With ``strict`` a value must be written as what it is declared.
A list is taken where every element is, an object where every field is, by the same rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.exceptions import PolarsError

from connectors.formats.kernels.rows import (
    OUT_OF_RANGE,
    WRONG_TYPE,
    as_json,
    decode_utf8,
    make_rejects,
    preview,
    with_position_columns,
)
from connectors.formats.values import lists
from engine.types import Records, Rejects, Schema, element_type, field_types, type_name

Coerce = Literal["lossless", "strict"]
"""``[source] coerce``."""
BOOLEAN_WORDS = {"true": True, "false": False, "1": True, "0": False}
DAY = "%Y-%m-%d"
MOMENTS = (
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M:%S%.f%#z",
    DAY,
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%dT%H:%M%#z",
    "%Y-%m-%d %H:%M%#z",
)
"""ISO 8601 with dashes and colons, most usual first. Without an offset a time is UTC, whatever
the type's zone; with an offset or Z it is converted to UTC."""
LEAP = ":60"
"""A leap second: no type holds one, and the parser would change it."""
CLOCKS = ("%H:%M:%S%.f", "%H:%M")
SPANS = (
    r"^(?<minus>-?)(?:(?<days>[0-9]+) days?,? )?"
    r"(?<hours>[0-9]+):(?<minutes>[0-9]{2}):(?<seconds>[0-9]{2}(?:\.[0-9]+)?)$",
    r"^(?<minus>-?)P(?:(?<days>[0-9]+)D)?"
    r"(?:T(?:(?<hours>[0-9]+)H)?(?:(?<minutes>[0-9]+)M)?(?:(?<seconds>[0-9]+(?:\.[0-9]+)?)S)?)?$",
)
"""A duration: hours, minutes and seconds (``26:00:03.5``), or ISO 8601 (``P1DT2H3.5S``)."""
NUMBER = (
    r"^(?:\+|(?<minus>-))?(?<whole>[0-9]*)\.?(?<fraction>[0-9]*)"
    r"(?:[eE]\+?(?<power>-?[0-9]+))?$"
)
"""A number as all formats write it, if it has a digit before the exponent."""
A_NUMBER = r"^[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE]\+?-?[0-9]+)?$"
"""The same, with that digit."""
FRACTION = r"^[+-]?[0-9]*\.[0-9]*[1-9][0-9]*$"
EXPONENT = r"[eE]"
SETTLED = rf"^-?[1-9][0-9]*$|{FRACTION}"
"""A number that no other spelling makes an integer of a type that does not hold it as it is."""
PLACES = 80
"""More digits than any type has before or after the point."""
ZEROS = "0" * (PLACES + 1)
INFINITE = r"(?i)inf"
WHOLE_MOST: dict[pl.DataType, int] = {pl.Float64(): 1 << 53, pl.Float32(): 1 << 24}
"""Up to here a float holds every integer; this value may stand for the next one."""
PLAIN = r"^[+-]?[0-9]+$"
BILLION = 1_000_000_000
UNITS = {"ms": 1_000, "us": 1_000_000, "ns": BILLION}
WIDEST: dict[Any, pl.DataType] = {pl.Datetime: pl.Datetime("us"), pl.Duration: pl.Duration("ms")}
"""Types that hold the times and durations that another unit does not."""


def conform(
    frame: pl.DataFrame,
    records: Records,
    schema: Schema,
    at: NDArray[np.int64] | None = None,
    *,
    coerce: Coerce = "lossless",
    written: bool = False,
    decimal: str = ".",
) -> tuple[pl.DataFrame, list[Rejects]]:
    """Return every column in the schema's type, with reserved columns; rows with a value that
    does not fit as rejects.

    Args:
        frame: raw columns, one row for each of the records `at` (None: all).
        written: the format writes every value as text (CSV), so text may be of any type.
        decimal: the decimal point of numbers in text.
    """
    at = np.arange(len(records)) if at is None else at
    raw = frame
    if decimal == ",":
        numbers = [c for c, t in schema.items() if t.is_numeric() and frame.schema[c] == pl.String]
        raw = frame.with_columns(swap_points_and_commas(frame.get_column(c)) for c in numbers)
    converted = pl.DataFrame(
        [cast(raw.get_column(c), dtype, coerce, written=written) for c, dtype in schema.items()]
    )
    good = np.ones(frame.height, np.bool_)
    rejects: list[Rejects] = []
    for column, dtype in schema.items():
        lost = _lost(frame.get_column(column), converted.get_column(column)) & good
        if lost.any():
            read = raw.get_column(column)
            rejects += _misfits(frame, read, records, at, dtype, np.flatnonzero(lost))
            good &= ~lost
    if good.all():
        return with_position_columns(converted, records, at), rejects
    return with_position_columns(converted.filter(pl.Series(good)), records, at[good]), rejects


def swap_points_and_commas(texts: pl.Series) -> pl.Series:
    """Swap points and commas, so that 1,234 is a number and 1.234 is not."""
    return texts.str.replace_many([",", "."], [".", ","])


def cast(
    column: pl.Series,
    dtype: pl.DataType,
    coerce: Coerce = "lossless",
    *,
    written: bool = False,
) -> pl.Series:
    """Return the column in another type; null if a value does not fit.

    A fraction becomes the nearest float, which is no loss; a finite number that becomes infinite is
    one, and a whole number that becomes another. Times are cut to the unit.
    """
    if column.dtype == dtype:
        return column
    if isinstance(column.dtype, pl.Categorical | pl.Enum):
        column = column.cast(pl.String)
    strict = coerce == "strict"
    if strict and not written and not _akin(column.dtype, dtype):
        return nothing(column, dtype)
    if column.dtype.is_nested() and not dtype.is_nested():
        return nothing(column, dtype)
    if isinstance(dtype, pl.List) and isinstance(column.dtype, pl.List | pl.Array):
        elements = lists.of_column(column)
        return elements.to_lists(cast(elements.values, element_type(dtype), coerce), column.name)
    try:
        if column.dtype == pl.String:
            return _from_text(column, dtype, strict).alias(column.name)
        return _from_values(column, dtype).alias(column.name)
    except PolarsError:  # types with no way between them
        return nothing(column, dtype)


def nothing(column: pl.Series, dtype: pl.DataType) -> pl.Series:
    """Return nulls of a type, as many as the column has values."""
    return pl.Series(column.name, [None], dtype=dtype).new_from_index(0, len(column))


def _akin(source: pl.DataType, target: pl.DataType) -> bool:
    """Return whether values of one type are values of the other as written."""
    return source == pl.Null or (
        _family(source) == _family(target)
        or (source.is_integer() and (target.is_float() or target.is_decimal()))
    )


def _family(dtype: pl.DataType) -> str:
    if dtype.is_integer():
        return "integer"
    if dtype.is_numeric():
        return "number"
    if dtype in (pl.Date, pl.Datetime):
        return "moment"
    return "text" if dtype in (pl.String, pl.Binary) else str(dtype.base_type())


def _lost(raw: pl.Series, result: pl.Series) -> NDArray[np.bool_]:
    if raw.null_count() == result.null_count():
        return np.zeros(len(raw), np.bool_)
    return (raw.is_not_null() & result.is_null()).to_numpy()


def _from_values(column: pl.Series, dtype: pl.DataType) -> pl.Series:
    if column.dtype.is_numeric() and dtype.is_temporal():
        return nothing(column, dtype)  # of which unit?
    if isinstance(column.dtype, pl.Datetime):
        return _from_moments(column, dtype)
    if column.dtype == pl.Date and isinstance(dtype, pl.Datetime):
        return _from_moments(column.cast(pl.Datetime("ms")), dtype)
    if column.dtype == pl.Binary and dtype == pl.String:
        return decode_utf8(column)
    result = column.cast(dtype, strict=False)
    if dtype in (pl.String, pl.Binary, pl.Duration):
        return result
    if dtype.is_float() and not column.dtype.is_integer():
        same = result.is_finite()
        if column.dtype.is_float():
            same |= ~column.is_finite()
    elif dtype.is_float() and not may_be_another(result):
        return result
    else:
        same = result.cast(column.dtype, strict=False).eq_missing(column)
    return result if same.all() else result.set(~same.fill_null(True), None)


def _from_moments(column: pl.Series, dtype: pl.DataType) -> pl.Series:
    """Return times: without a zone they are UTC; with one they become UTC if the type has none."""
    assert isinstance(column.dtype, pl.Datetime)
    if column.dtype.time_zone is not None:
        column = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    if not isinstance(dtype, pl.Datetime):
        result = column.cast(dtype, strict=False)
        if dtype in (pl.String, pl.Binary):
            return result
        same = result.cast(column.dtype, strict=False).eq_missing(column)
        return result if same.all() else result.set(~same, None)
    return _zoned(column.cast(pl.Datetime(dtype.time_unit), strict=False), dtype)


def _zoned(column: pl.Series, dtype: pl.Datetime) -> pl.Series:
    if dtype.time_zone is None:
        return column
    return column.dt.replace_time_zone("UTC").dt.convert_time_zone(dtype.time_zone)


def _from_text(column: pl.Series, dtype: pl.DataType, strict: bool) -> pl.Series:
    if dtype in (pl.String, pl.Binary):
        return column.cast(dtype)
    words = column.str.strip_chars()
    if dtype == pl.Boolean:
        lower = words.str.to_lowercase()
        known = {
            word: value for word, value in BOOLEAN_WORDS.items() if not (strict and word in "01")
        }
        return lower.replace_strict(known, default=None, return_dtype=pl.Boolean)
    if dtype == pl.Date:
        return _days(words)
    if isinstance(dtype, pl.Datetime):
        return _zoned(_moments(words, dtype), dtype)
    if dtype == pl.Time:
        return _first_that_fits(words, dtype, _clock, CLOCKS)
    if isinstance(dtype, pl.Duration):
        return _spans(words, dtype)
    if isinstance(dtype, pl.List):
        elements = lists.parse_lists(words)
        result = _elements(elements.values, elements.tokens, element_type(dtype), strict=strict)
        return elements.to_lists(result, words.name)
    if isinstance(dtype, pl.Struct):
        kinds = field_types(dtype)
        fields = lists.of_objects(words, kinds)
        parts = [
            _elements(*fields.columns[c], kind, strict=strict).alias(c) for c, kind in kinds.items()
        ]
        return fields.to_lists(parts, dtype, words.name)
    if dtype.is_integer() or dtype.is_decimal():
        return _exact(words, dtype, strict)
    result = words.cast(dtype, strict=False)
    if dtype.is_float():
        if (infinite := result.is_infinite()).any():
            overflown = infinite & ~words.str.contains(INFINITE)
            result = result.set(overflown.fill_null(False), None)
        return _had_back(result, words) if may_be_another(result) else result
    return result


def may_be_another(floats: pl.Series) -> bool:
    """Return whether the value may stand for an integer that the type does not hold."""
    most = WHOLE_MOST[floats.dtype]
    ends: list[Any] = [floats.min(), floats.max()]
    return any(end is not None and abs(end) >= most for end in ends)


def _had_back(floats: pl.Series, words: pl.Series) -> pl.Series:
    """Return null where an integer was written, and neither it nor its digits are recovered: of
    1e23, written out, the digits are."""
    at = ((floats.abs() >= WHOLE_MOST[floats.dtype]) & words.str.contains(PLAIN)).arg_true()
    some, written = floats.gather(at), words.gather(at)
    same = some.cast(pl.Int128, strict=False) == written.cast(pl.Int128, strict=False)
    back = some.cast(pl.String).str.replace(r"e.*$", "").str.replace(r"\.0$", "")
    back = back.str.replace(".", "", literal=True).str.strip_chars_end("0")
    digits = written.str.replace(r"^([+]|(-))?0*", "${2}").str.strip_chars_end("0")
    lost = ~(same.fill_null(False) | (back == digits))
    return floats.scatter(at.filter(lost), None) if lost.any() else floats


def _exact(words: pl.Series, dtype: pl.DataType, strict: bool) -> pl.Series:
    """Return integers and decimals equal to the numbers written, by their digits: ``12.0`` and
    ``1e3`` are integers, but not if `strict`."""
    exact = _by_digits(words, dtype)
    at = (exact.is_null() & words.is_not_null()).arg_true()
    if len(at) and dtype.is_integer():
        left = words.gather(at)
        number = left.str.contains(PLAIN if strict else A_NUMBER)
        at = at.filter(number & ~left.str.contains(SETTLED))
    for spelled in (_without_point, _written_out):  # the dearer one for what the other leaves
        if len(at):
            exact = exact.scatter(at, _by_digits(spelled(words.gather(at)), dtype))
            at = at.filter(exact.gather(at).is_null())
    return exact


def _without_point(words: pl.Series) -> pl.Series:
    """Return integers without a point and zeros after it."""
    return words.str.replace(r"\.0*$", "")


def _by_digits(words: pl.Series, dtype: pl.DataType) -> pl.Series:
    """Return numbers without exponents; also null if a decimal has more digits after the point
    than its type, which a cast would round."""
    numbers = words.cast(dtype, strict=False)
    if not isinstance(dtype, pl.Decimal):
        return numbers
    fits = words.str.contains(rf"^[+-]?[0-9]*\.?[0-9]{{0,{dtype.scale}}}0*$")
    return numbers.set(~fits.fill_null(True), None)


def _written_out(words: pl.Series) -> pl.Series:
    """Return numbers without exponents, signs and superfluous zeros: "+1.50e3" is "1500", "-0"
    is "0". Null for what is not a number. A number with an exponent beyond all types becomes
    another such number."""
    groups = words.str.extract_groups(NUMBER).struct.unnest().lazy()
    counted, cut, padded, text = WRITTEN_OUT
    return (
        groups.select(counted).select(cut).with_columns(padded).select(text).collect().to_series()
    )


def _steps_of_writing_out() -> tuple[list[pl.Expr], list[pl.Expr], pl.Expr, pl.Expr]:
    """Return the steps from the groups of `NUMBER` to the text."""
    digits = pl.col("whole") + pl.col("fraction")
    power = pl.col("power").cast(pl.Int64, strict=False)
    huge = pl.when(pl.col("power").str.starts_with("-")).then(-(10**9)).otherwise(10**9)
    power = pl.when(pl.col("power").is_null()).then(0).otherwise(power.fill_null(huge))
    behind = pl.col("fraction").str.len_bytes().cast(pl.Int64)
    counted = [
        pl.col("minus"), digits.str.strip_chars_start("0").alias("digits"),
        (power - behind).alias("power"), (digits != "").alias("digit"),
    ]  # fmt: skip
    short = pl.col("digits").str.strip_chars_end("0")
    more = (pl.col("digits").str.len_bytes() - short.str.len_bytes()).cast(pl.Int64)
    zero = short == ""
    power = pl.when(zero).then(0).otherwise((pl.col("power") + more).clip(-PLACES, PLACES))
    cut = [
        pl.col("digit"), zero.alias("zero"), pl.col("minus"), short.alias("digits"),
        power.alias("power"),
    ]  # fmt: skip
    # As many zeros before the digits, or behind, as put a digit before the point.
    power, size = pl.col("power"), pl.col("digits").str.len_bytes().cast(pl.Int64)
    zeros = pl.lit(ZEROS)
    padded = (
        zeros.str.head((1 - power - size).clip(0))
        + pl.col("digits")
        + zeros.str.head(power.clip(0))
    )
    whole, behind = pl.col("digits").str, (-power).clip(0)
    text = (
        pl.when(pl.col("minus").is_null() | pl.col("zero")).then(pl.lit("")).otherwise("minus")
        + whole.head(whole.len_bytes().cast(pl.Int64) - behind)
        + pl.when(behind > 0).then(pl.lit(".")).otherwise(pl.lit(""))
        + whole.tail(behind)
    )
    return counted, cut, padded.alias("digits"), pl.when("digit").then(text)


WRITTEN_OUT = _steps_of_writing_out()
"""Made once: few values are written out at a time, and making the steps costs more than they do."""


def _days(words: pl.Series) -> pl.Series:
    """Return dates, also if written as midnight UTC."""
    days = words.str.to_date(DAY, strict=False)
    at = (days.is_null() & words.is_not_null()).arg_true()
    if not len(at):
        return days
    return days.scatter(
        at, _from_moments(_moments(words.gather(at), pl.Datetime("us")), days.dtype)
    )


def _moments(words: pl.Series, dtype: pl.Datetime) -> pl.Series:
    def parsed(words: pl.Series, form: str) -> pl.Series:
        parsed_words = words.str.to_datetime(form, time_unit=dtype.time_unit, strict=False)
        if dtype.time_unit == "ns":  # wraps beyond the years that it holds
            coarse = words.str.to_datetime(form, time_unit="us", strict=False)
            parsed_words = parsed_words.set(
                coarse.cast(parsed_words.dtype, strict=False).is_null(), None
            )
        return parsed_words.dt.replace_time_zone(None)  # UTC's, where there was an offset

    moments = _first_that_fits(words, pl.Datetime(dtype.time_unit), parsed, MOMENTS)
    leap = words.str.contains(LEAP, literal=True).fill_null(False)
    return moments.set(leap, None) if leap.any() else moments


def _clock(words: pl.Series, form: str) -> pl.Series:
    return words.str.to_time(form, strict=False)


def _first_that_fits(
    words: pl.Series,
    dtype: pl.DataType,
    parsed: Callable[[pl.Series, str], pl.Series],
    forms: Sequence[str],
) -> pl.Series:
    """Parse each word with the first form that fits. The form of the first word is tried first:
    most columns have one."""
    result = nothing(words, dtype)
    first = words.drop_nulls().head(1)
    if not len(first):
        return result
    usual = next((form for form in forms if parsed(first, form).null_count() == 0), forms[0])
    for form in dict.fromkeys([usual, *forms]):
        result = result.fill_null(parsed(words, form))
        if result.null_count() == words.null_count():
            break
    return result


def _spans(words: pl.Series, dtype: pl.DataType) -> pl.Series:
    """Return durations; see `SPANS`."""
    assert isinstance(dtype, pl.Duration)
    result = nothing(words, dtype)
    for form in SPANS:
        result = result.fill_null(_spans_of(words.str.extract_groups(form).struct.unnest(), dtype))
    return result


def _spans_of(parts: pl.DataFrame, dtype: pl.Duration) -> pl.Series:
    whole = pl.col("seconds").fill_null("0").str.split_exact(".", 1)
    seconds, fraction = (whole.struct.field(f"field_{i}") for i in range(2))
    for column, each in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        seconds = _wide(seconds) + _wide(pl.col(column).fill_null("0")) * each
    unit = UNITS[dtype.time_unit]
    billionths = _wide(fraction.fill_null("0").str.pad_end(9, "0").str.head(9))
    count = seconds * unit + billionths // (BILLION // unit)
    # polars cannot negate one 128-bit value alone.
    signed = pl.when(pl.col("minus") == "-").then(0 - count).otherwise(count)
    matched = pl.col("minus").is_not_null()
    return parts.select(
        pl.when(matched).then(signed.cast(pl.Int64, strict=False)).cast(dtype)
    ).to_series()


def _wide(whole: pl.Expr) -> pl.Expr:
    """Return 64-bit integers with room for sums and products; null for larger ones."""
    return whole.cast(pl.Int64, strict=False).cast(pl.Int128)


def _elements(
    values: pl.Series, tokens: NDArray[np.int8], dtype: pl.DataType, *, strict: bool
) -> pl.Series:
    """Return elements of JSON arrays, or fields of objects, in their type; null if one does not
    fit."""
    result = cast(values, dtype, "strict" if strict else "lossless", written=True)
    wrong = tokens == lists.WORD if not dtype.is_float() else np.zeros(len(tokens), np.bool_)
    if dtype in (pl.String, pl.Binary):
        nested = np.flatnonzero(np.isin(tokens, (lists.ARRAY, lists.OBJECT)))
        if len(nested):
            wrong[nested] = ~lists.are_json(values.gather(nested))
    if strict:
        wrong |= ~np.isin(tokens, written_as(dtype)) & values.is_not_null().to_numpy()
    return result.set(pl.Series(wrong), None) if wrong.any() else result


def written_as(dtype: pl.DataType) -> tuple[int, ...]:
    """Return how JSON writes values of a type."""
    if isinstance(dtype, pl.List):
        return (lists.ARRAY,)
    if isinstance(dtype, pl.Struct):
        return (lists.OBJECT,)
    if dtype.is_float() or dtype.is_decimal():
        return lists.INTEGER, lists.FLOAT
    if dtype.is_integer():
        return (lists.INTEGER,)
    return (lists.BOOL if dtype == pl.Boolean else lists.STRING,)


def _misfits(
    frame: pl.DataFrame,
    read: pl.Series,
    records: Records,
    at: NDArray[np.int64],
    dtype: pl.DataType,
    lost: NDArray[np.int64],
) -> list[Rejects]:
    """Return rows `lost` of the frame, whose value in a column does not fit, split by reason.

    Args:
        read: the column, with points in its numbers.
    """
    column = read.name
    rows = frame.select(pl.all().gather(lost))
    raw = rows.get_column(column)
    value = as_json(rows)
    raw = preview(raw) if raw.dtype == pl.Binary else raw
    raw = raw.dt.to_string("iso") if raw.dtype == pl.Duration else raw
    got = (
        as_json(raw.alias("").to_frame()).str.slice(len('{"":')).str.head(-1)
        if raw.dtype.is_nested()
        else raw.cast(pl.String, strict=False)
    )
    got = got.fill_null("?")
    detail = misfit(got, dtype, column)
    pointed_texts = read.gather(lost).fill_null("?") if read.dtype == pl.String else got
    big = too_big(pointed_texts, dtype)
    rejects = []
    for reason, mask in ((OUT_OF_RANGE, big), (WRONG_TYPE, ~big)):
        if mask.any():
            where = lost[mask.to_numpy()]
            rejects.append(
                make_rejects(records, at[where], reason, detail.filter(mask), value.filter(mask))
            )
    return rejects


def misfit(
    got: pl.Series, dtype: pl.DataType, column: str, written: str | pl.Series = ""
) -> pl.Series:
    """Return the sentence for values that do not fit a column.

    Args:
        written: as what each is written, where that counts.
    """
    return pl.select(
        pl.format("Expected {}, got '{}'{} in column '{}'{}.",
                  pl.lit(type_name(dtype)), got.str.head(80), pl.lit(written), pl.lit(column),
                  pl.lit(_why_not(got, dtype)))
    ).to_series()  # fmt: skip


def _why_not(got: pl.Series, dtype: pl.DataType) -> pl.Series | str:
    """Return the sentence for an integer that no float equals; for each value, or for all."""
    if not dtype.is_float() or not (plain := got.str.contains(PLAIN)).any():
        return ""
    near = got.cast(dtype, strict=False).is_finite().fill_null(False) & plain
    small = got.cast(pl.Int64, strict=False).is_not_null()
    text = f", which no {type_name(dtype)} equals: declare "
    return pl.select(
        pl.when(near & small)
        .then(pl.lit(f"{text}int64 or string"))
        .when(near)
        .then(pl.lit(f"{text}string"))
        .otherwise(pl.lit(""))
    ).to_series()


def too_big(got: pl.Series, dtype: pl.DataType, *, misfits: bool = False) -> pl.Series:
    """Return where the value is a number, a time or a duration beyond the type; for a list, where
    the first element that does not fit is such a value.

    Args:
        misfits: whether `cast` is known to give null for all of them.
    """
    if isinstance(dtype, pl.List):
        elements, inner = lists.parse_lists(got), element_type(dtype)
        lost = _lost(
            elements.values, _elements(elements.values, elements.tokens, inner, strict=False)
        )
        rows, first = np.unique(elements.rows[lost], return_index=True)
        mask = np.zeros(len(got), np.bool_)
        mask[rows] = too_big(elements.values.filter(pl.Series(lost)).gather(first), inner)
        return pl.Series(mask)
    if (wide := WIDEST.get(dtype.base_type())) is not None:
        big = cast(got, wide).is_not_null()
    elif dtype.is_numeric():
        words = got.str.strip_chars()
        big = words.str.contains(A_NUMBER).fill_null(False)
        if dtype.is_integer():  # a fraction is none of any size
            big &= ~words.str.contains(FRACTION).fill_null(False)
            at = (big & words.str.contains(EXPONENT)).arg_true()
            if len(at):
                whole = ~_written_out(words.gather(at)).str.contains(".", literal=True)
                big = big.scatter(at, whole)
    else:
        return pl.repeat(False, len(got), eager=True)
    if misfits:
        return big
    return big & cast(got, dtype).is_null()  # else only `strict` refuses how it is written


__all__ = [
    "WHOLE_MOST", "Coerce", "cast", "conform", "may_be_another", "misfit", "nothing",
    "swap_points_and_commas",
    "too_big", "written_as",
]  # fmt: skip
