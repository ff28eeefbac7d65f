"""Decodes comma-separated values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.exceptions import PolarsError

from connectors.formats.dialect import Dialect
from connectors.formats.kernels.fields import count_fields
from connectors.formats.kernels.rows import (
    BAD_UTF8,
    BROKEN,
    NOT_UTF8,
    is_utf8,
    make_rejects,
    parser_input,
    take,
    with_position_columns,
)
from connectors.formats.options import FormatOptions
from connectors.formats.values.casts import Coerce, conform, may_be_another
from connectors.formats.values.columns import present, with_nulls
from engine.types import Format, Records, Rejects, Schema, Values

DIRECT = (pl.Float64(), pl.Float32(), pl.Int64(), pl.Int32(), pl.String())
"""The types the CSV parser reads itself; others are read as text and cast."""


COMMAS = Dialect()


class Csv(Format):
    """Decodes CSV. All rows are parsed in one typed call; only if that fails are they read as
    text and cast, and those that do not fit rejected.

    An empty field is null, a quoted empty one the empty text; "NaN" and "inf" are numbers. A row
    with another number of fields than the header is ``broken``.

    Args:
        headers: partition -> column names in the file's order; the source fills it as it opens
            files.
        dialect: how the rows are written.
        coerce: see `connectors.formats.values.casts`.
        lenient: a column that a partition's header lacks is null there, no error.
    """

    def __init__(
        self,
        headers: Mapping[str, Sequence[str]],
        dialect: Dialect = COMMAS,
        *,
        coerce: Coerce = "lossless",
        lenient: bool = False,
    ) -> None:
        self._headers = headers
        self.dialect = dialect
        self._coerce: Coerce = coerce
        self._lenient = lenient

    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        """Raises: HeadraceError when the file lacks a column that the schema has."""
        values = records.values
        assert isinstance(values, Values)
        header = list(self._headers[records.partition])
        lacking = [c for c in schema if c not in header]
        if not lacking:
            return self._decode(records, header, schema)
        if not self._lenient:
            present(lacking, header, records.partition)
        available = {c: dtype for c, dtype in schema.items() if c in header}
        frame, rejects = self._decode(records, header, available)
        return with_nulls(frame, schema), rejects

    def _decode(
        self, records: Records, header: list[str], schema: Schema
    ) -> tuple[pl.DataFrame, list[Rejects]]:
        values = records.values
        assert isinstance(values, Values)
        dialect = self.dialect
        counts = np.empty(len(values), np.int64)
        delimiter = np.uint8(ord(dialect.delimiter))
        count_fields(values.data, values.bounds, delimiter, dialect.quote_byte, counts)
        if not schema or not (counts == len(header)).all():
            return self._decode_rest(records, header, counts, schema)
        try:
            frame = self._parse(values, header, schema)
        except PolarsError:
            return self._decode_rest(records, header, counts, schema)
        if _unsure(frame):
            return self._decode_rest(records, header, counts, schema)
        if frame.schema == schema:
            return with_position_columns(frame, records), []
        return self._conform(frame, records, schema)

    def _conform(
        self,
        frame: pl.DataFrame,
        records: Records,
        schema: Schema,
        at: NDArray[np.int64] | None = None,
    ) -> tuple[pl.DataFrame, list[Rejects]]:
        decimal = self.dialect.decimal
        return conform(
            frame, records, schema, at, coerce=self._coerce, written=True, decimal=decimal
        )

    def _parse(self, values: Values, header: list[str], schema: Schema) -> pl.DataFrame:
        """Return the schema's columns, typed if the parser knows the type, else text; one row
        per value.

        Raises: PolarsError.
        """
        dialect = self.dialect
        direct = DIRECT if dialect.decimal == "." else (pl.String(),)  # the parser takes points too
        dtypes = {c: schema[c] if schema.get(c) in direct else pl.String() for c in header}
        data, blank = parser_input(values.data[values.bounds[0] : values.bounds[-1]])
        frame = pl.read_csv(
            data,
            skip_lines=blank,
            has_header=False,
            schema=dtypes,
            columns=sorted(header.index(c) for c in schema),
            separator=dialect.delimiter,
            quote_char=dialect.quote or None,
            null_values=list(dialect.null_values) or None,
        )
        if frame.height != len(values):
            raise PolarsError(f"{len(values)} rows expected, {frame.height} found")
        return frame[list(schema)]

    def _decode_rest(
        self, records: Records, header: list[str], counts: NDArray[np.int64], schema: Schema
    ) -> tuple[pl.DataFrame, list[Rejects]]:
        """Reject what is not a row, read the others as text and cast them."""
        assert isinstance(records.values, Values)
        whole = counts == len(header)
        utf8 = is_utf8(records.values)
        rejects = [
            *_broken(records, np.flatnonzero(~whole), counts, len(header)),
            *_rejects(records, np.flatnonzero(whole & ~utf8), BAD_UTF8, NOT_UTF8),
        ]
        at = np.flatnonzero(whole & utf8)
        frame, odd = self._bisect(take(records.values, at), header, list(schema))
        detail = "Expected a row of CSV, got quotes in the middle of a field."
        rejects += _rejects(records, at[odd], BROKEN, detail)
        frame_of_rest, more = self._conform(frame, records, schema, np.delete(at, odd))
        return frame_of_rest, [*rejects, *more]

    def _bisect(
        self, values: Values, header: list[str], columns: list[str]
    ) -> tuple[pl.DataFrame, list[int]]:
        """Return the columns as text, without the rows that cannot be parsed; and which those
        are."""
        if not columns:  # of a file that has none of them
            return pl.DataFrame(height=len(values)), []
        schema: Schema = dict.fromkeys(columns, pl.String())
        frames, odd = [pl.DataFrame(schema=schema)], []
        pieces = [(0, len(values))] if len(values) else []
        while pieces:
            start, stop = pieces.pop()
            try:
                frames.append(self._parse(values.slice(start, stop), header, schema))
            except PolarsError:
                if stop - start == 1:
                    odd.append(start)
                else:
                    middle = (start + stop) // 2
                    pieces += [(middle, stop), (start, middle)]
        return pl.concat(frames), odd


def _unsure(frame: pl.DataFrame) -> bool:
    """Return whether a float may be infinite because it was too large, or differ from the
    written integer: then its text decides."""
    return any(s.dtype.is_float() and may_be_another(s) for s in frame)


def _broken(
    records: Records, at: NDArray[np.int64], counts: NDArray[np.int64], expected: int
) -> list[Rejects]:
    got = pl.Series(counts[at])
    detail = pl.select(
        pl.when(got < 0)
        .then(pl.lit("Expected a row of CSV, got a quote that is not closed."))
        .otherwise(pl.format(f"Expected {expected} fields, got {{}}.", got))
    ).to_series()
    return _rejects(records, at, BROKEN, detail)


def _rejects(
    records: Records, at: NDArray[np.int64], reason: str, detail: str | pl.Series
) -> list[Rejects]:
    return [make_rejects(records, at, reason, detail)] if len(at) else []


def make(options: FormatOptions) -> Csv:
    """Return the format; called by `connectors.formats.registry`."""
    return Csv(options.headers, options.dialect, coerce=options.coerce, lenient=options.lenient)


__all__ = [
    "Csv",
]
