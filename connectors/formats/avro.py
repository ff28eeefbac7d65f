"""Avro records: Confluent's wire format with a schema registry, or plain with a schema file."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import fastavro
import numpy as np
import polars as pl
from fastavro.schema import SchemaParseException, UnknownType, parse_schema

from connectors.formats.kernels.paths import JsonShape, PathNode, parse_path
from connectors.formats.kernels.rows import (
    BAD_UTF8,
    BROKEN,
    NOT_UTF8,
    WRONG_TYPE,
    make_rejects,
    with_position_columns,
)
from connectors.formats.options import FormatOptions
from connectors.formats.values.calendar import flag_impossible
from connectors.formats.values.casts import Coerce, conform
from connectors.formats.values.columns import Columns, readable_rows
from connectors.formats.walks.datums import BLOCKED, FATE_REASONS, FINE, RICH, Program, WalkResult
from engine.types import Format, Records, Rejects, Schema, UserError, Values, nearest
from engine.types.arrays import Ints

UNKNOWN_SCHEMA = "unknown_schema"
HEADER = 5
"""The bytes before a datum: 0, and the schema's number, big-endian."""
NO_HEADER = "Expected the byte 0 and a schema's number of four bytes, got something else."
COLUMNS = {
    "boolean": pl.Boolean(), "int": pl.Int32(), "long": pl.Int64(), "float": pl.Float32(),
    "double": pl.Float64(), "bytes": pl.Binary(), "fixed": pl.Binary(),
}  # fmt: skip
LOGICAL = {
    "date": pl.Date(), "decimal": pl.Float64(), "uuid": pl.String(),
    **{f"{local}timestamp-{unit}": pl.Datetime("us")
       for local in ("", "local-") for unit in ("millis", "micros", "nanos")},
}  # fmt: skip


class UnknownSchema(Exception):
    """A schema that is unavailable; the message is one sentence."""


class Schemas(Protocol):
    """A source of schemas: a registry."""

    def by_id(self, number: int) -> Any:
        """Return the schema with this number, as from `parsed`. Raises: UnknownSchema."""
        ...

    def latest(self, topic: str, *, retry: bool = True) -> Any | None:
        """Return the newest schema of a topic's values, or None."""
        ...

    def version(self, topic: str, version: int | str, *, retry: bool = True) -> Any:
        """Return one version of a topic's schema. Raises: UnknownSchema."""
        ...

    def versions(self, topic: str, *, retry: bool = True) -> list[int]:
        """Return the existing versions."""
        ...

    def interrupt(self) -> None:
        """Stop waiting for the registry until `resume`."""
        ...

    def resume(self) -> None:
        """Wait again when it does not answer."""
        ...


