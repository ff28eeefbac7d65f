"""Values unchanged: one column of text or bytes."""

from __future__ import annotations

import numpy as np
import polars as pl

from connectors.formats.kernels.rows import (
    BAD_UTF8,
    NOT_UTF8,
    binary,
    is_utf8,
    make_rejects,
    take,
    with_position_columns,
)
from connectors.formats.options import FormatOptions
from engine.types import Format, Records, Rejects, Schema, UserError, Values

COLUMN = "value"


class RawText(Format):
    """Gives values unchanged. The only column is called ``value``: ``string`` (UTF-8) or
    ``bytes``.

    Args:
        lines: take the line end off each value.
    """

    def __init__(self, *, lines: bool = False) -> None:
        self._lines = lines

    def schema(self, declared: Schema) -> Schema:
        """Return the column; text unless bytes are declared. Raises: UserError for any other."""
        schema = declared or {COLUMN: pl.String()}
        if list(schema) != [COLUMN] or schema[COLUMN] not in (pl.String, pl.Binary):
            raise UserError(
                '[source.schema] of format \'text\' has one column, value = "string" or "bytes"; '
                f"got {', '.join(schema)}."
            )
        return schema

    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        """Return every value; if text is requested, values that are not UTF-8 are rejected."""
        values = records.values
        assert isinstance(values, Values)
        if schema[COLUMN] == pl.Binary:
            return with_position_columns(self._frame(binary(values)), records), []
        good = is_utf8(values)
        if good.all():
            return with_position_columns(self._frame(binary(values).cast(pl.String)), records), []
        bad = np.flatnonzero(~good)
        kept = np.flatnonzero(good)
        rejects = [make_rejects(records, bad, BAD_UTF8, NOT_UTF8)]
        text = binary(take(values, kept)).cast(pl.String)
        return with_position_columns(self._frame(text), records, kept), rejects

    def _frame(self, column: pl.Series) -> pl.DataFrame:
        if self._lines:
            column = _without_end(column)
        return column.alias(COLUMN).to_frame()


def _without_end(column: pl.Series) -> pl.Series:
    if column.dtype == pl.String:
        return column.str.strip_suffix("\n").str.strip_suffix("\r")
    for end in (b"\n", b"\r"):
        size = column.bin.size().cast(pl.Int64) - column.bin.ends_with(end).cast(pl.Int64)
        column = pl.select(pl.lit(column).bin.slice(0, pl.lit(size))).to_series()
    return column


def make(options: FormatOptions) -> RawText:
    """Return the format; called by `connectors.formats.registry`."""
    return RawText(lines=options.lines)


__all__ = ["COLUMN", "RawText"]
