"""Encodes columns as the values of records: JSON, Avro, or one column unchanged."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.exceptions import PolarsError

from connectors.formats.avro import default, parsed
from connectors.formats.kernels import rows
from connectors.formats.kernels.avro_write import (
    BITS4,
    BITS8,
    BYTE,
    FIXED,
    NUMBER,
    SPAN,
    record_sizes,
    write_records,
)
from connectors.formats.type_support import require_supported, warn_about_nulls
from connectors.formats.values.casts import cast
from engine.types import (
    RESERVED,
    HeadraceError,
    Schema,
    UserError,
    Values,
    in_utc,
    nearest,
    type_name,
)
from engine.types.arrays import Ints

AVRO_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Encoder(Protocol):
    """Encodes columns to bytes; the inverse of `engine.types.Format`."""

    def require(self, schema: Schema) -> None:
        """Check that such columns can be encoded, without contacting a registry.

        Raises: UserError
        """
        ...

    def encode(self, frame: pl.DataFrame) -> Values:
        """Return one value per row.

        Raises: UserError for columns it cannot write; HeadraceError for values it cannot.
        """
        ...


class JsonEncoder:
    """Writes a JSON object per row, without line breaks. Bytes are written as UTF-8 text, times
    as ISO 8601 with their offset from UTC; NaN and infinities as null, with one warning per
    column."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def require(self, schema: Schema) -> None:
        require_supported(schema, "ndjson", '[sink] format = "json"')

    def encode(self, frame: pl.DataFrame) -> Values:
        """Encode the rows. Raises: HeadraceError for bytes that are not UTF-8."""
        warn_about_nulls(frame, self._told)
        raw = [c for c, dtype in frame.schema.items() if isinstance(dtype, pl.Binary)]
        try:
            frame = frame.with_columns(pl.col(raw).cast(pl.String)) if raw else frame
        except PolarsError:
            raise HeadraceError(
                "JSON has no bytes, and a value of a bytes column is not UTF-8: leave the column "
                "out of [sink] columns, or write Avro."
            ) from None
        # As `write_ndjson` does, which starts a streaming engine for each frame: many threads
        # that wake each other, of which a batch of one row feels every one.
        return rows.values(in_utc(frame).to_struct().struct.json_encode())


class RawEncoder:
    """Writes one column of text or bytes unchanged; the others are left out.

    Args:
        column: which; the only one of the frame unless given.
    """

    def __init__(self, column: str | None = None) -> None:
        self._column = column

    def require(self, schema: Schema) -> None:
        self.encode(pl.DataFrame(schema=schema))

    def encode(self, frame: pl.DataFrame) -> Values:
        """Encode the rows. Raises: HeadraceError for a null."""
        columns = [column for column in frame.columns if column not in RESERVED]
        column = self._column or (columns[0] if len(columns) == 1 else None)
        if column is None:
            raise UserError(
                f"Raw values are one column, and there are {len(columns)}: name the one to write."
            )
        if column not in frame.columns:
            raise UserError(f"There is no column '{column}' to write.{nearest(column, columns)}")
        series = frame.get_column(column)
        if series.dtype not in (pl.String, pl.Binary):
            raise UserError(
                f"Raw values are text or bytes, and column '{column}' is "
                f"{type_name(series.dtype)}: cast it "
                "with a derive stage."
            )
        if series.null_count():
            raise HeadraceError(
                f"Column '{column}' is null in row {series.is_null().arg_max()} of a batch: "
                "expected text or bytes to write; fill it or leave the row out."
            )
        return rows.values(series)


class Registering(Protocol):
    """A registry that accepts schemas."""

    def register(self, topic: str, schema: Any) -> int:
        """Return the number of a schema of a topic's values."""
        ...


