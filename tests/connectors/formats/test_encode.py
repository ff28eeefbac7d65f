"""Columns to the values of records, read back by the formats and by fastavro."""

from __future__ import annotations

import io
import json
from datetime import UTC, date, datetime
from typing import Any

import fastavro
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.formats.avro import Avro, parsed
from connectors.formats.encode import AvroEncoder, Encoder, JsonEncoder, RawEncoder, derived
from connectors.formats.ndjson import Ndjson
from engine.types import HeadraceError, UserError
from tests.connectors.conftest import records
from tests.size import examples

KINDS: dict[str, tuple[pl.DataType, st.SearchStrategy[Any]]] = {
    "flag": (pl.Boolean(), st.booleans()),
    "small": (pl.Int32(), st.integers(-(2**31), 2**31 - 1)),
    "large": (pl.Int64(), st.integers(-(2**63), 2**63 - 1)),
    "half": (pl.Float32(), st.floats(width=32, allow_nan=False)),
    "whole": (pl.Float64(), st.floats(allow_nan=False)),
    "text": (pl.String(), st.text(max_size=5)),
    "raw": (pl.Binary(), st.binary(max_size=5)),
    "day": (pl.Date(), st.dates()),
    "at": (pl.Datetime("us"), st.datetimes()),
}
SCHEMA = {name: kind for name, (kind, _) in KINDS.items()}


class Fixed:
    """A registry that gives every schema the number 7."""

    def __init__(self) -> None:
        self.registered: list[tuple[str, Any]] = []

    def register(self, topic: str, schema: Any) -> int:
        self.registered.append((topic, schema))
        return 7


def encoded(encoder: Encoder, frame: pl.DataFrame) -> list[bytes]:
    """What it makes of the rows, list out."""
    values = encoder.encode(frame)
    return [value for value in values.take(np.arange(len(values))) if value is not None]


def by_fastavro(value: bytes, schema: Any) -> Any:
    """Another implementation's reading."""
    return fastavro.schemaless_reader(io.BytesIO(value), schema, None)


@st.composite
def frames(draw: st.DrawFn) -> pl.DataFrame:
    n = draw(st.integers(0, 8))
    return pl.DataFrame(
        {
            name: pl.Series(
                name, draw(st.lists(st.none() | values, min_size=n, max_size=n)), dtype=kind
            )
            for name, (kind, values) in KINDS.items()
        }
    )


@settings(max_examples=examples(80), deadline=None)
@given(frames())
def test_avro_comes_back_as_it_was(frame: pl.DataFrame) -> None:
    """By fastavro, another implementation, and by our own walk."""
    registry = Fixed()
    values = encoded(AvroEncoder(registry=registry, topic="a-topic.v1"), frame)
    assert [topic for topic, _ in registry.registered] == ["a-topic.v1"]
    schema = registry.registered[0][1]
    assert (schema["type"], schema["name"]) == ("record", "headrace.a_topic_v1")
    assert all(value[:5] == b"\0\0\0\0\x07" for value in values)
    read = [by_fastavro(value[5:], schema) for value in values]
    for row in read:  # fastavro gives UTC where we give none
        row["at"] = None if row["at"] is None else row["at"].replace(tzinfo=None)
    assert read == frame.to_dicts()
    plain = encoded(AvroEncoder(schema=parsed(json.dumps(schema))), frame)
    assert plain == [value[5:] for value in values]
    back, rejects = Avro(parsed(json.dumps(schema))).decode(records(*plain), SCHEMA)
    assert back.drop("_partition", "_position").equals(frame)
    assert rejects == []


def test_json_comes_back_as_it_was() -> None:
    frame = pl.DataFrame(
        {
            "x": [1.5, None],
            "s": ["a\nb", "ö"],
            "y": [b"raw", None],
            "t": [datetime(2024, 1, 2), None],
        }
    )
    values = encoded(JsonEncoder(), frame)
    assert json.loads(values[1])["s"] == "ö"
    back, _ = Ndjson().decode(records(*values), dict(frame.schema))
    assert back.drop("_partition", "_position").equals(frame)
    assert encoded(JsonEncoder(), frame.clear()) == []


def test_json_has_no_bytes() -> None:
    with pytest.raises(HeadraceError, match="is not UTF-8: leave the column out"):
        encoded(JsonEncoder(), pl.DataFrame({"y": [b"\xff"]}))


def test_raw_is_one_column() -> None:
    frame = pl.DataFrame({"_partition": ["p"], "_position": [0], "a": ["ö"]})
    assert encoded(RawEncoder(), frame) == ["ö".encode()]
    assert encoded(RawEncoder("b"), pl.DataFrame({"a": ["x"], "b": [b"\xff"]})) == [b"\xff"]


