"""Record batches to columns: the one place that knows kafka-python from inside.

kafka-python makes a Python object of every record. `Columnar` takes the place of the class that
does (one attribute of the consumer's fetcher) and gives one `Chunk` a record batch instead, decoded
by a compiled loop. Membership, offsets, aborted transactions and errors stay kafka-python's.
`tests/connectors/test_wire.py` fails loudly where a new version of it moves the seam.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import Fetcher, IsolationLevel
from kafka.errors import CorruptRecordError, KafkaError, UnsupportedVersionError
from numpy.typing import NDArray

from engine.types import Values

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """The records of one record batch, n of them.

    Attributes:
        offsets: increasing, with gaps where records were compacted away, shape (n,).
        next: the offset to read after this batch.
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
        """Of the first record; what kafka-python skips by."""
        return int(self.offsets[0])

    def __len__(self) -> int:
        return len(self.offsets)


def columnar(consumer: KafkaConsumer, *, newline: bool, whole: bool = False) -> None:
    """Make the consumer's `poll` give lists of `Chunk` (and count chunks where it counts records).

    Args:
        newline: put a newline behind each value, which one call can then parse as NDJSON.
        whole: keys and headers too.
    """
    made = type("Asked", (Columnar,), {"newline": newline, "whole": whole})
    consumer._fetcher.PartitionRecords = made


def prefetched(consumer: KafkaConsumer) -> int:
    """Bytes of the answers that the client holds and has not given yet."""
    fetcher = consumer._fetcher
    waiting = [*fetcher._completed_fetches.copy(), *fetcher._paused_completed_fetches.values()]
    return sum(len(answer.partition_data.records or b"") for answer in waiting)


class Columnar(Fetcher.PartitionRecords):  # type: ignore[misc]
    """kafka-python's walk over a fetch response, with columns for records."""

    newline = False
    whole = False

    def _unpack_records(self, tp: TopicPartition, records: Any, *_: object) -> Iterator[Chunk]:
        last = None
        while (batch := records.next_batch()) is not None:
            if batch.magic < 2:
                raise UnsupportedVersionError(
                    f"Topic '{tp.topic}' holds records in message format v{batch.magic}: expected "
                    "v2, which brokers write since 0.11; let them rewrite the topic."
                )
            last = batch
            if self.check_crcs and not batch.validate_crc():
                raise CorruptRecordError(
                    f"The record batch at offset {batch.base_offset} of {tp.topic}/{tp.partition} "
                    "fails its checksum: the broker's log or the network is damaged."
                )
            self.leader_epoch = batch.leader_epoch
            if self._skipped(batch):
                self.next_fetch_offset = batch.next_offset
                continue
            chunk = decode(batch, self.fetch_offset, newline=self.newline, whole=self.whole)
            self.records_read += len(chunk)
            self.bytes_read += batch.size_in_bytes
            self.next_fetch_offset = batch.next_offset
            if len(chunk):
                yield chunk
        if last is not None:
            self.next_fetch_offset = last.next_offset
        self.drain()

    def _skipped(self, batch: Any) -> bool:
        """Whether the batch holds no records for a reader: a transaction's marker, or aborted."""
        committed = self.isolation_level == IsolationLevel.READ_COMMITTED
        if committed and batch.has_producer_id():
            self._consume_aborted_transactions_up_to(batch.last_offset)
            if self._contains_abort_marker(batch):
                self.aborted_producer_ids.discard(batch.producer_id)
            elif self._is_batch_aborted(batch):
                return True
        return bool(batch.is_control_batch)


