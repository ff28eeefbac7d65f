"""Casts that lose nothing in silence: a value that does not fit costs its row and says why."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.exceptions import PolarsError

from connectors.formats.rows import OUT_OF_RANGE, WRONG_TYPE, placed, rejected, shown, texts
from engine.types import TYPES, Records, Rejects, Schema

WORDS = {"true": True, "false": False, "1": True, "0": False}
MOMENTS = (
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%d",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%d %H:%M",
    "%+",
)
"""ISO 8601, most usual first. With an offset or Z the moment is turned to UTC."""


def conform(
    frame: pl.DataFrame,
    records: Records,
    schema: Schema,
    at: NDArray[np.int64] | None = None,
) -> tuple[pl.DataFrame, list[Rejects]]:
    """Every column in the schema's type, placed; rows with a value that does not fit as rejects.

    Args:
        frame: raw columns, one row for each of the records `at` (None: all).
    """
    at = np.arange(len(records)) if at is None else at
    made = pl.DataFrame([cast(frame.get_column(c), kind) for c, kind in schema.items()])
    good = np.ones(frame.height, np.bool_)
    rejects: list[Rejects] = []
    for column, kind in schema.items():
        lost = _lost(frame.get_column(column), made.get_column(column)) & good
        if lost.any():
            rejects += _misfits(frame, records, at, column, kind, np.flatnonzero(lost))
            good &= ~lost
    if good.all():
        return placed(made, records, at), rejects
    return placed(made.filter(pl.Series(good)), records, at[good]), rejects


def cast(column: pl.Series, kind: pl.DataType) -> pl.Series:
    """The column in another type; null where a value does not fit without loss.

    Float64 to Float32 rounds, that is no loss; a finite value that becomes infinite is.
    """
    if column.dtype == kind:
        return column
    if isinstance(column.dtype, pl.Categorical | pl.Enum):
        column = column.cast(pl.String)
    nothing = pl.Series(column.name, [None], dtype=kind).new_from_index(0, len(column))
    if column.dtype.is_nested() and not kind.is_nested():
        return nothing
    try:
        if column.dtype == pl.String:
            return _from_text(column, kind).alias(column.name)
        return _from_values(column, kind).alias(column.name)
    except PolarsError:  # types with no way between them
        return nothing


def _lost(raw: pl.Series, made: pl.Series) -> NDArray[np.bool_]:
    if raw.null_count() == made.null_count():
        return np.zeros(len(raw), np.bool_)
    return (raw.is_not_null() & made.is_null()).to_numpy()


def _from_values(column: pl.Series, kind: pl.DataType) -> pl.Series:
    if column.dtype.is_numeric() and kind.is_temporal():
        return pl.Series([None], dtype=kind).new_from_index(0, len(column))  # of which unit?
    if isinstance(column.dtype, pl.Datetime) and column.dtype.time_zone is not None:
        column = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    if column.dtype == pl.Binary and kind == pl.String:
        return texts(column)
    made = column.cast(kind, strict=False)
    if kind in (pl.String, pl.Binary):
        return made
    if column.dtype.is_float() and kind.is_float():
        same = made.is_finite() | ~column.is_finite()
    else:
        same = made.cast(column.dtype, strict=False).eq_missing(column)
    return made if same.all() else made.set(~same, None)


def _from_text(column: pl.Series, kind: pl.DataType) -> pl.Series:
    if kind in (pl.String, pl.Binary):
        return column.cast(kind)
    words = column.str.strip_chars()
    if kind == pl.Boolean:
        words = words.str.to_lowercase()
        return words.replace_strict(WORDS, default=None, return_dtype=pl.Boolean)
    if kind == pl.Date:
        return words.str.to_date("%Y-%m-%d", strict=False)
    if isinstance(kind, pl.Datetime):
        return _moments(words, kind)
    return words.cast(kind, strict=False)


def _moments(words: pl.Series, kind: pl.Datetime) -> pl.Series:
    made = pl.Series([None], dtype=kind).new_from_index(0, len(words))
    for form in MOMENTS:
        found = words.str.to_datetime(form, time_unit="us", strict=False)
        made = made.fill_null(found.dt.replace_time_zone(None))
        if made.null_count() == words.null_count():
            break
    return made


def _misfits(
    frame: pl.DataFrame,
    records: Records,
    at: NDArray[np.int64],
    column: str,
    kind: pl.DataType,
    lost: NDArray[np.int64],
) -> list[Rejects]:
    """Rows `lost` of the frame, whose `column` does not fit, split by reason."""
    rows = frame.select(pl.all().gather(lost))
    rows = rows.with_columns(shown(s) for s in rows if s.dtype == pl.Binary)  # JSON has no bytes
    raw = rows.get_column(column)
    value = rows.select(pl.struct(pl.all()).struct.json_encode()).to_series()
    got = value if raw.dtype.is_nested() else raw.cast(pl.String, strict=False).fill_null("?")
    detail = pl.select(
        pl.format("Expected {}, got '{}' in column '{}'.",
                  pl.lit(named(kind)), got.str.head(80), pl.lit(column))
    ).to_series()  # fmt: skip
    big = _too_big(raw, got, kind)
    made = []
    for reason, mask in ((OUT_OF_RANGE, big), (WRONG_TYPE, ~big)):
        if mask.any():
            where = lost[mask.to_numpy()]
            made.append(
                rejected(records, at[where], reason, detail.filter(mask), value.filter(mask))
            )
    return made


def _too_big(raw: pl.Series, got: pl.Series, kind: pl.DataType) -> pl.Series:
    """Where a number was given, but one that the type cannot hold."""
    if kind.is_integer():
        return got.str.contains(r"^\s*[+-]?\d+(\.0*)?\s*$")
    return pl.Series([raw.dtype.is_numeric() and kind.is_float()]).new_from_index(0, len(raw))


def named(kind: pl.DataType) -> str:
    """The type's name in a pipeline file."""
    return next((name for name, known in TYPES.items() if known == kind), str(kind))


__all__ = ["cast", "conform", "named"]