@pytest.mark.parametrize(
    ("column", "frame", "said"),
    [
        (None, {"a": ["x"], "b": ["y"]}, "there are 2: name the one to write"),
        ("c", {"aa": ["x"]}, "no column 'c' to write"),
        (None, {"a": [1]}, "column 'a' is int64: cast it"),
        (None, {"a": ["x", None]}, "Column 'a' is null in row 1"),
    ],
)
def test_what_is_no_raw_value(column: str | None, frame: dict[str, Any], said: str) -> None:
    with pytest.raises(HeadraceError, match=said):
        RawEncoder(column).encode(pl.DataFrame(frame))


GIVEN = {
    "type": "record", "name": "Given", "fields": [
        {"name": "id", "type": "long"},
        {"name": "mood", "type": {"type": "enum", "name": "Mood", "symbols": ["good", "bad"]}},
        {"name": "code", "type": [{"type": "fixed", "name": "Code", "size": 2}, "null"]},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "note", "type": ["null", "string"], "default": None},
        {"name": "level", "type": "int", "default": 5},
        {"name": "again", "type": "Mood", "default": "bad"},
    ],
}  # fmt: skip


def test_a_given_schema_is_kept_to() -> None:
    moment = datetime(2024, 1, 2, 3, 4, 5, 678_000)
    frame = pl.DataFrame(
        {"extra": [1, 2], "id": [1.0, -2.0], "mood": ["bad", "good"], "code": [b"ab", None],
         "at": pl.Series([moment, moment]).dt.replace_time_zone("Europe/Rome"), "note": [None, "n"]}
    )  # fmt: skip
    values = encoded(AvroEncoder(schema=parsed(json.dumps(GIVEN))), frame)
    read = [by_fastavro(value, GIVEN) for value in values]
    utc = datetime(2024, 1, 2, 2, 4, 5, 678_000, tzinfo=UTC)
    both = {"at": utc, "level": 5, "again": "bad"}
    assert read == [
        {"id": 1, "mood": "bad", "code": b"ab", "note": None, **both},
        {"id": -2, "mood": "good", "code": None, "note": "n", **both},
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": [None]}, "Column 'id' is None in row 0"),
        ({"id": [1.5]}, "Column 'id' is 1.5 in row 0"),
        ({"mood": ["odd"]}, "Column 'mood' is 'odd' in row 0"),
        ({"code": [b"abc"]}, "Column 'code' is b'abc' in row 0"),
        ({"id": None}, "has field 'id', without a default, and there is no such column"),
    ],
)
def test_what_a_given_schema_does_not_hold(change: dict[str, Any], said: str) -> None:
    rows: dict[str, Any] = {
        "id": [1],
        "mood": ["bad"],
        "code": [b"ab"],
        "at": [datetime(2024, 1, 1)],
    }
    frame = pl.DataFrame({k: v for k, v in {**rows, **change}.items() if v is not None})
    with pytest.raises(HeadraceError, match=said):
        encoded(AvroEncoder(schema=parsed(json.dumps(GIVEN))), frame)


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        ({"a b": [1]}, "Avro has no field 'a b'"),
        ({"a": [[1]]}, r"Column 'a' is list\[int64\], which is not written as Avro"),
    ],
)
def test_columns_that_avro_has_not(frame: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        derived(dict(pl.DataFrame(frame).schema), "t")


@pytest.mark.parametrize(
    "kind",
    ["null", {"type": "array", "items": "int"}, ["null", "int", "string"],
     {"type": "bytes", "logicalType": "decimal", "precision": 4}],
)  # fmt: skip
def test_schemas_that_columns_are_not_written_as(kind: Any) -> None:
    schema = {"type": "record", "name": "R", "fields": [{"name": "f", "type": kind}]}
    with pytest.raises(UserError, match=r"Field 'f' of the Avro schema is .*, which no column"):
        AvroEncoder(schema=parsed(json.dumps(schema)))


def test_a_schema_is_registered_once_for_the_same_columns() -> None:
    registry = Fixed()
    encoder = AvroEncoder(registry=registry, topic="t")
    for _ in range(2):
        encoder.encode(pl.DataFrame({"a": [1]}))
    encoder.encode(pl.DataFrame({"a": [1], "b": [date(2024, 1, 1)]}))
    assert len(registry.registered) == 2


def test_numbers_of_every_length() -> None:
    numbers = [sign * (1 << bits) - sign for bits in range(63) for sign in (1, -1)]
    frame = pl.DataFrame({"n": np.array(numbers)})
    schema = derived(dict(frame.schema), "t")
    values = encoded(AvroEncoder(schema=schema), frame)
    assert [by_fastavro(value, schema)["n"] for value in values] == numbers


def test_times_in_json_have_t_and_offset_wherever_they_are() -> None:
    moment = datetime(2025, 3, 1)
    frame = pl.DataFrame(
        {"t": [moment], "list": [[moment]], "row": [{"t": moment, "n": 1}], "n": [1]}
    )
    (value,) = encoded(JsonEncoder(), frame)
    said = "2025-03-01T00:00:00+00:00"
    assert json.loads(value) == {"t": said, "list": [said], "row": {"t": said, "n": 1}, "n": 1}
