"""Columns and their types; headrace's reserved columns."""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Iterable, Mapping
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    cast,
)  # fmt: skip

import polars as pl

from engine.errors import UserError, nearest

if TYPE_CHECKING:
    pass

PARTITION = "_partition"
"""The column with a row's partition (a file's path, ``topic/3``)."""

POSITION = "_position"
"""The column with a row's position in its partition (int64; a byte offset, a row number, a Kafka
offset)."""

RESERVED = (PARTITION, POSITION)

NO_TIMESTAMP = -1
"""The timestamp of a record without one (Kafka's own number; it is not a second of 1969)."""

DELAY = "_delay"
"""The column of a learned row with how much later its label came, if labels come later: in seconds,
or in the unit of integer times; null if it did not come."""

PART = "_part"
"""The column of a 'split' stage: ``train``, ``validation`` or ``test``. Stages and the model
learn only from training rows."""

Schema = dict[str, pl.DataType]
"""Column name -> polars type, in column order, without the reserved columns."""

Unit = Literal["ms", "us", "ns"]
"""The unit of a time or a duration."""


TYPES: Mapping[str, pl.DataType] = {
    "bool": pl.Boolean(),
    "int8": pl.Int8(),
    "int16": pl.Int16(),
    "int32": pl.Int32(),
    "int64": pl.Int64(),
    "uint8": pl.UInt8(),
    "uint16": pl.UInt16(),
    "uint32": pl.UInt32(),
    "uint64": pl.UInt64(),
    "float32": pl.Float32(),
    "float64": pl.Float64(),
    "string": pl.String(),
    "bytes": pl.Binary(),
    "date": pl.Date(),
    "time": pl.Time(),
    "datetime": pl.Datetime("us"),
    "duration": pl.Duration("us"),
}
"""Type name in a pipeline file -> polars type. `parse_type` reads those with parameters."""

BOOLEAN_VALUES = {"true": 1, "false": 0}

PARAMETRIC_TYPES = ("datetime", "duration", "decimal", "list")
"""Types with parameters."""

MAX_NESTING = 16
"""The most levels of nested lists that may be declared, and of lists and objects that are
inferred."""

TYPE_EXAMPLES = (
    "datetime[ms], datetime[ns, Europe/Paris], duration[ms], decimal(12, 2), list[int64]"
)
"""Examples of types with parameters, for error sentences."""

WILDCARD = "*"
"""The name that stands for every column a schema does not name; without it their types are
inferred."""

DROPPED = pl.Null()
"""The type of `WILDCARD` if other columns are not read."""

_DATETIME = re.compile(r"datetime\[\s*(ms|us|ns)\s*(?:,\s*([\w/+-]+)\s*)?\]")

_DURATION = re.compile(r"duration\[\s*(ms|us|ns)\s*\]")

_DECIMAL = re.compile(r"decimal\(\s*(\d+)\s*,\s*(\d+)\s*\)")

_LIST = re.compile(r"list\[\s*(.+)\]")


def parse_type(text: str) -> pl.DataType:
    """Return the polars type of a type name: one of `TYPES`, ``datetime[UNIT]`` or
    ``datetime[UNIT, ZONE]``, ``duration[UNIT]``, ``decimal(PRECISION, SCALE)`` or
    ``list[TYPE]``, where a unit is ms, us or ns.

    Raises: ValueError for anything else.
    """
    name = text.strip()
    if name in TYPES:
        return TYPES[name]
    if match := _DATETIME.fullmatch(name):
        zone = match[2]
        if zone is not None:
            _known_zone(zone)
        return pl.Datetime(cast("Unit", match[1]), zone)
    if match := _DURATION.fullmatch(name):
        return pl.Duration(cast("Unit", match[1]))
    if match := _DECIMAL.fullmatch(name):
        precision, scale = int(match[1]), int(match[2])
        if not 1 <= precision <= 38 or scale > precision:
            raise ValueError("a decimal has 1 to 38 digits, and no more behind the point")
        return pl.Decimal(precision, scale)
    inner, levels = name, 0
    while match := _LIST.fullmatch(inner):
        inner, levels = match[1].strip(), levels + 1
        if levels > MAX_NESTING:
            raise ValueError(f"lists go at most {MAX_NESTING} levels deep")
    if not levels:
        raise ValueError("no such type")
    dtype = parse_type(inner)
    for _ in range(levels):
        dtype = pl.List(dtype)
    return dtype


def _known_zone(name: str) -> None:
    try:
        zoneinfo.ZoneInfo(name)
    except (OSError, ValueError, zoneinfo.ZoneInfoNotFoundError):
        raise ValueError(f"'{name}' is no time zone") from None


