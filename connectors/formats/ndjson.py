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
    NOT_UTF8,
    OUT_OF_RANGE,
    WRONG_TYPE,
    placed,
    rejected,
)
from engine.types import Records, Rejects, Schema, Values

NEWLINE = 10


@numba.njit(nogil=True, cache=True)
def _join(data, bounds, out):  # type: ignore[no-untyped-def]
    """Values one a line: a line break inside a value is white space in JSON, so it becomes a
    blank."""
    to = 0
    for i in range(len(bounds) - 1):
        for at in range(bounds[i], bounds[i + 1]):
            byte = data[at]
            out[to] = 32 if byte in (10, 13) else byte
            to += 1
        out[to] = 10
        to += 1


class Ndjson:
    """See `engine.types.Format`. All records are parsed in one call; a poison one is found by
    halving.

    A field that is absent is null; fields the schema does not name are ignored; of two equal keys
    the first counts; a number or object in a ``string`` column is taken as its text. A blank record
    is ``broken``: it is no object.
    """

    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        """One row or one reject for each value, also where it holds line breaks or lacks one."""
        assert isinstance(records.values, Values)
        data, bounds = _lines(records.values)
        frames, bad = [pl.DataFrame(schema=schema)], {}
        pieces = [(0, len(records))] if len(records) else []
        while pieces:
            start, stop = pieces.pop()
            try:
                frames.append(_parse(data[bounds[start] : bounds[stop]], stop - start, schema))
            except PolarsError as error:
                if stop - start == 1:
                    bad[start] = str(error).partition("\n")[0]
                else:
                    middle = (start + stop) // 2
                    pieces += [(middle, stop), (start, middle)]
        if not bad:
            return placed(frames[-1], records), []
        at = np.delete(np.arange(len(records)), list(bad))
        return placed(pl.concat(frames), records, at), _rejects(records, bad, schema)


def _lines(values: Values) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The values as lines, and the bounds of each; a file's are lines already and not copied."""
    bounds = values.bounds - values.bounds[0]
    part = values.data[values.bounds[0] : values.bounds[-1]]
    if (np.diff(bounds) > 0).all() and np.array_equal(
        np.flatnonzero(part == NEWLINE), bounds[1:] - 1
    ):
        return part, bounds
    out = np.empty(len(part) + len(values), np.uint8)
    _join(values.data, values.bounds, out)
    return out, bounds + np.arange(len(bounds))


def _parse(part: NDArray[np.uint8], rows: int, schema: Schema) -> pl.DataFrame:
    """Raises: PolarsError when one of the lines does not fit, or is blank."""
    text = {c: pl.String() if kind == pl.Binary else kind for c, kind in schema.items()}
    frame = pl.read_ndjson(io.BytesIO(part.data), schema=text)
    if frame.height != rows:
        raise PolarsError("the line is blank")
    return frame if text == schema else frame.cast(schema)  # type: ignore[arg-type]


def _rejects(records: Records, bad: dict[int, str], schema: Schema) -> list[Rejects]:
    """Bad records by reason, in their order; `bad`: record -> the parser's words."""
    groups: dict[str, list[tuple[int, str]]] = {}
    for row, error in sorted(bad.items()):
        assert isinstance(records.values, Values)
        reason, detail = _reason(error, records.values.slice(row, row + 1), schema)
        groups.setdefault(reason, []).append((row, detail))
    return [
        rejected(records, np.array([r for r, _ in rows]), reason, pl.Series([d for _, d in rows]))
        for reason, rows in groups.items()
    ]


def _reason(error: str, value: Values, schema: Schema) -> tuple[str, str]:
    if "InvalidUtf8" in error or "utf-8" in error:
        return BAD_UTF8, NOT_UTF8
    if not error.startswith("cannot parse"):
        return BROKEN, f"Expected a JSON object: {error}."
    big = any(wide in error for wide in ("(u128)", "(i128)", "(u64) as Int", "(i64) as Int"))
    data, bounds = _lines(value)
    for column, kind in schema.items():  # the parser does not say in which column
        try:
            _parse(data[: bounds[1]], 1, {column: kind})
        except PolarsError as alone:
            what = str(alone).partition("\n")[0]
            return OUT_OF_RANGE if big else WRONG_TYPE, f"In column '{column}': {what}."
    return OUT_OF_RANGE if big else WRONG_TYPE, f"{error}."


__all__ = ["Ndjson"]
