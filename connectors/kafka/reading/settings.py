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
        topics: names of topics; a name that begins with ``^`` is a pattern.
        format: the format of the values: ndjson (one JSON object), csv (with `columns`), avro (with
            `registry` or `schema_file`), xml (one document), text (one column ``value``), or a
            class of your own, ``package.module:Class``.
        columns: the names of the fields of a csv value.
        record: further columns from other parts of a record: name -> ``key``,
            ``key bytes``, ``timestamp``, ``topic``, ``partition``, ``offset`` or
            ``header NAME``.
        paths: column -> the path of its value: ``user.address.city`` in ndjson and avro,
            ``address/city`` or ``@id`` in xml.
        registry: the address of the schema registry, http(s)://..., with Confluent's API; each
            value begins with the number of the schema that wrote it.
        registry_user: the user name for the registry, if it requires one.
        registry_password: the password for the registry, never logged; better set in the
            environment: ``HEADRACE_SOURCE__REGISTRY_PASSWORD``.
        registry_retry_timeout: how long to retry if the registry is unreachable during a run.
        schema_file: the Avro schema (.avsc) of all values, which are plain datums then.
        start: where to begin without a checkpoint: earliest, latest, or ms since the epoch.
        stop: end: read to the end of the topics as of the start; never: wait for more.
        subscribe: share the partitions with the group's other members.
        group_id: the group under whose name offsets of finished records are committed, to show the
            lag and to start without a checkpoint; nothing is committed unless given.
        group_instance_id: this engine's own name in the group (static membership): it gets its
            partitions back when it returns within `session_timeout`. Needed by engines that
            keep a state.
        assignor: how the group shares partitions: cooperative-sticky, sticky, range or roundrobin;
            the same for all members.
        session_timeout: time without a heartbeat after which the group removes an engine.
        rebalance_timeout: how long a rebalance waits for the current batch.
        auto_offset_reset: what to do if the next offset no longer exists (retention, also during a
            run), or the topic was recreated: fail, earliest or latest (skipped records are
            counted and logged).
        isolation_level: read_committed skips records of aborted and unfinished transactions.
        fetch_max_bytes: the largest response of a broker; the client buffers up to twice as much.
        coerce: for ndjson, csv and avro: "lossless" accepts every value that equals one of the
            declared type, however it is written; "strict" only values written as that type.
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
