"""Bytes of JSON to columns."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.formats import ndjson
from connectors.formats.kernels.rows import NOT_UTF8
from connectors.formats.ndjson import Ndjson
from engine.types import Schema, UserError
from tests.connectors.conftest import decoded, drain, files, records, told
from tests.size import examples

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
    b'{"x":"abc"}\n': ("wrong_type", "Expected float64, got 'abc' in column 'x'."),
    b'{"n":1.5}': ("wrong_type", "Expected int64, got '1.5' in column 'n'."),
    b'{"n":99999999999999999999}\n': ("out_of_range", "Expected int64, got '9999"),
    b'{"s":"\xff"}\n': ("bad_utf8", NOT_UTF8),
}


@settings(max_examples=examples(60), deadline=None)
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


COERCED = {
    '{"x":"3.5"}': ("x", 3.5), '{"x":NaN}': ("x", float("nan")), '{"x":-Infinity}': ("x", -1e999),
    '{"x":"inf"}': ("x", 1e999), '{"n":12.0}': ("n", 12), '{"n":"12.0"}': ("n", 12),
    '{"n":1e3}': ("n", 1000), '{"b":"true"}': ("b", True), '{"b":1}': ("b", True),
    '{"s":1.0}': ("s", "1.0"), '{"s":-0.50}': ("s", "-0.50"), '{"s":true}': ("s", "true"),
    '{"s":12345678901234567890123}': ("s", "12345678901234567890123"),
    '{"s":"NaN"}': ("s", "NaN"), '{"x":9007199254740992}': ("x", 2.0**53),
    '{"x":100000000000000000000000}': ("x", 1e23), '{"x":-9223372036854775808}': ("x", -(2.0**63)),
    '{"x":9007199254740993.0}': ("x", 2.0**53),
    '{"x":123456789012345680000}': ("x", 1.2345678901234568e20),
    '{"s":"\\ud83d\\ude00"}': ("s", "\U0001f600"), '{"s":"\\\\ud800"}': ("s", "\\ud800"),
}  # fmt: skip
FLAT: Schema = {"x": pl.Float64(), "n": pl.Int64(), "b": pl.Boolean(), "s": pl.String()}


def test_one_rule_of_what_is_taken_for_what() -> None:
    """As CSV and Parquet; each alone, and all at once."""
    plain = [b'{"x":1.5}'] * 10 * len(COERCED)
    lines = [line.encode() for line in COERCED]
    every, rejects = Ndjson().decode(records(*plain, *lines), FLAT)
    assert told(rejects) == []
    for i, (line, (column, value)) in enumerate(COERCED.items()):
        frame, rejects = Ndjson().decode(records(line.encode()), FLAT)
        assert told(rejects) == []
        for got in (frame[column][0], every[column][len(plain) + i]):
            assert got == value or (got != got and value != value), line


REFUSED = {
    '{"x":9007199254740993}': ("out_of_range", "which no float64 equals: declare int64 or string"),
    '{"x":-9007199254740993}': ("out_of_range", "which no float64 equals"),
    '{"x":"9007199254740993"}': ("out_of_range", "which no float64 equals"),
    '{"x":123456789012345678901234}': ("out_of_range", "which no float64 equals"),
    '{"f":16777217}': ("out_of_range", "which no float32 equals"),
    '{"l":[0.5,9007199254740993]}': ("out_of_range", "'[0.5,9007199254740993]'"),
    '{"s":"\\ud800"}': ("bad_utf8", "half of a surrogate pair"),
    '{"s":"a\\ud800b"}': ("bad_utf8", "half of a surrogate pair"),
    '{"s":"\\ud800\\u0041"}': ("bad_utf8", "half of a surrogate pair"),
    '{"s":"\\udc00\\ud800"}': ("bad_utf8", "half of a surrogate pair"),
    '{"x":1,"x":2}': ("broken", "Expected every key once"),
    '{"s":"\\u00e9","x":1,"n":{"x":3},"x":null}': ("broken", "Expected every key once"),
}  # fmt: skip
KEPT = {
    '{"s":"{\\"x\\":1,\\"x\\":2}"}': ("s", '{"x":1,"x":2}'), '{"x":1,"o":{"x":2}}': ("x", 1),
    '{"o":1,"o":2,"x":3}': ("x", 3), '{"l":[{"x":1},{"x":2}],"x":3}': ("x", 3),
}  # fmt: skip


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("line", REFUSED)
def test_what_would_change_on_its_way_is_a_reject(line: str, wide: bool) -> None:
    """By the walk over flat objects and by the parser, alone and among good ones."""
    schema: Schema = {c: FLAT[c] for c in ("x", "s")}
    if wide or "f" in line or "l" in line:
        schema |= {"f": pl.Float32(), "l": pl.List(pl.Float64()), "d": pl.Date()}
    reason, detail = REFUSED[line]
    good = [b'{"x":1.5}'] * 30
    for lines in ([line.encode()], [*good, line.encode(), *good]):
        frame, rejects = Ndjson().decode(records(*lines), schema)
        ((got, at, said, _),) = told(rejects)
        assert (got, at, frame.height) == (reason, 10 * lines.index(line.encode()), len(lines) - 1)
        assert detail in said


@pytest.mark.parametrize("line", KEPT)
def test_keys_count_once_at_the_top_level_where_a_column_is_made_of_them(line: str) -> None:
    column, value = KEPT[line]
    for more in ({}, {"d": pl.Date()}):
        frame, rejects = Ndjson().decode(records(line.encode()), {**FLAT, **more})
        assert (told(rejects), frame[column][0]) == ([], value)


@pytest.mark.parametrize("line", ['{"x":"3.5"}', '{"x":NaN}', '{"n":12.0}', '{"b":"true"}'])
def test_strict_takes_only_what_is_written_as_that_type(line: str) -> None:
    frame, rejects = Ndjson(coerce="strict").decode(records(line.encode(), b"{}"), FLAT)
    assert (frame.height, len(told(rejects))) == (1, 1)


@pytest.mark.parametrize("value", ["1.5", "99999999999999999999", '"x"', "NaN", '"1e400"'])
def test_what_is_no_integer_is_none(value: str) -> None:
    frame, rejects = Ndjson().decode(records(f'{{"n":{value}}}'.encode()), FLAT)
    assert frame.height == 0
    assert told(rejects)[0][2].startswith("Expected int64, got '")


def test_a_slice_of_a_shared_buffer() -> None:
    raw = records(b'{"x":1}\n', b'{"x":2}\n', b'{"x":3}\n').slice(1, 2)
    frame, _ = Ndjson().decode(raw, SCHEMA)
    assert frame.select("_position", "x").rows() == [(10, 2.0)]


# ------------------------------------------------------------------------- poison, and many at once

WIDE: Schema = {
    "x": pl.Float64(), "n": pl.Int64(), "s": pl.String(), "i": pl.Int32(), "b": pl.Boolean(),
    "d": pl.Date(), "t": pl.Datetime("us"), "y": pl.Binary(), "city": pl.String(),
    "first": pl.Float64(), "second": pl.String(),
}  # fmt: skip
PATHS = {"city": "user.address.city", "first": "items[0].price", "second": "items[1].name"}
KEYS = [b"x", b"n", b"s", b"i", b"b", b"d", b"t", b"y", b"user", b"items", b"other", b"\\u0078"]
WORDS = [
    b"1", b"-3", b"1.5", b"1e3", b"1E400", b"01", b"tru", b"true", b"null", b"NaN", b'"abc"',
    b'"\xff"', b'"\xc3\xb6"', b'"\\n"', b'"\\ud800"', b'"2024-01-02"', b'"2024-02-30"',
    b'"2024-01-02T03:04:05Z"',
    b"2147483648", b"9223372036854775808", b"99999999999999999999", b"[1]", b"[]", b"{}", b"[5]",
    b'{"address":{"city":"Rome"}}', b'{"address":{"city":null}}', b'{"address":5}',
    b'{"address":{}}',
    b'[{"price":1},{"name":"z"}]', b'[{"price":"k"}]', b'[{"price":2},{"price":"k"}]', b'[null,{}]',
    b'"open', b"{", b"1,", b'\t', b'"tab\there"', b"1\n", b'"\\q"', b"[1,]", b"" ,
]  # fmt: skip
FIELDS = st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(WORDS)), max_size=4)


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """A JSON object, more or less."""
    fields = [b'"' + key + b'": ' + value for key, value in draw(FIELDS)]
    line = b"{" + b",".join(fields) + b"}"
    cut = draw(st.integers(0, 12))
    at = draw(st.integers(0, len(line)))
    return line[:at] if cut == 0 else line + draw(st.sampled_from([b"", b"\n", b" ", b"}\n"]))


@settings(max_examples=examples(50), deadline=None)
@given(st.lists(lines(), min_size=1, max_size=20))
def test_many_records_are_as_each_alone(parts: list[bytes]) -> None:
    frame, rejects = Ndjson(PATHS).decode(records(*parts), WIDE)
    alone = [Ndjson(PATHS).decode(records(part), WIDE) for part in parts]
    rows = [
        made.with_columns(_position=pl.lit(10 * i, pl.Int64)) for i, (made, _) in enumerate(alone)
    ]
    assert frame.equals(pl.concat(rows))
    expected = [(r, 10 * i, d, v) for i, (_, bad) in enumerate(alone) for r, _, d, v in told(bad)]
    assert told(rejects) == expected
    assert frame.height + len(expected) == len(parts)


@pytest.mark.parametrize("at", [0, 7, 19])
def test_poison_behind_a_clean_beginning(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pieces before it are kept as they are."""
    monkeypatch.setattr(ndjson, "PIECE_ROWS", 3)
    parts = [b'{"x":%d}' % i for i in range(20)]
    parts[at] = b'{"x":"a"}'
    frame, rejects = Ndjson().decode(records(*parts), {"x": pl.Float64()})
    assert frame.rows() == [("p", i * 10, float(i)) for i in range(20) if i != at]
    assert [(r, p) for r, p, _, _ in told(rejects)] == [("wrong_type", at * 10)]


