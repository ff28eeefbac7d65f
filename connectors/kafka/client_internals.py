"""Holds every use of kafka-python's private parts, and checks them once at import.

kafka-python makes a Python object of every record, in both directions. Here `ColumnarRecords` takes
the place of the class that does so for what is read (one attribute of the consumer's fetcher;
another, of its connections, puts what comes where it belongs at once) and gives a `Chunk` of
several record batches instead. `enqueue` gives the producer's accumulator a batch that was written
from columns, as if it had collected the records itself. The rest looks at connections, metadata and
the group, and corrects what kafka-python 3.0 gets wrong. Membership, offsets, transactions,
compression, checksums, retries and errors stay kafka-python's.

`require_known_client` compares names; `tests/connectors/kafka/test_client_internals.py` and its
neighbours show that what has the name still does the work.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any, cast

import numpy as np
from kafka import (
    KafkaConsumer,
    KafkaProducer,
    OffsetAndMetadata,
    TopicPartition,
    __version__,
    errors,
)
from kafka.errors import (
    CorruptRecordError,
    KafkaConnectionError,
    KafkaError,
    UnsupportedVersionError,
)

from connectors.kafka.chunks import Chunk, RecordBatch, RecordSpans, chunk, locate_records
from connectors.kafka.record_batches import OutgoingRecords
from engine.types.arrays import Ints

UNKNOWN_CLIENT = (
    f"kafka-python {__version__} is not the client that headrace knows from inside: %s; install "
    "'kafka-python==3.0.12', or report it"
)
try:
    from kafka.cluster import ClusterMetadata
    from kafka.consumer.fetcher import CompletedFetch, Fetcher, IsolationLevel
    from kafka.coordinator.consumer import ConsumerCoordinator
    from kafka.future import Future
    from kafka.net.compat import KafkaNetClient
    from kafka.net.connection import KafkaConnection
    from kafka.net.manager import KafkaConnectionManager
    from kafka.net.sasl import get_sasl_mechanism
    from kafka.net.selector import NetworkSelector
    from kafka.net.transport import KafkaTCPTransport
    from kafka.producer.future import FutureProduceResult, FutureRecordMetadata
    from kafka.producer.producer_batch import ProducerBatch
    from kafka.producer.record_accumulator import RecordAccumulator
    from kafka.producer.sender import Sender
    from kafka.producer.transaction_manager import (
        TransactionManager,
        TransactionState,
        TxnRequestHandler,
    )
    from kafka.protocol.frame import KafkaBytes
    from kafka.protocol.parser import KafkaProtocol
    from kafka.protocol.sasl import (
        SaslAuthenticateRequest,
        SaslAuthenticateResponse,
        SaslBytesRequest,
        SaslBytesResponse,
    )
    from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
    from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder
except ImportError as error:
    raise ImportError(UNKNOWN_CLIENT % error) from error

PAUSE_MS = 100
"""The milliseconds between two requests to an unreachable broker."""

PRIVATE_PARTS: Mapping[type, str] = {
    KafkaConsumer: "_cluster _coordinator _fetcher _manager _net",
    Fetcher: "PartitionRecords _completed_fetches _paused_completed_fetches",
    CompletedFetch: "partition_data",
    Fetcher.PartitionRecords: "_consume_aborted_transactions_up_to _contains_abort_marker "
    "_is_batch_aborted _unpack_records aborted_producer_ids bytes_read check_crcs drain "
    "fetch_offset isolation_level leader_epoch next_fetch_offset records_read take",
    ClusterMetadata: "_last_successful_refresh_ms _topic_ids add_topic need_all_topic_metadata "
    "request_update topic_id unauthorized_topics",
    ConsumerCoordinator: "_join_task request_rejoin",
    Future: "is_done success value",
    NetworkSelector: "call_soon_threadsafe run",
    KafkaConnectionManager: "_auth_failures _build_transport _conns wait_for",
    KafkaConnection: "connected in_flight_requests parser transport",
    KafkaTCPTransport: "_protocol _sock _sock_recv last_read",
    KafkaProtocol: "_rbuffer",
    KafkaBytes: "read seek tell",
    DefaultRecordBatch: "HEADER_STRUCT _buffer _decompressed _header_data _maybe_uncompress "
    "_next_record_index _num_records _pos base_offset first_timestamp has_producer_id "
    "is_control_batch last_offset leader_epoch magic max_timestamp next_offset producer_id "
    "records_count size_in_bytes timestamp_type validate_crc",
    MemoryRecords: "MAGIC_OFFSET _cache_next _next_slice next_batch",
    MemoryRecordsBuilder: "_batch_size _builder _closed _next_offset append buffer close "
    "next_offset size_in_bytes",
    DefaultRecordBatchBuilder: "_buffer _first_timestamp _last_offset _max_timestamp _num_records",
    KafkaProducer: "_accumulator _sender _transaction_manager",
    ProducerBatch: "_record_futures attempts produce_future records",
    FutureProduceResult: "wait",
    RecordAccumulator: "_batches _flushes_in_progress _incomplete _tp_lock begin_flush config",
    Sender: "_client wakeup",
    KafkaNetClient: "await_ready connection_delay poll",
    TransactionManager: "_current_state _pending_txn_offset_commits is_transactional last_error "
    "maybe_add_partition_to_transaction next_request_handler",
    TxnRequestHandler: "on_complete",
    errors.LogTruncationError: "divergent_offsets",
}
"""Class -> the attributes of it, or of its objects, that this file uses or replaces."""


def require_known_client() -> None:
    """Raises: ImportError if kafka-python lacks a part that this file uses."""
    for owner, names in PRIVATE_PARTS.items():
        known = _attributes(owner)
        for name in names.split():
            if name not in known:
                raise ImportError(UNKNOWN_CLIENT % f"{owner.__qualname__} has no '{name}'")


def _attributes(owner: type) -> set[str]:
    """Return the names in a class, and those its constructors use: without a broker there are no
    objects to ask."""
    constructors = [vars(cls)["__init__"] for cls in owner.__mro__ if "__init__" in vars(cls)]
    codes = [init.__code__ for init in constructors if isinstance(init, FunctionType)]
    return set(dir(owner)).union(*(code.co_names for code in codes))


require_known_client()


# ------------------------------------------------------------------------------------ what is read

RECEIVE_BYTES = 1 << 18
"""The most bytes taken from a connection between two answers."""
WOULD_BLOCK = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
"""Nothing has arrived."""
CLOSED = "the broker closed the connection"
CHUNK_BYTES = 1 << 20
"""The bytes of record batches at which a chunk is complete."""


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
        # Until nothing is left: bytes that TLS has already decrypted wake no selector.
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
            part = None
            if not self._skipped(batch):
                part = locate_records(decompressed(batch), self.fetch_offset)
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


def decompressed(batch: Any) -> RecordBatch:
    """Return a record batch of kafka-python's, not yet iterated, as its bytes and header.

    Args:
        batch: kafka.record.default_records.DefaultRecordBatch.
    """
    try:
        batch._maybe_uncompress()
    except KafkaError:
        raise
    except Exception as error:  # each codec has its own
        raise CorruptRecordError(
            f"The record batch at offset {batch.base_offset} cannot be decompressed: {error}."
        ) from error
    return RecordBatch(
        raw=np.frombuffer(batch._buffer, np.uint8)[batch._pos :],
        record_count=batch.records_count,
        base_offset=batch.base_offset,
        first_timestamp=batch.first_timestamp,
        append_time=batch.max_timestamp if batch.timestamp_type == 1 else None,
    )


def decode(batch: Any, start: int, *, newline: bool, with_metadata: bool = False) -> Chunk:
    """Decode a record batch of kafka-python's to columns; see `locate_records`."""
    return chunk(
        [locate_records(decompressed(batch), start)],
        batch.next_offset,
        newline=newline,
        with_metadata=with_metadata,
    )


