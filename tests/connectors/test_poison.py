"""A poison record costs itself: whatever stands beside it, the other rows are the same."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.formats.inference.infer import infer_json_types
from connectors.formats.ndjson import Ndjson
from engine.types import Schema
from tests.connectors.conftest import records, told
from tests.size import examples

NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.sampled_from(
        [2**31, -(2**53) - 1, 2**63 - 1, 2**63, 2**64, 2**100, 10**35, 1.5, -0.25, 1e25, 1e-9]
    ),
)
TEXTS = st.sampled_from(
    ["", "a", "5", "1e2", "true", "null", "NaN", "2024-02-29", '"', "\\", "\n", "\u00f6",
     "\U0001f600", "[1]", '{"x": 1}', "{", "x,y"]
)  # fmt: skip
PLAIN = st.one_of(NUMBERS, TEXTS, st.booleans())
VALUES = st.sampled_from([NUMBERS, TEXTS, st.booleans(), PLAIN]).flatmap(
    lambda leaf: st.recursive(
        st.none() | leaf,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["x", "y", "a.b", ""]), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
ROWS = st.lists(st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3), min_size=1, max_size=6)
BROKEN = [
    b"", b"{", b'{"a": "broken', b'{"a":[{"x":1}', b'{"a":[{"x":1},]}', b"[]", b'{"b":1}{"b":2}',
    b'{"c":"\xff"}', b'{"c":"\\ud800"}', b'{"a":[{"x":"\\udc00 "}]}', b'{"a":tru}',
    b'{"a":1,"a":{"x":"y"}}', b"5",
]  # fmt: skip
"""Lines that are no records."""
WRONG = [
    b'{"a":[{"x":[[7]]}]}', b'{"a":{"x":{"y":"z"}}}', b'{"a":"w","b":[1,"w"],"c":{"x":[{}]}}',
    b'{"b":1e999}', b'{"c":NaN}', b'{"b":170141183460469231731687303715884105728}',
]  # fmt: skip
"""Records whose values may not be of their columns' types."""


def as_bytes(row: dict[str, Any], ascii_only: bool) -> bytes:
    return json.dumps(row, ensure_ascii=ascii_only).encode() + b"\n"


@settings(max_examples=examples(50), deadline=None)
@given(
    rows=ROWS,
    more=st.integers(0, 30),
    poison=st.lists(st.tuples(st.integers(0), st.sampled_from([*BROKEN, *WRONG])), max_size=4),
    ascii_only=st.booleans(),
    strict=st.booleans(),
)
def test_poison_costs_itself_and_nothing_else(
    rows: list[dict[str, Any]],
    more: int,
    poison: list[tuple[int, bytes]],
    ascii_only: bool,
    strict: bool,
) -> None:
    good = [as_bytes(row, ascii_only) for row in rows]
    good += [good[i % len(good)] for i in range(more)]
    schema = infer_json_types(b"".join(good))
    form = Ndjson(coerce="strict" if strict else "lossless")
    clean, lost = form.decode(records(*good), schema)
    lines: list[tuple[int, bytes]] = [*enumerate(good)]
    for at, line in poison:
        lines.insert(at % (len(lines) + 1), (-1, line + b"\n"))
    frame, rejects = form.decode(records(*(line for _, line in lines)), schema)
    # Records stand 10 positions apart.
    which = {10 * at: 10 * i for at, (i, _) in enumerate(lines)}
    own = frame["_position"].replace_strict(which, return_dtype=pl.Int64)
    kept = frame.with_columns(own.alias("_position")).filter(own >= 0)
    assert kept.schema == clean.schema
    assert kept.equals(clean)
    mine = [(r, which[p], d, v) for r, p, d, v in told(rejects) if which[p] >= 0]
    assert mine == told(lost)


@settings(max_examples=examples(50), deadline=None)
@given(rows=ROWS, poison=st.lists(st.tuples(st.integers(0), st.sampled_from(BROKEN)), max_size=4))
def test_broken_lines_change_no_guess(
    rows: list[dict[str, Any]], poison: list[tuple[int, bytes]]
) -> None:
    good = [as_bytes(row, ascii_only=True) for row in rows]
    lines = [*good]
    for at, line in poison:
        lines.insert(at % (len(lines) + 1), line + b"\n")
    clean = infer_json_types(b"".join(good))
    assert clean == {c: t for c, t in infer_json_types(b"".join(lines)).items() if c in clean}


ITEMS: Schema = {"items": pl.List(pl.Struct({"sku": pl.String(), "price": pl.Float64()}))}


@pytest.mark.parametrize(
    ("value", "row"),
    [
        ('[{"sku":"x","price":"1.5"}]', [{"sku": "x", "price": 1.5}]),
        ('[{"sku":7.50,"price":2}]', [{"sku": "7.50", "price": 2.0}]),
        ('[{"sku":{"a": 1}},null]', [{"sku": '{"a": 1}', "price": None}, None]),
        ('[{"sku":"\\u0041\\n","more":1}]', [{"sku": "A\n", "price": None}]),
        ("[]", []),
        ("null", None),
    ],
)
def test_a_list_of_objects_is_taken_by_the_one_rule(value: str, row: Any) -> None:
    frame, rejects = Ndjson().decode(records(b'{"items":%s}' % value.encode()), ITEMS)
    assert (frame["items"].to_list(), told(rejects)) == ([row], [])


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ('[{"price":"dear"}]', "wrong_type"),
        ('[{"price":1.5},5]', "wrong_type"),
        ('{"price":1.5}', "wrong_type"),
        ('"[]"', "wrong_type"),
        ('[{"price":9007199254740993}]', "wrong_type"),
    ],
)
def test_a_list_with_one_that_does_not_fit_is_a_reject(value: str, reason: str) -> None:
    _, rejects = Ndjson(coerce="strict").decode(
        records(b'{"items":%s}' % value.encode(), b'{"items":[{"price":1}]}'), ITEMS
    )
    assert [(r, p) for r, p, _, _ in told(rejects)] == [(reason, 0)]
