"""Writes rows to a topic, one record per row, and verifies every delivery."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, SecretStr

from connectors.formats.avro import schema_file
from connectors.formats.encode import AvroEncoder, Encoder, JsonEncoder, RawEncoder
from connectors.formats.kernels import rows
from connectors.kafka.producer import TopicSettings, VerifiedProducer
from connectors.kafka.record_batches import OutgoingRecords, encode_headers, warm_up
from connectors.kafka.schema_registry import Registry
from connectors.kafka.source import KafkaSource
from engine.types import (
    PARTITION,
    POSITION,
    Buffered,
    Duration,
    Mark,
    Name,
    Rejects,
    Schema,
    Sink,
    Snapshot,
    Source,
    Transaction,
    UserError,
    Values,
    require,
)
from engine.types.arrays import Ints
from engine.types.changes import Free, Warned

TRACEPARENT = "traceparent"
"""W3C's header, which the rows of a traced batch carry."""
PLACE = re.compile(r"(?s)(.*)/(\d+)\Z")
"""A partition's name: topic and number."""
PREVIEW_CHARS = 2_000
"""The characters of a rejected row in its dead letter."""


class KafkaSink(Sink, Buffered):
    """Writes rows to a topic. `flush` returns when the brokers have acknowledged every row
    (acks=all, idempotent producer, so a retry within it duplicates nothing).

    At least once by default: what was written after the last checkpoint cannot be taken out of a
    topic, so after a crash those rows come again. Each carries where it came from in its headers
    (``headrace.topic``, ``headrace.partition``, ``headrace.offset``), so that a reader can drop the
    second. Rows of a traced batch carry its ``traceparent`` too.

    Exactly once where asked for: rows and the offsets of what was read are one Kafka transaction.
    Readers that read committed records see each row once.
    """

    class Settings(TopicSettings):
        """``[sink] kind = "kafka"``

        Attributes:
            format: of the values: json (an object a row), avro (with `registry` or `schema_file`)
                or raw (one column of text or bytes, as it is).
            value: the column that is written as it is, for `format` raw.
            registry: of avro's schemas, with Confluent's API; the schema is registered as
                ``<topic>-value``.
            registry_user, registry_password: of the registry, where it asks for them; the password
                better from the environment: ``HEADRACE_SINK__REGISTRY_PASSWORD``.
            schema_file: an Avro schema (.avsc) to write by; made of the columns unless given.
            key: column whose value (as text) is the record's key, and so chooses its partition;
                none spreads rows evenly.
            timestamp: column (a datetime, or ms since the epoch) with each record's time; the time
                of writing unless given, or where it is null.
            exactly_once: commit rows and offsets in one transaction. Needs a Kafka source with a
                `group_id` at the same brokers.
            commit_interval: of exactly_once: how soon rows become visible to readers of committed
                records, at the latest; sooner where nothing more comes. Each commit takes a
                checkpoint: where a state is large, it waits until that is no more than a tenth of
                the time, or a checkpoint is due.
            provenance: headers of every record; the pipeline's name and the model's version (where
                a folder of versions serves, the column ``model_version`` alone says it).
        """

        format: Warned[Literal["json", "avro", "raw"]] = "json"
        value: Warned[str | None] = None
        registry: Free[str | None] = None
        registry_user: Free[str | None] = None
        registry_password: Free[SecretStr | None] = None
        schema_file: Warned[Name | None] = None
        key: Warned[Name | None] = None
        timestamp: Warned[Name | None] = None
        exactly_once: Free[bool] = False
        commit_interval: Free[Duration] = Field(1.0, gt=0)
        provenance: Free[dict[str, str]] = Field(default_factory=dict)

    def __init__(self, settings: KafkaSink.Settings) -> None:
        """Raises: UserError for settings that do not fit together."""
        self.settings: KafkaSink.Settings = settings
        self._encoder = _encoder(settings)
        self.delivery = VerifiedProducer(settings, f"[sink] topic '{settings.topic}'")
        self._source: KafkaSource | None = None
        self._always = [(name, value.encode()) for name, value in settings.provenance.items()]
        self._trace: list[tuple[str, bytes]] = []

    def transaction(self, source: Source) -> Transaction | None:
        """Return the transaction with `exactly_once`, else None.

        Raises: UserError if that cannot be.
        """
        if not self.settings.exactly_once:
            return None
        if not isinstance(source, KafkaSource) or source.settings.group_id is None:
            raise UserError(
                "[sink] exactly_once commits rows and offsets together: expected a [source] of "
                'kind "kafka" with a group.'
            )
        if source.settings.bootstrap_servers != self.settings.bootstrap_servers:
            raise UserError(
                "[sink] exactly_once needs source and sink at the same brokers: expected "
                "bootstrap_servers "
                f"'{source.settings.bootstrap_servers}', got '{self.settings.bootstrap_servers}'."
            )
        own = source.settings.group_instance_id
        if own is None:
            own = uuid.uuid4().hex if source.settings.subscribe else "alone"
        self.delivery.transaction = f"headrace-{source.settings.group_id}-{own}"
        self._source = source
        source.commits.fence_producer = self.delivery.connect
        return Transaction(commit=self.commit, every=self.settings.commit_interval)

    def on_wait(self, keep_alive: Callable[[], object]) -> None:
        self.delivery.keep_alive = keep_alive

    def on_trace(self, traceparent: str) -> None:
        self._trace = [(TRACEPARENT, traceparent.encode())]

    def bind(self, schema: Schema) -> None:
        for key in ("key", "timestamp"):
            column = getattr(self.settings, key)
            require(schema, () if column is None else (column,), where=f"[sink] {key}")
        self._encoder.require(schema)
        warm_up()

    def probe(self) -> None:
        self.delivery.probe(self.settings.topic)

    def write(self, frame: pl.DataFrame, positions: pl.DataFrame | None = None) -> Rejects | None:
        """Send one record per row; return rows that are too large, as rejects.

        Raises: HeadraceError if the broker does not take them; UserError for permissions.
        """
        always, self._trace = [*self._always, *self._trace], []
        if not frame.height:
            return None
        records = OutgoingRecords(
            values=self._encoder.encode(frame),
            keys=self._keys(frame),
            headers=encode_headers(frame.height, always, _places(positions)),
            times=self._times(frame),
        )
        fits = records.sizes() <= self.settings.max_record_bytes
        self.delivery.send(self.settings.topic, records, np.flatnonzero(fits))
        return None if fits.all() else self._refused(positions, records.values, ~fits)

    def flush(self) -> None:
        """Raises: HeadraceError when a row was not delivered."""
        self.delivery.flush()

    def commit(self, mark: Mark) -> bool:
        """End the transaction: rows and offsets are committed together, or neither; return
        which."""
        assert self._source is not None
        commits = self._source.commits
        return self.delivery.commit(commits.offsets(mark), commits.group_metadata())

    def snapshot(self) -> Snapshot:
        """Do nothing: records in a topic cannot be removed."""
        return None

    def restore(self, value: Snapshot) -> None:
        """Do nothing: only an open transaction can be aborted; see the class."""
        self.delivery.abort()

    def close(self) -> None:
        """Close. Without `exactly_once`, rows that were not flushed may still be delivered."""
        self.delivery.close()

    @property
    def nbytes(self) -> int:
        """The bytes of unacknowledged records."""
        return self.delivery.nbytes

    def limit_memory(self, nbytes: int) -> None:
        self.delivery.limit_memory(nbytes)

    def counts(self) -> Mapping[str, int]:
        """Return the outcomes so far, for the metrics."""
        delivery = self.delivery
        counts = {"failed_records": delivery.failed}
        if delivery.transaction is not None:
            counts |= {"committed": delivery.committed, "aborted": delivery.aborted}
        return counts

    def _keys(self, frame: pl.DataFrame) -> Values | None:
        if self.settings.key is None:
            return None
        return rows.values(frame.get_column(self.settings.key).cast(pl.String))

    def _times(self, frame: pl.DataFrame) -> Ints:
        now = int(time.time() * 1000)
        if self.settings.timestamp is None:
            return np.full(frame.height, now)
        times = frame.get_column(self.settings.timestamp)
        if times.dtype.is_temporal():
            times = times.cast(pl.Datetime("ms"))
        return times.cast(pl.Int64).fill_null(now).to_numpy()

    def _refused(
        self, positions: pl.DataFrame | None, values: Values, which: NDArray[np.bool_]
    ) -> Rejects:
        at = np.flatnonzero(which)
        if positions is None:
            positions = pl.DataFrame({PARTITION: [""], POSITION: [-1]})[[0] * len(which)]
        limit = self.settings.max_record_bytes
        texts = [
            (value or b"")[:PREVIEW_CHARS].decode("utf-8", "replace") for value in values.take(at)
        ]
        return Rejects(
            stage="write",
            reason="too_large",
            rows=positions[at].with_columns(
                pl.lit(f"Expected a record of at most {limit} bytes.").alias("detail"),
                pl.Series("value", texts),
            ),
        )


