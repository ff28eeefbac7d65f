"""CSV as it comes: unclosed quotes, comments, other delimiters, decimals and encodings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.files.readers import text
from engine.types import Mark, UserError
from tests.connectors.conftest import drain, files, told
from tests.size import examples

Reject = tuple[str, int, str, str]


def read(path: Path, **options: Any) -> tuple[pl.DataFrame, list[Reject]]:
    source = files(path, **options)
    schema = source.schema({})
    made = [source.format.decode(piece, schema) for piece in drain(source, 7)]
    frames = [frame.drop("_partition", "_position") for frame, _ in made]
    rows = pl.concat([pl.DataFrame(schema=schema), *frames])
    return rows, told([reject for _, rejects in made for reject in rejects])


def written(tmp_path: Path, content: str | bytes, name: str = "a.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ('7,"never closed', "a quote that is not closed"),
        ('7,"closed" badly', "quotes in the middle of a field"),
        ("7", "Expected 2 fields, got 1."),
        ("7,8,9", "Expected 2 fields, got 3."),
    ],
)
@pytest.mark.parametrize("block", [16, 1 << 20])
@pytest.mark.parametrize("quotes", [False, True])
def test_a_bad_row_costs_itself(
    tmp_path: Path, bad: str, reason: str, block: int, quotes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also among the rows that types are guessed from, with and without quotes behind it."""
    monkeypatch.setattr(text, "BLOCK", block)
    good = [f'{i},"a\nb{i}"' if quotes else f"{i},b{i}" for i in range(30)]
    lines = [*good[:10], bad, *good[10:20], bad, *good[20:]]
    path = written(tmp_path, "id,s\n" + "\n".join(lines) + "\n")
    rows, rejects = read(path)
    assert rows["id"].to_list() == list(range(30))
    assert len(rejects) == 2
    at = path.read_bytes().index(f"\n{bad}\n".encode()) + 1
    assert (rejects[0][0], rejects[0][1]) == ("broken", at)
    assert reason in rejects[0][2]


def test_an_unclosed_quote_within_the_longest_row_costs_its_line(tmp_path: Path) -> None:
    lines = ["id,s", '1,"open', *(f"{i},x" for i in range(2, 2_000))]
    path = written(tmp_path, "\n".join(lines) + "\n")
    for limit in (100, 1 << 20):
        rows, rejects = read(path, max_record_bytes=limit)
        assert rows["id"].to_list() == list(range(2, 2_000))
        assert [(reason, at) for reason, at, *_ in rejects] == [("broken", 5)]


PIECES = st.sampled_from(['"', '""', "\n", ",", "a", "b\n", '"x",1\n', "1,2\n", '"q\nr",1\n'])


@settings(max_examples=examples(100), deadline=None)
@given(st.lists(PIECES, max_size=25).map("".join))
def test_rows_are_the_same_from_any_position_and_in_any_blocks(
    tmp_path_factory: pytest.TempPathFactory, body: str
) -> None:
    path = written(tmp_path_factory.mktemp("csv"), "x,y\n" + body)

    def starts(position: int, block: int) -> list[int]:
        text.BLOCK, before = block, text.BLOCK
        try:
            source = files(path)
            source.seek(Mark(positions={str(path): position}))
            return [int(at) for records in drain(source, 3) for at in records.positions]
        finally:
            text.BLOCK = before

    every = starts(0, 1 << 20)
    assert starts(0, 5) == every
    for position in every[:4]:
        assert starts(position, 1 << 20) == [at for at in every if at >= position]
    data = path.read_bytes()
    assert all(data[at - 1 : at] == b"\n" for at in every)


def test_everything_that_can_be_declared(tmp_path: Path) -> None:
    raw = "# made by hand\nid|x|s\n1|1,5|'a|b'\n# and so on\n2|NA|NA\n3|2|x\n"
    options = {
        "delimiter": "|",
        "quote": "'",
        "decimal": ",",
        "comment": "#",
        "null_values": ["NA"],
    }
    rows, rejects = read(written(tmp_path, raw), **options)
    assert not rejects
    assert rows.rows() == [(1, 1.5, "a|b"), (2, None, None), (3, 2.0, "x")]
    assert rows.schema == {"id": pl.Int64, "x": pl.Float64, "s": pl.String}
    source = files(tmp_path / "a.csv", **options)
    frame, bad = source.format.decode(drain(source)[0], {"s": pl.Float64(), "x": pl.Float64()})
    assert (frame.height, len(told(bad))) == (1, 2)


def test_points_are_no_decimals_where_commas_are(tmp_path: Path) -> None:
    path = written(tmp_path, "x;y\n1,5;1\n1.234;2\n")
    source = files(path, delimiter=";", decimal=",")
    schema = source.schema({"x": pl.Float64()})
    frame, rejects = source.format.decode(drain(source)[0], schema)
    assert frame["x"].to_list() == [1.5]
    assert [reason for reason, *_ in told(rejects)] == ["wrong_type"]


WRITE: dict[str, Callable[[str], str]] = {
    "csv": lambda s: f"s,n\n{s},1\n",
    "ndjson": lambda s: f'{{"s":"{s}"}}\n{{"s":"ok"}}\n',
    "txt": "{}\n".format,
}


@pytest.mark.parametrize("suffix", WRITE)
@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "koi8-r"])
def test_an_encoding(tmp_path: Path, suffix: str, encoding: str) -> None:
    word = {"koi8-r": "Привет", "cp1252": "50 €"}.get(encoding, "André")
    path = written(tmp_path, WRITE[suffix](word).encode(encoding), f"a.{suffix}")
    options = {"format": "text"} if suffix == "txt" else {}
    rows, rejects = read(path, encoding=encoding, **options)
    assert not rejects
    assert rows[rows.columns[0]][0] == word
    assert drain(files(path, encoding=encoding, **options))[0].next == path.stat().st_size
    _, rejects = read(path, **options)
    assert [reason for reason, *_ in rejects] == ["bad_utf8"]
    assert '[source] encoding, for instance "latin-1"' in rejects[0][2]


def test_a_byte_that_is_no_character_costs_its_row(tmp_path: Path) -> None:
    rows, rejects = read(written(tmp_path, b"s,n\n\x81,1\n\xe9,2\n"), encoding="cp1252")
    assert rows.rows() == [("é", 2)]
    assert [(reason, at) for reason, at, *_ in rejects] == [("bad_utf8", 4)]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_an_encoding_of_two_bytes_a_character_is_named(tmp_path: Path, encoding: str) -> None:
    path = written(tmp_path, "\ufeffs,n\nab,1\n".encode(encoding))
    with pytest.raises(UserError, match=r"begins as UTF-16 does: .* convert the file"):
        read(path)


@pytest.mark.parametrize("encoding", ["utf-16", "latin-99", "shift_jis", "cp037"])
def test_an_encoding_that_cannot_be(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        files(written(tmp_path, "x\n"), encoding=encoding)
    with pytest.raises(UserError, match="encoding is for csv, ndjson and text"):
        files(written(tmp_path, "", "a.parquet"), encoding="latin-1")