class AvroEncoder:
    """Writes an Avro record per row, all rows in one compiled loop.

    With a registry in Confluent's wire format, under a schema registered as ``<topic>-value``:
    the one given, or one made of the frame's columns, every field nullable with default null.
    Without one, plain datums of the schema given. Dates and datetimes are the logical types date
    and timestamp-micros (UTC). A field of a given schema that the frame lacks gets its default; a
    column that the schema lacks is left out.

    Args:
        registry: where to register; None for plain datums.
        topic: whose values they are.
        schema: as `connectors.formats.avro.schema_file` gives it: fields of simple types, enums,
            fixed, date and timestamps, nullable or not.
    """

    def __init__(
        self,
        *,
        registry: Registering | None = None,
        topic: str = "",
        schema: Mapping[str, Any] | None = None,
    ) -> None:
        """Raises: UserError for a schema with a field that no column can be."""
        assert registry is not None or schema is not None
        self._registry = registry
        self._topic = topic
        self._schema = None if schema is None else dict(schema)
        self._made: dict[tuple[tuple[str, pl.DataType], ...], tuple[list[_Field], bytes]] = {}
        if self._schema is not None:
            self._fields(self._schema)

    def require(self, schema: Schema) -> None:
        """Check the columns. Does not contact a registry, which would store the schema."""
        avro_schema = self._schema or derived(schema, self._topic)
        AvroEncoder(schema=avro_schema).encode(pl.DataFrame(schema=schema))

    def encode(self, frame: pl.DataFrame) -> Values:
        """Encode the rows. Raises also what the registry raises."""
        fields, head = self._plan(frame)
        n = frame.height
        arrays = [field.arrays(frame) for field in fields]
        table = np.array([(m.how, m.null, m.value) for m in arrays], np.int64).reshape(-1, 3)
        valid = np.empty((len(arrays), n), np.bool_)
        numbers, sizes = np.empty((2, len(arrays), n), np.int64)
        start = 0
        for i, m in enumerate(arrays):
            valid[i], sizes[i] = m.valid, m.sizes
            numbers[i] = m.numbers + start if m.how in (SPAN, FIXED) else m.numbers
            start += len(m.data)
        data = np.frombuffer(b"".join(m.data for m in arrays), np.uint8)
        bounds = np.zeros(n + 1, np.int64)
        record_sizes(table, valid, numbers, sizes, len(head), bounds)
        out = np.empty(int(bounds[-1]), np.uint8)
        write_records(
            table, valid, numbers, sizes, data, np.frombuffer(head, np.uint8), bounds, out
        )
        return Values(data=out, bounds=bounds)

    def _plan(self, frame: pl.DataFrame) -> tuple[list[_Field], bytes]:
        key = tuple(frame.schema.items())
        if key not in self._made:
            schema = self._schema or derived(dict(frame.schema), self._topic)
            head = b""
            if self._registry is not None:
                number = self._registry.register(self._topic, _bare(schema))
                head = b"\0" + number.to_bytes(4, "big")
            self._made[key] = self._fields(schema), head
        return self._made[key]

    def _fields(self, schema: Mapping[str, Any]) -> list[_Field]:
        return [_Field.of(field, schema) for field in schema["fields"]]


def derived(columns: Mapping[str, pl.DataType], topic: str) -> Any:
    """Return the schema of a record of these columns, every field nullable.

    Raises: UserError for a name or type that Avro has not.
    """
    fields = []
    for column, dtype in columns.items():
        if not AVRO_NAME.fullmatch(column):
            raise UserError(
                f"Avro has no field '{column}': expected letters, digits and underscores, not "
                "beginning with a digit; rename the column, or leave it out."
            )
        fields.append({"name": column, "type": ["null", _avro(dtype, column)], "default": None})
    name = re.sub(r"\W", "_", topic, flags=re.ASCII)
    name = name if AVRO_NAME.fullmatch(name) else f"_{name}"
    return parsed(
        json.dumps({"type": "record", "name": name, "namespace": "headrace", "fields": fields})
    )


def _avro(dtype: pl.DataType, column: str) -> Any:
    if dtype == pl.Boolean:
        return "boolean"
    if dtype in (pl.Int8, pl.Int16, pl.Int32, pl.UInt8, pl.UInt16):
        return "int"
    if dtype in (pl.Int64, pl.UInt32, pl.UInt64):
        return "long"
    if dtype in (pl.Float32, pl.Float64):
        return "float" if dtype == pl.Float32 else "double"
    if isinstance(dtype, (pl.String, pl.Categorical, pl.Enum)):
        return "string"
    if dtype == pl.Binary:
        return "bytes"
    if dtype == pl.Date:
        return {"type": "int", "logicalType": "date"}
    if isinstance(dtype, pl.Datetime):
        return {"type": "long", "logicalType": "timestamp-micros"}
    raise UserError(
        f"Column '{column}' is {type_name(dtype)}, which is not written as Avro: cast it with a "
        "derive stage, "
        "or leave it out."
    )


def _bare(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if not key.startswith("__")}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arrays:
    """A column of n rows, ready to be written.

    Attributes:
        how: see `NUMBER`.
        null: number of the null branch, -1 where it is no union.
        value: number of the value's branch.
        valid: where it is not null.
        numbers: values, bits, or where bytes start in `data`.
        sizes: of bytes, or one for all.
    """

    how: int
    null: int
    value: int
    valid: NDArray[np.bool_] | bool
    numbers: Ints
    sizes: Ints | int = 0
    data: bytes = b""


