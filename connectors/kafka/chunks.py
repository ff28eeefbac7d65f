"""Turns record batches into columns: a compiled loop finds the records, a `Chunk` holds them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np
from kafka.errors import CorruptRecordError
from numpy.typing import NDArray

from connectors.formats.kernels.rows import gather_all
from connectors.formats.kernels.varints import read_varint
from engine.types import Values
from engine.types.arrays import Ints, read_only
from engine.types.plural import counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """The n records of adjacent record batches.

    Attributes:
        offsets: increasing, with gaps where records were compacted away, shape (n,).
        next: the offset to read after them.
        timestamps: ms since the epoch, shape (n,).
        data: values back to back; each with a newline behind it where the reader asked for that.
        bounds: value i is ``data[bounds[i]:bounds[i + 1]]``, shape (n + 1,).
        null: where the value is null (a tombstone), shape (n,).
        keys: n keys, where they were asked for.
        headers: n records' headers as they came, see `headers`, where they were asked for.
    """

    offsets: Ints
    next: int
    timestamps: Ints
    data: NDArray[np.uint8]
    bounds: Ints
    null: NDArray[np.bool_]
    keys: Values | None = None
    headers: Values | None = None

    @property
    def offset(self) -> int:
        """The offset of the first record, by which kafka-python skips."""
        return int(self.offsets[0])

    def __len__(self) -> int:
        return len(self.offsets)


class RecordBatch(NamedTuple):
    """A record batch as it is in a topic, decompressed. A tuple: topics of small batches make many.

    Attributes:
        raw: its records' bytes.
        record_count: number of its records.
        base_offset: what the records' offsets are counted from.
        first_timestamp: ms since the epoch, what the records' times are counted from.
        append_time: ms since the epoch, of all records, where the broker stamps them.
    """

    raw: NDArray[np.uint8]
    record_count: int
    base_offset: int
    first_timestamp: int
    append_time: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordSpans:
    """The spans of the n records of one record batch.

    Attributes:
        raw: the batch's bytes, decompressed.
        offsets: shape (n,).
        timestamps: ms since the epoch, shape (n,).
        starts, sizes: of value, key and headers; size -1 is null; shape (3, n).
    """

    raw: NDArray[np.uint8]
    offsets: Ints
    timestamps: Ints
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @property
    def nbytes(self) -> int:
        return len(self.raw)


def locate_records(batch: RecordBatch, start: int) -> RecordSpans:
    """Return the spans of the records of a record batch.

    Args:
        start: records before this offset are left out.
    """
    raw, n = batch.raw, batch.record_count
    offsets, times = np.empty(n, np.int64), np.empty(n, np.int64)
    starts, sizes = np.empty((2, 3, n), np.int64)
    read = _locate(read_only(raw), n, offsets, times, starts, sizes)
    if read != len(raw):
        raise CorruptRecordError(
            f"The record batch at offset {batch.base_offset} is not what its header says: expected "
            f"{counted(n, 'record')} in {counted(len(raw), 'byte')}."
        )
    kept = int(np.searchsorted(offsets, start - batch.base_offset))
    return RecordSpans(
        raw=raw,
        offsets=offsets[kept:] + batch.base_offset,
        timestamps=np.full(n - kept, batch.append_time)
        if batch.append_time is not None
        else times[kept:] + batch.first_timestamp,
        starts=starts[:, kept:],
        sizes=sizes[:, kept:],
    )


def chunk(parts: Sequence[RecordSpans], after: int, *, newline: bool, with_metadata: bool) -> Chunk:
    """Return the records as one chunk.

    Args:
        newline: put a newline behind each value, which one call can then parse as NDJSON.
        with_metadata: keys and headers too.
        after: the offset to read after them.
    """
    values, keys, heads = (
        gather_all([(p.raw, p.starts[i], p.sizes[i]) for p in parts], newline=newline and i == 0)
        if with_metadata or i == 0
        else None
        for i in range(3)
    )
    assert values is not None
    assert values.null is not None
    return Chunk(
        offsets=np.concatenate([part.offsets for part in parts]),
        next=after,
        timestamps=np.concatenate([part.timestamps for part in parts]),
        data=values.data,
        bounds=values.bounds,
        null=values.null,
        keys=keys,
        headers=heads,
    )


def headers(raw: bytes) -> list[tuple[str, bytes]]:
    """Return a record's headers from their bytes; a null value becomes an empty one."""
    return [(name, value) for _, name, value in header_entries(raw)]


def header_entries(raw: bytes) -> Iterator[tuple[int, str, bytes]]:
    """Return the same, each with where it begins."""
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = raw[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return (value >> 1) ^ -(value & 1)

    def text() -> bytes:
        nonlocal at
        size = number()
        at += max(size, 0)
        return raw[at - max(size, 0) : at]

    for _ in range(number() if raw else 0):
        yield at, text().decode("utf-8", "replace"), text()


@numba.njit(nogil=True, cache=True)
def _locate(raw, n, offsets, times, starts, sizes):  # type: ignore[no-untyped-def]
    """Locate value, key and headers of each of n records; return how many bytes they took, or -1
    for broken ones.

    Record: length, attributes (a byte), timestamp delta, offset delta, key, value, headers; numbers
    are zigzag varints, length -1 is null. https://kafka.apache.org/documentation/#record
    """
    at = 0
    for i in range(n):
        length, at = read_varint(raw, at)
        end = at + length
        if length < 0 or end > len(raw):
            return -1
        times[i], at = read_varint(raw, at + 1)
        offsets[i], at = read_varint(raw, at)
        for part in (1, 0):  # the key comes first
            sizes[part, i], at = read_varint(raw, at)
            starts[part, i] = at
            at += max(sizes[part, i], 0)
            if at > end:
                return -1
        starts[2, i] = at
        sizes[2, i] = end - at
        at = end
    return at


__all__ = [
    "Chunk",
    "RecordBatch",
    "RecordSpans",
    "chunk",
    "header_entries",
    "headers",
    "locate_records",
]
