"""The columns of Avro container files, in the types that polars and Arrow have for them.

A field is a column; a record in it is an object, an array a list, a map a list of objects with key
and value. What no type holds is text, as in records of topics: a union of several types, a type
that contains itself.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import fastavro
import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.exceptions import PolarsError

from connectors.formats.kernels.paths import PathNode
from connectors.formats.kernels.rows import binary
from connectors.formats.values.casts import cast
from connectors.formats.values.columns import PROBLEM
from connectors.formats.walks.datums import RICH, Program, WalkResult
from engine.types import Schema, Values, type_name
from engine.types.arrays import Bools

LONG = ("int", "long")
NUMBERS = (*LONG, "float", "double")
RECORDS = ("record", "error")
SIMPLE: Mapping[str, pl.DataType] = {
    "null": pl.Null(), "boolean": pl.Boolean(), "int": pl.Int32(), "long": pl.Int64(),
    "float": pl.Float32(), "double": pl.Float64(), "bytes": pl.Binary(), "fixed": pl.Binary(),
    "string": pl.String(), "enum": pl.String(),
}  # fmt: skip
MOMENTS: Mapping[tuple[str, str], pl.DataType] = {
    ("int", "date"): pl.Date(), ("int", "time-millis"): pl.Time(),
    ("long", "time-micros"): pl.Time(),
    ("long", "timestamp-millis"): pl.Datetime("ms", "UTC"),
    ("long", "timestamp-micros"): pl.Datetime("us", "UTC"),
    ("long", "timestamp-nanos"): pl.Datetime("ns", "UTC"),
    ("long", "local-timestamp-millis"): pl.Datetime("ms"),
    ("long", "local-timestamp-micros"): pl.Datetime("us"),
    ("long", "local-timestamp-nanos"): pl.Datetime("ns"),
}  # fmt: skip
"""Avro's type and logical type -> ours."""
OTHER_LOGICAL = {
    ("bytes", "decimal"), ("fixed", "decimal"), ("string", "uuid"), ("fixed", "uuid"),
    ("fixed", "duration"),
}  # fmt: skip
TICKS = {"time-millis": 10**3, "time-micros": 10**6}
"""What a time of day counts, in a second."""
BILLION, DAY = 10**9, 86_400
MOST_DIGITS, LONG_DECIMAL = 38, 256
"""The digits of a 128-bit decimal; and of one that is text, at most."""
DEEPEST = 16
"""The levels of lists and objects in a column; deeper ones are text."""
NOT_TEXT = "bad_utf8: Column '{}' holds bytes that are no UTF-8."
NOT_READ = "wrong_type: Column '{}' holds a value that cannot be read: bad text, or a time or a \
number that its type does not hold."
NOT_HELD = "out_of_range: Column '{}' holds a value that {} does not."
Problem = tuple[Bools, str]
"""Rows that cannot be read, shape (n,), and why: ``reason: sentence``."""
VALUE_ERRORS = (
    ValueError, ArithmeticError, RecursionError, EOFError, TypeError, IndexError, PolarsError,
)  # fmt: skip
"""What a value raises that its type does not hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A column, or a field of an object in one.

    Attributes:
        path: the names on the way to it.
        dtype: its type.
        schema: Avro's, without null.
        below: the fields of an object.
    """

    name: str
    path: tuple[str, ...]
    dtype: pl.DataType
    schema: Any
    below: tuple[Field, ...] = ()

    @property
    def key(self) -> str:
        """The path as one text, which no other path is."""
        return "\0".join(self.path)

    def node(self) -> PathNode:
        """Return what a walk keeps of it."""
        below: dict[str | int, PathNode] = {field.name: field.node() for field in self.below}
        return PathNode(path=self.key, kind=self.dtype, column=self.path[0], below=below)

    def problem(self, sentence: str) -> str:
        """Return a sentence about it."""
        return sentence.format(".".join(self.path), type_name(self.dtype))