@pytest.mark.parametrize(
    ("raw", "detail"),
    [
        (b" \n", "Expected a JSON object: the line is blank."),
        (b'"a"', "Expected a JSON object: it is another value."),
        (b'{"x":1', "Expected a JSON object: it ends too early."),
        (b'{"x":1,}', "Expected a JSON object: byte 7 ('}') is out of place."),
        (b'{"x":1}{}', "Expected a JSON object: byte 7 ('{') is behind its end."),
        (b'{"x":[1, 2]}', "Expected float64, got '[1, 2]' in column 'x'."),
        (b'{"x":true}', "Expected float64, got 'true' in column 'x'."),
        (b'{"i":-2147483649}', "Expected int32, got '-2147483649' in column 'i'."),
        (b'{"s":"ok","d":"2024-02-30","n":"1"}',
         "Expected date, got '2024-02-30' in column 'd'."),
        (b'{"user":{"address":5}}',
         "In column 'city': expected more keys or elements at 'user.address', got integer."),
        (b'{"items":{"price":5}}',
         "In column 'first': expected more keys or elements at 'items', got object."),
        (b'{"items":[{"price":"a"}]}',
         "Expected float64, got 'a' in column 'first'."),
    ],
)  # fmt: skip
def test_the_words_of_a_reject(raw: bytes, detail: str) -> None:
    _, rejects = Ndjson(PATHS).decode(records(b'{"x":1}', raw), WIDE)
    assert [(at, said) for _, at, said, _ in told(rejects)] == [(10, detail)]


