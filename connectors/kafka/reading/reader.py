"""Fetches chunks, and keeps the records not yet returned."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition, errors
from kafka.errors import IllegalStateError

from connectors.kafka.chunks import Chunk
from connectors.kafka.client_internals import (
    offsets_out_of_range,
    prefetched_bytes,
    truncated_to,
)
from connectors.kafka.reading.connection import Connection
from connectors.kafka.reading.decoding import TopicDecoding
from connectors.kafka.reading.membership import partition_name
from connectors.kafka.reading.positions import Positions
from connectors.kafka.reading.topics import Topics
from engine.types import Records, Values

log = logging.getLogger("headrace.kafka")
POLL_CHUNKS = 8
"""The chunks requested from the client at a time: about 1 MiB each."""


class Reader:
    """The records fetched and not yet returned. Called by the fetch thread.

    Attributes:
        nbytes: their bytes and those in the client, as of the last `take`.
    """

    def __init__(
        self,
        connection: Connection,
        decoding: TopicDecoding,
        topics: Topics,
        positions: Positions,
    ) -> None:
        self.nbytes = 0
        self._connection = connection
        self._decoding = decoding
        self._topics = topics
        self._positions = positions
        self._waiting: deque[Records] = deque()

    @property
    def is_empty(self) -> bool:
        """Whether no record waits."""
        return not self._waiting

    def clear(self) -> None:
        """Drop the waiting records."""
        self._waiting.clear()

    def take(self, max_rows: int, max_bytes: int) -> Records | None:
        """Return the next records, at least one if there is any; None if there is none."""
        if not self._waiting:
            return None
        records = self._waiting.popleft()
        fit = int(np.searchsorted(_bounds(records), _bounds(records)[0] + max_bytes, "right")) - 1
        n = max(1, min(len(records), max_rows, fit))
        if n < len(records):
            self._waiting.appendleft(records.slice(n, len(records)))
            records = records.slice(0, n)
        self._positions.nexts[records.partition] = records.next
        consumer = self._connection.opened
        held = 0 if consumer is None else prefetched_bytes(consumer)
        self.nbytes = held + sum(waiting.nbytes for waiting in self._waiting)
        return records

    def passed(self) -> dict[str, int]:
        """Return partition -> where the client reads next, of those without a record that
        waits."""
        consumer = self._connection.opened
        if consumer is None:
            return {}
        waiting = {records.partition for records in self._waiting}
        at = {partition_name(tp): consumer.position(tp) for tp in consumer.assignment()}
        return {text: n for text, n in at.items() if n is not None and text not in waiting}

    def poll(self, consumer: KafkaConsumer, timeout: float) -> None:
        """Fetch the records that arrive within so many seconds."""
        fetched = self._fetched(consumer, timeout)
        arrived = time.monotonic()
        for tp, chunks in fetched.items():
            text = partition_name(tp)
            if text not in self._positions.nexts or tp.topic in self._topics.recreated:
                continue  # just assigned, its start is not set yet
            stop = self._positions.stop_of(tp)
            for chunk in chunks:
                self._waiting += self._decoding.records(text, chunk, arrived, stop)
            with contextlib.suppress(IllegalStateError):  # it may have been revoked since
                if (high := consumer.highwater(tp)) is not None:
                    self._positions.saw_end(tp, high)

    def _fetched(
        self, consumer: KafkaConsumer, timeout: float
    ) -> Mapping[TopicPartition, Sequence[Chunk]]:
        """Poll the consumer; return nothing while no broker is reachable."""
        try:
            fetched: Mapping[TopicPartition, Sequence[Chunk]] = consumer.poll(
                timeout_ms=int(timeout * 1000), max_records=POLL_CHUNKS
            )
        except errors.KafkaConnectionError as error:
            log.debug("poll failed", extra={"reason": str(error)})
            return {}
        except errors.OffsetOutOfRangeError as error:
            for tp, at in offsets_out_of_range(error).items():
                self._on_out_of_range(consumer, tp, at)
            return {}
        except errors.LogTruncationError as error:
            for tp, to in truncated_to(error).items():
                self._on_truncation(consumer, tp, to)
            return {}
        return fetched

    def _on_out_of_range(self, consumer: KafkaConsumer, tp: TopicPartition, at: int) -> None:
        """Handle a log without the requested offset: retention has passed the reader, or the topic
        was recreated."""
        if self._topics.is_recreated(consumer, tp.topic):
            return
        log_range = self._connection.ranges(consumer, [tp])[tp]
        self._seek(consumer, tp, self._positions.in_range(tp, at, log_range))

    def _on_truncation(
        self, consumer: KafkaConsumer, tp: TopicPartition, to: OffsetAndMetadata | None
    ) -> None:
        """Handle a log whose records after `to`, or after an unknown offset, were replaced, or
        whose topic was recreated, which looks the same."""
        if self._topics.is_recreated(consumer, tp.topic):
            return
        log_range = self._connection.ranges(consumer, [tp])[tp]
        reason = (
            f"{partition_name(tp)} has lost records that were read (an unclean leader election?)"
        )
        instead = self._positions.reset(tp, log_range.end, log_range, reason)
        self._seek(consumer, tp, instead if to is None else int(to.offset))

    def _seek(self, consumer: KafkaConsumer, tp: TopicPartition, to: int) -> None:
        """Continue at `to`. No record has this offset, so an empty one carries it to the mark."""
        consumer.seek(tp, to)
        self._waiting.append(self._decoding.no_records(partition_name(tp), to))


def _bounds(records: Records) -> Any:
    assert isinstance(records.values, Values)
    return records.values.bounds


__all__ = ["Reader"]