class AvroColumns:
    """Decodes records of one schema to columns.

    Args:
        schema: a record's, as `connectors.formats.avro.parsed` gives it.
        columns: the names of those to decode; None for all.

    Attributes:
        schema: all columns.
        program: walks the records.
    """

    def __init__(self, schema: Any, columns: Sequence[str] | None = None) -> None:
        self._named: Mapping[str, Any] = schema["__named_schemas"]
        fields = [self._field(each, ()) for each in schema["fields"]]
        self.schema: Schema = {field.name: field.dtype for field in fields}
        wanted = [field for field in fields if columns is None or field.name in columns]
        self._fields = wanted or fields[:1]
        root = PathNode(path="", below={field.name: field.node() for field in self._fields})
        self.program = Program(schema, root)

    def frame(self, data: NDArray[np.uint8], walked: WalkResult) -> pl.DataFrame:
        """Return the columns of walked records; rows that cannot be read have a `PROBLEM`."""
        rows, problems = len(walked.fate), list[Problem]()
        frame = pl.DataFrame([self._series(f, data, walked, problems) for f in self._fields])
        if not problems:
            return frame
        why = np.full(rows, None, object)
        for mask, what in reversed(problems):
            why[mask] = what
        return frame.with_columns(pl.Series(PROBLEM, why.tolist(), dtype=pl.String))

    # ----------------------------------------------------------------------------------- types

    def _field(
        self, schema: Any, above: tuple[str, ...], dtype: pl.DataType | None = None
    ) -> Field:
        """Return a field of a record; `dtype` as the record has it, None of a column."""
        name, resolved = schema["name"], self._resolved(schema["type"])
        path, dtype = (*above, name), dtype or self._kept(resolved)
        inner = dtype.to_schema() if isinstance(dtype, pl.Struct) else {}
        below = [
            self._field(each, path, inner[each["name"]])  # type: ignore[arg-type]
            for each in (resolved["fields"] if inner else ())
        ]
        return Field(name=name, path=path, dtype=dtype, schema=resolved, below=tuple(below))

    def _kept(self, schema: Any, inside: tuple[str, ...] = ()) -> pl.DataType:
        """Return the type of a column, or of a field in its objects."""
        schema = self._resolved(schema)
        if not isinstance(schema, list):
            return self._dtype(schema, inside) or pl.String()
        kinds = {_kind(self._resolved(branch)) for branch in schema} - {"null"}
        if kinds <= set(NUMBERS) and not any(_logical(self._resolved(b)) for b in schema):
            return pl.Int64() if kinds <= set(LONG) else pl.Float64()
        return pl.String()

    def _dtype(
        self, schema: Any, inside: tuple[str, ...], *, listed: bool = False
    ) -> pl.DataType | None:
        """Return the type of values; None if only text holds them.

        Args:
            inside: the names of the records that they are in, and of lists.
            listed: whether they are in a list, where fastavro reads them.
        """
        schema = self._resolved(schema)
        if isinstance(schema, list) or len(inside) > DEEPEST:
            return None
        kind, logical = _kind(schema), _logical(schema)
        if (kind, logical) in MOMENTS:
            return MOMENTS[kind, logical]
        if logical == "decimal":
            digits, scale = int(schema["precision"]), int(schema.get("scale", 0))
            return pl.Decimal(digits, scale) if digits <= MOST_DIGITS else None
        if (kind, logical) == ("fixed", "uuid"):
            return None if listed else pl.String()
        if kind in SIMPLE:
            return SIMPLE[kind]
        if kind == "array":
            inner = self._dtype(schema["items"], (*inside, "[]"), listed=True)
            return None if inner is None else pl.List(inner)
        if kind == "map":
            inner = self._dtype(schema["values"], (*inside, "[]"), listed=True)
            pair = None if inner is None else {"key": pl.String(), "value": inner}
            return None if pair is None else pl.List(pl.Struct(pair))
        name = schema["name"]
        if name in inside or not schema["fields"]:
            return None
        types: dict[str, pl.DataType | None] = {}
        for each in schema["fields"]:
            within = (*inside, name)
            own = self._dtype(each["type"], within, listed=listed)
            types[each["name"]] = own or (None if listed else self._kept(each["type"], within))
        if any(dtype is None for dtype in types.values()):
            return None
        return pl.Struct({name: dtype for name, dtype in types.items() if dtype is not None})

    def _resolved(self, schema: Any) -> Any:
        """Return a type's own schema, without its name, null and what only wraps it; a union of
        several types stays one."""
        while True:
            if isinstance(schema, str):
                if schema in SIMPLE:
                    return schema
                schema = self._named[schema]
            elif isinstance(schema, list):
                others = [branch for branch in schema if branch != "null"]
                if len(others) > 1:
                    return others
                schema = others[0] if others else "null"
            elif isinstance(schema["type"], str) and (
                schema["type"] in SIMPLE or schema["type"] in (*RECORDS, "array", "map")
            ):
                return schema
            else:
                schema = schema["type"]

    # --------------------------------------------------------------------------------- columns

    def _series(
        self, field: Field, data: NDArray[np.uint8], walked: WalkResult, problems: list[Problem]
    ) -> pl.Series:
        """Return a column; adds the rows that cannot be read to `problems`."""
        rows, program = len(walked.fate), self.program
        if field.key not in program.slots:  # always null
            return pl.Series(field.name, [None], dtype=field.dtype).new_from_index(0, rows)
        if field.below:
            parts = [self._series(part, data, walked, problems) for part in field.below]
            there = pl.Series(program.is_there(walked, field.key))
            whole = pl.DataFrame(parts).to_struct(field.name)
            if there.all():
                return whole
            return pl.select(pl.when(there).then(whole).alias(field.name)).to_series()
        if isinstance(field.dtype, pl.List):
            return self._lists(field, program.encoded(data, walked, field.key), problems)
        raw, bad = program.column(data, walked, field.key, slice(None))
        if len(bad):
            leaves = np.unique(walked.leaves[program.slots[field.key]][bad])
            rich = any(program.leaves[leaf].kind == RICH for leaf in leaves)
            mask = np.isin(np.arange(rows), bad)
            problems.append((mask, field.problem(NOT_READ if rich else NOT_TEXT)))
        return _typed(raw, field, problems)

    def _lists(self, field: Field, encoded: Values, problems: list[Problem]) -> pl.Series:
        """Return lists, which fastavro reads together, as the elements of one; one by one where a
        value is bad."""
        items = self._for_fastavro(field.schema)
        here = np.ones(len(encoded), np.bool_) if encoded.null is None else ~encoded.null
        try:
            read = _array(encoded.data.tobytes(), int(here.sum()), items)
            values = iter(read)
            every = read if here.all() else [next(values) if is_here else None for is_here in here]
            return _of_values(every, field)
        except VALUE_ERRORS:
            pass
        parts: list[pl.Series] = []
        bad = np.zeros(len(encoded), np.bool_)
        for row, raw in enumerate(binary(encoded)):
            try:
                parts.append(_of_values(_array(raw, 1, items) if here[row] else [None], field))
            except VALUE_ERRORS:
                parts.append(_of_values([None], field))
                bad[row] = True
        problems.append((bad, field.problem(NOT_READ)))
        return pl.concat(parts)

    def _for_fastavro(self, schema: Any) -> Any:
        """Return a schema without names, with times as numbers, and maps as lists of objects, which
        are encoded alike."""
        if isinstance(schema, list):
            return [self._for_fastavro(branch) for branch in schema]
        own = self._resolved(schema)
        if isinstance(own, str):
            return own
        kind = own["type"]
        if kind == "array":
            return {"type": "array", "items": self._for_fastavro(own["items"])}
        if kind == "map":
            value = {"name": "value", "type": self._for_fastavro(own["values"])}
            fields = [{"name": "key", "type": "string"}, value]
            return {"type": "array", "items": {"type": "record", "name": "R", "fields": fields}}
        if kind in RECORDS:
            fields = [
                {"name": f["name"], "type": self._for_fastavro(f["type"])} for f in own["fields"]
            ]
            return {"type": "record", "name": "R", "fields": fields}
        keeps = _logical(own) in ("decimal", *TICKS)
        return {key: value for key, value in own.items() if keeps or key != "logicalType"}


