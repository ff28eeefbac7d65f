"""A topic as a sink: every row a JSON object, every delivery verified."""

from __future__ import annotations

import io
import logging
from typing import Any

import numpy as np
import polars as pl
from kafka import KafkaProducer, errors
from pydantic import Field

from connectors.kafka.client import KafkaSettings, speaking
from engine.types import PARTITION, POSITION, HeadraceError, Snapshot

log = logging.getLogger("headrace.kafka")
NEWLINE = 10


class KafkaSink:
    """See `engine.types.Sink`. `flush` returns when the brokers have acknowledged every row
    (acks=all, idempotent producer, so a retry within it doubles nothing).

    At least once: what was written after the last checkpoint cannot be taken out of a topic, so
    after a crash those rows come again. Each carries where it came from in its headers
    (``headrace.partition``, ``headrace.position``), so that a reader can drop the second.
    """

    class Settings(KafkaSettings):
        """``[sink] kind = "kafka"``

        Attributes:
            topic: where to; must be there.
            key: column whose value (as text) is the record's key, and so chooses its partition;
                none spreads rows evenly.
            compression: none, gzip, snappy, lz4 or zstd.
            linger: seconds a batch of records may wait to fill.
            buffer_bytes: of rows that are not acknowledged yet; beyond, `write` waits for them.
            buffer_bytes: of records that wait to be sent; a full buffer holds `write` up.
            give_up: seconds one record may take to be delivered, retries included.
        """

        topic: str
        key: str | None = None
        compression: str = Field("lz4", pattern="^(none|gzip|snappy|lz4|zstd)$")
        linger: float = Field(0.02, ge=0)
        buffer_bytes: int = Field(32 << 20, ge=1 << 20)
        give_up: float = Field(120.0, gt=0)

    def __init__(self, settings: KafkaSink.Settings) -> None:
        self.settings = settings
        self._producer: KafkaProducer | None = None
        self._sent: list[Any] = []
        self._nbytes = 0

    def write(self, frame: pl.DataFrame) -> None:
        """One record a row. kafka-python's producer takes them one by one, which is what bounds
        this sink: about 30,000 rows a second a core.

        Raises: HeadraceError where the broker does not take them; UserError for permissions.
        """
        if not frame.height:
            return
        with speaking(self.settings, f"[sink] topic '{self.settings.topic}'"):
            send = self._connected().send
            for value, key, headers in zip(
                _values(frame), self._keys(frame), _headers(frame), strict=True
            ):
                self._sent.append(send(self.settings.topic, value, key=key, headers=headers))
                self._nbytes += len(value)
                if self._nbytes > self.settings.buffer_bytes:
                    self.flush()

    def flush(self) -> None:
        """Raises: HeadraceError when a row was not delivered: the run stops before its checkpoint,
        and the rows since the last come again."""
        if self._producer is None:
            return
        sent, self._sent, self._nbytes = self._sent, [], 0
        with speaking(self.settings, f"[sink] topic '{self.settings.topic}'"):
            self._producer.flush(self.settings.give_up)
            failed = [future for future in sent if not future.succeeded()]
            if failed:
                why = failed[0].exception or errors.KafkaTimeoutError("no answer")
                raise HeadraceError(
                    f"[sink] {len(failed)} of {len(sent)} rows were not delivered to topic "
                    f"'{self.settings.topic}' at {self.settings.bootstrap}: {why}; start again: "
                    "they come again from the last checkpoint."
                )

    def snapshot(self) -> Snapshot:
        """Nothing: a topic keeps what it was given."""
        return None

    def restore(self, value: Snapshot) -> None:
        """Nothing can be taken away; see the class."""

    def close(self) -> None:
        """See `engine.types.Sink`. Rows that were not flushed may be delivered all the same."""
        producer, self._producer = self._producer, None
        self._sent, self._nbytes = [], 0
        if producer is not None:
            producer.close(timeout=1)

    def _connected(self) -> KafkaProducer:
        if self._producer is None:
            settings = self.settings
            self._producer = KafkaProducer(
                **settings.config(),
                acks="all",
                enable_idempotence=True,
                compression_type=None if settings.compression == "none" else settings.compression,
                linger_ms=int(settings.linger * 1000),
                delivery_timeout_ms=int(settings.give_up * 1000),
                max_block_ms=int(settings.give_up * 1000),
                metrics_enabled=False,
                allow_auto_create_topics=False,
            )
        return self._producer

    def _keys(self, frame: pl.DataFrame) -> list[bytes | None]:
        if self.settings.key is None:
            return [None] * frame.height
        keys = frame.get_column(self.settings.key).cast(pl.String).cast(pl.Binary)
        return keys.to_list()


def _values(frame: pl.DataFrame) -> list[bytes]:
    """Each row as JSON: all in one call, then cut."""
    out = io.BytesIO()
    frame.write_ndjson(out)
    data = out.getbuffer()
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == NEWLINE).tolist()
    return [bytes(data[a:b]) for a, b in zip([0, *(e + 1 for e in ends)], ends, strict=False)]


def _headers(frame: pl.DataFrame) -> list[list[tuple[str, bytes]]]:
    if PARTITION not in frame.columns or POSITION not in frame.columns:
        return [[]] * frame.height
    places = frame.select(pl.col(PARTITION, POSITION).cast(pl.String).cast(pl.Binary)).rows()
    return [
        [("headrace.partition", partition), ("headrace.position", position)]
        for partition, position in places
    ]


__all__ = ["KafkaSink"]
