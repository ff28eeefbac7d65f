"""Bytes of JSON to columns."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.formats.ndjson import Ndjson
from engine.types import Schema
from tests.connectors.conftest import records, told

SCHEMA: Schema = {"x": pl.Float64(), "n": pl.Int64(), "s": pl.String(), "b": pl.Binary()}
GOOD = {
    b'{"x":1.5,"n":2,"s":"a","extra":[1]}\n': (1.5, 2, "a", None),
    b'{\n "x": 1,\r\n "s": "\\n\xc3\xb6"}': (1.0, None, "\nö", None),
    b"{}": (None, None, None, None),
    b'{"x":null,"s":5,"b":"z"}\n': (None, None, "5", b"z"),
}
POISON = {
    b"": ("broken", "Expected a JSON object: "),
    b"\n": ("broken", "Expected a JSON object: "),
    b'{"x":1': ("broken", "Expected a JSON object: "),
    b"[1]\n": ("broken", "Expected a JSON object: "),
    b'{"x":1}{"x":2}\n': ("broken", "Expected a JSON object: "),
    b'{"x":"abc"}\n': ("wrong_type", "In column 'x': cannot parse 'abc' (string) as Float64."),
    b'{"n":1.5}': ("wrong_type", "In column 'n': cannot parse '1.5' (f64) as Int64."),
    b'{"n":99999999999999999999}\n': ("out_of_range", "In column 'n': cannot parse '9999"),
    b'{"s":"\xff"}\n': ("bad_utf8", "Expected UTF-8, got bytes that are none."),
}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([*GOOD, *POISON]), max_size=12))
def test_one_row_or_one_reject_for_each_value(parts: list[bytes]) -> None:
    frame, rejects = Ndjson().decode(records(*parts), SCHEMA)
    assert frame.drop("_partition", "_position").rows() == [GOOD[p] for p in parts if p in GOOD]
    assert frame["_position"].to_list() == [i * 10 for i, p in enumerate(parts) if p in GOOD]
    expected = [(i * 10, *POISON[p]) for i, p in enumerate(parts) if p in POISON]
    made = told(rejects)
    assert [(at, reason) for reason, at, _, _ in made] == [(at, r) for at, r, _ in expected]
    for (_, _, detail, _), (_, _, start) in zip(made, expected, strict=True):
        assert detail.startswith(start)


@pytest.mark.parametrize("kind", [pl.Int32(), pl.Float32(), pl.Boolean(), pl.Date()])
def test_null_in_every_type(kind: pl.DataType) -> None:
    frame, rejects = Ndjson().decode(records(b'{"v":null}'), {"v": kind})
    assert (frame["v"].to_list(), rejects) == ([None], [])


def test_moments_are_iso_8601() -> None:
    raw = records(b'{"t":"2024-01-02T03:04:05Z"}', b'{"t":"2024-01-02"}', b'{"t":"soon"}')
    frame, rejects = Ndjson().decode(raw, {"t": pl.Datetime("us")})
    assert [str(t) for t in frame["t"]] == ["2024-01-02 03:04:05", "2024-01-02 00:00:00"]
    assert [(reason, at) for reason, at, _, _ in told(rejects)] == [("wrong_type", 20)]


def test_a_slice_of_a_shared_buffer() -> None:
    raw = records(b'{"x":1}\n', b'{"x":2}\n', b'{"x":3}\n').slice(1, 2)
    frame, _ = Ndjson().decode(raw, SCHEMA)
    assert frame.select("_position", "x").rows() == [(10, 2.0)]
