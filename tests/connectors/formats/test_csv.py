"""Bytes of CSV to columns."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from connectors.formats.csv import Csv
from connectors.formats.dialect import Dialect
from connectors.formats.kernels.fields import count_fields
from connectors.formats.kernels.rows import NOT_UTF8
from connectors.formats.values.casts import cast
from engine.types import TYPES, HeadraceError, Records, Schema, Values
from tests.connectors.conftest import records, told
from tests.size import examples

SCHEMA: Schema = {"x": pl.Float64(), "n": pl.Int64(), "s": pl.String(), "t": pl.Datetime("us")}
CSV = Csv({"p": ["s", "x", "n", "t"]})
GOOD = b"ok,1.5,2,2024-01-02\n"
POISON = {
    b"a,abc,1,\n": ("wrong_type", "Expected float64, got 'abc' in column 'x'."),
    b"a,1,1.5,\n": ("wrong_type", "Expected int64, got '1.5' in column 'n'."),
    b"a,1,9223372036854775808,\n": (
        "out_of_range",
        "Expected int64, got '9223372036854775808' in column 'n'.",
    ),
    b"a,9007199254740993,1,\n": (
        "out_of_range",
        "Expected float64, got '9007199254740993' in column 'x', which no float64 equals: declare "
        "int64 or string.",
    ),
    b"a,99999999999999999999,1,\n": (
        "out_of_range",
        "Expected float64, got '99999999999999999999' in column 'x', which no float64 equals: "
        "declare string.",
    ),
    b"a,1,1,soon\n": ("wrong_type", "Expected datetime, got 'soon' in column 't'."),
    b"a,1\n": ("broken", "Expected 4 fields, got 2."),
    b"a,1,2,,5\n": ("broken", "Expected 4 fields, got 5."),
    b'"a,1,2,\n': ("broken", "Expected a row of CSV, got a quote that is not closed."),
    b"\xff,1,2,\n": ("bad_utf8", NOT_UTF8),
    b'5" pipe,1,2,\n': ("broken", "Expected a row of CSV, got quotes in the middle of a field."),
}


def rows(raw: Records, schema: Schema = SCHEMA) -> list[tuple[object, ...]]:
    frame, rejects = CSV.decode(raw, schema)
    assert not rejects
    assert dict(frame.drop("_partition", "_position").schema) == schema
    return frame.drop("_partition", "_position").rows()


def test_columns_of_whole_numbers_keep_theirs_as_floats() -> None:
    for kind, most in ((pl.Float64(), 2**53), (pl.Float32(), 2**24)):
        made = cast(pl.Series([most, most + 1, -most - 1, -most, None]), kind)
        assert made.to_list() == [most, None, None, -most, None]


def test_values_of_every_kind() -> None:
    raw = records(b'"a, ""b""\nc",1e3,-7,2024-01-02T03:04:05Z\r\n', b'"",,,\n', b",+inf,+5,\n")
    x = SCHEMA | {"t": pl.String()}
    assert rows(raw, x) == [
        (1000.0, -7, 'a, "b"\nc', "2024-01-02T03:04:05Z"),
        (None, None, "", None),
        (float("inf"), 5, None, None),
    ]


def test_nan_is_a_value_and_empty_is_null() -> None:
    frame, rejects = CSV.decode(records(b"a,NaN,,\n", b"a,,,\n"), {"x": pl.Float64()})
    assert not rejects
    assert frame["x"].is_nan().to_list() == [True, None]


def test_moments_are_iso_8601_and_go_to_utc() -> None:
    moments = [b"2024-01-02", b"2024-01-02T03:04", b"2024-01-02 03:04:05.25",
               b"2024-01-02T03:04:05+02:00", b""]  # fmt: skip
    raw = records(*(b"a,1,1," + moment + b"\n" for moment in moments))
    assert [None if t is None else str(t) for (t,) in rows(raw, {"t": pl.Datetime("us")})] == [
        "2024-01-02 00:00:00",
        "2024-01-02 03:04:00",
        "2024-01-02 03:04:05.250000",
        "2024-01-02 01:04:05",
        None,
    ]


@pytest.mark.parametrize("kind", ["bool", "int32", "float32", "date", "bytes"])
def test_the_other_types(kind: str) -> None:
    text = {"bool": "true", "int32": "7", "float32": "7.5", "date": "2024-01-02", "bytes": "z"}
    raw = records(f"{text[kind]},1,2,\n".encode(), b",1,2,\n")
    made = rows(raw, {"s": TYPES[kind]})
    assert str(made[0][0]) in {"True", "7", "7.5", "2024-01-02", "b'z'"}
    assert made[1] == (None,)


@pytest.mark.parametrize("poison", POISON)
def test_a_poison_row_costs_itself(poison: bytes) -> None:
    raw = records(GOOD, poison, GOOD)
    frame, rejects = CSV.decode(raw, SCHEMA)
    expected, _ = CSV.decode(records(GOOD, GOOD, GOOD), SCHEMA)
    assert_frame_equal(frame, expected[[0, 2]])
    ((reason, position, detail, value),) = told(rejects)
    assert (reason, detail) == POISON[poison]
    assert position == 10
    assert value


@settings(max_examples=examples(40), deadline=None)
@given(st.lists(st.sampled_from([GOOD, b",,,\n", *POISON]), max_size=12))
def test_a_batch_is_its_rows(parts: list[bytes]) -> None:
    """Decoding together gives what decoding one by one gives, and loses no row."""
    frame, rejects = CSV.decode(records(*parts), SCHEMA)
    assert frame.height + sum(map(len, rejects)) == len(parts)
    good = [part not in POISON for part in parts]
    assert frame["_position"].to_list() == [i * 10 for i, ok in enumerate(good) if ok]
    assert [(r, d) for r, _, d, _ in told(rejects)] == [
        POISON[part] for part in parts if part in POISON
    ]


def test_wrong_type_far_in_costs_its_row_only() -> None:
    parts = [b"s,%d,%d,\n" % (i, i) for i in range(20_000)]
    parts[10_000] = b"s,oops,1,\n"
    frame, rejects = CSV.decode(records(*parts), SCHEMA)
    assert frame.height == 19_999
    assert [position for _, position, _, _ in told(rejects)] == [100_000]


def test_a_missing_column_names_the_nearest() -> None:
    csv = Csv({"p": ["price", "amount"]})
    with pytest.raises(HeadraceError, match=r"p has no column 'prize'.*Did you mean 'price'\?"):
        csv.decode(records(b"1,2\n"), {"prize": pl.Float64()})


def test_no_rows() -> None:
    frame, rejects = CSV.decode(records(), SCHEMA)
    assert frame.columns == ["_partition", "_position", *SCHEMA]
    assert (frame.height, rejects) == (0, [])


@pytest.mark.parametrize("begin", ["x^", "x\x01"])
def test_text_that_begins_like_something_packed_is_text(begin: str) -> None:
    """polars unpacks what it parses where that begins as zlib does."""
    frame, rejects = Csv({"p": ["a", "b"]}).decode(
        records(f"{begin}2,1\n".encode(), b"y,2\n"), {"a": pl.String(), "b": pl.Int64()}
    )
    assert told(rejects) == []
    assert frame.select("a", "b").rows() == [(f"{begin}2", 1), ("y", 2)]


@settings(max_examples=examples(200), deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(['"', '""', ",", "a", "\n", "éé", "12345678"]), max_size=9)
             .map("".join), max_size=6),
    st.sampled_from([",", ";"]),
    st.sampled_from(['"', ""]),
)  # fmt: skip
def test_fields_are_counted_as_byte_by_byte(rows: list[str], delimiter: str, quote: str) -> None:
    def count(row: bytes) -> int:
        number, quoted, start = 1, False, True
        for i, byte in enumerate(row):
            sign = chr(byte)
            if quoted:
                quoted = sign != quote
            elif quote and sign == quote:
                quoted = start or row[i - 1 : i] == quote.encode()
            number += sign == delimiter and not quoted
            start = sign == delimiter and not quoted
        return -1 if quoted else number

    raw = [row.encode() + b"\n" for row in rows]
    values = records(*raw).values
    assert isinstance(values, Values)
    counts = np.empty(len(raw), np.int64)
    dialect = Dialect(delimiter=delimiter, quote=quote)
    count_fields(values.data, values.bounds, np.uint8(ord(delimiter)), dialect.quote_byte, counts)
    assert counts.tolist() == [count(row) for row in raw]
