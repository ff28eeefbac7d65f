"""What a record has besides its value, as columns: key, headers, time, place."""

from __future__ import annotations

from collections.abc import Mapping

import numba
import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.exceptions import PolarsError

from connectors.formats.kernels.rows import binary, pieces
from connectors.kafka.value_checks import Around
from engine.types import (
    NO_TIME,
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

KINDS: Mapping[str, pl.DataType] = {
    "key": pl.String(),
    "key bytes": pl.Binary(),
    "timestamp": pl.Datetime("us"),
    "topic": pl.String(),
    "partition": pl.Int32(),
    "offset": pl.Int64(),
}
"""What a column of ``[source.record]`` can be, and its type; besides ``header NAME``, a string.
Text that is not UTF-8 is null: ``key bytes`` has it all."""
HEADER = "header "


def record_schema(record: Mapping[str, str]) -> Schema:
    """Types of the columns that ``[source.record]`` asks for.

    Raises: UserError for something that a record does not have, or a reserved name.
    """
    schema: Schema = {}
    for column, what in record.items():
        if column in RESERVED:
            raise UserError(f"[source.record] column '{column}' is headrace's own: rename it.")
        if what.startswith(HEADER):
            schema[column] = pl.String()
        elif what in KINDS:
            schema[column] = KINDS[what]
        else:
            raise UserError(
                f"[source.record] {column} = '{what}' is nothing that a record has."
                f"{nearest(what, [*KINDS, HEADER + 'NAME'])}"
            )
    return schema


class WithRecord(Around):
    """See `engine.types.Format`. Another format's columns, and those of the record around it."""

    def __init__(self, inner: Format, record: Mapping[str, str]) -> None:
        super().__init__(inner)
        self._record = record

    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        """As the inner format does, with one gather for each column more."""
        own = {c: kind for c, kind in schema.items() if c not in self._record}
        frame, rejects = self.inner.decode(records, own)
        at = np.searchsorted(records.positions, frame[POSITION].to_numpy())
        made = [self._column(records, c, at) for c in schema if c in self._record]
        return frame.with_columns(made).select(*RESERVED, *schema), rejects

    def _column(self, records: Records, column: str, at: NDArray[np.int64]) -> pl.Series:
        what = self._record[column]
        if what == "timestamp":
            assert records.timestamps is not None
            times = pl.Series(column, records.timestamps[at])
            return (times.set(times == NO_TIME, None) * 1000).cast(pl.Datetime("us"))
        if what in ("topic", "partition", "offset"):
            return _place(records, what, at).alias(column)
        if what.startswith("key"):
            found = _gathered(records.keys, at)
        else:
            name = what.removeprefix(HEADER).encode()
            found = _gathered(_header(records.headers, name), at)
        found = found.alias(column)
        return found if what == "key bytes" else _text(found)


def _place(records: Records, what: str, at: NDArray[np.int64]) -> pl.Series:
    """Topic, partition or offset, of the first reading; null where it was no topic."""
    if records.origins is None:
        if what == "offset":
            return pl.Series(records.positions[at])
        topic, _, number = records.partition.rpartition("/")
        value = pl.Series([topic if what == "topic" else int(number)], dtype=KINDS[what])
        return value.new_from_index(0, len(at))
    origins = records.origins[at]
    if what == "offset":
        return origins[POSITION]
    pattern = r"^(.*)/\d+$" if what == "topic" else r"^.*/(\d+)$"
    return origins[PARTITION].str.extract(pattern).cast(KINDS[what])


def _text(raw: pl.Series) -> pl.Series:
    """UTF-8, and null where it is none: the loop runs only where there is such a one."""
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
    """The first header of that name of each record."""
    assert values is not None, "records were read without their keys and headers"
    n = len(values)
    starts, sizes = np.zeros(n, np.int64), np.full(n, -1, np.int64)
    _find(values.data, values.bounds, np.frombuffer(name, np.uint8), starts, sizes)
    return pieces(values.data, starts, sizes)


@numba.njit(nogil=True, cache=True)
def _find(data, bounds, name, starts, sizes):  # type: ignore[no-untyped-def]
    """Where the value of the header `name` is in each record's headers; size -1 where it is not.
    Headers: a count, then name and value, each with its length; numbers are zigzag varints."""
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


__all__ = ["KINDS", "WithRecord", "record_schema"]
