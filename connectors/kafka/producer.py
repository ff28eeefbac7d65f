"""A producer that verifies every delivery, in a transaction if requested."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Self

from kafka import KafkaProducer, OffsetAndMetadata, TopicPartition, errors
from pydantic import ByteSize, Field, model_validator

from connectors.kafka.client import BrokerHealth, KafkaSettings, translated_errors
from connectors.kafka.client_internals import (
    ProducedBatch,
    abort_transaction,
    enqueue,
    flushing,
    retry_coordinator,
    transaction_error,
    without_busy_wait,
)
from connectors.kafka.record_batches import (
    MAX_BATCH_BYTES,
    OutgoingRecords,
    plan_batches,
)
from engine.types import Duration, HeadraceError
from engine.types.arrays import Ints
from engine.types.changes import Free, Warned
from engine.types.plural import counted

log = logging.getLogger("headrace.kafka")
CLOSE_SECONDS = 1.0
FENCED = (errors.ProducerFencedError, errors.InvalidProducerEpochError)
MIN_BATCH_BYTES = 16 << 10
"""The least bytes of a record batch that justify its header."""


class ProducerSettings(KafkaSettings):
    """The settings that a sink and dead letters of ``kind = "kafka"`` share.

    Attributes:
        compression_type: none, gzip, snappy, lz4 or zstd.
        linger: how long a batch of records may wait to fill; 5 ms as in Apache Kafka.
        buffer_memory: of records that are not acknowledged yet; a full buffer holds `write` up.
        max_record_bytes: of one record with its key and headers; what is larger becomes a dead
            letter. The broker's ``message.max.bytes`` must allow it.
        delivery_timeout: how long one record may take to be delivered, retries included.
        transaction_timeout: time after which the broker aborts a transaction whose engine is
            gone; readers of committed records wait for that. Longer than the time between
            checkpoints.
    """

    compression_type: Free[str] = Field("lz4", pattern="^(none|gzip|snappy|lz4|zstd)$")
    linger: Free[Duration] = Field(0.005, ge=0)
    buffer_memory: Free[ByteSize] = Field(ByteSize(32 << 20), ge=1 << 20)
    max_record_bytes: Free[ByteSize] = Field(ByteSize(1_000_000), ge=1_000)
    delivery_timeout: Free[Duration] = Field(120.0, gt=0)
    transaction_timeout: Free[Duration] = Field(60.0, gt=0)

    @model_validator(mode="after")
    def _check_delivery_timeout(self) -> Self:
        if self.delivery_timeout < 2 * self.linger + 0.1:
            raise ValueError(
                f"delivery_timeout = {self.delivery_timeout:g} s is over before a batch that waits "
                f"linger = "
                f"{self.linger:g} s is sent and answered: expected at least "
                f"{2 * self.linger + 0.1:g} s"
            )
        return self


class TopicSettings(ProducerSettings):
    """The settings for one topic.

    Attributes:
        topic: the topic that is written to; must be there.
    """

    topic: Warned[str]


class VerifiedProducer:
    """An idempotent producer with acks=all, whose `flush` returns when everything is
    acknowledged.

    With a `transaction` id everything that is sent is part of a transaction, which `commit` ends
    together with the offsets of what was read. A producer of the same id that starts later fences
    this one.

    Attributes:
        committed, aborted: transactions so far.
        failed: records that were not delivered.
        keep_alive: called every second while it waits for an answer, on another thread.
    """

    def __init__(self, settings: ProducerSettings, where: str) -> None:
        """
        Args:
            where: what error sentences call it.
        """
        self.settings = settings
        self.transaction: str | None = None
        self.committed = self.aborted = self.failed = 0
        self.keep_alive: Callable[[], object] | None = None
        self._where = where
        self._health = BrokerHealth.of(settings.bootstrap_servers)
        self._producer: KafkaProducer | None = None
        self._sent: deque[tuple[ProducedBatch, int, int]] = deque()
        self.nbytes = self._turn = 0
        self._buffer_bytes = int(settings.buffer_memory)
        self._open = self._fenced = self._fenced_before = False
        self._offsets: Mapping[TopicPartition, OffsetAndMetadata] = {}

    def limit_memory(self, nbytes: int) -> None:
        if "buffer_memory" not in self.settings.model_fields_set:
            self._buffer_bytes = max(1, min(self._buffer_bytes, nbytes))

    def connect(self) -> KafkaProducer:
        """Return the producer; the first call fences others with its transaction id."""
        if self._producer is None:
            settings = self.settings
            own: dict[str, Any] = {}
            if self.transaction is not None:
                own["transactional_id"] = self.transaction
                own["transaction_timeout_ms"] = int(settings.transaction_timeout * 1000)
            with self._translated_errors(), self._watching_broker():
                producer = KafkaProducer(
                    **settings.config(),
                    **own,
                    acks="all",
                    enable_idempotence=True,
                    compression_type=(
                        None if settings.compression_type == "none" else settings.compression_type
                    ),
                    linger_ms=int(settings.linger * 1000),
                    delivery_timeout_ms=int(settings.delivery_timeout * 1000),
                    # One answer is waited for within that, after the lingering.
                    request_timeout_ms=int(
                        min(30.0, 0.9 * (settings.delivery_timeout - settings.linger)) * 1000
                    ),
                    max_block_ms=int(settings.delivery_timeout * 1000),
                    max_request_size=settings.max_record_bytes + (64 << 10),
                    metrics_enabled=False,
                    allow_auto_create_topics=False,
                )
                self._producer = without_busy_wait(producer)
                if self.transaction is not None:
                    retry_coordinator(self._producer).init_transactions()
        return self._producer

    def probe(self, topic: str) -> None:
        """Check the topic with a separate producer: a transactional one would abort another
        engine's transaction.

        Raises: UserError if there is no such topic; HeadraceError where no broker answers.
        """
        wait = int(self.settings.timeout * 1000)
        with self._translated_errors():
            producer = KafkaProducer(
                **self.settings.config(),
                max_block_ms=wait,
                metrics_enabled=False,
                allow_auto_create_topics=False,
            )
            try:
                producer.partitions_for(topic)
            finally:
                producer.close(timeout=CLOSE_SECONDS)

    def send(self, topic: str, records: OutgoingRecords, at: Ints) -> None:
        """Send the records `at`, in order; if the buffer is full, wait until half of it is
        acknowledged. Records of a transaction that was taken away are dropped: `commit` says so.

        Args:
            at: which, shape (m,), increasing.

        Raises: HeadraceError if the broker does not take them; UserError for permissions.
        """
        producer = self.connect()
        if self._fenced:
            return
        with self._translated_errors():
            try:
                with transaction_error(producer):
                    self._enqueue(producer, topic, records, at)
            except FENCED:
                self._fenced = True

    def _enqueue(
        self, producer: KafkaProducer, topic: str, records: OutgoingRecords, at: Ints
    ) -> None:
        size = min(MAX_BATCH_BYTES, max(MIN_BATCH_BYTES, self.settings.max_record_bytes))
        self._begin(producer)
        partitions = len(producer.partitions_for(topic))
        batches, self._turn = plan_batches(records, at, partitions, self._turn, size)
        for partition, some, nbytes in batches:
            place = TopicPartition(topic, partition)
            batch = enqueue(producer, place, records, some, nbytes, size)
            self._sent.append((batch, len(some), nbytes))
            self.nbytes += nbytes
            if self.nbytes > self._buffer_bytes:
                self._await_acks(producer, self._buffer_bytes // 2)

    def flush(self) -> None:
        """Raises: HeadraceError when a record was not delivered: the run stops before its
        checkpoint, and what was read since the last comes again."""
        if self._producer is not None and self._sent:
            with self._translated_errors():
                self._await_acks(self._producer, 0)

    def _await_acks(self, producer: KafkaProducer, left: int) -> None:
        """Wait for answers, the oldest first, until at most this many bytes are unacknowledged;
        for all, once one failed."""
        until = time.monotonic() + self.settings.delivery_timeout + CLOSE_SECONDS
        rows = failed = 0
        why: BaseException | None = None
        with flushing(producer), self._watching_broker():
            while self._sent and (self.nbytes > left or why is not None):
                batch, count, nbytes = self._sent.popleft()
                failure = batch.failure(max(0.0, until - time.monotonic()))
                self.nbytes -= nbytes
                rows += count
                if failure is not None:
                    why = why or failure
                    failed += count
        if why is None:
            return
        self.failed += failed
        if self.transaction is not None and isinstance(why, FENCED):
            self._fenced = True  # `commit` says so
            return
        of = f"of {counted(rows, 'record')}"
        lost = counted(failed, f"{of} was", f"{of} were")
        raise HeadraceError(
            f"{self._where} at {self.settings.bootstrap_servers}: {lost} not delivered: "
            f"{why}; restart the engine: it resumes from the last checkpoint."
        )

    def commit(self, offsets: Mapping[TopicPartition, OffsetAndMetadata], group: Any) -> bool:
        """Commit the transaction with these offsets; return whether it was committed. It is
        aborted if the group has moved the partitions, or the broker has timed it out.

        Raises: HeadraceError if that happens twice in a row: another engine has this one's
            transaction id; or where the outcome cannot be known.
        """
        if not self._open and offsets == self._offsets:
            return True
        producer = self.connect()
        with self._translated_errors():
            try:
                if self._fenced:
                    raise errors.ProducerFencedError
                with transaction_error(producer):
                    self._begin(producer)
                    if offsets:
                        self._with_timeout(
                            lambda: producer.send_offsets_to_transaction(dict(offsets), group)
                        )
                    self._with_timeout(producer.commit_transaction)
            except (errors.CommitFailedError, errors.FencedInstanceIdError) as error:
                log.warning("transaction aborted", extra={"reason": str(error)})
                self.abort()
                return False
            except FENCED as error:
                self._replace_producer(producer, error)
                return False
        self._open, self._offsets, self._fenced_before = False, offsets, False
        self.committed += 1
        return True

    def _replace_producer(self, producer: KafkaProducer, error: BaseException) -> None:
        """Replace the producer after its transaction timed out (the broker was away), which
        looks like another engine with the same id; only the latter fails again at once."""
        if self._fenced_before:
            raise HeadraceError(
                f"{self._where}: another engine has taken over transaction '{self.transaction}'; "
                "let one engine run, or give each a [source] group_instance_id of its own."
            ) from error
        log.info("transaction aborted by the broker", extra={"reason": type(error).__name__})
        self._fenced_before, self._open, self._fenced = True, False, False
        self.aborted += 1
        self._producer, self._sent, self.nbytes = None, deque(), 0
        with contextlib.suppress(errors.KafkaError):
            producer.close(timeout=CLOSE_SECONDS)

    def abort(self) -> None:
        """Abort what was sent since the last commit."""
        producer, self._sent, self.nbytes = self._producer, deque(), 0
        if producer is not None and self._open:
            self._open = False
            self.aborted += 1
            with self._translated_errors():
                try:
                    with transaction_error(producer):
                        self._with_timeout(lambda: abort_transaction(producer))
                except FENCED as error:
                    self._replace_producer(producer, error)

    def close(self) -> None:
        """Close. Without a transaction, records that were not flushed may still arrive."""
        producer, self._producer = self._producer, None
        self._sent, self.nbytes = deque(), 0
        if producer is None:
            return
        if self._open:
            self._open = False
            self.aborted += 1
            try:
                self._with_timeout(producer.abort_transaction, CLOSE_SECONDS)
            except (HeadraceError, errors.KafkaError) as error:
                log.warning("transaction left to its timeout", extra={"reason": str(error)})
        with contextlib.suppress(errors.KafkaError):  # what it could not flush comes again
            producer.close(timeout=CLOSE_SECONDS)

    def _begin(self, producer: KafkaProducer) -> None:
        if self.transaction is not None and not self._open:
            producer.begin_transaction()
            self._open = True

    def _with_timeout(self, call: Callable[[], None], seconds: float | None = None) -> None:
        """Call the client with a timeout, where it has none."""
        failure: list[BaseException] = []

        def work() -> None:
            try:
                call()
            except BaseException as error:  # noqa: BLE001 - raised below, where it is waited for
                failure.append(error)

        thread = threading.Thread(target=work, daemon=True, name="headrace-transaction")
        with self._watching_broker():
            thread.start()
            thread.join(seconds or self.settings.delivery_timeout)
        if failure:
            raise failure[0]
        if thread.is_alive():
            raise HeadraceError(
                f"{self._where} at {self.settings.bootstrap_servers}: no answer about the "
                f"transaction; "
                "restart the engine: records since the last commit are read again."
            )

    def _watching_broker(self) -> contextlib.AbstractContextManager[None]:
        return self._health.watching(self, self.keep_alive)

    def _translated_errors(self) -> Any:
        return translated_errors(self.settings, self._where)


__all__ = ["ProducerSettings", "TopicSettings", "VerifiedProducer"]
