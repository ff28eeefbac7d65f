"""Which columns a stage works on, and what is missing in them."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence

import polars as pl

from engine.types import RESERVED, Schema, UserError, nearest, require


def spread(patterns: Iterable[str], schema: Schema, *, where: str) -> tuple[str, ...]:
    """The columns that names and globs ("count_lag_*") stand for, each once, in the order given.

    Raises: UserError for a name that is no column, and for a glob that no column matches.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        if pattern in schema or not any(sign in pattern for sign in "*?["):
            require(schema, [pattern], where=where)
            found[pattern] = None
            continue
        matches = [column for column in schema if fnmatch.fnmatchcase(column, pattern)]
        if not matches:
            near = nearest(pattern, schema)
            raise UserError(f"{where} needs a column like '{pattern}', there is none.{near}")
        found |= dict.fromkeys(matches)
    if not found:
        raise UserError(f"{where} names no columns: set 'columns'.")
    return tuple(found)


def numbers(columns: Iterable[str], schema: Schema, *, where: str) -> None:
    """Raises: UserError when one of the columns does not hold numbers."""
    for column in columns:
        if not schema[column].is_numeric():
            raise UserError(
                f"{where} expects numbers in column '{column}', got {schema[column]}: take it out, "
                "or make a number of it with a 'derive' stage."
            )


def extended(schema: Schema, new: Mapping[str, pl.DataType], *, where: str) -> Schema:
    """The schema with new columns at its end.

    Raises: UserError when one of them is there already, or is headrace's own.
    """
    for column in new:
        if column in schema or column in RESERVED:
            raise UserError(f"{where} adds column '{column}', which is there already: rename one.")
    return {**schema, **new}


def missing(frame: pl.DataFrame, columns: Sequence[str]) -> dict[str, int]:
    """Column -> how many of its values are missing (null; NaN too in floating-point columns)."""
    floats = [column for column in columns if frame.schema[column].is_float()]
    nulls = {column: frame.get_column(column).null_count() for column in columns}
    if floats and frame.height:
        nans = frame.select([pl.col(column).is_nan().sum() for column in floats]).row(0)
        for column, n in zip(floats, nans, strict=True):
            nulls[column] += n
    return nulls


def is_missing(column: str, kind: pl.DataType) -> pl.Expr:
    """True where the value is null or NaN."""
    x = pl.col(column)
    return x.is_null() | x.is_nan().fill_null(False) if kind.is_float() else x.is_null()


__all__ = ["extended", "is_missing", "missing", "numbers", "spread"]
