"""Types that nobody declared: what is guessed can be read, over all files and all rows."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import ipc

from connectors.formats.csv import Csv
from connectors.formats.inference.infer import (
    TypeInference,
    common_type,
    infer_json_types,
    infer_type,
)
from connectors.formats.ndjson import Ndjson
from engine.types import Mark, Schema, UserError, parse_schema, parse_type, type_name
from tests.connectors.conftest import decoded, drain, files, records, told
from tests.size import examples

WORDS = [
    "1", "-7", "007", "+8", "1.5", "1e5", "nan", "-inf", "Infinity", "NA", "-", "true", "FALSE",
    "0", "2024-01-02", "2024-03-10T01:30:00Z", "2024-03-10 01:30:00+02:00",
    "2024-03-10T01:30:00.123456789Z", "13/04/2024", "12:30",
    "9223372036854775808", "123456789012345678901234567890", "1e400", " 5 ", "x", "", "1,5", "-0",
]  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5), st.lists(st.integers(0, 9), max_size=2),
    st.dictionaries(st.sampled_from("ab"), st.integers(0, 9), max_size=2),
)  # fmt: skip


def guess(*texts: str | None) -> tuple[pl.DataType, tuple[str, ...]]:
    found = TypeInference()
    found.add(pl.DataFrame({"v": texts}, schema={"v": pl.String()}))
    return found.schema(found.null_values)["v"], found.null_values


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("texts", "dtype"),
    [
        (["1", " 2", None], "int64"),
        (["18446744073709551615", "0"], "uint64"),
        (["01234", "501"], "string"),
        (["+49301234"], "string"),
        (["123456789012345678901234567890"], "string"),
        (["1", "2.5", "nan", "-Infinity"], "float64"),
        (["+8", "-1.5"], "float64"),
        (["nan"], "string"),
        (["True", "false"], "bool"),
        (["2024-01-02"], "date"),
        (["2024-01-02", "2024-01-02T03:04:05Z"], "datetime"),
        (["2024-03-10T01:30:00+02:00"], "datetime"),
        (["2024-03-10T01:30:00.123456789Z", "2024-03-10"], "datetime[ns]"),
        (["2024-03-10T01:30:00.123456000Z"], "datetime"),
        (["2024-03-10T01:30:00.123456789Z", "2400-01-01T00:00:00Z"], "datetime"),
        (["13/04/2024", "01/12/2024"], "string"),
        (["1.5", "1e400"], "string"),
        ([None], "string"),
    ],
)
def test_a_guess(texts: list[str | None], dtype: str) -> None:
    assert guess(*texts) == (parse_type(dtype), ())


def test_words_for_missing_values_are_found_where_no_text_has_them() -> None:
    assert guess("1.5", "NA", "2") == (pl.Float64(), ("NA",))
    assert guess("NA", "DE") == (pl.String(), ())
    found = TypeInference()
    found.add(pl.DataFrame({"x": ["1", "NA"], "country": ["NA", "DE"], "y": ["2", "-"]}))
    assert found.null_values == ("-",)
    assert found.schema(found.null_values) == {
        "x": pl.String(), "country": pl.String(), "y": pl.Int64(),
    }  # fmt: skip


@settings(max_examples=examples(150), deadline=None)
@given(st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=4), min_size=1, max_size=3))
def test_whatever_is_guessed_is_taken(parts: list[list[str]]) -> None:
    """However the rows came, the same decoder takes every one."""
    found = TypeInference()
    for part in parts:
        found.add(pl.DataFrame({"v": [w or None for w in part]}, schema={"v": pl.String()}))
    csv = Csv({"p": ["v", "w"]})
    rows = [f'"{w}",1\n'.encode() if w else b",1\n" for part in parts for w in part]
    csv.dialect = type(csv.dialect)(null_values=found.null_values)
    frame, rejects = csv.decode(records(*rows), found.schema(found.null_values))
    assert (frame.height, told(rejects)) == (len(rows), [])


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from("xyz"), SCALARS, max_size=3), max_size=5))
def test_whatever_is_guessed_of_json_is_taken(rows: list[dict[str, object]]) -> None:
    lines = [json.dumps(row).encode() + b"\n" for row in rows]
    schema = {c: _text_for_null(t) for c, t in infer_json_types(b"".join(lines)).items()}
    if not schema:
        return
    frame, rejects = Ndjson().decode(records(*lines), schema)
    assert (frame.height, told(rejects)) == (len(rows), [])


def _text_for_null(dtype: pl.DataType) -> pl.DataType:
    if dtype == pl.Null:
        return pl.String()
    return pl.List(pl.String()) if dtype == pl.List(pl.Null()) else dtype


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_whole_numbers_that_no_float_holds_are_text_among_fractions(kind: str) -> None:
    for number, dtype in (("9007199254740993", pl.String()), ("9007199254740992", pl.Float64())):
        lines = "".join(f'{{"a":{n}}}\n' for n in (number, "0.5"))
        made = (
            infer_type(pl.Series([number, "0.5"]))
            if kind == "csv"
            else infer_json_types(lines.encode())["a"]
        )
        assert made == dtype


def test_halves_of_surrogate_pairs_are_refused() -> None:
    lines = [b'{"s":"\\ud800\\u0041","\\udc00":1,"x":1}\n', b'{"s":"ok","n":{"a":"\\ud800"}}\n']
    schema = infer_json_types(b"".join(lines))
    assert (schema["s"], schema["x"]) == (pl.String(), pl.Int64())
    frame, rejects = Ndjson().decode(records(*lines), schema)
    assert [(reason, at) for reason, at, _, _ in told(rejects)] == [
        ("bad_utf8", 0),
        ("bad_utf8", 10),
    ]
    assert frame.height == 0


@pytest.mark.parametrize("suffix", ["csv", "ndjson"])
def test_late_values_count(tmp_path: Path, suffix: str) -> None:
    rows = [{"id": i, "x": i, "z": None} for i in range(3_000)] + [{"id": 1, "x": 2.5, "z": 7.5}]
    frame = pl.DataFrame(rows, infer_schema_length=None)
    text = frame.with_columns(pl.col("x").cast(pl.String).str.strip_suffix(".0"))
    path = tmp_path / f"rows.{suffix}"
    text.write_csv(path) if suffix == "csv" else path.write_text("\n".join(map(json.dumps, rows)))
    source = files(path)
    schema = source.schema({})
    assert schema == {"id": pl.Int64(), "x": pl.Float64(), "z": pl.Float64()}
    assert decoded(source, drain(source), schema).height == len(rows)


FEW = {"mistake": "oops", "id": "7", "day": "soon", "word": "b", "half": "x"}
MANY: dict[str, Any] = {"mistake": 1.5, "id": "7", "day": "2024-01-01", "word": "a", "half": 2}


@pytest.mark.parametrize("suffix", ["csv", "ndjson"])
def test_a_few_values_that_make_a_column_text_are_told(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Not where half of the values are others, nor where JSON has numbers in text."""
    rows = [MANY, {**MANY, "half": "x"}] * 6_000 + [FEW | {"id": "x"}]
    path = tmp_path / f"rows.{suffix}"
    lines = [",".join(map(str, row.values())) for row in ({c: c for c in MANY}, *rows)]
    path.write_text("\n".join(lines if suffix == "csv" else map(json.dumps, rows)))
    source = files(path)
    assert dict.fromkeys(MANY, pl.String()) == source.schema({})
    said = [line for line in caplog.messages if "is read as text" in line]
    assert said[0].startswith(
        "Column 'mistake' is read as text: 1 of 12,001 values, the first 'oops', is no float64, "
        'which the others are; declare "mistake" = "float64" in [source.schema] to reject'
    )
    named = [line.split("'")[1] for line in said]
    assert named == (["mistake", "id", "day"] if suffix == "csv" else ["mistake"])
    caplog.clear()
    files(path).schema({"mistake": pl.Float64(), "id": pl.String(), "day": pl.String()})
    assert "is read as text" not in caplog.text