def warm_up_chunk(value: bytes, *, newline: bool, with_metadata: bool) -> Chunk:
    """Return a synthetic chunk with this value, to warm up the compiled loops."""
    builder = MemoryRecordsBuilder(magic=2, compression_type=0, batch_size=1 << 10, offset=0)
    builder.append(timestamp=0, key=b"", value=value, headers=[])
    builder.close()
    (batch,) = batches(MemoryRecords(bytes(builder.buffer())))
    return decode(batch, 0, newline=newline, with_metadata=with_metadata)


# -------------------------------------------------- what is known of brokers, topics and the group


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


def offsets_out_of_range(error: errors.OffsetOutOfRangeError) -> Mapping[TopicPartition, int]:
    """Return partition -> the requested offset, which its log does not have."""
    return cast(Mapping[TopicPartition, int], error.args[0])


def truncated_to(
    error: errors.LogTruncationError,
) -> Mapping[TopicPartition, OffsetAndMetadata | None]:
    """Return partition -> where its log begins to differ from what was read, if known."""
    return cast(Mapping[TopicPartition, OffsetAndMetadata | None], error.divergent_offsets)


@dataclass(frozen=True, slots=True, kw_only=True)
class Connections:
    """The open connections of a consumer.

    Attributes:
        last_read: when something came over each, in `time.monotonic` seconds.
        awaiting: whether a request waits for its answer.
    """

    last_read: Sequence[float]
    awaiting: bool


