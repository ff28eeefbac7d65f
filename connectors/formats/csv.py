"""Comma-separated values."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numba
import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.exceptions import PolarsError

from connectors.formats.casts import conform
from connectors.formats.columns import present
from connectors.formats.rows import BAD_UTF8, BROKEN, NOT_UTF8, is_utf8, placed, rejected, take
from engine.types import Records, Rejects, Schema, Values

DIRECT = (pl.Float64(), pl.Float32(), pl.Int64(), pl.Int32(), pl.String())
"""Types that the CSV parser reads by itself; the others are read as text and cast."""


@numba.njit(nogil=True, cache=True)
def _fields(data, bounds, delimiter):  # type: ignore[no-untyped-def]
    """How many fields each row has; a delimiter between quotes is text. -1: a quote stays open."""
    counts = np.ones(len(bounds) - 1, np.int64)
    for i in range(len(counts)):
        quoted = False
        start = True
        for at in range(bounds[i], bounds[i + 1]):
            byte = data[at]
            if quoted:
                quoted = byte != 34
            elif byte == 34:
                # Only a quote at the start of a field opens one, or the second of a doubled quote.
                quoted = start or data[at - 1] == 34
            elif byte == delimiter:
                counts[i] += 1
            start = byte == delimiter and not quoted
        if quoted:
            counts[i] = -1
    return counts


class Csv:
    """See `engine.types.Format`. One typed parse of all rows; only where that fails are they read
    as text, cast, and what does not fit sorted out.

    An empty field is null, a quoted empty one the empty text; "NaN" and "inf" are numbers. A row
    with another number of fields than the header is ``broken``.

    Args:
        headers: partition -> column names in the file's order; the source fills it as it opens
            files.
        delimiter: one ASCII character.
    """

    def __init__(self, headers: Mapping[str, Sequence[str]], delimiter: str = ",") -> None:
        self._headers = headers
        self._delimiter = delimiter

    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        """Raises: HeadraceError when the file lacks a column that the schema has."""
        values = records.values
        assert isinstance(values, Values)
        header = list(self._headers[records.partition])
        present(schema, header, records.partition)
        counts = _fields(values.data, values.bounds, ord(self._delimiter))
        if (counts == len(header)).all():
            try:
                frame = self._parse(values, header, schema)
            except PolarsError:
                return self._sorted_out(records, header, counts, schema)
            if frame.schema == schema:
                return placed(frame, records), []
            return conform(frame, records, schema)
        return self._sorted_out(records, header, counts, schema)

    def _parse(self, values: Values, header: list[str], schema: Schema) -> pl.DataFrame:
        """The schema's columns, typed where the parser knows the type, else text; one row a value.

        Raises: PolarsError.
        """
        kinds = {c: schema[c] if schema.get(c) in DIRECT else pl.String() for c in header}
        frame = pl.read_csv(
            io.BytesIO(values.data[values.bounds[0] : values.bounds[-1]].data),
            has_header=False,
            schema=kinds,
            columns=sorted(header.index(c) for c in schema),
            separator=self._delimiter,
        )
        if frame.height != len(values):
            raise PolarsError(f"{len(values)} rows expected, {frame.height} found")
        return frame.select(list(schema))

    def _sorted_out(
        self, records: Records, header: list[str], counts: NDArray[np.int64], schema: Schema
    ) -> tuple[pl.DataFrame, list[Rejects]]:
        """Rows that are no rows leave, the others are read as text and cast."""
        assert isinstance(records.values, Values)
        whole = counts == len(header)
        utf8 = is_utf8(records.values)
        rejects = [
            *_broken(records, np.flatnonzero(~whole), counts, len(header)),
            *_rejects(records, np.flatnonzero(whole & ~utf8), BAD_UTF8, NOT_UTF8),
        ]
        at = np.flatnonzero(whole & utf8)
        frame, odd = self._halved(take(records.values, at), header, list(schema))
        detail = "Expected a row of CSV, got quotes in the middle of a field."
        rejects += _rejects(records, at[odd], BROKEN, detail)
        made, more = conform(frame, records, schema, np.delete(at, odd))
        return made, [*rejects, *more]

    def _halved(
        self, values: Values, header: list[str], columns: list[str]
    ) -> tuple[pl.DataFrame, list[int]]:
        """The columns as text, without the rows that cannot be parsed; and which those are."""
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
    return [rejected(records, at, reason, detail)] if len(at) else []


__all__ = ["Csv"]