def _encoder(settings: KafkaSink.Settings) -> Encoder:
    avro = settings.registry is not None or settings.schema_file is not None
    if avro != (settings.format == "avro"):
        raise UserError(
            '[sink] format = "avro" needs the address of a schema registry, registry, or a '
            "schema_file; other formats need neither."
        )
    if settings.format == "raw":
        return RawEncoder(settings.value)
    if settings.format == "json":
        return JsonEncoder()
    return AvroEncoder(
        registry=None
        if settings.registry is None
        else Registry(
            settings.registry,
            user=settings.registry_user,
            password=settings.registry_password,
            timeout=settings.timeout,
            retry_timeout=settings.delivery_timeout,
        ),
        topic=settings.topic,
        schema=None if settings.schema_file is None else schema_file(settings.schema_file),
    )


def _places(positions: pl.DataFrame | None) -> dict[str, pl.Series]:
    """Return headers that say where each row was read."""
    if positions is None:
        return {}
    partitions = positions.get_column(PARTITION)
    names = partitions.unique() if len(partitions) > 1 else partitions
    parts = [PLACE.match(name) for name in names]
    topics = [name if part is None else part[1] for name, part in zip(names, parts, strict=True)]
    numbers = ["" if part is None else part[2] for part in parts]
    headers = {"headrace.topic": topics, "headrace.partition": numbers}
    columns = {
        header: pl.Series([texts[0]]).new_from_index(0, len(partitions))
        if len(names) == 1
        else partitions.replace_strict(names, pl.Series(texts))
        for header, texts in headers.items()
    }
    return {**columns, "headrace.offset": positions.get_column(POSITION).cast(pl.String)}


__all__ = ["KafkaSink"]