# -------------------------------------------------------------------------------------------- paths


def test_paths_lead_to_columns() -> None:
    raw = records(
        b'{"user":{"address":{"city":"Rome"}},"items":[{"price":1},{"name":"z"}]}',
        b'{"user":{"address":{}},"items":[]}',
        b'{"user":null,"items":[null]}',
        b"{}",
        b'{"items":[{"price":2.5},{"price":"not asked for"}]}',
    )
    frame, rejects = Ndjson(PATHS).decode(raw, {c: WIDE[c] for c in ("first", "city", "second")})
    assert frame.drop("_partition", "_position").rows() == [
        (1.0, "Rome", "z"), (None, None, None), (None, None, None), (None, None, None),
        (2.5, None, None),
    ]  # fmt: skip
    assert frame.columns[2:] == ["first", "city", "second"]
    assert rejects == []


@pytest.mark.parametrize("path", ["a..b", ".a", "a.", "a[x]", "a[-1]", "[0]", "a[0", "a]"])
def test_what_is_no_path(path: str) -> None:
    with pytest.raises(
        UserError, match=r"\[source\] paths: '.*' of column 'c' is no path: expected"
    ):
        Ndjson({"c": path})


@pytest.mark.parametrize(
    "paths",
    [
        {"a": "u", "b": "u.v"}, {"a": "u.v", "b": "u"}, {"a": "u[0]", "b": "u.v"},
        {"a": "u.v", "b": "u[0]"}, {"a": "u.v", "b": "u.v"}, {"a": "u.v", "b": "a", "u": "u"},
        {"a": "u[0]", "b": "u[1]"}, {"a": "u[0]", "b": "u[1].v"},
    ],
)  # fmt: skip
def test_paths_that_cannot_both_be(paths: dict[str, str]) -> None:
    schema: Schema = {"a": pl.Float64(), "b": pl.String(), "u": pl.Float64()}
    with pytest.raises(UserError, match=r"^\[source\] paths"):
        Ndjson(paths).schema(schema)


