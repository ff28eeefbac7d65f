"""One JSON object a record."""

from __future__ import annotations

import io

import numba
import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.exceptions import PolarsError

from connectors.formats.rows import (
    BAD_UTF8,
    BROKEN,
    OUT_OF_RANGE,
    WRONG_TYPE,
    placed,
    rejects,
    shown,
)
from engine.types import Records, Rejects, Schema, Values

NEWLINE = 10


@numba.njit(nogil=True, cache=True)
def _join(data, bounds, out):  # type: ignore[no-untyped-def]
    """Values one a line: a line break inside a value is white space in JSON, and becomes a
    blank."""
    to = 0
    for i in range(len(bounds) - 1):
        for at in range(bounds[i], bounds[i + 1]):
            byte = data[at]
            out[to] = 32 if byte in (10, 13) else byte
            to += 1
        out[to] = 10
        to += 1
    return to


class Ndjson:
    """See `engine.types.Format`. All records are parsed in one call; a poison one is found by
    halving.

    A field that is absent is null; fields the schema does not name are ignored; of two equal keys
    the first counts;
    a number in a ``string`` column is taken by its text. A blank record is ``broken``: it is no
    object.
    """

    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        """Columns, and what is no JSON object or has a value of another type."""
        values = records.values
        assert isinstance(values, Values)
        n = len(values)
        lines, bounds = _lines(values)
        good: list[pl.DataFrame] = []
        kept: list[NDArray[np.int64]] = []
        bad: list[tuple[int, str]] = []

        def parse(start: int, stop: int) -> None:
            if start >= stop:
                return
            try:
                frame = _read(lines, bounds, start, stop, schema)
            except PolarsError as error:
                if stop - start == 1:
                    bad.append((start, str(error)))
                    return
                middle = (start + stop) // 2
                parse(start, middle)
                parse(middle, stop)
                return
            good.append(frame)
            kept.append(np.arange(start, stop))

        parse(0, n)
        frame = pl.concat(good) if good else pl.DataFrame(schema=schema)
        if not bad:
            return placed(frame, records), []
        at = np.concatenate(kept) if kept else np.empty(0, np.int64)
        return placed(frame, records, at), _rejects(records, values, bad)


def _lines(values: Values) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The values as lines, with the bounds of each; files give them so, and are not copied."""
    data, bounds = values.data, values.bounds
    part = data[bounds[0] : bounds[-1]]
    ends = bounds[1:] - 1
    apart = bool((np.diff(bounds) > 1).all())
    if apart and (data[ends] == NEWLINE).all() and np.count_nonzero(part == NEWLINE) == len(ends):
        return part, bounds - bounds[0]
    out = np.empty(len(part) + len(ends), np.uint8)
    size = _join(data, bounds, out)
    return out[:size], bounds - bounds[0] + np.arange(len(bounds))


def _read(
    lines: NDArray[np.uint8], bounds: NDArray[np.int64], start: int, stop: int, schema: Schema
) -> pl.DataFrame:
    """Raises: PolarsError when one of the lines cannot be read, or is blank."""
    part = lines[bounds[start] : bounds[stop]]
    frame = pl.read_ndjson(io.BytesIO(part.data), schema=schema)
    if frame.height != stop - start:  # blank lines are skipped: halving finds them
        raise PolarsError("expected a JSON object, got a blank record")
    return frame


def _rejects(records: Records, values: Values, bad: list[tuple[int, str]]) -> list[Rejects]:
    made: dict[str, list[int]] = {}
    details: dict[int, str] = {}
    for at, error in bad:
        reason, details[at] = _reason(error)
        made.setdefault(reason, []).append(at)
    value = shown(values)
    return [
        rejects(
            records,
            np.array(rows),
            reason,
            pl.Series([details[at] for at in rows]),
            value.gather(rows),
        )
        for reason, rows in made.items()
    ]


def _reason(error: str) -> tuple[str, str]:
    line = error.splitlines()[0]
    if "InvalidUtf8" in line or "utf-8" in line:
        return BAD_UTF8, "Expected UTF-8, got bytes that are none."
    if line.startswith("cannot parse"):
        reason = (
            OUT_OF_RANGE
            if "(u128)" in line or "(i128)" in line or "(u64) as Int64" in line
            else WRONG_TYPE
        )
        return reason, f"Expected another type: {line}."
    return BROKEN, f"Expected a JSON object: {line}."


__all__ = ["Ndjson"]
