"""Times that no calendar has: a columnar file may hold them, but nothing can write them as text."""

from __future__ import annotations

import numpy as np
import polars as pl

from connectors.formats.values import lists
from connectors.formats.values.columns import PROBLEM

DAYS = 95_000_000
"""The days before and after 1970 that polars can write, rounded down: years -258,000 to 262,000. It
panics at others. Times in nanoseconds do not reach so far."""
MOST: dict[pl.DataType, int] = {
    pl.Date(): DAYS,
    pl.Datetime("ms"): DAYS * 86_400 * 10**3,
    pl.Datetime("us"): DAYS * 86_400 * 10**6,
}
BEYOND = "a time beyond the calendar"


def flag_impossible(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the frame with nulls in place of impossible times, and the reason why their rows are
    rejects in a column `PROBLEM`; the frame as it is if it has none."""
    for column in frame:
        mask = impossible(column)
        if mask is not None:
            frame = flag(frame, column.name, mask, pl.col(column.name).to_physical(), BEYOND)
    return frame


def flag(
    frame: pl.DataFrame, column: str, mask: pl.Series, number: pl.Expr, what: str
) -> pl.DataFrame:
    """Return the frame with nulls in some rows of a column, and the reason why they are rejects in
    a column `PROBLEM`.

    Args:
        mask: the rows, shape (n,).
        number: what the column holds there, said unless it is nested.
        what: what that is.
    """
    nested = frame.schema[column].is_nested()
    value = pl.lit("") if nested else pl.format("{}, ", number)
    why = pl.format("out_of_range: Column '{}' holds {}{}.", pl.lit(column), value, pl.lit(what))
    before = pl.col(PROBLEM) if PROBLEM in frame.columns else pl.lit(None, pl.String)
    return frame.with_columns(
        pl.when(~mask).then(pl.col(column)).alias(column),
        pl.when(mask).then(why).otherwise(before).alias(PROBLEM),
    )


def impossible(column: pl.Series) -> pl.Series | None:
    """Return the rows with an impossible time, also inside lists and objects; None if none."""
    dtype = column.dtype
    if not _holds_times(dtype):
        return None
    if isinstance(dtype, pl.List | pl.Array):
        elements = lists.of_column(column)
        inner = impossible(elements.values)
        if inner is None:
            return None
        rows = np.zeros(len(column), np.bool_)
        rows[elements.rows[inner.to_numpy()]] = True
        return pl.Series(rows)
    if isinstance(dtype, pl.Struct):
        masks = [mask for mask in map(impossible, column.struct.unnest()) if mask is not None]
        return pl.DataFrame(masks).fold(lambda a, b: a | b) if masks else None
    most = MOST[_without_zone(dtype)]
    possible = column.to_physical().is_between(-most, most)
    return None if possible.all() else ~possible.fill_null(True)


def _holds_times(dtype: pl.DataType) -> bool:
    if isinstance(dtype, pl.List | pl.Array):
        return _holds_times(dtype.inner)  # type: ignore[arg-type]
    if isinstance(dtype, pl.Struct):
        return any(_holds_times(field.dtype) for field in dtype.fields)  # type: ignore[arg-type]
    return _without_zone(dtype) in MOST


def _without_zone(dtype: pl.DataType) -> pl.DataType:
    return pl.Datetime(dtype.time_unit) if isinstance(dtype, pl.Datetime) else dtype


__all__ = ["BEYOND", "DAYS", "MOST", "flag", "flag_impossible", "impossible"]
