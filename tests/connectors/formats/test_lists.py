"""Declared lists: each element by the one rule of coercion; how deep they go."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.formats.csv import Csv
from connectors.formats.dialect import Dialect
from connectors.formats.inference.infer import infer_json_types
from connectors.formats.ndjson import Ndjson
from connectors.formats.values.casts import Coerce
from connectors.formats.values.columns import Columns
from connectors.memory import MemorySource
from engine.types import MAX_NESTING, UserError, parse_schema, parse_type
from tests.connectors.conftest import records, told
from tests.size import examples

LOST = "wrong_type"
BIG = "out_of_range"


def inspect_csv(text: str, dtype: pl.DataType, coerce: Coerce = "lossless") -> Any:
    """The value that a field of CSV gives, or the reason why none."""
    format = Csv({"p": ["a"]}, Dialect(delimiter="\t", quote=""), coerce=coerce)
    return _one(format.decode(records(text.encode() + b"\n"), {"a": dtype}))


def of_json(text: str, dtype: pl.DataType, coerce: Coerce = "lossless", among: str = "[]") -> Any:
    """The same of JSON, with another row beside it."""
    rows = [f'{{"a": {value}}}\n'.encode() for value in (text, among)]
    frame, rejects = Ndjson(coerce=coerce).decode(records(*rows), {"a": dtype})
    mine = [reject for reject in told(rejects) if reject[1] == 0]
    return mine[0][0] if mine else frame["a"][0:1].to_list()[0]


def _one(made: tuple[pl.DataFrame, Any]) -> Any:
    frame, rejects = made
    return told(rejects)[0][0] if rejects else frame["a"].to_list()[0]


@pytest.mark.parametrize(
    ("text", "dtype", "expected"),
    [
        ("[1.9]", "int64", LOST),
        ("[12.0, 1e3]", "int64", [12, 1000]),
        ('["5", " 7 "]', "int64", [5, 7]),
        ("[99999999999999999999]", "int64", BIG),
        ("[1, 300]", "int8", BIG),
        ("[1, null]", "int32", [1, None]),
        ("[[4]]", "int64", LOST),
        ("[true]", "int64", LOST),
        ("1.9", "int64", LOST),
        ("true", "int64", LOST),
        ('{"a": 1}', "int64", LOST),
        ("[]", "int64", []),
        ("[ 1 , 2 ]", "int64", [1, 2]),
        ("[[1], [2, 3], []]", "list[int64]", [[1], [2, 3], []]),
        ("[[1.5]]", "list[int64]", LOST),
        ("[4]", "list[int64]", LOST),
        ("[1.5, NaN, 2]", "float64", [1.5, pytest.approx(float("nan"), nan_ok=True), 2.0]),
        ("[1e39]", "float32", BIG),
        ("[1, true, 0]", "bool", [True, True, False]),
        ("[5]", "bool", LOST),
        ('["2024-01-02"]', "date", [datetime.date(2024, 1, 2)]),
        ('["02/01/2024"]', "date", LOST),
        ('["12:30"]', "time", [datetime.time(12, 30)]),
        ("[0.10, 5]", "decimal(6, 2)", [Decimal("0.10"), Decimal(5)]),
        ("[0.123]", "decimal(6, 2)", BIG),
        (r'["a\"b\\\u00e9\n", "x"]', "string", ['a"b\\é\n', "x"]),
        ("[1.0, true, 1e3]", "string", ["1.0", "true", "1e3"]),
        ('["a"]', "bytes", [b"a"]),
    ],
)
def test_a_list_is_taken_where_every_element_is(text: str, dtype: str, expected: Any) -> None:
    kind = parse_type(f"list[{dtype}]")
    assert inspect_csv(text, kind) == expected
    assert of_json(text, kind) == expected
    assert of_json(text, kind, among='"no"') == expected  # beside a row that is lost


@pytest.mark.parametrize(
    ("text", "dtype", "expected"),
    [
        ("[12.0]", "int64", LOST),
        ('["5"]', "int64", LOST),
        ('["5"]', "float64", LOST),
        ("[5]", "float64", [5.0]),
        ("[5]", "string", LOST),
        ('["5"]', "string", ["5"]),
        ("[1]", "bool", LOST),
        ('["2024-01-02"]', "date", [datetime.date(2024, 1, 2)]),
        ("[[1], null]", "list[int64]", [[1], None]),
        ('["[1]"]', "list[int64]", LOST),
    ],
)
def test_a_strict_list_holds_what_is_written_so(text: str, dtype: str, expected: Any) -> None:
    kind = parse_type(f"list[{dtype}]")
    assert inspect_csv(text, kind, "strict") == expected
    assert of_json(text, kind, "strict") == expected


@pytest.mark.parametrize("text", ["[1,]", "[,1]", "[1 2]", "[01]", "[1", "[1]]", "[x]", "", "]"])
def test_what_is_no_array_is_no_list(text: str) -> None:
    assert inspect_csv(text or '"', pl.List(pl.Int64())) == LOST


def test_the_reason_names_the_value() -> None:
    kind = {"a": parse_type("list[int64]")}
    csv = Csv({"p": ["a"]}, Dialect(delimiter="\t", quote=""))
    _, rejects = csv.decode(records(b"[1.9]\n"), kind)
    assert told(rejects)[0][2] == "Expected list[int64], got '[1.9]' in column 'a'."
    _, rejects = Ndjson().decode(records(b'{"a": [1.9]}\n'), kind)
    assert told(rejects)[0][2] == "Expected list[int64], got '[1.9]' in column 'a'."
    frame = pl.DataFrame({"b": ["x"], "a": [[1.9]]})
    assert of_table(frame, "list[int64]")[1] == [
        (LOST, "Expected list[int64], got '[1.9]' in column 'a'.")
    ]


def of_table(frame: pl.DataFrame, dtype: str, coerce: Coerce = "lossless") -> tuple[Any, Any]:
    raw = MemorySource.of([frame]).read(100, 1 << 20, 0.0)
    assert raw is not None
    made, rejects = Columns(coerce=coerce).decode(raw, {"a": parse_type(dtype)})
    return made["a"].to_list(), [(reason, detail) for reason, _, detail, _ in told(rejects)]


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        (pl.Series([[1.0, 2.0], [1.5], None, [], [None]]), "int64", [[1, 2], None, [], [None]]),
        (pl.Series([[1, 2], [3, 1 << 40]]), "int32", [[1, 2]]),
        (pl.Series([["1", "2.0"], ["x"]]), "int64", [[1, 2]]),
        (pl.Series([[[1.0]], [[1.5], []], []]), "list[int64]", [[[1]], []]),
        (pl.Series([[1, 2]], dtype=pl.Array(pl.Int64(), 2)), "float32", [[1.0, 2.0]]),
        (pl.Series([[b"a"], [b"\xff"]]), "string", [["a"]]),
        (pl.Series([0.5]), "float64", []),
    ],
)
def test_lists_of_tables(values: pl.Series, dtype: str, expected: list[Any]) -> None:
    made, rejects = of_table(values.alias("a").to_frame(), f"list[{dtype}]")
    assert made == expected
    assert len(made) + len(rejects) == len(values)


def test_a_strict_list_of_a_table_is_of_its_type() -> None:
    assert of_table(pl.DataFrame({"a": [["5"]]}), "list[int64]", "strict")[0] == []
    assert of_table(pl.DataFrame({"a": [[5]]}), "list[float64]", "strict")[0] == [[5.0]]


ELEMENTS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**66), 2**66), st.text(max_size=4),
    st.floats(allow_nan=False, allow_infinity=False), st.just([]), st.just([1]), st.just({"b": 1}),
)  # fmt: skip


@settings(max_examples=examples(80), deadline=None)
@given(
    st.lists(st.lists(ELEMENTS, max_size=4), min_size=1, max_size=6),
    st.sampled_from(["int64", "float64", "bool", "list[int64]", "date"]),
    st.sampled_from(["lossless", "strict"]),
)
def test_csv_and_json_agree_on_every_list(rows: list[Any], dtype: str, coerce: Coerce) -> None:
    kind = {"a": parse_type(f"list[{dtype}]")}
    texts = [json.dumps(row) for row in rows]
    csv = Csv({"p": ["a"]}, Dialect(delimiter="\x01", quote=""), coerce=coerce)
    one, lost = csv.decode(records(*(f"{text}\n".encode() for text in texts)), kind)
    lines = [f'{{"a": {text}}}\n'.encode() for text in texts]
    other, gone = Ndjson(coerce=coerce).decode(records(*lines), kind)
    assert one.equals(other)
    assert [r[:2] for r in told(lost)] == [r[:2] for r in told(gone)]


def test_a_number_beside_text_that_looks_like_one_is_taken() -> None:
    row = records(b'{"a": "1.5", "b": 2.5e286}\n')
    frame, rejects = Ndjson().decode(row, {"a": pl.String(), "b": pl.Float64()})
    assert (frame.row(0)[2:], told(rejects)) == (("1.5", 2.5e286), [])


def test_a_float32_is_not_infinite_in_silence() -> None:
    rows = records(b'{"a": 1e39}\n', b'{"a": 1}\n', b'{"a": "inf"}\n')
    frame, rejects = Ndjson().decode(rows, {"a": pl.Float32()})
    assert frame["a"].to_list() == [1.0, float("inf")]
    assert [r[:2] for r in told(rejects)] == [(BIG, 0)]


@pytest.mark.parametrize(
    ("dtype", "text", "expected"),
    [
        ("int8", "-128", -128), ("int8", "128", BIG), ("int16", "40000", BIG),
        ("uint8", "255", 255),
        ("uint16", "-1", BIG), ("uint32", "7.0", 7), ("uint64", "18446744073709551615", 2**64 - 1),
        ("int8", '"7"', 7), ("int8", "1.5", LOST), ("int8", "[1]", LOST), ("int16", "null", None),
        ("date", '"2024-01-02"', datetime.date(2024, 1, 2)), ("date", '"02/01/2024"', LOST),
        ("date", "19000", LOST), ("time", '"12:30"', datetime.time(12, 30)),
        ("datetime[ms]", '"2024-01-02T03:00Z"', datetime.datetime(2024, 1, 2, 3)),
        ("datetime", '"Jan 2 2024"', LOST), ("duration", '"PT1H"', datetime.timedelta(hours=1)),
        ("bytes", '"a"', b"a"), ("decimal(5, 2)", "1.5", Decimal("1.50")),
    ],
)  # fmt: skip
def test_every_declarable_type_is_had_from_json(dtype: str, text: str, expected: Any) -> None:
    assert of_json(text, parse_type(dtype), among="null") == expected
    assert of_json(text, parse_type(dtype), among='{"odd": 1}') == expected


# ------------------------------------------------------------------------------------------- depth


def test_lists_are_declared_down_to_some_level() -> None:
    def nested(levels: int) -> str:
        return "list[" * levels + "int64" + "]" * levels

    deepest = parse_type(nested(MAX_NESTING))
    text = "[" * MAX_NESTING + "7" + "]" * MAX_NESTING
    assert inspect_csv(text, deepest) == of_json(text, deepest) == json.loads(text)
    for levels in (MAX_NESTING + 1, 1_000, 100_000):
        with pytest.raises(UserError, match=f"lists go at most {MAX_NESTING} levels deep"):
            parse_schema({"a": nested(levels)})


@pytest.mark.parametrize("levels", [20, 200, 1_000, 100_000])
@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"b":', "}")])
def test_what_is_nested_deeper_is_guessed_as_text(begin: str, end: str, levels: int) -> None:
    deep = f'{{"a":{begin * levels}1{end * levels},"n":1}}\n'.encode()
    other = b'{"a":"x","n":2}\n'
    types = infer_json_types(deep + other)
    assert types == {"a": pl.String(), "n": pl.Int64()}
    frame, rejects = Ndjson().decode(records(deep, other), types)
    assert frame["n"].to_list()[-1] == 2
    assert frame.height + len(told(rejects)) == 2
