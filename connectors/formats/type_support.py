"""The types each format can hold, checked before anything is written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import numpy as np
import polars as pl

from engine.types import UserError, type_name
from engine.types.plural import counted

UNSUPPORTED: Mapping[str, Callable[[pl.DataType, bool], bool]] = {
    "csv": lambda dtype, inner: dtype.is_nested(),
    "ndjson": lambda dtype, inner: inner and dtype == pl.Binary,
    "parquet": lambda dtype, inner: isinstance(dtype, pl.Struct) and not dtype.fields,
    "arrow": lambda dtype, inner: False,
}
"""Format -> its unsupported types, at the top level or (True) inside a list or an object."""

log = logging.getLogger("headrace.sink")


def require_supported(schema: Mapping[str, pl.DataType], format: str, named: str) -> None:
    """Raises: UserError for a column that the format cannot hold; `named` is what the user calls
    it."""
    for column, dtype in schema.items():
        unsupported = _unsupported(dtype, format, inner=False)
        if unsupported is not None:
            inside = "" if unsupported is dtype else f", which has {unsupported} in it"
            others = [
                other for other in UNSUPPORTED if _unsupported(dtype, other, inner=False) is None
            ]
            instead = f"write {' or '.join(others)}, or " if others else ""
            raise UserError(
                f"{named} cannot hold column '{column}' of {type_name(dtype)}{inside}: "
                f"{instead}leave it out by [sink] columns."
            )


def warn_about_nulls(frame: pl.DataFrame, warned: set[str]) -> None:
    """Warn once per column that NaN and infinities are written as null: JSON has neither.

    Args:
        warned: columns of which a warning was logged.
    """
    for column in frame.get_columns():
        if not column.dtype.is_float() or column.name in warned:
            continue
        finite = np.count_nonzero(np.isfinite(column.to_numpy()))
        n = len(column) - int(finite) - column.null_count()
        if n:
            warned.add(column.name)
            log.warning(
                "Column '%s' (%s) has NaN or an infinity in %s so far, and JSON has neither: null "
                "is written for them; Parquet and Arrow keep them.",
                column.name,
                type_name(column.dtype),
                counted(n, "row"),
            )


def _unsupported(dtype: pl.DataType, format: str, *, inner: bool) -> pl.DataType | None:
    """Return what in a type the format does not support; None if it supports all."""
    if dtype == pl.Object or UNSUPPORTED[format](dtype, inner):
        return dtype
    parts = (_unsupported(part, format, inner=True) for part in _inner_types(dtype))
    return next((part for part in parts if part is not None), None)


def _inner_types(dtype: pl.DataType) -> list[pl.DataType]:
    if isinstance(dtype, pl.List | pl.Array):
        return [dtype.inner]  # type: ignore[list-item]
    if isinstance(dtype, pl.Struct):
        return [field.dtype for field in dtype.fields]  # type: ignore[misc]
    return []


__all__ = ["require_supported", "warn_about_nulls"]
