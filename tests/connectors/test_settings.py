"""Settings of files that contradict each other, and paths that are none: one sentence each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from connectors.files.source import FilesSource
from engine.config import validate
from engine.types import UserError
from tests.connectors.conftest import decoded, drain, files


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    place = tmp_path / "in.csv"
    place.write_text("a,b\n1,2\n")
    return place


@pytest.mark.parametrize(
    ("settings", "roles"),
    [
        ({"quote": ",", "delimiter": ","}, "delimiter and quote"),
        ({"delimiter": '"'}, "delimiter and quote"),
        ({"comment": '"'}, "quote and comment"),
        ({"comment": ";", "delimiter": ";"}, "delimiter and comment"),
        ({"decimal": ",", "delimiter": ","}, "delimiter and decimal"),
        ({"decimal": ",", "quote": ","}, "quote and decimal"),
    ],
)
def test_one_character_has_one_role(csv: Path, settings: dict[str, Any], roles: str) -> None:
    with pytest.raises(UserError, match=rf"\[source\] {roles} are both .*: expected different"):
        files(csv, **settings)


def test_also_where_one_of_them_is_found(csv: Path) -> None:
    with pytest.raises(UserError, match=r"in.csv: delimiter and comment are both"):
        files(csv, comment=",").schema({})


@pytest.mark.parametrize("name", ["delimiter", "quote", "comment"])
@pytest.mark.parametrize("sign", ["ab", "\n", "\r", "é", "\0"])
def test_a_sign_is_one_character_that_ends_no_line(name: str, sign: str) -> None:
    table = {"path": "in.csv", name: sign}
    with pytest.raises(UserError, match=f"expected one ASCII character .* for '{name}', got"):
        validate(FilesSource.Settings, table, "source", "p.toml")


def test_settings_of_csv_are_for_csv(tmp_path: Path) -> None:
    place = tmp_path / "in.ndjson"
    place.write_text('{"a": 1}\n')
    with pytest.raises(UserError, match=r"\[source\] delimiter is for csv, and format is 'ndjson'"):
        files(place, delimiter=";")


@pytest.mark.parametrize(
    "encoding",
    ["idna", "punycode", "undefined", "hex", "rot13", "zip", "utf-16", "shift_jis", "\0"],
)
def test_what_is_no_encoding_of_single_bytes_is_refused(encoding: str) -> None:
    table = {"path": "in.csv", "encoding": encoding}
    with pytest.raises(UserError, match=r"expected .* as latin-1 or cp1252.* for 'encoding', got"):
        validate(FilesSource.Settings, table, "source", "p.toml")


def test_utf_8_with_its_mark_is_utf_8(tmp_path: Path) -> None:
    place = tmp_path / "in.csv"
    place.write_text("a,b\n1,é\n", encoding="utf-8-sig")
    source = files(place, encoding="utf-8-sig")
    rows = decoded(source, drain(source), source.schema({}))
    assert rows.to_dict(as_series=False) == {"a": [1], "b": ["é"]}


@pytest.mark.parametrize("kind", ["csv", "ndjson", "text"])
def test_lines_that_end_in_carriage_returns_are_refused(tmp_path: Path, kind: str) -> None:
    place = tmp_path / f"in.{kind}"
    place.write_bytes({"ndjson": b'{"a":1}\r{"a":2}\r'}.get(kind, b"a,b\r1,2\r3,4\r"))
    source = files(place, format=kind)
    with pytest.raises(UserError, match="has no line end but carriage returns: expected lines"):
        drain(source) if kind == "text" else source.schema({})


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    place = tmp_path / "in.csv"
    os.mkfifo(place)
    with pytest.raises(UserError, match=r'is a named pipe, and no file: .* path = "-"'):
        files(place)


def test_a_folder_that_is_followed_and_empty_asks_for_the_format(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set \[source\] format and declare"):
        files(tmp_path, follow=True)


def test_sorted_rows_are_read_as_the_settings_say(tmp_path: Path) -> None:
    place = tmp_path / "in.csv"
    place.write_text("a;b\n2;'x;y'\n1;NA\n")
    source = files(place, quote="'", null_values=("NA",), delimiter=";", order_by=("a",))
    rows = decoded(source, drain(source), source.schema({}))
    assert rows["b"].to_list() == [None, "x;y"]
