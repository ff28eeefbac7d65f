"""Turns fetched chunks into records, and chooses the format that decodes them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from connectors.formats.avro import schema_file
from connectors.formats.custom import is_custom, load_custom, require_known_format
from connectors.formats.ndjson import Ndjson
from connectors.formats.options import FormatOptions
from connectors.formats.registry import TOPICS, require_option, spec_of
from connectors.kafka.chunks import Chunk
from connectors.kafka.client_internals import warm_up_chunk
from connectors.kafka.reading.settings import KafkaSourceSettings
from connectors.kafka.record_columns import RecordColumns, record_schema
from connectors.kafka.schema_registry import Registry
from connectors.kafka.value_checks import ValueFilter
from engine.types import Format, Records, Schema, UserError, Values, nearest, only_named

KEYS_OF_FORMATS = (
    "columns", "paths", "registry", "registry_user", "registry_password", "schema_file",
)  # fmt: skip
"""Settings for some formats only."""


class TopicDecoding:
    """Decodes the records of a source's topics.

    Attributes:
        format: the format of the values.
        record_schema: the columns from keys, headers and other parts of a record.
    """

    def __init__(self, settings: KafkaSourceSettings) -> None:
        """Raises: UserError for settings that do not fit together."""
        self._settings = settings
        self._values = _format(settings)
        self.record_schema = record_schema(settings.record)
        self.format: Format = self._values
        if not is_custom(settings.format):  # a user's format may use a deletion
            text = spec_of(settings.format).plain_text
            self.format = ValueFilter(self._values, text=text)
        if settings.record:
            self.format = RecordColumns(self.format, settings.record)
        self._columns: Schema = {}

    @property
    def has_lines(self) -> bool:
        """Whether the format expects one line per value."""
        return spec_of(self._settings.format).newline

    def schema(self, declared: Schema) -> Schema:
        """Return the columns. Raises: UserError if none are declared: a topic has no schema of its
        own."""
        declared = only_named(declared)
        for column in self.record_schema:
            if column in declared:
                raise UserError(
                    f"Column '{column}' is in [source.schema] and in [source.record]: rename one."
                )
        self._columns = self._declared(declared) | self.record_schema
        return self._columns

    def _declared(self, declared: Schema) -> Schema:
        if not isinstance(self._values, Ndjson):  # applies to files only
            described = self._values.schema(declared)
            if described is not None:
                return described
        named = {c: dtype for c, dtype in declared.items() if c != "*"}
        if not named or "*" in declared:
            raise UserError(
                "A topic has no schema of its own: name every column that the pipeline "
                'uses in [source.schema], one per line, such as amount = "float64" or '
                'country = "string"; "*" cannot stand for them.'
            )
        if isinstance(self._values, Ndjson):
            return self._values.schema(named)
        if self._settings.format == "csv":
            for column in named:
                if column not in self._settings.columns:
                    raise UserError(
                        f"[source.schema] names column '{column}', which [source] columns does not."
                        f"{nearest(column, self._settings.columns)}"
                    )
        return named

    def warm_up(self, *, with_metadata: bool) -> None:
        """Decode an empty object before the first record. Loops compile at their first use, which
        takes seconds without a cache, and the first record would wait for that."""
        if not self._columns or not spec_of(self._settings.format).plain_text:
            return  # neither a registry nor user code is called without a record
        chunk = warm_up_chunk(b"{}", newline=self.has_lines, with_metadata=with_metadata)
        for records in self.records("rehearsal/0", chunk, time.monotonic(), None):
            self.format.decode(records, self._columns)

    def records(
        self, partition: str, chunk: Chunk, arrived: float, stop: int | None
    ) -> Iterator[Records]:
        """Yield the chunk up to the offset `stop`; nothing if all of it lies beyond."""
        records = Records(
            partition=partition,
            positions=chunk.offsets,
            next=chunk.next,
            values=Values(
                data=chunk.data,
                bounds=chunk.bounds,
                null=chunk.null if chunk.null.any() else None,
                tail=int(self.has_lines),
            ),
            arrived=arrived,
            timestamps=chunk.timestamps,
            keys=chunk.keys,
            headers=chunk.headers,
        )
        if stop is None or records.next <= stop:
            yield records
        elif kept := int(np.searchsorted(chunk.offsets, stop)):
            yield records.slice(0, kept)

    def no_records(self, partition: str, next: int) -> Records:
        """Return an empty `Records`, after which the partition continues at `next`."""
        nothing = Values(
            data=np.empty(0, np.uint8), bounds=np.zeros(1, np.int64), tail=int(self.has_lines)
        )
        return Records(
            partition=partition, positions=np.empty(0, np.int64), next=next, values=nothing,
            arrived=time.monotonic(),
        )  # fmt: skip


def _format(settings: KafkaSourceSettings) -> Format:
    format = require_known_format(settings.format, TOPICS)
    for key in KEYS_OF_FORMATS:
        if getattr(settings, key):
            require_option(key, format, TOPICS)
    if is_custom(format):
        return load_custom(format)
    if format == "csv" and not settings.columns:
        raise UserError('[source] format = "csv" of a topic needs the fields\' names: columns.')
    options = FormatOptions(
        paths=settings.paths,
        coerce=settings.coerce,
        headers=defaultdict(lambda: settings.columns),
        schemas=_schemas(settings) if format == "avro" else None,
        topics=settings.topics if settings.registry is not None else (),
    )
    return spec_of(format).format(options)


def _schemas(settings: KafkaSourceSettings) -> Registry | Mapping[str, Any]:
    """Return the schemas of Avro records: a registry, or the schema of all values."""
    if (settings.registry is None) == (settings.schema_file is None):
        raise UserError(
            '[source] format = "avro" needs the address of a schema registry, registry, or the '
            "schema of plain values, schema_file: one of them."
        )
    if settings.registry is None:
        assert settings.schema_file is not None
        schema: Mapping[str, Any] = schema_file(settings.schema_file)
        return schema
    return Registry(
        settings.registry,
        user=settings.registry_user,
        password=settings.registry_password,
        timeout=settings.timeout,
        retry_timeout=settings.registry_retry_timeout,
    )


__all__ = ["TopicDecoding"]