@pytest.mark.parametrize(
    ("many", "odd", "said"),
    [
        ("7;1,5", "k.A.;1,5", "'k.A.', is no int64, which the others are; declare"),
        ("7,5;1,5", "k.A.;1,5", "'k.A.', is no float64, which the others are; declare"),
        ("7,5;1,5", "16.741;1,5", "'16.741', is a number in a notation that no cast reads; "
         "'headrace explore' says what reads them all."),
        ("7;1", "0,5;1", "'0,5', is a number in a notation that no cast reads; [source] "
         'decimal = "," reads them all.'),
        ("7;2.5", "0,5;1", "'0,5', is a number in a notation that no cast reads; 'headrace expl"),
        ("2024-01-01;1,5", "01.02.2024;1,5", "'01.02.2024', is no date, which the others are;"),
    ],
)  # fmt: skip
def test_an_odd_value_is_quoted_as_it_is_written(
    tmp_path: Path, many: str, odd: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Also with decimal commas; and a number in another notation is no advice to reject it."""
    path = written(tmp_path / "a.csv", "\n".join(["x;y", *[many] * 2_000, odd]))
    assert files(path).schema({})["x"] == pl.String()
    (line,) = [line for line in caplog.messages if "is read as text" in line]
    assert f"1 of 2,001 values, the first {said}" in line


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("16.741 802", "1 of 2 values, the first '16.741', is a number in a notation"),
        ("16.741 12.500", "2 of 2 values, the first '16.741', are numbers in a notation"),
        ("089.123 089.124", ""),
        (
            "1.101,50\u20ac 5%",
            "2 of 2 values, the first '1.101,50\u20ac', are numbers in a notation",
        ),
        ("16.741 x", ""),
        ("1.2.3 4.5.6", ""),
    ],
)
def test_numbers_that_no_cast_reads_are_told(
    tmp_path: Path, values: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And no identifiers, texts or versions. They are no mistakes, so that is no warning."""
    caplog.set_level("INFO")
    path = written(tmp_path / "a.csv", "x;y\n" + "".join(f"{x};1,5\n" for x in values.split()))
    assert files(path).schema({})["x"] == pl.String()
    told = [r for r in caplog.records if "read as text" in r.getMessage()]
    assert [(r.levelname, said in r.getMessage()) for r in told] == [("INFO", True)] * bool(said)


def test_one_declared_column_leaves_the_others(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "a,b,c\n1,2,x\n")
    for declared, expected in (
        ({"b": "float64"}, {"a": pl.Int64(), "b": pl.Float64(), "c": pl.String()}),
        ({"b": "float64", "*": "guess"}, {"a": pl.Int64(), "b": pl.Float64(), "c": pl.String()}),
        ({"b": "float64", "*": "drop"}, {"b": pl.Float64()}),
        ({"b": "int8", "*": "string"}, {"a": pl.String(), "b": pl.Int8(), "c": pl.String()}),
    ):
        assert files(path).schema(parse_schema(declared)) == expected


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("", '{"x":2}\n', {"x": pl.Int64()}),
        ("x,y\n", "x,y\n2,2.5\n", {"x": pl.Int64(), "y": pl.Float64()}),
        ("", "x\n2\n", {"x": pl.Int64()}),
    ],
)
def test_files_without_rows(
    tmp_path: Path, first: str, second: str, expected: Schema, caplog: pytest.LogCaptureFixture
) -> None:
    suffix = "ndjson" if second[0] == "{" else "csv"
    empty = written(tmp_path / f"a.{suffix}", first)
    written(tmp_path / f"b.{suffix}", second)
    source = files(tmp_path / f"*.{suffix}")
    schema = source.schema({})
    assert schema == expected
    assert decoded(source, drain(source), schema)["x"].to_list() == [2]
    assert f"1 of 2 files has no rows: {empty}." in caplog.text