def element_type(dtype: pl.List) -> pl.DataType:
    """Return the type of a list's elements."""
    inner = dtype.inner
    return inner if isinstance(inner, pl.DataType) else inner()


def field_types(dtype: pl.Struct) -> Schema:
    """Return the types of an object's fields."""
    fields = dtype.to_schema()
    return {c: t if isinstance(t, pl.DataType) else t() for c, t in fields.items()}


def is_deep(dtype: pl.DataType) -> bool:
    """Return whether lists and objects are nested in more than `MAX_NESTING` levels."""
    level = [dtype]
    for _ in range(MAX_NESTING + 1):
        level = [inner for outer in level for inner in _nested_types(outer)]
    return bool(level)


def _nested_types(dtype: pl.DataType) -> list[pl.DataType]:
    if isinstance(dtype, pl.List):
        return [element_type(dtype)]
    if isinstance(dtype, pl.Struct):
        return [*field_types(dtype).values()]
    return []


def type_name(dtype: pl.DataType) -> str:
    """Return the name of a type in a pipeline file, for `parse_type`; for other types, polars'
    name."""
    for name, known in TYPES.items():
        if known == dtype:
            return name
    if isinstance(dtype, pl.Datetime):
        zone = "" if dtype.time_zone is None else f", {dtype.time_zone}"
        return f"datetime[{dtype.time_unit}{zone}]"
    if isinstance(dtype, pl.Duration):
        return f"duration[{dtype.time_unit}]"
    if isinstance(dtype, pl.Decimal):
        return f"decimal({dtype.precision}, {dtype.scale})"
    if isinstance(dtype, pl.List):
        return f"list[{type_name(element_type(dtype))}]"
    return str(dtype)


def training(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the rows to learn from: those of ``train`` if a 'split' stage marked them, else
    all."""
    return frame.filter(pl.col(PART) == "train") if PART in frame.columns else frame


def is_pattern(name: str) -> bool:
    """Return whether polars takes a column's name for a pattern, also where it stands for the
    column itself: no frame can have such a column."""
    return name == WILDCARD or (name.startswith("^") and name.endswith("$"))


def require_names(columns: Iterable[str], where: str) -> None:
    """Raises: UserError for a name that no column can have."""
    for column in columns:
        if is_pattern(column):
            raise UserError(
                f"{where} has a column '{column}', which would stand for all columns whose names "
                "match it: give it another name."
            )


def parse_schema(columns: Mapping[str, Any], *, where: str = "[source.schema]") -> Schema:
    """Return the schema of a pipeline file's ``column = "type"`` table. ``"*"`` (any other
    column) keeps that name: with a type, or `DROPPED` for ``"drop"``; ``"guess"`` is the default
    and left out.

    Raises: UserError for an unknown type or a reserved name.
    """
    schema: Schema = {}
    for column, name in columns.items():
        if column in (*RESERVED, PART):
            raise UserError(
                f"{where} names column '{column}', which headrace itself adds: rename yours."
            )
        if column == WILDCARD and name in ("guess", "drop"):
            if name == "drop":
                schema[column] = DROPPED
            continue
        if column != WILDCARD:
            require_names([column], where)
        try:
            schema[column] = parse_type(str(name))
        except ValueError as error:
            why = (
                f": {error}"
                if str(name).partition("[")[0].partition("(")[0] in PARAMETRIC_TYPES
                else ""
            )
            raise UserError(
                f"Unknown type '{name}' of column '{column}' in {where}{why}."
                f"{nearest(str(name), [*TYPES, *PARAMETRIC_TYPES])} With parameters: "
                f"{TYPE_EXAMPLES}."
            ) from None
    return schema


def only_named(declared: Schema) -> Schema:
    """Return the schema without `WILDCARD` if that is `DROPPED`, for formats that give no other
    columns."""
    if declared.get(WILDCARD) != DROPPED:
        return declared
    return {c: dtype for c, dtype in declared.items() if c != WILDCARD}


def expand_schema(declared: Schema, available: Schema) -> Schema:
    """Return the columns of a source with the columns `available`: declared ones with their
    types, the others as `WILDCARD` says, by default unchanged."""
    named = {c: dtype for c, dtype in declared.items() if c != WILDCARD}
    rest = declared.get(WILDCARD)
    if rest == DROPPED:
        return named
    return {
        c: named.get(c, dtype if rest is None else rest) for c, dtype in available.items()
    } | named


def require(schema: Schema, columns: Iterable[str], *, where: str) -> None:
    """Raises: UserError when a column is not in the schema, naming the nearest that is."""
    for column in columns:
        if column not in schema:
            raise UserError(
                f"{where} needs column '{column}', which is not there.{nearest(column, schema)}"
            )