def test_two_columns_may_have_one_place() -> None:
    made = Ndjson({"a": "u.v", "b": "u.v"})
    frame, _ = made.decode(records(b'{"u":{"v":1}}'), {"a": pl.Int64(), "b": pl.Int64()})
    assert frame.select("a", "b").rows() == [(1, 1)]


def test_a_path_of_no_column_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"paths names column 'citi'.*Did you mean 'city'"):
        Ndjson({"citi": "u.v"}).schema({"city": pl.String()})


def test_paths_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.ndjson").write_text('{"u":{"v":[1,2]}}\n\n{"u":{}}\n')
    source = files(tmp_path / "a.ndjson", paths={"second": "u.v[1]"})
    schema = source.schema({"second": pl.Int64()})
    pieces = drain(source)
    assert decoded(source, pieces, schema)["second"].to_list() == [2, None]


def test_paths_are_for_ndjson(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x\n1\n")
    with pytest.raises(UserError, match=r"paths is for ndjson.* format is 'csv'"):
        files(tmp_path / "a.csv", paths={"x": "u.v"})


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress, zstandard.compress])
def test_a_packed_value_costs_itself(pack: Callable[[bytes], bytes]) -> None:
    """polars would unpack the whole batch, and other rows would stand in the place of these."""
    lines = b"".join(b'{"n": %d}\n' % i for i in range(3))
    frame, rejects = Ndjson().decode(
        records(pack(lines), b'{"n": 8}', b'{"n": 9}'), {"n": pl.Int64()}
    )
    assert frame["n"].to_list() == [8, 9]
    assert [(reason, position) for reason, position, _, _ in told(rejects)] in (
        [("bad_utf8", 0)],
        [("broken", 0)],
    )


nested = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text('\\"/\nab\u00e9 {[', max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text('\\"ab', max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.lists(st.tuples(nested, st.sampled_from(["1", '"bad"', "x"])), min_size=1, max_size=9))
@settings(max_examples=examples(80), deadline=None)
def test_objects_in_text_stand_as_they_are_written(rows: list[tuple[Any, str]]) -> None:
    """Escapes and numbers too; beside rows that are rejected."""
    written = [json.dumps(value) for value, _ in rows]
    lines = [
        f'{{"o": {text}, "n": {n}}}'.encode() for text, (_, n) in zip(written, rows, strict=True)
    ]
    frame, rejects = Ndjson().decode(records(*lines), {"o": pl.String(), "n": pl.Int64()})
    good = [value for value, n in rows if n == "1"]
    assert frame.height + sum(map(len, rejects)) == len(rows)
    kept = [text for text, (_, n) in zip(written, rows, strict=True) if n == "1"]
    for text, value, made in zip(kept, good, frame["o"].to_list(), strict=True):
        assert made == (value if value is None or isinstance(value, str) else text)
