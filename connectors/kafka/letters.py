"""A topic for dead letters: each record as it came, with headers that say why it is there."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl
from pydantic import Field

from connectors.kafka import wire
from connectors.kafka.delivery import Delivery, DeliverySettings, Headers
from connectors.kafka.sink import KafkaSink
from engine.types import PARTITION, POSITION, Snapshot


class KafkaLetters:
    """See `engine.types.Sink`. Takes dead letters (`engine.letters`); the topic gets each record's
    own value, key and headers, and besides:

    ``headrace.reason``, ``headrace.stage``, ``headrace.detail``, ``headrace.topic``,
    ``headrace.partition``, ``headrace.offset``, ``headrace.timestamp`` (ms since the epoch) and
    ``headrace.pipeline``.

    At least once, as `KafkaSink` is; part of its transaction where that one is `exactly_once`.
    """

    class Settings(DeliverySettings):
        """``[dead_letters] kind = "kafka"``

        Attributes:
            topic: where to; must be there.
            provenance: headers of every letter; the pipeline's name.
        """

        topic: str
        provenance: dict[str, str] = Field(default_factory=dict)

    def __init__(self, settings: KafkaLetters.Settings) -> None:
        self.settings = settings
        self.delivery = Delivery(settings, f"[dead_letters] topic '{settings.topic}'")
        self._shared = False
        self._always = [(name, value.encode()) for name, value in settings.provenance.items()]

    def follow(self, sink: object) -> None:
        """Send letters in this sink's transactions; nothing, where it has none or is elsewhere."""
        if isinstance(sink, KafkaSink) and sink.settings.exactly_once:
            self._shared = sink.settings.bootstrap == self.settings.bootstrap
            self.delivery = sink.delivery if self._shared else self.delivery

    def write(self, frame: pl.DataFrame, places: pl.DataFrame | None = None) -> None:
        """Raises: HeadraceError where the broker does not take them; UserError for permissions."""
        if not frame.height:
            return
        whole = frame["headers"].is_not_null() | frame["raw"].is_not_null()
        values = [
            raw if known else (value or "").encode()
            for raw, value, known in zip(frame["raw"], frame["value"], whole, strict=True)
        ]
        headers = [
            [*wire.headers(own or b""), *self._always, *why]
            for own, why in zip(frame["headers"], _why(frame), strict=True)
        ]
        self.delivery.send(self.settings.topic, values, frame["key"].to_list(), headers)

    def flush(self) -> None:
        """Raises: HeadraceError when a letter was not delivered."""
        self.delivery.flush()

    def snapshot(self) -> Snapshot:
        """Nothing: a topic keeps what it was given."""
        return None

    def restore(self, value: Snapshot) -> None:
        """Nothing can be taken away; the sink aborts the transaction that both share."""

    def close(self) -> None:
        """See `engine.types.Sink`."""
        if not self._shared:
            self.delivery.close()

    @property
    def nbytes(self) -> int:
        """Bytes of records that are not acknowledged yet; the sink counts those of a delivery that
        both share."""
        return 0 if self._shared else self.delivery.nbytes

    def bound(self, nbytes: int) -> None:
        """See `engine.types.Buffered`."""
        if not self._shared:
            self.delivery.bound(nbytes)

    def counts(self) -> Mapping[str, int]:
        """Outcomes so far, for the metrics."""
        return {} if self._shared else {"undelivered": self.delivery.failed}


def _why(frame: pl.DataFrame) -> list[Headers]:
    parts = pl.col(PARTITION).str.extract_groups(r"^(?<topic>.*)/(?<number>\d+)$")
    columns = frame.select(
        pl.coalesce(parts.struct["topic"], PARTITION).alias("headrace.topic"),
        parts.struct["number"].alias("headrace.partition"),
        pl.col(POSITION).cast(pl.String).alias("headrace.offset"),
        pl.col("stage").alias("headrace.stage"),
        pl.col("reason").alias("headrace.reason"),
        pl.col("detail").alias("headrace.detail"),
        pl.col("timestamp").cast(pl.String).alias("headrace.timestamp"),
    ).cast(pl.Binary)
    names = columns.columns
    return [
        [(name, value) for name, value in zip(names, row, strict=True) if value is not None]
        for row in columns.rows()
    ]


__all__ = ["KafkaLetters"]
