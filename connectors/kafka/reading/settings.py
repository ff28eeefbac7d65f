"""The settings of a source of topics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ByteSize, Field, SecretStr, field_validator

from connectors.formats.values.casts import Coerce
from connectors.kafka.client import KafkaSettings
from engine.types import Duration, Name, Names
from engine.types.changes import Fixed, Free, Meaning, Warned


class KafkaSourceSettings(KafkaSettings):
    """``[source] kind = "kafka"``

    Attributes:
        topics: their names; one that begins with ``^`` is a pattern for all that it matches.
        format: of the values: ndjson (a JSON object each), csv (with `columns`), avro (with
            `registry` or `schema_file`), xml (a document each), text (one column ``value``), or
            a class of your own, ``package.module:Class``.
        columns: names of the fields of a csv value.
        record: further columns, of what a record has besides its value: name -> ``key``,
            ``key bytes``, ``timestamp``, ``topic``, ``partition``, ``offset`` or
            ``header NAME``.
        paths: column -> where its value is: ``user.address.city`` in ndjson and avro,
            ``address/city`` or ``@id`` in xml.
        registry: of avro's schemas, with Confluent's API: its address, http(s)://...; values
            begin with the number of the schema that wrote them.
        registry_user: of the registry, where it asks for one.
        registry_password: better from the environment: ``HEADRACE_SOURCE__REGISTRY_PASSWORD``.
            Never logged.
        registry_retry_timeout: how long to ask again when the registry is down in mid-run.
        schema_file: an Avro schema (.avsc) that wrote all values; they are plain datums then.
        start: earliest, latest, or ms since the epoch: where to begin without a checkpoint.
        stop: end: read what is there at the start, then end; never: wait for more.
        subscribe: share the partitions with the group's other members.
        group_id: offsets of finished records are committed under this name, for others to see
            the lag and for a start without a checkpoint; nothing is committed unless given.
        group_instance_id: this engine's own name in the group (static membership): it gets its
            partitions back when it returns within `session_timeout`. Needed by engines that
            keep a state.
        assignor: how the group shares: cooperative-sticky, sticky, range or roundrobin; the
            same for all of its members.
        session_timeout: time without a sign of life after which the group gives up on an
            engine.
        rebalance_timeout: how long a rebalance waits for the batch in hand.
        auto_offset_reset: what to do where the log no longer has the offset to go on at
            (retention, also while it is read), or the topic was deleted and made anew: fail,
            earliest or latest (records skipped are counted and logged).
        isolation_level: read_committed leaves out what transactions aborted or have not
            finished.
        fetch_max_bytes: of one answer of a broker; the client holds up to twice as much.
        coerce: of ndjson, csv and avro: "lossless" takes every value that equals one of the
            declared type, however it is written; "strict" only what is written as that type.
    """

    topics: Free[Names] = Field(min_length=1)
    format: Meaning[str] = "ndjson"
    columns: Meaning[Names] = ()
    record: Meaning[dict[str, str]] = Field(default_factory=dict)
    paths: Meaning[Mapping[str, str]] = Field(default_factory=dict)
    registry: Free[str | None] = None
    registry_user: Free[str | None] = None
    registry_password: Free[SecretStr | None] = None
    registry_retry_timeout: Free[Duration] = Field(60.0, ge=0)
    schema_file: Meaning[Name | None] = None
    start: Free[Literal["earliest", "latest"] | int] = "earliest"
    stop: Free[Literal["end", "never"]] = "never"
    subscribe: Fixed[bool] = False
    group_id: Fixed[str | None] = None
    group_instance_id: Free[str | None] = Field(None, pattern=r"^[A-Za-z0-9._-]{1,100}$")
    assignor: Free[Literal["cooperative-sticky", "sticky", "range", "roundrobin"]] = (
        "cooperative-sticky"
    )
    session_timeout: Free[Duration] = Field(45.0, gt=0)
    rebalance_timeout: Free[Duration] = Field(30.0, gt=0)
    auto_offset_reset: Free[Literal["fail", "earliest", "latest"]] = "fail"
    isolation_level: Warned[Literal["read_committed", "read_uncommitted"]] = "read_committed"
    fetch_max_bytes: Free[ByteSize] = Field(ByteSize(16 << 20), ge=1 << 16)
    coerce: Meaning[Coerce] = "lossless"

    @field_validator("topics", mode="before", json_schema_input_type=str | tuple[str, ...])
    @classmethod
    def _one(cls, topics: Any) -> Any:
        return (topics,) if isinstance(topics, str) else topics


__all__ = ["KafkaSourceSettings"]
