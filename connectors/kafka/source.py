"""Topics as a source: columns from the wire, positions that are offsets."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from pydantic import Field, SecretStr, field_validator

from connectors.formats.avro import Avro, schema_file
from connectors.formats.csv import Csv
from connectors.formats.ndjson import Ndjson
from connectors.formats.own import Describing, Own, is_own, own
from connectors.formats.text import Text
from connectors.kafka.client import KafkaSettings, speaking
from connectors.kafka.registry import Registry
from connectors.kafka.wire import Chunk, columnar
from engine.types import (
    EndOfStream,
    Format,
    HeadraceError,
    Mark,
    Records,
    Schema,
    UserError,
    Values,
    nearest,
)

log = logging.getLogger("headrace.kafka")
CHUNKS = 256
"""Record batches asked of the client at a time."""
CLOSE_SECONDS = 1.5
"""How long the last commit, and then the goodbye, may take: a stop is to be done within 5 s."""


class KafkaSource:
    """See `engine.types.Source`. A partition is named ``topic/3``; positions are offsets.

    All partitions of the topics are read by this one process (no consumer group is joined).
    Where a checkpoint says where to go on, that counts; a partition it does not name starts where
    the group has committed, if there is a `group`, else at `start`.
    """

    class Settings(KafkaSettings):
        """``[source] kind = "kafka"``

        Attributes:
            topics: their names.
            format: of the values: ndjson (a JSON object each), csv (with `columns`), avro (with
                `registry` or `schema_file`), text (one column ``value``), or a class of your own,
                ``package.module:Class``.
            columns: names of the fields of a csv value.
            paths: of ndjson and avro: column -> where its value is, ``user.address.city``.
            registry: of avro's schemas, with Confluent's API: its address, http(s)://...; values
                begin with the number of the schema that wrote them.
            registry_user: of the registry, where it asks for one.
            registry_password: better from the environment: ``HEADRACE_SOURCE__REGISTRY_PASSWORD``.
                Never logged.
            registry_patience: seconds to ask again when the registry is down in mid-run.
            schema_file: an Avro schema (.avsc) that wrote all values; they are plain datums then.
            start: earliest, latest, or ms since the epoch: where to begin without a checkpoint.
            stop: end: read what is there at the start, then end; never: wait for more.
            group: offsets of finished records are committed under this name, for others to see the
                lag and for a start without a checkpoint; nothing is committed unless given.
            lost: what to do where the log no longer has the offset to go on at: fail, earliest or
                latest (records skipped are counted and logged).
            isolation: read_committed leaves out what transactions aborted or have not finished.
            fetch_bytes: of one answer of a broker; the client holds up to twice as much.
        """

        topics: tuple[str, ...] = Field(min_length=1)
        format: Literal["ndjson", "csv", "avro", "text"] | Own = "ndjson"
        columns: tuple[str, ...] = ()
        paths: Mapping[str, str] = Field(default_factory=dict)
        registry: str | None = None
        registry_user: str | None = None
        registry_password: SecretStr | None = None
        registry_patience: float = Field(60.0, ge=0)
        schema_file: str | None = None
        start: Literal["earliest", "latest"] | int = "earliest"
        stop: Literal["end", "never"] = "never"
        group: str | None = None
        lost: Literal["fail", "earliest", "latest"] = "fail"
        isolation: Literal["read_committed", "read_uncommitted"] = "read_committed"
        fetch_bytes: int = Field(16 << 20, ge=1 << 16)

        @field_validator("topics", mode="before")
        @classmethod
        def _one(cls, topics: Any) -> Any:
            return (topics,) if isinstance(topics, str) else topics

    def __init__(self, settings: KafkaSource.Settings) -> None:
        """Raises: UserError for settings that do not fit together."""
        self.settings = settings
        self.format: Format = _format(settings)
        self._consumer: KafkaConsumer | None = None
        self._waiting: deque[Records] = deque()
        self._stops: dict[TopicPartition, int] = {}
        self._starts: dict[str, int] = {}
        self._ends: dict[str, int] = {}
        self._nexts: dict[str, int] = {}
        self._mark = Mark()
        self._marks: deque[Mark] = deque(maxlen=1)
        self._lock = threading.Lock()

    # ---------------------------------------------------------------------------- the protocol

    def schema(self, declared: Schema) -> Schema:
        """Raises: UserError where nothing is declared: a topic does not say what it holds."""
        if isinstance(self.format, Describing) and not isinstance(self.format, Ndjson):
            return self.format.schema(declared)
        named = {c: kind for c, kind in declared.items() if c != "*"}
        if not named or "*" in declared:
            raise UserError(
                "[source.schema] must name every column of a Kafka source, and not '*': a topic "
                "does not say what it holds."
            )
        if isinstance(self.format, Ndjson):
            return self.format.schema(named)
        if self.settings.format == "csv":
            for column in named:
                if column not in self.settings.columns:
                    raise UserError(
                        f"[source.schema] names column '{column}', which [source] columns does not."
                        f"{nearest(column, self.settings.columns)}"
                    )
        return named

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        """See `engine.types.Source`. Also where commits are sent: one thread speaks to the
        client."""
        if self._consumer is None:
            self.seek(self._mark)
        self._commit()
        if not self._waiting:
            if self._ended():
                raise EndOfStream
            self._poll(timeout)
        if not self._waiting:
            return None
        records = self._waiting.popleft()
        fit = int(np.searchsorted(_bounds(records), _bounds(records)[0] + max_bytes, "right")) - 1
        n = max(1, min(len(records), max_rows, fit))
        if n < len(records):
            self._waiting.appendleft(records.slice(n, len(records)))
            records = records.slice(0, n)
        self._nexts[records.partition] = records.next
        return records

    def seek(self, mark: Mark) -> None:
        """Raises: UserError for a topic that is not there, or an offset the log has not."""
        self._mark = mark
        self._waiting.clear()
        with speaking(self.settings, f"[source] topics {', '.join(self.settings.topics)}"):
            consumer = self._connected()
            partitions = self._partitions(consumer)
            consumer.assign(partitions)
            first = consumer.beginning_offsets(partitions)
            end = consumer.end_offsets(partitions)
            for tp in partitions:
                at = mark.positions.get(_name(tp))
                at = self._first(consumer, tp, first, end) if at is None else at
                at = self._within(tp, at, first[tp], end[tp])
                consumer.seek(tp, at)
                self._starts[_name(tp)] = self._nexts[_name(tp)] = at
                self._ends[_name(tp)] = end[tp]
            self._stops = end

    def commit(self, mark: Mark) -> None:
        """Noted; sent by the thread that reads, with its next read or at the end."""
        self._marks.append(mark)

    def lag(self) -> Mapping[str, int]:
        """Partition -> records not given yet."""
        return {name: max(0, self._ends[name] - at) for name, at in list(self._nexts.items())}

    def progress(self, mark: Mark) -> float | None:
        """Share of the offsets between start and stop."""
        if self.settings.stop == "never":
            return None
        if not self._starts:
            return 0.0
        total = sum(self._stops.values()) - sum(self._starts.values())
        done = sum(
            min(mark.positions.get(name, start), self._stops[_partition(name)]) - start
            for name, start in self._starts.items()
        )
        return done / total if total > 0 else 1.0

    def close(self) -> None:
        """Sends the last commit. May be called twice."""
        with self._lock:
            consumer, self._consumer = self._consumer, None
        if consumer is None:
            return
        try:
            with speaking(self.settings, "[source] commit"):
                self._commit(consumer)
        except HeadraceError as error:
            log.warning("%s", error)  # a checkpoint has the position too
        finally:
            consumer.close(autocommit=False, timeout_ms=int(CLOSE_SECONDS * 1000))

    # ---------------------------------------------------------------------------------- inside

    def _connected(self) -> KafkaConsumer:
        if self._consumer is None:
            settings = self.settings
            self._consumer = KafkaConsumer(
                **settings.config(),
                group_id=settings.group,
                enable_auto_commit=False,
                auto_offset_reset="none" if settings.lost == "fail" else settings.lost,
                isolation_level=settings.isolation,
                fetch_max_bytes=settings.fetch_bytes,
                max_partition_fetch_bytes=settings.fetch_bytes,
                allow_auto_create_topics=False,
                metrics_enabled=False,
            )
            columnar(self._consumer, newline=settings.format in ("ndjson", "csv"))
        return self._consumer

    def _partitions(self, consumer: KafkaConsumer) -> list[TopicPartition]:
        found = []
        there = consumer.topics()
        for topic in self.settings.topics:
            if topic not in there:
                raise UserError(
                    f"[source] topic '{topic}' is not there at {self.settings.bootstrap}."
                    f"{nearest(topic, there)}"
                )
            numbers = consumer.partitions_for_topic(topic) or ()
            found += [TopicPartition(topic, number) for number in sorted(numbers)]
        return found

    def _first(
        self,
        consumer: KafkaConsumer,
        tp: TopicPartition,
        first: Mapping[TopicPartition, int],
        end: Mapping[TopicPartition, int],
    ) -> int:
        """Where a partition starts that no checkpoint names."""
        start = self.settings.start
        if self.settings.group is not None:
            committed = consumer.committed(tp)
            if committed is not None:
                return int(committed)
        if isinstance(start, int):
            found = consumer.offsets_for_times({tp: start})[tp]
            return end[tp] if found is None else int(found.offset)
        return first[tp] if start == "earliest" else end[tp]

    def _within(self, tp: TopicPartition, at: int, first: int, end: int) -> int:
        """The position, or where to go instead when the log no longer, or not yet, has it."""
        if first <= at <= end:
            return at
        lost = self.settings.lost
        what = f"{_name(tp)} has offsets {first} to {end}, and {at} is where to go on"
        if lost == "fail":
            raise HeadraceError(
                f"{what}: records are gone (retention?), or it is another topic; set [source] lost "
                "to 'earliest' or 'latest' to go on without them."
            )
        to = first if lost == "earliest" else end
        log.warning("records lost", extra={"partition": _name(tp), "skipped": to - at, "why": what})
        return to

    def _poll(self, timeout: float) -> None:
        with speaking(self.settings, f"[source] topics {', '.join(self.settings.topics)}"):
            consumer = self._connected()
            found = consumer.poll(timeout_ms=int(timeout * 1000), max_records=CHUNKS)
        arrived = time.monotonic()
        for tp, chunks in found.items():
            high = consumer.highwater(tp)
            self._waiting += joined(_name(tp), chunks, arrived, self._stop(tp))
            if high is not None:
                self._ends[_name(tp)] = high

    def _stop(self, tp: TopicPartition) -> int | None:
        return self._stops[tp] if self.settings.stop == "end" else None

    def _ended(self) -> bool:
        if self.settings.stop == "never":
            return False
        consumer = self._connected()
        return all(consumer.position(tp) >= stop for tp, stop in self._stops.items())

    def _commit(self, consumer: KafkaConsumer | None = None) -> None:
        """Send the newest mark, if there is one; waiting for the answer only at the end."""
        if self.settings.group is None or not self._marks:
            return
        mark = self._marks.popleft()
        offsets = {
            _partition(name): OffsetAndMetadata(position, "", -1)
            for name, position in mark.positions.items()
        }
        if consumer is not None:
            consumer.commit(offsets, timeout_ms=int(CLOSE_SECONDS * 1000))
        elif offsets:
            self._connected().commit_async(offsets)


def joined(
    partition: str, chunks: Sequence[Chunk], arrived: float, stop: int | None
) -> Iterable[Records]:
    """Neighbouring chunks as one `Records`, up to the offset `stop`; nothing where all lies
    beyond."""
    offsets = np.concatenate([chunk.offsets for chunk in chunks])
    ends = np.cumsum([0, *(len(chunk.data) for chunk in chunks)])
    bounds = [chunk.bounds[:-1] + end for chunk, end in zip(chunks, ends[:-1], strict=True)]
    records = Records(
        partition=partition,
        positions=offsets,
        next=chunks[-1].next,
        values=Values(
            data=np.concatenate([chunk.data for chunk in chunks]),
            bounds=np.concatenate([*bounds, ends[-1:]]),
        ),
        arrived=arrived,
        timestamps=np.concatenate([chunk.timestamps for chunk in chunks]),
    )
    if stop is not None and records.next > stop:
        kept = int(np.searchsorted(offsets, stop))
        if not kept:
            return []
        records = records.slice(0, kept)
    return [records]


def _bounds(records: Records) -> Any:
    assert isinstance(records.values, Values)
    return records.values.bounds


def _format(settings: KafkaSource.Settings) -> Format:
    kind = settings.format
    of = {"columns": ("csv",), "paths": ("ndjson", "avro")}
    of |= dict.fromkeys(
        ("registry", "registry_user", "registry_password", "schema_file"), ("avro",)
    )
    for key, formats in of.items():
        if getattr(settings, key) and kind not in formats:
            raise UserError(
                f"[source] {key} is for {' and '.join(formats)}, and format is '{kind}'."
            )
    if kind == "csv":
        if not settings.columns:
            raise UserError('[source] format = "csv" of a topic needs the fields\' names: columns.')
        return Csv(defaultdict(lambda: settings.columns))
    if kind == "avro":
        return _avro(settings)
    if is_own(kind):
        return own(kind)
    return Ndjson(settings.paths) if kind == "ndjson" else Text()


def _avro(settings: KafkaSource.Settings) -> Avro:
    if (settings.registry is None) == (settings.schema_file is None):
        raise UserError(
            '[source] format = "avro" needs the address of a schema registry, registry, or the '
            "schema of plain values, schema_file: one of them."
        )
    if settings.registry is None:
        assert settings.schema_file is not None
        return Avro(schema_file(settings.schema_file), paths=settings.paths)
    registry = Registry(
        settings.registry,
        user=settings.registry_user,
        password=settings.registry_password,
        timeout=settings.timeout,
        patience=settings.registry_patience,
    )
    return Avro(registry, topics=settings.topics, paths=settings.paths)


def _name(tp: TopicPartition) -> str:
    return f"{tp.topic}/{tp.partition}"


def _partition(name: str) -> TopicPartition:
    topic, _, number = name.rpartition("/")
    return TopicPartition(topic, int(number))


__all__ = ["KafkaSource", "joined"]