def connections(consumer: KafkaConsumer) -> Connections:
    """Return the consumer's connections now."""
    conns = list(consumer._manager._conns.values())
    # The client's own thread may drop a connection at any moment.
    lines = [conn.transport for conn in conns if conn.connected]
    return Connections(
        last_read=[line.last_read for line in lines if line is not None],
        awaiting=any(conn.in_flight_requests for conn in conns),
    )


def auth_failure(consumer: KafkaConsumer) -> Exception | None:
    """Return why a broker refused this client's authentication, if it did: kafka-python would
    retry for ever."""
    failures = list(consumer._manager._auth_failures.values())
    return failures[0] if failures else None


def rejoin_if_joining(consumer: KafkaConsumer) -> None:
    """Rejoin before a poll. kafka-python (3.0) forgets a join caused by new metadata if a poll ends
    meanwhile; the member would stay out of the group."""
    if consumer._coordinator._join_task is not None:
        consumer._coordinator.request_rejoin()


async def wait_for(consumer: KafkaConsumer, future: Future, seconds: float) -> None:
    """Wait on the client's own thread. Raises: kafka.errors.KafkaTimeoutError."""
    await consumer._manager.wait_for(future, seconds * 1000)


def resolve(consumer: KafkaConsumer, future: Future) -> None:
    """End the wait for `future`, from any thread."""
    consumer._net.call_soon_threadsafe(lambda: future.success(None))


def sasl_mechanism(mechanism: str | None, host: str, user: str, password: str) -> Any:
    """Return kafka-python's side of a SASL exchange: `auth_bytes`, `receive`, `is_done`,
    `is_authenticated`."""
    return get_sasl_mechanism(mechanism)(
        host=host,
        sasl_mechanism=mechanism,
        sasl_plain_username=user,
        sasl_plain_password=password,
    )


# --------------------------------------------------------------------------------- what is written


class ProducedBatch(ProducerBatch):  # type: ignore[misc]
    """A record batch that takes rows as columns.

    Attributes:
        records: kafka-python's builder of it.
    """

    def __init__(self, partition: TopicPartition, compression: int, size: int) -> None:
        super().__init__(partition, MemoryRecordsBuilder(2, compression, size))
        self._record_futures: Any = LazyFutures(self.records, self.produce_future)

    def room(self, nbytes: int) -> bool:
        """Return whether it is open and as many more bytes fit."""
        records = self.records
        return (
            not records._closed
            and self.attempts == 0
            and records.size_in_bytes() + nbytes <= records._batch_size
        )

    def put(self, outgoing: OutgoingRecords, at: Ints, nbytes: int) -> None:
        """Add these rows, of at most that many bytes."""
        records, builder, times = self.records, self.records._builder, outgoing.times[at]
        if builder._first_timestamp is None:
            builder._first_timestamp = builder._max_timestamp = int(times[0])
        data = outgoing.write(at, nbytes, records._next_offset, builder._first_timestamp)
        builder._buffer += data.data
        builder._max_timestamp = max(builder._max_timestamp, int(times.max()))
        builder._num_records += len(at)
        records._next_offset += len(at)
        builder._last_offset = records._next_offset - 1

    def failure(self, seconds: float) -> BaseException | None:
        """Wait for the answer; return why the records were not delivered, or None."""
        until = time.monotonic() + seconds
        self.produce_future.wait(seconds)
        for future in self._record_futures.futures:  # the client has split it
            try:
                future.get(max(0.0, until - time.monotonic()))
            except errors.KafkaError as error:
                return cast(BaseException, error)
        if self._record_futures.futures:
            return None
        if not self.produce_future.is_done:
            return cast(BaseException, errors.KafkaTimeoutError("no answer"))
        _, _, reasons = self.produce_future.value
        return None if reasons is None else reasons(0)


