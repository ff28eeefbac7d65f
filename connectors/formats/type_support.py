"""What a format can hold: one table, asked before anything is written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import polars as pl

from engine.types import UserError, type_name
from engine.types.plural import counted

LACKS: Mapping[str, Callable[[pl.DataType, bool], bool]] = {
    "csv": lambda kind, inner: kind.is_nested(),
    "ndjson": lambda kind, inner: inner and kind == pl.Binary,
    "parquet": lambda kind, inner: isinstance(kind, pl.Struct) and not kind.fields,
    "arrow": lambda kind, inner: False,
}
"""Format -> whether it has no such type, by itself or (True) inside a list or an object."""

log = logging.getLogger("headrace.sink")


def must_hold(schema: Mapping[str, pl.DataType], format: str, named: str) -> None:
    """Raises: UserError for a column that the format cannot hold; `named` is what the user calls
    it."""
    for column, kind in schema.items():
        lacking = _lacking(kind, format, inner=False)
        if lacking is not None:
            inside = "" if lacking is kind else f", which has {lacking} in it"
            others = [other for other in LACKS if _lacking(kind, other, inner=False) is None]
            instead = f"write {' or '.join(others)}, or " if others else ""
            raise UserError(
                f"{named} cannot hold column '{column}' of {kind}{inside}: {instead}leave it out "
                "of [sink] columns."
            )


def tell_nulls(frame: pl.DataFrame, told: set[str]) -> None:
    """Say of a column, once, that its NaN and infinities are written as null: JSON has neither.

    Args:
        told: columns of which it was said.
    """
    for column in frame.get_columns():
        if not column.dtype.is_float() or column.name in told:
            continue
        n = len(column) - int(column.is_finite().sum()) - column.null_count()
        if n:
            told.add(column.name)
            log.warning(
                "Column '%s' (%s) has NaN or an infinity in %s so far, and JSON has neither: null "
                "is written for them; Parquet and Arrow keep them.",
                column.name,
                type_name(column.dtype),
                counted(n, "row"),
            )


def _lacking(kind: pl.DataType, format: str, *, inner: bool) -> pl.DataType | None:
    """What in a type the format has not; None where it has all."""
    if kind == pl.Object or LACKS[format](kind, inner):
        return kind
    parts = (_lacking(part, format, inner=True) for part in _inside(kind))
    return next((part for part in parts if part is not None), None)


def _inside(kind: pl.DataType) -> list[pl.DataType]:
    if isinstance(kind, pl.List | pl.Array):
        return [kind.inner]  # type: ignore[list-item]
    if isinstance(kind, pl.Struct):
        return [field.dtype for field in kind.fields]  # type: ignore[misc]
    return []


__all__ = ["must_hold", "tell_nulls"]
