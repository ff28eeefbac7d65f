"""Writes dead letters to a topic: each record as it came, with headers that give the reason."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import polars as pl
from pydantic import Field

from connectors.formats.kernels import rows
from connectors.kafka.producer import TopicSettings, VerifiedProducer
from connectors.kafka.record_batches import OutgoingRecords, encode_headers
from connectors.kafka.sink import KafkaSink
from engine.types import PARTITION, POSITION, Buffered, Sink, Snapshot
from engine.types.changes import Free

PREFIX = "headrace."


class KafkaDeadLetterSink(Sink, Buffered):
    """Writes dead letters (`engine.running.dead_letters`) to a topic; each record keeps its
    value, key and headers, and gets in addition:

    ``headrace.reason``, ``headrace.stage``, ``headrace.detail``, ``headrace.topic``,
    ``headrace.partition``, ``headrace.offset``, ``headrace.timestamp`` (ms since the epoch),
    ``headrace.pipeline``, and ``headrace.replayed`` if a replay rejected it again: the place of the
    letter that was replayed.

    At least once, as `KafkaSink` is; part of its transaction where that one is `exactly_once`.
    """

    class Settings(TopicSettings):
        """``[dead_letters] kind = "kafka"``

        Attributes:
            provenance: headers of every letter; the pipeline's name.
        """

        provenance: Free[dict[str, str]] = Field(default_factory=dict)

    def __init__(self, settings: KafkaDeadLetterSink.Settings) -> None:
        self.settings: KafkaDeadLetterSink.Settings = settings
        self.delivery = VerifiedProducer(settings, f"[dead_letters] topic '{settings.topic}'")
        self._shared = False
        self._always = [(name, value.encode()) for name, value in settings.provenance.items()]

    def join_transaction(self, sink: Sink | None) -> None:
        """Send letters in this sink's transactions, if it has any at the same brokers."""
        if isinstance(sink, KafkaSink) and sink.settings.exactly_once:
            self._shared = sink.settings.bootstrap_servers == self.settings.bootstrap_servers
            self.delivery = sink.delivery if self._shared else self.delivery

    def on_wait(self, keep_alive: Callable[[], object]) -> None:
        self.delivery.keep_alive = keep_alive

    def probe(self) -> None:
        self.delivery.probe(self.settings.topic)

    def write(self, frame: pl.DataFrame, positions: pl.DataFrame | None = None) -> None:
        """Raises: HeadraceError if the broker does not take them; UserError for permissions."""
        if not frame.height:
            return
        whole = pl.col("headers").is_not_null() | pl.col("raw").is_not_null()
        text = pl.col("value").fill_null("").cast(pl.Binary)
        value = frame.select(pl.when(whole).then("raw").otherwise(text)).to_series()
        own = rows.values(frame["headers"])
        records = OutgoingRecords(
            values=rows.values(value),
            keys=rows.values(frame["key"]),
            headers=encode_headers(frame.height, self._always, _why(frame), own),
            times=np.full(frame.height, int(time.time() * 1000)),
        )
        self.delivery.send(self.settings.topic, records, np.arange(frame.height))

    def flush(self) -> None:
        """Raises: HeadraceError when a letter was not delivered."""
        self.delivery.flush()

    def snapshot(self) -> Snapshot:
        """Return nothing: records in a topic cannot be removed."""
        return None

    def restore(self, value: Snapshot) -> None:
        """Do nothing: records in a topic cannot be removed; the sink aborts a shared
        transaction."""

    def close(self) -> None:
        if not self._shared:
            self.delivery.close()

    @property
    def nbytes(self) -> int:
        """The bytes of unacknowledged records; the sink counts those of a shared producer."""
        return 0 if self._shared else self.delivery.nbytes

    def limit_memory(self, nbytes: int) -> None:
        if not self._shared:
            self.delivery.limit_memory(nbytes)

    def counts(self) -> Mapping[str, int]:
        """Return the outcomes so far, for the metrics."""
        return {} if self._shared else {"failed_records": self.delivery.failed}


def _why(frame: pl.DataFrame) -> dict[str, pl.Series]:
    parts = pl.col(PARTITION).str.extract_groups(r"^(?<topic>.*)/(?<number>\d+)$")
    columns = frame.select(
        pl.coalesce(parts.struct["topic"], PARTITION).alias("headrace.topic"),
        parts.struct["number"].alias("headrace.partition"),
        pl.col(POSITION).cast(pl.String).alias("headrace.offset"),
        pl.col("stage").alias("headrace.stage"),
        pl.col("reason").alias("headrace.reason"),
        pl.col("detail").alias("headrace.detail"),
        pl.col("timestamp").cast(pl.String).alias("headrace.timestamp"),
        pl.col("replayed").alias("headrace.replayed"),
    )
    return columns.to_dict()


__all__ = ["PREFIX", "KafkaDeadLetterSink"]