class LazyFutures(Sequence[FutureRecordMetadata]):
    """kafka-python's futures of a batch's records, made only when it splits a batch that the
    broker calls too large."""

    def __init__(self, records: MemoryRecordsBuilder, whole: FutureProduceResult) -> None:
        self._records = records  # not the batch: it holds this, and would wait for the collector
        self._whole = whole
        self.futures: list[FutureRecordMetadata] = []

    def __len__(self) -> int:
        return int(self._records.next_offset())

    def __getitem__(self, i: Any) -> Any:
        if (
            not self.futures
        ):  # all before the first is told of its new batch: see `ProducedBatch.failure`
            self.futures = [
                FutureRecordMetadata(self._whole, n, None, None, -1, -1, -1)
                for n in range(len(self))
            ]
        return self.futures[i]


def enqueue(
    producer: KafkaProducer,
    partition: TopicPartition,
    outgoing: OutgoingRecords,
    at: Ints,
    nbytes: int,
    size: int,
) -> ProducedBatch:
    """Give the producer rows of so many bytes for one partition; return their batch, which is
    the waiting one if they fit."""
    manager, accumulator = producer._transaction_manager, producer._accumulator
    if manager.is_transactional():
        manager.maybe_add_partition_to_transaction(partition)
    with accumulator._tp_lock(partition):
        waiting = accumulator._batches[partition]
        batch = waiting[-1] if waiting else None
        if not isinstance(batch, ProducedBatch) or not batch.room(nbytes):
            batch = ProducedBatch(partition, accumulator.config["compression_attrs"], size)
            waiting.append(batch)
            accumulator._incomplete.add(batch)
        batch.put(outgoing, at, nbytes)
    producer._sender.wakeup()
    return batch


@contextlib.contextmanager
def flushing(producer: KafkaProducer) -> Iterator[None]:
    """Send batches at once inside the block, instead of waiting for linger. kafka-python's own
    `flush` waits too, and fails if a batch is split meanwhile."""
    accumulator = producer._accumulator
    accumulator.begin_flush()
    producer._sender.wakeup()
    try:
        yield
    finally:
        accumulator._flushes_in_progress.decrement()


def without_busy_wait(producer: KafkaProducer) -> KafkaProducer:
    """Return the same producer, without its busy wait for an unreachable broker.

    kafka-python (3.0.12) does: its sender takes how long a connection is not to be tried again, in
    seconds, for milliseconds; and for one that is being made that is 0, however long it takes.
    """
    producer._sender._client.connection_delay = lambda node: PAUSE_MS
    return producer


def abort_transaction(producer: KafkaProducer) -> None:
    """Abort the open transaction, with the offsets that were to be committed with it.

    kafka-python (3.0.12) keeps offsets that the group has refused, and commits them with the next
    transaction, which may have no others of these partitions: their next owner would begin behind
    rows that were aborted.
    """
    producer.abort_transaction()
    producer._transaction_manager._pending_txn_offset_commits.clear()