def test_the_types_of_all_footers(tmp_path: Path) -> None:
    moment = datetime.datetime(2024, 1, 1)
    tables = [
        {"a": pa.array([1], pa.int32()), "t": pa.array([moment], pa.timestamp("ms")),
         "n": pa.array([None], pa.null()), "only": pa.array([1])},
        {"a": pa.array([5_000_000_000]), "t": pa.array([moment], pa.timestamp("ns")),
         "n": pa.array(["x"])},
        {"a": pa.array([2.5]), "t": pa.array([moment.date()]), "n": pa.array([None], pa.null())},
    ]  # fmt: skip
    for i, table in enumerate(tables):
        pq.write_table(pa.table(table), tmp_path / f"{i}.parquet")
    source = files(tmp_path / "*.parquet")
    schema = source.schema({})
    assert schema == {
        "a": pl.Float64(), "t": pl.Datetime("ns"), "n": pl.String(), "only": pl.Int64(),
    }  # fmt: skip
    made = decoded(source, drain(source), schema)
    assert made["a"].to_list() == [1.0, 5e9, 2.5]
    assert made["t"].to_list() == [moment] * 3
    assert made["n"].to_list() == [None, "x", None]
    assert made["only"].to_list() == [1, None, None]


def test_types_that_do_not_go_together(tmp_path: Path) -> None:
    pl.DataFrame({"x": [[1]]}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"x": [1]}).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"'x' is list\[int64\] in .*a.parquet and int64 in"):
        files(tmp_path / "*.parquet").schema({})