def decode(batch: Any, start: int, *, newline: bool, whole: bool = False) -> Chunk:
    """A record batch of kafka-python's as columns.

    Args:
        batch: kafka.record.default_records.DefaultRecordBatch, not yet iterated.
        start: records before this offset are left out.
    """
    try:
        batch._maybe_uncompress()
    except KafkaError:
        raise
    except Exception as error:  # each codec has its own
        raise CorruptRecordError(
            f"The record batch at offset {batch.base_offset} cannot be decompressed: {error}."
        ) from error
    raw = np.frombuffer(batch._buffer, np.uint8)[batch._pos :]
    n = batch.records_count
    offsets, times = np.empty(n, np.int64), np.empty(n, np.int64)
    # Of value, key and headers: where it starts, and how many bytes it has (-1: null).
    starts, sizes = np.empty((3, n), np.int64), np.empty((3, n), np.int64)
    read = _locate(raw, n, offsets, times, starts, sizes)
    if read != len(raw):
        raise CorruptRecordError(
            f"The record batch at offset {batch.base_offset} is not what its header says: expected "
            f"{n} records in {len(raw)} bytes."
        )
    kept = int(np.searchsorted(offsets, start - batch.base_offset))
    offsets, times, starts, sizes = offsets[kept:], times[kept:], starts[:, kept:], sizes[:, kept:]
    values = _gathered(raw, starts[0], sizes[0], newline=newline)
    appended = batch.timestamp_type == 1
    return Chunk(
        offsets=offsets + batch.base_offset,
        next=batch.next_offset,
        timestamps=np.full(len(times), batch.max_timestamp)
        if appended
        else times + batch.first_timestamp,
        data=values.data,
        bounds=values.bounds,
        null=sizes[0] < 0,
        keys=_gathered(raw, starts[1], sizes[1]) if whole else None,
        headers=_gathered(raw, starts[2], sizes[2]) if whole else None,
    )


def headers(raw: bytes) -> list[tuple[str, bytes]]:
    """A record's headers from their bytes; a null value is an empty one."""
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

    return [(text().decode("utf-8", "replace"), text()) for _ in range(number() if raw else 0)]


def _gathered(raw: Any, starts: Ints, sizes: Ints, *, newline: bool = False) -> Values:
    """Pieces of a buffer side by side."""
    starts, sizes = np.ascontiguousarray(starts), np.ascontiguousarray(sizes)
    bounds = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(np.maximum(sizes, 0) + int(newline), out=bounds[1:])
    data = np.empty(int(bounds[-1]), np.uint8)
    _gather(raw, starts, sizes, bounds, newline, data)
    return Values(data=data, bounds=bounds, null=sizes < 0, tail=int(newline))


@numba.njit(nogil=True, cache=True)
def _varint(raw, at):  # type: ignore[no-untyped-def]
    """The zigzag number at `at`, and where the next one begins; beyond the end at a broken one."""
    value, shift = np.uint64(0), np.uint64(0)
    while at < len(raw) and shift < 70:
        byte = raw[at]
        value |= np.uint64(byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return np.int64(value >> np.uint64(1)) ^ -np.int64(value & np.uint64(1)), at
        shift += np.uint64(7)
    return np.int64(0), len(raw) + 1


@numba.njit(nogil=True, cache=True)
def _locate(raw, n, offsets, times, starts, sizes):  # type: ignore[no-untyped-def]
    """Where value, key and headers of each of n records are; how many bytes they took, or -1 for
    broken ones.

    Record: length, attributes (a byte), timestamp delta, offset delta, key, value, headers; numbers
    are zigzag varints, length -1 is null. https://kafka.apache.org/documentation/#record
    """
    at = 0
    for i in range(n):
        length, at = _varint(raw, at)
        end = at + length
        if length < 0 or end > len(raw):
            return -1
        times[i], at = _varint(raw, at + 1)
        offsets[i], at = _varint(raw, at)
        for part in (1, 0):  # the key comes first
            sizes[part, i], at = _varint(raw, at)
            starts[part, i] = at
            at += max(sizes[part, i], 0)
            if at > end:
                return -1
        starts[2, i] = at
        sizes[2, i] = end - at
        at = end
    return at


@numba.njit(nogil=True, cache=True)
def _gather(raw, starts, sizes, bounds, newline, data):  # type: ignore[no-untyped-def]
    """Values side by side."""
    for i in range(len(starts)):
        to = bounds[i]
        for j in range(max(sizes[i], 0)):
            data[to + j] = raw[starts[i] + j]
        if newline:
            data[bounds[i + 1] - 1] = 10


__all__ = ["Chunk", "Columnar", "columnar", "decode", "headers"]
