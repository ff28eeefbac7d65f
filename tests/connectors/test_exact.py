"""A number comes out as it is written, or its record is rejected: nothing in between is rounded."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from connectors.formats.csv import Csv
from connectors.formats.ndjson import Ndjson
from engine.types import parse_type
from tests.connectors.conftest import records, told
from tests.size import examples

BOUNDS = {f"int{n}": (-(1 << (n - 1)), (1 << (n - 1)) - 1) for n in (8, 16, 32, 64)} | {
    f"uint{n}": (0, (1 << n) - 1) for n in (8, 16, 32, 64)
}
KINDS = [*BOUNDS, "float64", "float32", "decimal(20, 2)", "decimal(38, 0)", "decimal(9, 9)"]
PLACES: dict[str, tuple[dict[str, str], str]] = {
    "bare": ({}, '{"v":%s}'),
    "text": ({}, '{"v":"%s"}'),
    "beside text": ({}, '{"s":"1","v":%s}'),
    "escaped key": ({}, '{"\\u0076":%s}'),
    "path": ({"v": "a.b[1].v"}, '{"a":{"b":[{"v":7},{"v":%s}]}}'),
    "list": ({}, '{"v":[%s]}'),
}
FAR = st.sampled_from([-999_999_999_999, -400, -324, 308, 400, 10**17])


@st.composite
def numbers(draw: st.DrawFn) -> str:
    """A number as JSON writes it."""
    near = st.sampled_from(
        [2**k + d for k in (7, 8, 15, 24, 31, 32, 53, 63, 64) for d in (-1, 0, 1)]
    )
    text = draw(st.sampled_from(["", "-"]))
    text += str(draw(st.one_of(st.integers(0, 10**42), st.integers(0, 999), near)))
    text += draw(st.sampled_from(["", "", ".0", ".125", ".99", ".10000000000000000001"]))
    exponent = st.one_of(st.just(""), st.integers(-45, 40), FAR).map(str)
    power = draw(exponent)
    return f"{text}e{power}" if power else text


def expected(text: str, kind: str) -> Any:
    """The value, or the reason of the reject."""
    written = Decimal(text)
    _, digits, power = written.as_tuple()
    assert isinstance(power, int)
    while digits and digits[-1] == 0:
        digits, power = digits[:-1], power + 1
    if kind in BOUNDS:
        if digits and power < 0:
            return "wrong_type"
        least, most = BOUNDS[kind]
        fits = not digits or (len(digits) + power < 40 and least <= int(written) <= most)
        return int(written) if digits and fits else (0 if fits else "out_of_range")
    if kind.startswith("decimal"):
        precision, scale = (int(n) for n in kind[8:-1].split(","))
        fits = not digits or (power >= -scale and len(digits) + power <= precision - scale)
        return written if fits else "out_of_range"
    with np.errstate(over="ignore"):
        near = float(text) if kind == "float64" else float(np.float32(float(text)))
    if np.isinf(near):
        return "out_of_range"
    shortest = Decimal(repr(near) if kind == "float64" else str(np.float32(near)))
    whole = text.lstrip("-").isdigit()
    return near if not whole or written in (Decimal(near), shortest) else "out_of_range"


def outcome(decoder: Any, lines: list[bytes], kind: pl.DataType, more: Any = None) -> list[Any]:
    """What became of each line: its value, or the reason."""
    frame, rejects = decoder.decode(records(*lines), {**(more or {}), "v": kind})
    found: dict[int, Any] = dict(zip(frame["_position"], frame["v"].to_list(), strict=True))
    for reason, at, detail, _ in told(rejects):
        assert detail.startswith("Expected ")
        found[at] = reason
    return [found[10 * i] for i in range(len(lines))]


TEXTS = st.lists(numbers(), min_size=1, max_size=6)
KIND = st.sampled_from(KINDS)
HARD = ["9007199254740993.0", "12345678901234567.0", "1e18", "1e-400", "1e-324", "-0", "1.8e19",
        "99999999999999.99", "1234567890123456.78", "0.125", "1.999", "9007199254740993.01",
        "1e-999999999", "9007199254740993"]  # fmt: skip


@settings(max_examples=examples(60), deadline=None)
@given(TEXTS, KIND)
@example(HARD, "decimal(20, 2)")
@example(HARD, "int64")
@example(HARD, "uint64")
@example(HARD, "float64")
def test_csv(texts: list[str], kind: str) -> None:
    lines = [f"{text}\n".encode() for text in texts]
    found = outcome(Csv({"p": ("v",)}), lines, parse_type(kind))
    assert found == [expected(text, kind) for text in texts]


@pytest.mark.parametrize("place", PLACES)
@settings(max_examples=examples(25), deadline=None)
@given(texts=TEXTS, kind=KIND)
@example(texts=HARD, kind="decimal(20, 2)")
@example(texts=HARD, kind="int64")
@example(texts=HARD, kind="uint64")
@example(texts=HARD, kind="float64")
def test_json(place: str, texts: list[str], kind: str) -> None:
    paths, form = PLACES[place]
    dtype: pl.DataType = parse_type(f"list[{kind}]" if place == "list" else kind)
    more = {"s": pl.String()} if place == "beside text" else {}
    found = outcome(Ndjson(paths), [(form % text).encode() for text in texts], dtype, more)
    listed = [v[0] if isinstance(v, list) else v for v in found]
    assert listed == [expected(text, kind) for text in texts]


@settings(max_examples=examples(60), deadline=None)
@given(TEXTS, KIND, st.booleans(), st.booleans())
@example(HARD, "decimal(20, 2)", False, True)
@example(HARD, "int64", False, False)
def test_strict_json(texts: list[str], kind: str, quoted: bool, beside: bool) -> None:
    """The same of what is written as the type."""
    form = '{"v":"%s"}' if quoted else '{"v":%s}'
    more = {"s": pl.String()} if beside else {}
    lines = [(form % text).encode() for text in texts]
    found = outcome(Ndjson(coerce="strict"), lines, parse_type(kind), more)
    for text, got in zip(texts, found, strict=True):
        want = expected(text, kind)
        pointed = kind in BOUNDS and not text.lstrip("-").isdigit()
        refused = quoted or (pointed and not isinstance(want, str))
        assert got == ("wrong_type" if refused else want)


@settings(max_examples=examples(100), deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6), st.booleans())
@example('prix_é\u20ac\U0001f600"\\\n', True)
def test_a_key_is_found_however_it_is_escaped(name: str, ascii: bool) -> None:
    line = json.dumps({name: 1}, ensure_ascii=ascii).replace("1}", "99999999999999.99}").encode()
    frame, _ = Ndjson().decode(records(line), {name: pl.Decimal(20, 2)})
    assert frame[name].to_list() == [Decimal("99999999999999.99")]


@pytest.mark.parametrize("key", ["\\u0076", "v", "\\u0076\\u0076", "\\u00767"])
def test_an_escaped_key_stands_twice_as_well(key: str) -> None:
    frame, rejects = Ndjson().decode(
        records(f'{{"v":1,"{key}":2}}'.encode()), {"v": pl.Int64(), "vv": pl.Int64()}
    )
    again = key in ("v", "\\u0076")
    assert (frame.height, [r for r, *_ in told(rejects)]) == ((0, ["broken"]) if again else (1, []))


TIMES = {
    ("date", "2024-01-05T00:00:00"): "2024-01-05 00:00:00",
    ("date", "2024-01-05 00:00"): "2024-01-05 00:00:00",
    ("date", "2024-01-05T02:00:00+02:00"): "2024-01-05 00:00:00",
    ("date", "2024-01-05T00:00:00+02:00"): None,
    ("date", "2024-01-05T00:00:00.000001"): None,
    ("date", "20240105"): None,
    ("datetime", "2024-01-05T23:59:60"): None,
    ("datetime", "2024-01-05T23:59:60.5Z"): None,
    ("datetime", "2024-01-05T23:59:59.5Z"): "2024-01-05 23:59:59.500",
    ("time", "23:59:60"): None,
    ("datetime[ms, Europe/Paris]", "2024-10-27T02:30:00"): "2024-10-27 02:30:00",
    ("datetime[ms, Europe/Paris]", "2024-10-27T02:30:00+02:00"): "2024-10-27 00:30:00",
}


@pytest.mark.parametrize(("kind", "text"), TIMES)
def test_a_time_is_the_one_that_is_written(kind: str, text: str) -> None:
    """Without an offset it is UTC's, also into a type of another zone. No type has leap seconds."""
    for decoder, line in (
        (Csv({"p": ("v",)}), f"{text}\n"),
        (Ndjson(), f'{{"v":"{text}"}}'),
        (Ndjson({"v": "a.v"}), f'{{"a":{{"v":"{text}"}}}}'),
    ):
        [got] = outcome(decoder, [line.encode()], parse_type(kind))
        at = pl.Series([None if got == "wrong_type" else got]).cast(pl.Datetime("us", "UTC"))
        told_at = at.dt.replace_time_zone(None).dt.to_string("%Y-%m-%d %H:%M:%S%.f")
        assert told_at.to_list() == [TIMES[kind, text]]


@pytest.mark.parametrize(
    "kind", ["int8", "int64", "uint64", "float64", "decimal(9, 2)", "duration"]
)
def test_digits_of_other_scripts_are_no_numbers(kind: str) -> None:
    lines = [b'{"v":"\xd9\xa3"}', b'{"v":"\xd9\xa3:00:00"}']
    assert outcome(Ndjson(), lines, parse_type(kind)) == ["wrong_type"] * 2


def test_a_duration_that_is_too_long_costs_itself() -> None:
    lines = [b"99999999999999999999:00:00\n", b"9999999999999999:00:00\n", b"1:00:00\n"]
    found = outcome(Csv({"p": ("v",)}), lines, parse_type("duration[us]"))
    assert found == ["wrong_type", "wrong_type", timedelta(hours=1)]