@contextlib.contextmanager
def transaction_error(producer: KafkaProducer) -> Iterator[None]:
    """Raise what ended the transaction inside the block, where kafka-python (3.0.12) only says
    that something has: a call that comes after the failure gets a bare KafkaError; and one that
    comes while the client asks for a new epoch, or after it got one, is told of a wrong state."""
    try:
        yield
    except errors.KafkaError as error:
        manager = producer._transaction_manager
        if manager is None or type(error) not in (errors.KafkaError, errors.IllegalStateError):
            raise
        if manager.last_error:
            raise manager.last_error from error
        if manager._current_state in WITHOUT_TRANSACTION:
            raise errors.InvalidProducerEpochError(str(error)) from error
        raise


WITHOUT_TRANSACTION = (
    TransactionState.BUMPING_PRODUCER_EPOCH,
    TransactionState.INITIALIZING,
    TransactionState.READY,
)
"""The states of a producer whose open transaction the client has given up by itself."""


def retry_coordinator(producer: KafkaProducer) -> KafkaProducer:
    """Patch the transaction manager so that it retries coordinator requests after a broker outage.

    kafka-python (3.0.12) does: where the coordinator cannot be reached, its sender puts the request
    in hand back only if `await_ready` says so by False, and that raises instead. Nobody would ever
    answer `init_transactions`, a commit, or the first record of a partition, the broker long back.
    And it makes an error that ends everything of a request that was not answered in time, where one
    whose connection broke is sent again.
    """
    client, manager = producer._sender._client, producer._transaction_manager
    ready, following = client.await_ready, manager.next_request_handler

    def await_ready(node: Any, timeout_ms: float = 30_000) -> bool:
        try:
            return bool(ready(node, timeout_ms=timeout_ms))
        except (errors.KafkaConnectionError, errors.KafkaTimeoutError, errors.RequestTimedOutError):
            # Other brokers may name it again and again before it is to be tried again: without a
            # pause the sender would ask them as fast as they answer.
            client.poll(timeout_ms=PAUSE_MS)
            return False

    def next_request_handler(has_incomplete: bool) -> Any:
        handler = following(has_incomplete)
        if handler is not None:
            handler.on_complete = partial(_completed, handler)
        return handler

    client.await_ready, manager.next_request_handler = await_ready, next_request_handler
    return producer


def _completed(handler: Any, correlation: int, answer: Any) -> None:
    if isinstance(answer, errors.RequestTimedOutError):  # the client has closed the connection
        answer = errors.KafkaConnectionError(str(answer))
    type(handler).on_complete(handler, correlation, answer)


# ---------------------------------------------------------------------------------- what is logged

SECRET_MESSAGES = tuple(
    message.__name__
    for message in (
        SaslAuthenticateRequest,
        SaslAuthenticateResponse,
        SaslBytesRequest,
        SaslBytesResponse,
    )
)


class _Cancelled(logging.Filter):
    """Drops kafka-python's error log about requests cancelled by closing a client."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "Cancelled" not in record.getMessage()


class _Wire(logging.Filter):
    """Drops kafka-python's debug log of sent and received bytes, which shows passwords and
    records."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno > logging.DEBUG:
            return True
        args = record.args if isinstance(record.args, tuple) else ()
        return not any(
            isinstance(arg, bytes | bytearray | memoryview)
            or type(arg).__name__.startswith(SECRET_MESSAGES)
            for arg in args
        )


logging.getLogger("kafka.cluster").addFilter(_Cancelled())
for _name in ("kafka.protocol.parser", "kafka.net.connection"):
    logging.getLogger(_name).addFilter(_Wire())


__all__ = [
    "ColumnarRecords",
    "Connections",
    "Future",
    "ProducedBatch",
    "abort_transaction",
    "auth_failure",
    "batches",
    "connections",
    "decode",
    "enqueue",
    "flushing",
    "install_columnar_fetch",
    "is_forbidden",
    "metadata_time_ms",
    "offsets_out_of_range",
    "prefetched_bytes",
    "rejoin_if_joining",
    "require_known_client",
    "resolve",
    "retry_coordinator",
    "sasl_mechanism",
    "topic_ids",
    "transaction_error",
    "truncated_to",
    "wait_for",
    "warm_up_chunk",
    "without_busy_wait",
]
