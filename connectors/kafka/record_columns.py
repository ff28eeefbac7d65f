"""A record's key, headers, timestamp and position as columns."""

from __future__ import annotations

from collections.abc import Mapping

import numba
import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.exceptions import PolarsError

from connectors.formats.kernels.rows import binary, gather
from connectors.formats.wrapping import WrappingFormat
from engine.types import (
    NO_TIMESTAMP,
    PARTITION,
    POSITION,
    RESERVED,
    Format,
    Records,
    Rejects,
    Schema,
    UserError,
    Values,
    nearest,
)

RECORD_PARTS: Mapping[str, pl.DataType] = {
    "key": pl.String(),
    "key bytes": pl.Binary(),
    "timestamp": pl.Datetime("us"),
    "topic": pl.String(),
    "partition": pl.Int32(),
    "offset": pl.Int64(),
}
"""Part of a record in ``[source.record]`` -> its type; besides ``header NAME``, a string. Text
that is not UTF-8 is null; ``key bytes`` has all of it."""
HEADER = "header "


def record_schema(record: Mapping[str, str]) -> Schema:
    """Return the types of the columns that ``[source.record]`` requests.

    Raises: UserError for something that a record does not have, or a reserved name.
    """
    schema: Schema = {}
    for column, part in record.items():
        if column in RESERVED:
            raise UserError(f"[source.record] column '{column}' is headrace's own: rename it.")
        if part.startswith(HEADER):
            schema[column] = pl.String()
        elif part in RECORD_PARTS:
            schema[column] = RECORD_PARTS[part]
        else:
            raise UserError(
                f"[source.record] {column} = '{part}' is nothing that a record has."
                f"{nearest(part, [*RECORD_PARTS, HEADER + 'NAME'])}"
            )
    return schema


class RecordColumns(WrappingFormat):
    """Wraps a format and adds columns from the record around the value."""

    def __init__(self, inner: Format, record: Mapping[str, str]) -> None:
        super().__init__(inner)
        self._record = record

    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        """Decode with the inner format, with one gather per additional column."""
        own = {c: dtype for c, dtype in schema.items() if c not in self._record}
        frame, rejects = self.inner.decode(records, own)
        at = np.searchsorted(records.positions, frame[POSITION].to_numpy())
        columns = [self._column(records, c, at) for c in schema if c in self._record]
        return frame.with_columns(columns).select(*RESERVED, *schema), rejects

    def _column(self, records: Records, column: str, at: NDArray[np.int64]) -> pl.Series:
        part = self._record[column]
        if part == "timestamp":
            assert records.timestamps is not None
            times = pl.Series(column, records.timestamps[at])
            return (times.set(times == NO_TIMESTAMP, None) * 1000).cast(pl.Datetime("us"))
        if part in ("topic", "partition", "offset"):
            return _place(records, part, at).alias(column)
        if part.startswith("key"):
            series = _gathered(records.keys, at)
        else:
            name = part.removeprefix(HEADER).encode()
            series = _gathered(_header(records.headers, name), at)
        series = series.alias(column)
        return series if part == "key bytes" else _text(series)


def _place(records: Records, part: str, at: NDArray[np.int64]) -> pl.Series:
    """Return topic, partition or offset of the first reading; null if it was not a topic."""
    if records.origins is None:
        if part == "offset":
            return pl.Series(records.positions[at])
        topic, _, number = records.partition.rpartition("/")
        value = pl.Series([topic if part == "topic" else int(number)], dtype=RECORD_PARTS[part])
        return value.new_from_index(0, len(at))
    origins = records.origins[at]
    if part == "offset":
        return origins[POSITION]
    pattern = r"^(.*)/\d+$" if part == "topic" else r"^.*/(\d+)$"
    return origins[PARTITION].str.extract(pattern).cast(RECORD_PARTS[part])


def _text(raw: pl.Series) -> pl.Series:
    """Return text, null where it is not UTF-8; the loop runs only if there is any such value."""
    try:
        return raw.cast(pl.String)
    except PolarsError:
        texts = [None if v is None else v.decode("utf-8", "replace") for v in raw]
        good = [t is not None and t.encode() == v for t, v in zip(texts, raw, strict=True)]
        kept = [t if fine else None for t, fine in zip(texts, good, strict=True)]
        return pl.Series(raw.name, kept, pl.String)


def _gathered(values: Values | None, at: NDArray[np.int64]) -> pl.Series:
    assert values is not None, "records were read without their keys and headers"
    series = binary(values)
    if values.null is not None:
        series = series.zip_with(~pl.Series(values.null), pl.Series([None], dtype=pl.Binary))
    return series.gather(at)


def _header(values: Values | None, name: bytes) -> Values:
    """Return the first header of that name of each record."""
    assert values is not None, "records were read without their keys and headers"
    n = len(values)
    starts, sizes = np.zeros(n, np.int64), np.full(n, -1, np.int64)
    _find(values.data, values.bounds, np.frombuffer(name, np.uint8), starts, sizes)
    return gather(values.data, starts, sizes)


@numba.njit(nogil=True, cache=True)
def _find(data, bounds, name, starts, sizes):  # type: ignore[no-untyped-def]
    """Locate the value of header `name` in each record's headers; size -1 if missing. Headers
    are a count, then name and value, each with its length; numbers are zigzag varints."""
    for i in range(len(bounds) - 1):
        at, end, left = bounds[i], bounds[i + 1], np.int64(-1)
        is_name, match = True, False
        while at < end and left != 0:
            value, shift = np.uint64(0), np.uint64(0)
            while at < end:
                byte = data[at]
                at += 1
                value |= np.uint64(byte & 0x7F) << shift
                shift += np.uint64(7)
                if byte < 0x80:
                    break
            size = np.int64(value >> np.uint64(1)) ^ -np.int64(value & np.uint64(1))
            if left < 0:
                left = 2 * size  # names and values to come
                continue
            if is_name:
                match = size == len(name) and at + size <= end
                if match:
                    for j in range(size):
                        if data[at + j] != name[j]:
                            match = False
                            break
            elif match:
                starts[i], sizes[i] = at, size
                break
            at += max(size, 0)
            is_name = not is_name
            left -= 1


__all__ = ["RECORD_PARTS", "RecordColumns", "record_schema"]