def known_logical_types(text: str) -> str:
    """Return a schema, as JSON text, without the logical types that its types do not have: the
    specification says to ignore them. Raises: ValueError, RecursionError if it is no JSON."""
    return json.dumps(json.loads(text, object_hook=_without_odd))


def _without_odd(schema: dict[str, Any]) -> dict[str, Any]:
    kind, logical = schema.get("type"), schema.get("logicalType")
    if logical is None:
        return schema
    known = isinstance(kind, str) and isinstance(logical, str)
    known = known and ((kind, logical) in MOMENTS or (kind, logical) in OTHER_LOGICAL)
    if known and logical == "decimal":
        digits, scale = schema.get("precision"), schema.get("scale", 0)
        if isinstance(digits, int) and isinstance(scale, int):
            known = 0 <= scale <= digits and 1 <= digits <= LONG_DECIMAL
        else:
            known = False
    if known and kind == "fixed" and logical in ("uuid", "duration"):
        known = schema.get("size") == (16 if logical == "uuid" else 12)
    return schema if known else {key: v for key, v in schema.items() if key != "logicalType"}


def _kind(schema: Any) -> str:
    return str(schema if isinstance(schema, str) else schema["type"])


def _logical(schema: Any) -> str:
    return str(schema.get("logicalType", "")) if isinstance(schema, dict) else ""