class Avro(Format):
    """Decodes Avro. One compiled walk over the records of each schema gives the columns, and
    detects a record that does not take exactly its bytes.

    Columns are picked by name. One that the writer's schema lacks is found by its aliases in the
    newest schema, else gets the newest schema's default, else null; fields that no column names are
    passed over. A value that does not fit its column without loss rejects the row, as in Parquet:
    int goes to long, float and double, and back where nothing is lost; text is read as CSV fields
    are.

    Logical types: date; timestamp-millis, -micros, -nanos and local ones as datetime; decimal as
    its exact digits in a ``string`` column, the nearest float64 in a ``float64`` one (which it is
    where nothing is declared); uuid as text. A time of day is its number, a duration its bytes. A
    union of several types is text where they differ. Records, arrays and maps come as JSON text in
    a ``string`` column: those values, and only those, are decoded one by one, by fastavro.

    Container files bring their schemas: see `connectors.formats.values.avro_columns`.

    Args:
        schemas: a registry (records carry their schema's number), or the one schema of all
            records, as `schema_file` gives it.
        topics: that are read, for the columns where none are declared.
        paths: column -> ``user.address.city``, where it is a field of a record inside.
        coerce: see `connectors.formats.values.casts`.
    """

    def __init__(
        self,
        schemas: Schemas | Mapping[str, Any],
        *,
        topics: Sequence[str] = (),
        paths: Mapping[str, str] | None = None,
        coerce: Coerce = "lossless",
    ) -> None:
        self._coerce: Coerce = coerce
        self._schemas = schemas
        self._topics = topics
        self._paths = dict(paths or {})
        for column, path in self._paths.items():
            if any(isinstance(step, int) for step in parse_path(path, column)):
                raise UserError(
                    f"[source] paths: '{path}' of column '{column}' goes into an array: of Avro, "
                    "paths lead through records only."
                )
        self._programs: dict[tuple[Any, ...], Program] = {}
        self._newest: dict[tuple[str, int], Any] = {}

    def schema(self, declared: Schema) -> Schema:
        """Return the declared columns, or those of the newest schema.

        Raises: UserError if there is no schema to take them from, or none has a declared one;
        HeadraceError where the registry does not answer.
        """
        rest = declared.get("*")
        named = {c: dtype for c, dtype in declared.items() if c != "*"}
        known_columns: dict[str, pl.DataType] = {}
        for schema in self._at_start():
            known_columns |= {
                c: dtype for c, dtype in columns(schema).items() if c not in known_columns
            }
        if not known_columns and (not named or rest is not None):
            subjects = ", ".join(f"{topic}-value" for topic in self._topics)
            raise UserError(
                "[source.schema] names no columns, and the registry has no schema of subject "
                f"{subjects}: declare the columns."
            )
        JsonShape.of(named, self._paths)
        for column in named:
            if known_columns and column not in known_columns and column not in self._paths:
                self._must_be_old(column, known_columns)
        if rest is not None:
            return {c: named.get(c, rest) for c in known_columns} | named
        return named or known_columns

    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        """Decode; records with several schemas keep their order.

        Raises: HeadraceError if the registry does not answer.
        """
        values = records.values
        assert isinstance(values, Values)
        shape = JsonShape.of(schema, {c: path for c, path in self._paths.items() if c in schema})
        starts, stops = values.bounds[:-1], values.bounds[1:]
        if isinstance(self._schemas, Mapping):
            groups: list[tuple[int, Ints]] = [(-1, np.arange(len(records)))]
            rejects: list[Rejects] = []
        else:
            numbers = _numbers(values)
            none = np.flatnonzero(numbers < 0)
            rejects = [make_rejects(records, none, BROKEN, NO_HEADER)] if len(none) else []
            starts = starts + HEADER
            groups = [(int(n), np.flatnonzero(numbers == n)) for n in np.unique(numbers) if n >= 0]
        frames = []
        for number, rows in groups:
            try:
                writer = self._writer(number)
            except UnknownSchema as error:
                rejects.append(make_rejects(records, rows, UNKNOWN_SCHEMA, str(error)))
                continue
            program = self._program(records, number, writer, shape)
            walked = program.walk(values.data, starts[rows], stops[rows])
            fine = np.flatnonzero(walked.fate == FINE)
            if len(fine) < len(rows):
                rejects += _broken(records, rows, walked)
            raw, odd = self._raw(records, program, walked, fine, number, shape)
            rejects += _odd(records, rows[fine], odd)
            gone = np.concatenate([np.zeros(0, np.int64), *(at for _, at, _ in odd)])
            if len(gone):
                raw, fine = raw[np.delete(np.arange(len(fine)), gone)], np.delete(fine, gone)
            raw, at, impossible = readable_rows(flag_impossible(raw), records, rows[fine])
            frame, more = conform(raw, records, schema, at, coerce=self._coerce)
            frames.append(frame)
            rejects += [*impossible, *more]
        return _merge_frames(frames, records, schema), rejects

    def interrupt(self) -> None:
        if not isinstance(self._schemas, Mapping):
            self._schemas.interrupt()

    def resume(self) -> None:
        if not isinstance(self._schemas, Mapping):
            self._schemas.resume()

    # ------------------------------------------------------------------------------------ inside

    def _at_start(self) -> list[Any]:
        if isinstance(self._schemas, Mapping):
            return [self._schemas]
        schemas = [self._schemas.latest(topic, retry=False) for topic in self._topics]
        return [schema for schema in schemas if schema is not None]

    def _must_be_old(self, column: str, available: Schema) -> None:
        """Raises: UserError if no older version has the column either."""
        known = dict(available)
        if not isinstance(self._schemas, Mapping):
            for topic in self._topics:
                for version in self._schemas.versions(topic, retry=False):
                    try:
                        known |= columns(self._schemas.version(topic, version, retry=False))
                    except UnknownSchema:
                        continue
        if column not in known:
            raise UserError(
                f"[source.schema] names column '{column}', which no version of the schema has."
                f"{nearest(column, known)}"
            )

    def _writer(self, number: int) -> Any:
        return self._schemas if isinstance(self._schemas, Mapping) else self._schemas.by_id(number)

    def _reader(self, records: Records, number: int) -> Any | None:
        """Return the newest schema of the records' topic, no older than the writer's `number`."""
        if isinstance(self._schemas, Mapping):
            return self._schemas
        topic = records.partition.rpartition("/")[0]
        if (topic, number) not in self._newest:
            self._newest[topic, number] = self._schemas.latest(topic)
        return self._newest[topic, number]

    def _program(self, records: Records, number: int, writer: Any, shape: JsonShape) -> Program:
        key = (records.partition.rpartition("/")[0], number, tuple(shape.schema.items()))
        if key not in self._programs:
            fields = {field["name"] for field in writer["fields"]}
            aliases = {}
            if any(key not in fields for key in shape.root.below):
                reader = self._reader(records, number)
                aliases = _aliases(reader)
            self._programs[key] = Program(writer, shape.root, aliases)
        return self._programs[key]

    def _raw(
        self,
        records: Records,
        program: Program,
        walked: WalkResult,
        fine: Ints,
        number: int,
        shape: JsonShape,
    ) -> tuple[pl.DataFrame, list[tuple[str, Ints, str]]]:
        """Return the columns as written; and column, rows, and kind of what cannot be decoded."""
        assert isinstance(records.values, Values)
        named: list[pl.Series] = []
        odd: list[tuple[str, Ints, str]] = []
        taken = np.zeros(len(fine), np.bool_)
        for column in shape.schema:
            path = shape.way(column)[-1].path
            if path not in program.slots:
                value = self._default(records, number, shape.places[column])
                named.append(value.new_from_index(0, len(fine)).alias(column))
                continue
            series, bad = program.column(records.values.data, walked, path, fine)
            named.append(series.alias(column))
            bad = bad[~taken[bad]]
            for leaf in np.unique(leaves := walked.leaves[program.slots[path]][fine[bad]]).tolist():
                odd.append((column, bad[leaves == leaf], program.leaves[leaf].kind))
            taken[bad] = True
        return pl.DataFrame(named), odd

    def _default(self, records: Records, number: int, steps: tuple[Any, ...]) -> pl.Series:
        """Return one value: the newest schema's default of the column, or null."""
        reader = None if len(steps) > 1 else self._reader(records, number)
        fields = [] if reader is None else reader["fields"]
        field = next((f for f in fields if f["name"] == steps[0] and "default" in f), None)
        if field is None:
            return pl.Series([None], dtype=pl.Null)
        assert reader is not None
        only, datum = default(reader, field)
        root = PathNode(path="")
        root.below[steps[0]] = PathNode(path=str(steps[0]), kind=pl.String())
        data = np.frombuffer(datum, np.uint8)
        program = Program(only, root)
        walked = program.walk(data, np.zeros(1, np.int64), np.array([len(data)]))
        series, _ = program.column(data, walked, str(steps[0]), np.zeros(1, np.int64))
        return series