@pytest.mark.parametrize(
    "text", ['{\n "id": 1\n}\n{\n "id": 2\n}\n', '[\n{"id": 1},\n{"id": 2}\n]\n']
)
@pytest.mark.parametrize("declared", [{}, {"id": "int64"}, {"id": "int64", "*": "drop"}])
def test_json_over_several_lines_is_refused(
    tmp_path: Path, text: str, declared: dict[str, str]
) -> None:
    path = written(tmp_path / "a.ndjson", text)
    with pytest.raises(UserError, match=r"expected one object a line.*jq -c"):
        files(path).schema(parse_schema(declared))


TYPES = st.recursive(
    st.sampled_from([
        "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
        "float32", "float64", "string", "bytes", "date", "time", "datetime", "duration",
        "datetime[ms]", "datetime[ns, UTC]", "datetime[us, Europe/Paris]", "duration[ns]",
        "decimal(12, 2)",
    ]),
    lambda inner: inner.map("list[{}]".format),
    max_leaves=3,
)  # fmt: skip


@settings(deadline=None)
@given(TYPES, TYPES)
def test_a_type_has_a_name_and_two_have_one_in_common(a: str, b: str) -> None:
    assert type_name(parse_type(a)) == a
    both = common_type(parse_type(a), parse_type(b))
    assert both == common_type(parse_type(b), parse_type(a))
    assert common_type(parse_type(a), parse_type(a)) == parse_type(a)
    assert common_type(both, parse_type(a)) == both


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("decimal(40, 2)", "1 to 38 digits"),
        ("datetime[us, Mars]", "'Mars' is no time zone"),
        ("integer", r"Unknown type 'integer' of column 'x'"),
        ("list[blob]", "no such type"),
    ],
)
def test_a_type_that_is_none(name: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        parse_schema({"x": name})


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_stream_of_arrow_is_read_like_a_file(tmp_path: Path, compression: str | None) -> None:
    """From its beginning, and from any row on."""
    table = pa.table({"x": range(1_000), "s": [f"r{i}" for i in range(1_000)]})
    path = tmp_path / "rows.arrow"
    options = ipc.IpcWriteOptions(compression=compression)
    with ipc.new_stream(str(path), table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=300)
    for start in (0, 1, 299, 300, 950):
        source = files(path)
        schema = source.schema({"s": pl.String()})
        assert schema == {"x": pl.Int64(), "s": pl.String()}
        source.seek(Mark(positions={str(path): start}))
        made = decoded(source, drain(source, 170), schema)
        assert made["x"].to_list() == list(range(start, 1_000))
        assert made["s"].to_list() == table["s"].to_pylist()[start:]
    empty = tmp_path / "none.arrow"
    with ipc.new_stream(str(empty), table.schema):
        pass
    assert drain(files(empty)) == []


@pytest.mark.parametrize(
    ("text", "rows", "lost"),
    [
        ("a,b\nNA,x\nNA,y\n", [None, None], []),
        ("a,b\nNA,x\n?,y\n1.5,z\n", [None, None, 1.5], []),
        ("a,b\nNA,NA\n1.5,y\n", [1.5], ["Expected float64, got 'NA' in column 'a'."]),
        ("a,b\nno,x\nNA,y\n", [None], ["Expected float64, got 'no' in column 'a'."]),
    ],
)
def test_words_for_null_are_found_where_a_model_says_the_type(
    tmp_path: Path, text: str, rows: list[float | None], lost: list[str]
) -> None:
    """As `predict` asks: the types are guessed, then those of the model hold."""
    source = files(written(tmp_path / "in.csv", text))
    source.schema({})
    schema = source.schema({"a": pl.Float64()})
    assert schema["a"] == pl.Float64()
    made = [source.format.decode(piece, schema) for piece in drain(source)]
    assert [value for frame, _ in made for value in frame["a"]] == rows
    assert [detail for _, rejects in made for _, _, detail, _ in told(rejects)] == lost


@pytest.mark.parametrize(
    ("values", "name"),
    [
        (["2025-03-01T00:00:00", "2025-03-01T01:02:03.5Z"], "datetime"),
        (["2025-03-01 00:00:00", None], "datetime"),
        (["2025-03-01"], "date"),
        (["2025-03-01", "2025-13-01"], "string"),
        (["2025-03-01", "soon"], "string"),
        (["2025-03-01", 5], "string"),
        (["20250301", "1740787200"], "string"),
        (["12:30"], "string"),
        (["5", "6"], "string"),
    ],
)
def test_json_has_no_times_so_text_that_is_one_is_read_as_one(
    values: list[object], name: str
) -> None:
    lines = "".join(json.dumps({"v": value}) + "\n" for value in values).encode()
    assert type_name(infer_json_types(lines)["v"]) == name


WRITTEN = st.one_of(
    st.integers(-(10**30), 10**30).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.builds("{}e{}".format, st.integers(-99, 99), st.integers(-400, 400)),
)


@given(words=st.lists(WRITTEN, min_size=1, max_size=5))
@example(words=["1.5", "1e400"])
@example(words=["1.5", "123456789012345678901234567890"])
def test_numbers_of_json_are_guessed_as_those_of_csv(words: list[str]) -> None:
    lines = "".join(f'{{"x": {word}}}\n' for word in words)
    assert infer_json_types(lines.encode()) == {"x": infer_type(pl.Series(words))}


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"x": ["NA", "4"], "y": ["1", "2"]}, ("NA",)),
        ({"x": ["NA", "4"], "y": ["a", "NA"]}, ()),
        # Without "NA" x stays text, and then its "null" is a text as well, and so is that of z.
        ({"x": ["NA", "4", "null"], "y": ["a", "NA", "b"], "z": ["null", "1", "2"]}, ()),
        ({"x": ["NA", "4", "null"], "y": ["a", "b", "c"], "z": ["null", "1", "2"]}, ("NA", "null")),
    ],
)
def test_a_word_is_missing_where_that_makes_numbers_of_every_column_that_has_it(
    columns: dict[str, list[str]], words: tuple[str, ...]
) -> None:
    found = TypeInference()
    found.add(pl.DataFrame(columns))
    assert sorted(found.null_values) == sorted(words)


def test_a_path_is_guessed_as_other_columns_are(tmp_path: Path) -> None:
    path = tmp_path / "rows.ndjson"
    path.write_text(
        '{"user":{"city":"Oslo","at":"2024-01-02","n":1},"items":[{"price":1}]}\n'
        '{"user":null}\n'
        '{"user":{"n":2.5},"items":[]}\n'
    )
    paths = {"city": "user.city", "at": "user.at", "n": "user.n", "price": "items[0].price"}
    source = files(path, paths=paths)
    schema = source.schema({})
    types = {"city": pl.String(), "at": pl.Date(), "n": pl.Float64(), "price": pl.Int64()}
    assert schema == types
    rows = decoded(source, drain(source), schema).select(*types)
    assert rows.rows() == [
        ("Oslo", datetime.date(2024, 1, 2), 1.0, 1),
        (None, None, None, None),
        (None, None, 2.5, None),
    ]
    declared = files(path, paths=paths).schema({"n": pl.String()})
    assert declared == {**types, "n": pl.String()}
    for schema in ({}, parse_schema({"id": "int64", "*": "drop"})):
        with pytest.raises(UserError, match=r"leads to nothing|\[source.schema\] does not"):
            files(path, paths={"city": "user.cty"}).schema(schema)
