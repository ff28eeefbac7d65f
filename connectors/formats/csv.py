"""Comma-separated values."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numba
import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.exceptions import PolarsError

from connectors.formats.rows import BAD_UTF8, BROKEN, checked, placed, rejects, shown, take, text
from engine.types import HeadraceError, Records, Rejects, Schema, Values, nearest

DIRECT = (pl.Float64(), pl.Float32(), pl.Int64(), pl.Int32(), pl.String())
"""Types that the CSV parser reads by itself; the others are read as text and cast."""


@numba.njit(nogil=True, cache=True)
def _fields(data, bounds, delimiter):  # type: ignore[no-untyped-def]
    """How many fields each row has; a delimiter between quotes is text."""
    counts = np.ones(len(bounds) - 1, np.int64)
    for i in range(len(counts)):
        quoted = False
        for at in range(bounds[i], bounds[i + 1]):
            if data[at] == 34:
                quoted = not quoted
            elif data[at] == delimiter and not quoted:
                counts[i] += 1
        if quoted:
            counts[i] = -1
    return counts


class Csv:
    """See `engine.types.Format`. One typed parse of all rows; only where that fails are rows looked
    at one by one.

    An empty field is null, a quoted empty one the empty text; "NaN" and "inf" are numbers. A row
    with another number
    of fields than the header is ``broken``.

    Args:
        headers: partition -> column names, in the file's order; filled by the source as it opens
        files.
    """

    def __init__(self, headers: Mapping[str, Sequence[str]], delimiter: str = ",") -> None:
        self._headers = headers
        self._delimiter = delimiter

    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        """Columns, and what does not fit.

        Raises: HeadraceError when the file lacks a column that the schema has.
        """
        every = np.arange(len(records))
        if isinstance(records.values, pl.DataFrame):
            made, at, rejected = checked(
                records.values.select(list(schema)), records, every, schema
            )
            return placed(made, records, at), rejected
        header = list(self._headers[records.partition])
        for column in schema:
            if column not in header:
                raise HeadraceError(
                    f"{records.partition} has no column '{column}'.{nearest(column, header)}"
                )
        counts = _fields(records.values.data, records.values.bounds, ord(self._delimiter))
        if (counts == len(header)).all():
            try:
                frame = self._read(records.values, header, schema)
            except PolarsError:
                pass
            else:
                if frame.schema == schema:
                    return placed(frame, records), []
                made, at, rejected = checked(frame, records, every, schema)
                return placed(made, records, at), rejected
        return self._slowly(records, records.values, header, counts, schema)

    def _read(self, values: Values, header: list[str], schema: Schema | None) -> pl.DataFrame:
        """Typed where a schema is given and the parser knows the type, else text. Raises:
        PolarsError."""
        kinds = {
            c: schema[c] if schema and schema.get(c) in DIRECT else pl.String() for c in header
        }
        part = values.data[values.bounds[0] : values.bounds[-1]]
        frame = pl.read_csv(
            io.BytesIO(part.data),
            has_header=False,
            schema=kinds,
            columns=[header.index(c) for c in schema] if schema else None,
            separator=self._delimiter,
        )
        if frame.height != len(values):
            raise PolarsError("other rows than were found")
        return frame.select(list(schema)) if schema else frame

    def _slowly(
        self,
        records: Records,
        values: Values,
        header: list[str],
        counts: NDArray[np.int64],
        schema: Schema,
    ) -> tuple[pl.DataFrame, list[Rejects]]:
        """Sort out the rows that are no rows, read the rest as text, cast."""
        rejected: list[Rejects] = []
        whole = counts == len(header)
        valid = text(values).is_not_null().to_numpy()
        value = shown(values)
        broken = np.flatnonzero(~whole)
        if len(broken):
            got = pl.Series(np.where(counts[broken] < 0, 0, counts[broken])).cast(pl.String)
            detail = f"Expected {len(header)} fields, got " + got + " (0: a quote is not closed)."
            rejected.append(rejects(records, broken, BROKEN, detail, value.gather(broken)))
        coded = np.flatnonzero(whole & ~valid)
        if len(coded):
            detail_ = "Expected UTF-8, got bytes that are none."
            rejected.append(rejects(records, coded, BAD_UTF8, detail_, value.gather(coded)))
        at = np.flatnonzero(whole & valid)
        frame, kept, odd = self._halve(take(values, at), header)
        if len(odd):
            odd = at[odd]
            detail_ = "Expected a row of CSV, got quotes in the middle of a field."
            rejected.append(rejects(records, odd, BROKEN, detail_, value.gather(odd)))
        made, at, more = checked(frame.select(list(schema)), records, at[kept], schema)
        return placed(made, records, at), [*rejected, *more]

    def _halve(
        self, values: Values, header: list[str]
    ) -> tuple[pl.DataFrame, NDArray[np.int64], NDArray[np.int64]]:
        """All columns as text; which rows they are, and which cannot be read."""
        frames: list[pl.DataFrame] = [pl.DataFrame(schema=dict.fromkeys(header, pl.String()))]
        kept, odd = [np.empty(0, np.int64)], []

        def parse(start: int, stop: int) -> None:
            if start >= stop:
                return
            try:
                frames.append(self._read(values.slice(start, stop), header, None))
                kept.append(np.arange(start, stop))
            except PolarsError:
                if stop - start == 1:
                    odd.append(start)
                    return
                middle = (start + stop) // 2
                parse(start, middle)
                parse(middle, stop)

        parse(0, len(values))
        return pl.concat(frames), np.concatenate(kept), np.array(odd, np.int64)


__all__ = ["Csv"]
