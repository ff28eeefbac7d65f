"""Fetches record batches as columns; the only file that uses the consumer's private parts.

kafka-python makes a Python object of every record. `ColumnarRecords` takes the place of the class
that does (one attribute of the consumer's fetcher; another, of its connections, puts what comes
where it belongs at once) and gives a `Chunk` of some record batches instead, decoded by a compiled
loop into one buffer. Membership, offsets, aborted transactions and errors stay kafka-python's.
`tests/connectors/kafka/test_fetch.py` fails loudly where a new version of it moves the seam.
"""

from __future__ import annotations

import functools
import ssl
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import Fetcher, IsolationLevel
from kafka.errors import (
    CorruptRecordError,
    KafkaConnectionError,
    KafkaError,
    UnsupportedVersionError,
)
from kafka.net.transport import KafkaTCPTransport
from kafka.protocol.frame import KafkaBytes
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder
from numpy.typing import NDArray

from connectors.formats.kernels.rows import gather_all
from connectors.formats.kernels.varints import read_varint
from engine.types import Values
from engine.types.plural import counted

Ints = NDArray[np.int64]
RECEIVE_BYTES = 1 << 18
"""The most bytes taken from a connection between two answers."""
WOULD_BLOCK = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
"""Nothing has arrived."""
CLOSED = "the broker closed the connection"
CHUNK_BYTES = 1 << 20
"""The bytes of record batches at which a chunk is complete."""


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


def install_columnar_fetch(
    consumer: KafkaConsumer, *, newline: bool, with_metadata: bool = False
) -> None:
    """Make the consumer's `poll` return lists of `Chunk` (and count chunks in place of records).

    Args:
        newline: put a newline behind each value, which one call can then parse as NDJSON.
        with_metadata: keys and headers too.
    """
    subclass = type(
        "Asked", (ColumnarRecords,), {"newline": newline, "with_metadata": with_metadata}
    )
    consumer._fetcher.PartitionRecords = subclass
    manager = consumer._manager
    build = manager._build_transport

    async def with_direct_receive(*args: Any, **settings: Any) -> Any:
        transport = await build(*args, **settings)
        if isinstance(transport, KafkaTCPTransport):
            transport._sock_recv = functools.partial(_received, transport)
        return transport

    manager._build_transport = with_direct_receive


class ResponseBuffer(KafkaBytes):  # type: ignore[misc]
    """A response buffer into which large fetches are received without a copy."""

    def read(self, nbytes: int | None = None) -> bytes | memoryview:
        """Return the next bytes, or all the rest."""
        at: int = self.tell()
        if nbytes is not None or len(self) - at < RECEIVE_BYTES:
            read: bytes = super().read(nbytes)
            return read
        self.seek(len(self))
        return memoryview(self)[at:]


def _received(transport: KafkaTCPTransport) -> tuple[bytes, KafkaError | None]:
    """Poll; return the fetched chunks and the errors per partition.

    What belongs to an answer that has begun goes to its place at once, but for the last byte, with
    which kafka-python finds it complete. It takes 4 KiB each, puts them together, and copies them
    there twice: a quarter of the time of a fetch.
    """
    sock, parser = transport._sock, getattr(transport._protocol, "parser", None)
    frame = None if parser is None else parser._rbuffer
    try:
        # Until nothing is left: what TLS has deciphered already would wake nobody.
        while frame is not None and len(frame) - frame.tell() > 1:
            frame.__class__ = ResponseBuffer
            n = sock.recv_into(memoryview(frame)[frame.tell() : -1])
            if not n:
                raise ConnectionResetError(CLOSED)
            frame.seek(frame.tell() + n)
        data = sock.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionResetError(CLOSED)
    except WOULD_BLOCK:
        return b"", None
    except OSError as error:
        return b"", KafkaConnectionError(error)
    return data, None


def prefetched_bytes(consumer: KafkaConsumer) -> int:
    """Return the bytes of answers that the client holds and has not returned yet."""
    fetcher = consumer._fetcher
    waiting = [*fetcher._completed_fetches.copy(), *fetcher._paused_completed_fetches.values()]
    return sum(len(answer.partition_data.records or b"") for answer in waiting)


def topic_ids(consumer: KafkaConsumer, topics: Iterable[str]) -> dict[str, str]:
    """Return topic -> the id from its creation, by the client's newest metadata; "" for a
    missing topic. Brokers before 2.8 have none, so nothing is known."""
    cluster = consumer._cluster
    if not cluster._topic_ids:
        return {}
    ids = {topic: cluster.topic_id(topic) for topic in topics}
    return {topic: str(i) if i is not None and i.int else "" for topic, i in ids.items()}


def is_forbidden(consumer: KafkaConsumer, topic: str) -> bool:
    """Return whether the broker hides the topic from this client. It must be requested by name:
    a list of all topics omits it like a missing one."""
    cluster = consumer._cluster
    everything, cluster.need_all_topic_metadata = cluster.need_all_topic_metadata, False
    try:
        cluster.add_topic(topic)
        consumer._net.run(consumer._manager.wait_for, cluster.request_update(), None)
        return bool(topic in cluster.unauthorized_topics)
    finally:
        cluster.need_all_topic_metadata = everything


def metadata_time_ms(consumer: KafkaConsumer) -> float:
    """Return when the client's metadata was received, in ms of its own clock."""
    return float(consumer._cluster._last_successful_refresh_ms)