def parsed(text: str, named: Mapping[str, Any] | None = None) -> Any:
    """Return a record's schema, with its named types under ``__named_schemas``.

    Args:
        named: types of other schemas that it refers to.

    Raises: ValueError if it is none.
    """
    known = dict(named or {})
    try:
        schema = parse_schema(json.loads(text), named_schemas=known)
    except (SchemaParseException, UnknownType, KeyError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    if not isinstance(schema, dict) or schema.get("type") != "record":
        raise ValueError("it is no record")
    for name, own in known.items():
        if own.get("type") == "fixed" and (not isinstance(own["size"], int) or own["size"] < 0):
            raise ValueError(f"'{name}' has a size that cannot be")
    return {**schema, "__named_schemas": known}


def schema_file(path: str) -> Any:
    """Return the schema in a file. Raises: UserError if there is none."""
    try:
        return parsed(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"schema_file '{path}' cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise UserError(
            f"schema_file '{path}' is no Avro schema of a record: {error}; expected "
            '{"type": "record", ...}.'
        ) from None


def columns(schema: Any) -> Schema:
    """Return the columns of a record's schema, by its fields' types."""
    named = schema["__named_schemas"]
    return {field["name"]: _column(field["type"], named) for field in schema["fields"]}


def _column(schema: Any, named: Mapping[str, Any]) -> pl.DataType:
    if isinstance(schema, str) and schema in named:
        schema = named[schema]
    if isinstance(schema, list):
        kinds = {_column(branch, named) for branch in schema if branch != "null"}
        if len(kinds) == 1:
            return kinds.pop()
        numbers = all(avro_type.is_numeric() for avro_type in kinds)
        return pl.Float64() if kinds and numbers else pl.String()
    avro_type = schema["type"] if isinstance(schema, dict) else schema
    if not isinstance(avro_type, str):
        return _column(avro_type, named)
    logical = schema.get("logicalType", "") if isinstance(schema, dict) else ""
    return LOGICAL.get(logical) or COLUMNS.get(avro_type, pl.String())


def default(schema: Any, field: Mapping[str, Any]) -> tuple[Any, bytes]:
    """Return a field's default: the schema of a record with only that field, and its datum."""
    only = {
        "type": "record",
        "name": "headrace.Default",
        "fields": [field],
        "__fastavro_parsed": True,
        "__named_schemas": schema["__named_schemas"],
    }
    out = io.BytesIO()
    fastavro.schemaless_writer(out, only, {field["name"]: _plain(field)})
    return only, out.getvalue()


def _plain(field: Mapping[str, Any]) -> Any:
    """Return a default as fastavro writes it: bytes are text with the same code points in JSON."""
    branch = field["type"][0] if isinstance(field["type"], list) else field["type"]
    name = branch["type"] if isinstance(branch, dict) else branch
    value = field["default"]
    return value.encode("latin-1") if name in ("bytes", "fixed") else value


def _numbers(values: Values) -> Ints:
    """Return the schema's number in each value; -1 without a header."""
    starts, sizes = values.bounds[:-1], np.diff(values.bounds)
    long = np.flatnonzero(sizes >= HEADER)
    numbers = np.full(len(values), -1, np.int64)
    head = values.data[starts[long, None] + np.arange(HEADER)].astype(np.int64)
    ids = head[:, 1:] @ np.array([1 << 24, 1 << 16, 1 << 8, 1])
    numbers[long] = np.where(head[:, 0] == 0, ids, -1)
    return numbers


def _broken(records: Records, rows: Ints, walked: WalkResult) -> list[Rejects]:
    return [
        make_rejects(records, rows[walked.fate == fate], BROKEN, words)
        for fate, words in FATE_REASONS.items()
        if (walked.fate == fate).any()
    ]


def _odd(records: Records, rows: Ints, odd: list[tuple[str, Ints, str]]) -> list[Rejects]:
    words = {
        BLOCKED: "Expected a record on the way to column '{}', got another value.",
        RICH: "Expected a value that has JSON in column '{}', got one that fastavro cannot read.",
    }
    return [
        make_rejects(records, rows[at], WRONG_TYPE, words[branch].format(column))
        if branch in words
        else make_rejects(records, rows[at], BAD_UTF8, NOT_UTF8)
        for column, at, branch in odd
    ]


def _aliases(reader: Any | None) -> dict[str, Sequence[str]]:
    fields = [] if reader is None else reader["fields"]
    return {field["name"]: field["aliases"] for field in fields if field.get("aliases")}


def _merge_frames(frames: list[pl.DataFrame], records: Records, schema: Schema) -> pl.DataFrame:
    if len(frames) == 1:
        return frames[0]
    if not frames:
        return with_position_columns(pl.DataFrame(schema=schema), records, np.zeros(0, np.int64))
    return pl.concat(frames, rechunk=True).sort("_position", maintain_order=True)


def make(options: FormatOptions) -> Format:
    """Return the format of a topic's records; of files, which bring their schemas and come as
    columns, what checks these. Called by `connectors.formats.registry`."""
    if options.schemas is None:
        return Columns(options.paths, coerce=options.coerce, lenient=True)
    return Avro(options.schemas, topics=options.topics, paths=options.paths, coerce=options.coerce)


__all__ = ["Avro", "Schemas", "UnknownSchema", "columns", "default", "parsed", "schema_file"]