HOW: dict[tuple[str, str], tuple[int, pl.DataType]] = {
    ("boolean", ""): (BYTE, pl.Boolean()),
    ("int", ""): (NUMBER, pl.Int32()),
    ("int", "date"): (NUMBER, pl.Date()),
    ("int", "time-millis"): (NUMBER, pl.Int32()),
    ("long", ""): (NUMBER, pl.Int64()),
    ("long", "time-micros"): (NUMBER, pl.Int64()),
    ("long", "timestamp-millis"): (NUMBER, pl.Datetime("ms")),
    ("long", "timestamp-micros"): (NUMBER, pl.Datetime("us")),
    ("long", "local-timestamp-millis"): (NUMBER, pl.Datetime("ms")),
    ("long", "local-timestamp-micros"): (NUMBER, pl.Datetime("us")),
    ("float", ""): (BITS4, pl.Float32()),
    ("double", ""): (BITS8, pl.Float64()),
    ("string", ""): (SPAN, pl.String()),
    ("string", "uuid"): (SPAN, pl.String()),
    ("bytes", ""): (SPAN, pl.Binary()),
    ("enum", ""): (NUMBER, pl.String()),
    ("fixed", ""): (FIXED, pl.Binary()),
}
"""Type and logical type of a field -> how it is written, and what its column is cast to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Field:
    """How one field is written.

    Attributes:
        dtype: the polars type of its values before they are written.
        null: the number of the null branch; -1 if not nullable.
        value: the number of the value's branch; -1 if not a union.
        symbols: the symbols of an enum.
        size: the bytes of a fixed.
        default: the datum where the frame lacks it, or None.
    """

    name: str
    how: int
    dtype: pl.DataType
    null: int = -1
    value: int = -1
    symbols: tuple[str, ...] = ()
    size: int = 0
    default: bytes | None = None

    @classmethod
    def of(cls, field: Mapping[str, Any], schema: Mapping[str, Any]) -> _Field:
        """Raises: UserError for a type that no column can be."""
        named, name = schema["__named_schemas"], str(field["name"])
        avro_type, null, value = field["type"], -1, -1
        if isinstance(avro_type, list) and len(avro_type) == 2 and "null" in avro_type:
            null = avro_type.index("null")
            value = 1 - null
            avro_type = avro_type[value]
        if isinstance(avro_type, str):
            avro_type = named.get(avro_type, avro_type)
        about = avro_type if isinstance(avro_type, dict) else {"type": avro_type}
        if isinstance(avro_type, list):
            about = {"type": "a union"}
        type_key = str(about["type"]), str(about.get("logicalType", ""))
        if type_key not in HOW:
            raise UserError(
                f"Field '{name}' of the Avro schema is {type_key[1] or type_key[0]}, which no "
                f"column is "
                "written as: expected a simple type, an enum, a fixed, a date or a timestamp of "
                "milliseconds or microseconds, or one of them and null."
            )
        how, dtype = HOW[type_key]
        return cls(
            name=name,
            how=how,
            dtype=dtype,
            null=null,
            value=value,
            symbols=tuple(about.get("symbols", ())),
            size=int(about.get("size", 0)),
            default=default(schema, field)[1] if "default" in field else None,
        )

    def arrays(self, frame: pl.DataFrame) -> _Arrays:
        """Raises: UserError if the frame lacks it; HeadraceError for a value that is none."""
        n = frame.height
        if self.name not in frame.columns:
            if self.default is None:
                raise UserError(
                    f"The Avro schema has field '{self.name}', without a default, and there is no "
                    f"such column.{nearest(self.name, frame.columns)}"
                )
            return _Arrays(
                how=FIXED, null=-1, value=-1, valid=True, numbers=np.zeros(n, np.int64),
                sizes=len(self.default), data=self.default,
            )  # fmt: skip
        raw = frame.get_column(self.name)
        column = cast(_timed(raw, self.dtype), self.dtype)
        if self.symbols:
            column = column.replace_strict(
                {symbol: i for i, symbol in enumerate(self.symbols)},
                default=None, return_dtype=pl.Int64,
            )  # fmt: skip
        if self.how == FIXED:
            column = column.set(column.bin.size() != self.size, None)
        lost = column.is_null() & raw.is_not_null() if self.null >= 0 else column.is_null()
        if lost.any():
            row = lost.arg_max()
            assert row is not None
            raise HeadraceError(
                f"Column '{self.name}' is {raw[row]!r:.80} in row {row} of a batch, which the "
                "field of its Avro schema cannot be: change the schema, or cast the column."
            )
        valid = column.is_not_null().to_numpy()
        numbers, sizes, data = self._numbers(column)
        return _Arrays(
            how=self.how, null=self.null, value=self.value, valid=valid, numbers=numbers,
            sizes=sizes, data=data,
        )  # fmt: skip

    def _numbers(self, column: pl.Series) -> tuple[Ints, Ints | int, bytes]:
        if self.how in (BITS4, BITS8):
            bits = np.uint32 if self.how == BITS4 else np.int64
            return column.fill_null(0).to_numpy().view(bits).astype(np.int64), 0, b""
        if self.how in (SPAN, FIXED):
            raw = column.cast(pl.Binary)
            sizes = raw.bin.size().fill_null(0).to_numpy().astype(np.int64)
            return np.cumsum(sizes) - sizes, sizes, b"".join(raw.drop_nulls().to_list())
        return column.to_physical().cast(pl.Int64).fill_null(0).to_numpy(), 0, b""


def _timed(raw: pl.Series, dtype: pl.DataType) -> pl.Series:
    """Return datetimes in the unit they are written in, truncated to it; those with a zone as
    UTC."""
    if not isinstance(raw.dtype, pl.Datetime) or not isinstance(dtype, pl.Datetime):
        return raw
    if raw.dtype.time_zone is not None:
        raw = raw.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    return raw.dt.cast_time_unit(dtype.time_unit)


# --------------------------------------------------------------------------------------- compiled


__all__ = ["AvroEncoder", "Encoder", "JsonEncoder", "RawEncoder", "derived"]
