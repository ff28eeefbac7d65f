"""The compiled walk over flat JSON against the parser: the same columns, the same rejects."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from connectors.formats.csv import Csv
from connectors.formats.ndjson import Ndjson
from connectors.formats.walks.flat_json import FlatJson
from engine.types import Values
from tests.connectors.conftest import records, told
from tests.size import examples

SCHEMA = {
    "x": pl.Float64(), "n": pl.Int64(), "i": pl.Int32(), "b": pl.Boolean(), "s": pl.String(),
    "ö": pl.Float64(),
}  # fmt: skip
NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(2**70), 2**70),
    st.integers(-1_000, 1_000),
    st.floats(-100, 100).map(lambda x: round(x, 6)),
)
SCALARS = st.one_of(NUMBERS, st.booleans(), st.none(), st.text(max_size=6))
VALUES = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=2),
    st.dictionaries(st.text(max_size=2), SCALARS, max_size=2),
)
FITTING = st.fixed_dictionaries(
    {},
    optional={
        "x": NUMBERS | st.none(), "n": st.integers(-(2**63), 2**63 - 1),
        "i": st.integers(-(2**31), 2**31 - 1),
        "b": st.booleans() | st.none(), "s": st.text(max_size=6) | st.none(), "ö": NUMBERS,
        "other": SCALARS,
    },
)  # fmt: skip
ANY = st.dictionaries(st.sampled_from([*SCHEMA, "other", "no"]), VALUES, max_size=6)


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """An object as somebody may write it, or something that is none."""
    made = draw(st.one_of(FITTING, FITTING, FITTING, ANY))
    if draw(st.integers(0, 4)) == 0:
        made = dict(draw(st.permutations(list(made.items()))))
    text = json.dumps(
        made,
        ensure_ascii=draw(st.booleans()),
        separators=draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", " : ")])),
    ).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)) == 0 and text:
        at = draw(st.integers(0, len(text) - 1))
        text = text[:at] + bytes([draw(st.integers(0, 255))]) + text[at + 1 :]
    return text


def check(rows: list[bytes], schema: Any = None) -> None:
    given_rows = records(*(row + b"\n" for row in rows))
    kinds = schema or SCHEMA
    frame, rejects = Ndjson().decode(given_rows, kinds)
    expected, expected_rejects = Ndjson()._parsed(given_rows, kinds)
    assert_frame_equal(frame, expected, check_exact=True)
    assert told(rejects) == told(expected_rejects)


@settings(max_examples=examples(50), deadline=None)
@given(rows=st.lists(lines(), min_size=1, max_size=30))
def test_the_walk_and_the_parser_agree(rows: list[bytes]) -> None:
    check([row.replace(b"\n", b" ") for row in rows])


@settings(max_examples=examples(80), deadline=None)
@given(
    x=st.lists(NUMBERS, min_size=1, max_size=20),
    form=st.sampled_from(["{!r}", "{:.3e}", "{:.17g}", "{}e-7"]),
)
def test_numbers_are_the_parsers_to_the_bit(x: list[float], form: str) -> None:
    texts = [form.format(float(v) if form != "{}e-7" else int(v)) for v in x]
    rows = [b'{"x":%s}' % text.encode() for text in texts]
    check(rows, {"x": pl.Float64()})


WRITTEN = st.from_regex(
    r"-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?", fullmatch=True
)
DOUBLES = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=examples(100), deadline=None)
@given(texts=st.lists(WRITTEN | DOUBLES.map(repr) | DOUBLES.map("{:.6g}".format), min_size=1))
def test_what_the_walk_takes_is_pythons_number_to_the_bit(texts: list[str]) -> None:
    flat = FlatJson.of({"x": pl.Float64(), "n": pl.Int64()})
    assert flat is not None
    rows = [b'{"x": %s, "n": %d}' % (t.encode(), len(t)) for t in texts]
    values = records(*rows).values
    assert isinstance(values, Values)
    frame, taken = flat.decode(values)
    got = frame.filter(pl.Series(taken))
    texts = [text for text, there in zip(texts, taken, strict=True) if there]
    assert np.array_equal(got["x"].to_numpy().view(np.int64), np.array(texts, float).view(np.int64))
    assert got["n"].to_list() == [len(text) for text in texts]


@settings(max_examples=examples(100), deadline=None)
@given(rows=st.lists(lines(), min_size=1, max_size=8), data=st.data())
def test_a_line_is_the_same_wherever_it_lies(rows: list[bytes], data: st.DataObject) -> None:
    """Whatever stands before it, and behind: lines are read by words, and compared with others."""
    raw = b"".join(rows)
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=8))
    ends = sorted({*np.cumsum([len(row) for row in rows]).tolist(), *cuts, len(raw)} - {0})
    pieces = [raw[a:b] for a, b in itertools.pairwise([0, *ends])]
    flat = FlatJson.of(SCHEMA)
    assert flat is not None

    def taken(*pieces: bytes) -> list[Any]:
        values = records(*pieces).values
        assert isinstance(values, Values)
        frame, good = flat.decode(values)
        return [row if there else None for row, there in zip(frame.rows(), good, strict=True)]

    assert taken(*pieces) == [taken(piece)[0] for piece in pieces]


@pytest.mark.parametrize(
    "line",
    [b"{}", b" { } ", b'{"x":1}', b'{"x":1,}', b'{"x":}', b'{"x" 1}', b'{x:1}', b'{"x":01}',
     b'{"x":1.}', b'{"x":.5}', b'{"x":-}', b'{"x":-0}', b'{"x":-0.0}', b'{"x":1e}', b'{"x":1e5}',
     b'{"x":1E+5}', b'{"x":1e400}', b'{"x":nul}', b'{"x":null}', b'{"x":NaN}', b'{"x":"1"}',
     b'{"x":true}', b'{"n":1.0}', b'{"n":1e2}', b'{"n":9223372036854775807}',
     b'{"n":9223372036854775808}', b'{"i":2147483648}', b'{"i":-2147483648}', b'{"b":1}',
     b'{"b":"true"}', b'{"s":1}', b'{"s":true}', b'{"s":null}', b'{"s":"a\\nb"}',
     b'{"s":"a\x01b"}', b'{"s":"\xc3\xb6"}', b'{"s":"\xc3"}', b'{"s":"a', b'{"s":"a"} x',
     b'{"x":1,"x":2}', b'{"x":null,"x":2}', b'{"x":1,"x":"no"}', b'{"other":"\xff","x":1}',
     b'[1]', b'', b'null', b'{"other":{"a":[1,{}]},"x":2}', b'{"x":1}{"x":2}', b'{"\\u0078":1}',
     b'{"x":0.1e1}', b'{"x":00}', b'{"x":123456789012345678901234567890}',
     b'{"x":0.000000000000000000000000000001}', b'{"other":1.2.3}'],
)  # fmt: skip
def test_every_way_to_write_a_line(line: bytes) -> None:
    good = [b'{"x":%d,"n":%d,"s":"t"}' % (i, i) for i in range(20)]
    check([*good[:7], line, *good[7:]])


def test_plain_lines_never_see_the_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> Any:
        raise AssertionError("the parser was asked")

    monkeypatch.setattr(Ndjson, "_parsed", never)
    made = [{"x": (i + 1) / 8, "n": -i, "i": i, "b": i % 2 == 0, "s": f"ö{i}"} for i in range(500)]
    rows = [json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in made]
    frame, rejects = Ndjson().decode(records(*rows), SCHEMA)
    assert not rejects
    assert frame.select("x", "n", "i", "b", "s").to_dicts() == made


def test_types_that_the_walk_does_not_know_are_the_parsers() -> None:
    assert FlatJson.of({"x": pl.Datetime("us")}) is None
    assert FlatJson.of({}) is None


LITERALS = st.from_regex(
    r"-?(0|[1-9][0-9]{0,40})([.][0-9]{1,5})?([eE][+-]?[0-9]{1,3})?", fullmatch=True
)
PATHS: dict[str, tuple[dict[str, pl.DataType], dict[str, str], bytes]] = {
    "flat": ({}, {}, b'{"s":%s}'),
    "a column that the walk does not know": ({"t": pl.Date()}, {}, b'{"s":%s,"t":"2024-01-02"}'),
    "paths": ({}, {"s": "a.b"}, b'{"a":{"b":%s}}'),
    "a list": ({}, {"s": "a[1]"}, b'{"a":[7,%s]}'),
    "an escape": ({}, {}, b'{"e":"\\n","\\u0061":1,"s":%s}'),
}


@settings(max_examples=examples(50), deadline=None)
@given(st.lists(LITERALS | st.sampled_from(["1e400", "1.0", "-0", "true"]), min_size=1, max_size=5))
def test_numbers_in_text_are_as_they_are_written(literals: list[str]) -> None:
    """Whatever way a line takes; beside poison too. What nobody reads rejects no row."""
    for more, paths, line in PATHS.values():
        rows = [line % literal.encode() + b"\n" for literal in literals]
        for poison in ([], [b'{"s":\n']):
            frame, rejects = Ndjson(paths).decode(
                records(*rows, *poison), {"s": pl.String(), **more}
            )
            assert frame["s"].to_list() == literals
            assert sum(map(len, rejects)) == len(poison)
        frame, rejects = Ndjson().decode(records(*rows), {"other": pl.Int64(), **more})
        assert (frame.height, told(rejects)) == (len(rows), [])


@pytest.mark.parametrize("way", PATHS)
@pytest.mark.parametrize("value", [b"1", b"1.5", b"1e400", b"true", b"{}", b"[1]"])
def test_strict_text_is_strings_only(way: str, value: bytes) -> None:
    more, paths, line = PATHS[way]
    rows = [line % each for each in (b'"a"', value, b"null", b'"1"')]
    frame, rejects = Ndjson(paths, coerce="strict").decode(
        records(*rows), {"s": pl.String(), **more}
    )
    assert frame["s"].to_list() == ["a", None, "1"]
    assert [(reason, at) for reason, at, *_ in told(rejects)] == [("wrong_type", 10)]


@pytest.mark.parametrize("value", ["1e400", "-1e999", "1" + "0" * 400, '"1e400"'])
@pytest.mark.parametrize("kind", [pl.Float64(), pl.Float32()])
def test_a_number_too_large_has_one_reason(value: str, kind: pl.DataType) -> None:
    lines = [b'{"x":1}', b'{"x":%s}' % value.encode(), b'{"x":1e30}']
    frame, rejects = Ndjson().decode(records(*lines), {"x": kind})
    assert frame.height == 2
    text = [line[5:-1] + b"\n" for line in lines]
    _, same = Csv({"p": ["x"]}).decode(records(*text), {"x": kind})
    told_both = [[(reason, at) for reason, at, *_ in told(r)] for r in (rejects, same)]
    assert told_both == [[("out_of_range", 10)]] * 2