class ColumnarRecords(Fetcher.PartitionRecords):  # type: ignore[misc]
    """kafka-python's walk over a fetch response, with columns in place of records."""

    newline = False
    with_metadata = False

    def _unpack_records(self, tp: TopicPartition, records: Any, *_: object) -> Iterator[Chunk]:
        parts: list[RecordSpans] = []
        try:
            for part in self._parts(tp, records):
                parts.append(part)
                if sum(part.nbytes for part in parts) >= CHUNK_BYTES:
                    yield self._chunk(parts)
                    parts = []
        except KafkaError:
            if parts:
                yield self._chunk(parts)  # what came before it is whole
            raise
        if parts:
            yield self._chunk(parts)
        self.drain()

    def _parts(self, tp: TopicPartition, records: Any) -> Iterator[RecordSpans]:
        """Yield each record batch with records for a reader."""
        for batch in batches(records):
            if batch.magic < 2:
                raise UnsupportedVersionError(
                    f"Topic '{tp.topic}' holds records in message format v{batch.magic}: expected "
                    "v2, which brokers write since 0.11; let them rewrite the topic."
                )
            if self.check_crcs and not batch.validate_crc():
                raise CorruptRecordError(
                    f"The record batch at offset {batch.base_offset} of {tp.topic}/{tp.partition} "
                    "fails its checksum: the broker's log or the network is damaged."
                )
            self.leader_epoch = batch.leader_epoch
            part = None if self._skipped(batch) else locate_records(batch, self.fetch_offset)
            self.next_fetch_offset = batch.next_offset
            if part is not None:
                self.records_read += len(part.offsets)
                self.bytes_read += batch.size_in_bytes
                if len(part.offsets):
                    yield part

    def _chunk(self, parts: Sequence[RecordSpans]) -> Chunk:
        return chunk(
            parts, self.next_fetch_offset, newline=self.newline, with_metadata=self.with_metadata
        )

    def _skipped(self, batch: Any) -> bool:
        """Return whether the batch has no records for a reader: a transaction marker, or aborted
        records."""
        committed = self.isolation_level == IsolationLevel.READ_COMMITTED
        if committed and batch.has_producer_id():
            self._consume_aborted_transactions_up_to(batch.last_offset)
            if self._contains_abort_marker(batch):
                self.aborted_producer_ids.discard(batch.producer_id)
            elif self._is_batch_aborted(batch):
                return True
        return bool(batch.is_control_batch)


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


class ZeroCopyBatch(DefaultRecordBatch):  # type: ignore[misc]
    """A record batch that stays in the answer it came in; kafka-python's own is a copy."""

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer
        self._header_data = self.HEADER_STRUCT.unpack_from(buffer)
        self._pos = self.HEADER_STRUCT.size
        self._num_records = self._header_data[12]
        self._next_record_index = 0
        self._decompressed = False


def batches(records: Any) -> Iterator[Any]:
    """Yield the record batches of an answer, `kafka.record.memory_records.MemoryRecords`."""
    least, magic = DefaultRecordBatch.HEADER_STRUCT.size, records.MAGIC_OFFSET
    while (piece := records._next_slice) is not None:
        if len(piece) < least or piece[magic] != 2:
            yield records.next_batch()  # of an older format, or none at all: it says which
        else:
            records._cache_next()
            yield ZeroCopyBatch(piece)


def locate_records(batch: Any, start: int) -> RecordSpans:
    """Return the spans of the records of a kafka-python record batch.

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
    starts, sizes = np.empty((2, 3, n), np.int64)
    read = _locate(raw, n, offsets, times, starts, sizes)
    if read != len(raw):
        raise CorruptRecordError(
            f"The record batch at offset {batch.base_offset} is not what its header says: expected "
            f"{counted(n, 'record')} in {counted(len(raw), 'byte')}."
        )
    kept = int(np.searchsorted(offsets, start - batch.base_offset))
    appended = batch.timestamp_type == 1
    return RecordSpans(
        raw=raw,
        offsets=offsets[kept:] + batch.base_offset,
        timestamps=np.full(n - kept, batch.max_timestamp)
        if appended
        else times[kept:] + batch.first_timestamp,
        starts=starts[:, kept:],
        sizes=sizes[:, kept:],
    )


def warm_up_chunk(value: bytes, *, newline: bool, with_metadata: bool) -> Chunk:
    """Return a synthetic chunk with this value, to warm up the compiled loops."""
    builder = MemoryRecordsBuilder(magic=2, compression_type=0, batch_size=1 << 10, offset=0)
    builder.append(timestamp=0, key=b"", value=value, headers=[])
    builder.close()
    parts = [locate_records(batch, 0) for batch in batches(MemoryRecords(bytes(builder.buffer())))]
    return chunk(parts, 1, newline=newline, with_metadata=with_metadata)


def chunk(parts: Sequence[RecordSpans], after: int, *, newline: bool, with_metadata: bool) -> Chunk:
    """Return the records as one chunk; see `install_columnar_fetch`.

    Args:
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


def decode(batch: Any, start: int, *, newline: bool, with_metadata: bool = False) -> Chunk:
    """Decode one record batch to columns; see `locate_records`."""
    return chunk(
        [locate_records(batch, start)],
        batch.next_offset,
        newline=newline,
        with_metadata=with_metadata,
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
    "ColumnarRecords",
    "RecordSpans",
    "chunk",
    "decode",
    "header_entries",
    "headers",
    "install_columnar_fetch",
    "is_forbidden",
    "locate_records",
    "metadata_time_ms",
    "prefetched_bytes",
    "topic_ids",
]