def _typed(raw: pl.Series, field: Field, problems: list[Problem]) -> pl.Series:
    """Return walked values in the type of their column."""
    dtype, ticks = field.dtype, TICKS.get(_logical(field.schema) if raw.dtype.is_integer() else "")
    raw = raw.alias(field.name)
    if raw.dtype == dtype:
        return raw
    if dtype == pl.Time and ticks is not None:
        inside = raw.is_between(0, DAY * ticks - 1)
        typed = (raw.set(~inside, None) * (BILLION // ticks)).cast(pl.Time)
    elif isinstance(dtype, pl.Datetime):
        typed = raw.to_physical().cast(dtype)
    elif isinstance(dtype, pl.Decimal):
        typed = raw.cast(dtype, strict=False)
    else:
        typed = cast(raw, dtype)
    lost = (raw.is_not_null() & typed.is_null()).to_numpy()
    if lost.any():
        problems.append((lost, field.problem(NOT_HELD)))
    return typed


def _array(data: bytes, n: int, items: Any) -> list[Any]:
    """Return n encoded values that follow each other."""
    schema = {"type": "array", "items": items, "__fastavro_parsed": True, "__named_schemas": {}}
    head, rest = bytearray(), n << 1
    while rest >= 0x80:
        head.append(rest & 0x7F | 0x80)
        rest >>= 7
    head.append(rest)
    datum = io.BytesIO(bytes(head) + data + (b"\0" if n else b""))
    values = fastavro.schemaless_reader(datum, schema, None)
    assert isinstance(values, list)
    return values


def _of_values(values: list[Any], field: Field) -> pl.Series:
    series = pl.Series(field.name, values, dtype=_physical(field.dtype))
    return series if series.dtype == field.dtype else series.cast(field.dtype)


def _physical(dtype: pl.DataType) -> pl.DataType:
    """Return the type of the numbers in place of dates and times."""
    if isinstance(dtype, pl.List):
        return pl.List(_physical(dtype.inner))  # type: ignore[arg-type]
    if isinstance(dtype, pl.Struct):
        return pl.Struct({f.name: _physical(f.dtype) for f in dtype.fields})  # type: ignore[arg-type]
    if dtype == pl.Date:
        return pl.Int32()
    return pl.Int64() if isinstance(dtype, pl.Datetime) else dtype


__all__ = ["AvroColumns", "known_logical_types"]
