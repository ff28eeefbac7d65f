"""Values that no format can be given, each under its own name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from connectors.formats.csv import Csv
from connectors.formats.kernels.rows import is_utf8
from connectors.formats.ndjson import Ndjson
from connectors.formats.text import RawText
from connectors.formats.xml import Xml
from connectors.kafka.value_checks import ValueFilter
from engine.types import Format, Records, Schema, Values
from tests.connectors.conftest import told

Make = tuple[Callable[[], Format], Schema, bytes]
NUMBER: Schema = {"n": pl.Int64()}
FORMATS: dict[str, Make] = {
    "ndjson": (Ndjson, NUMBER, b'{"n": 7}'),
    "csv": (lambda: Csv({"p": ("n",)}), NUMBER, b"7"),
    "csv of text": (lambda: Csv({"p": ("n",)}), {"n": pl.String()}, b"7"),
    "xml": (lambda: Xml({}), NUMBER, b"<r><n>7</n></r>"),
    "text": (RawText, {"value": pl.String()}, b"7"),
}
FRAME = b"\x00\x00\x00\x01\x02"
ODD = {
    "registry_frame": [FRAME, b"\x00\x00\x00\x00\x07"],
    "byte_order_mark": [b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff"],
    "compressed": [b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"],
}


def records(values: list[bytes | None], tail: int) -> Records:
    parts = [(value or b"") + b"\n" * tail for value in values]
    return Records(
        partition="p",
        positions=np.arange(len(values)),
        next=len(values),
        values=Values(
            data=np.frombuffer(b"".join(parts), np.uint8),
            bounds=np.cumsum([0, *map(len, parts)]).astype(np.int64),
            null=np.array([value is None for value in values]),
            tail=tail,
        ),
        arrived=0.0,
    )


def decoded(name: str, values: list[bytes | None]) -> tuple[pl.DataFrame, Any]:
    make, schema, _ = FORMATS[name]
    tail = int(name.startswith(("ndjson", "csv")))
    return ValueFilter(make(), text=True).decode(records(values, tail), schema)


@pytest.mark.parametrize("name", FORMATS)
def test_each_is_rejected_under_its_name(name: str) -> None:
    good = FORMATS[name][2]
    values: list[bytes | None] = [good, None]
    reasons = ["tombstone"]
    for reason, begins in ODD.items():
        for begin in begins:
            values += [begin + good, good]
            reasons.append(reason)
    frame, rejects = decoded(name, values)
    assert frame.height == len(values) - len(reasons)
    assert len(set(frame.to_series(2))) == 1
    assert frame["_position"].to_list() == [0, *range(3, len(values), 2)]
    found = told(rejects)
    assert [reason for reason, *_ in found] == reasons
    assert [at for _, at, *_ in found] == [1, *range(2, len(values), 2)]
    details = [detail for _, _, detail, _ in found]
    assert details[0] == "Expected a value, got none (null): its key was deleted."
    assert (
        "frame of a schema registry (a byte 0 and the number of a schema), here 258:" in details[1]
    )
    assert ", here 7:" in details[2]
    assert "a byte order mark (UTF-16) at its start" in details[4]
    assert "what gzip makes" in details[6]


def test_bytes_may_begin_as_they_like() -> None:
    begins = [begin for many in ODD.values() for begin in many]
    values: list[bytes | None] = [*begins, None]
    frame, rejects = ValueFilter(RawText(), text=True).decode(
        records(values, 0), {"value": pl.Binary()}
    )
    assert frame["value"].to_list() == begins
    assert [reason for reason, *_ in told(rejects)] == ["tombstone"]


@settings(deadline=None)
@example([b"\xc2", b"\x80"])  # no character of both
@example([b"a\xe2\x82", b"", b"\xac", b"b", b"\xac"])
@given(st.lists(st.one_of(st.none(), st.binary(max_size=7)), max_size=8))
def test_every_value_is_a_row_or_a_reject(values: list[bytes | None]) -> None:
    frame, rejects = decoded("text", values)
    assert sorted([*frame["_position"], *(at for _, at, *_ in told(rejects))]) == [
        *range(len(values))
    ]
    for value in frame["value"]:
        assert not value.encode().startswith((b"\xef\xbb\xbf", b"\x1f\x8b"))


PIECES = [
    b"a",
    b"\xc2",
    b"\x80",
    b"\xe2\x82\xac",
    b"\xe2",
    b"\x82",
    b"\xac",
    b"\xf0\x9f",
    b"\x98\x80",
]


@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=3).map(b"".join), max_size=6))
def test_a_value_is_utf8_by_itself_and_not_with_its_neighbours(values: list[bytes]) -> None:
    def good(value: bytes) -> bool:
        return value.decode("utf-8", "ignore").encode() == value

    found = records([*values], 0).values
    assert isinstance(found, Values)
    assert is_utf8(found).tolist() == [good(value) for value in values]
