"""The schema file: what a run started with comes back, or nothing does."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from engine.assembly.saved_schema import SCHEMA_FILE, SavedSchema, type_names

SCHEMA = {"a": pl.Int64(), "at": pl.Datetime("us"), "tags": pl.List(pl.String())}
SAVED = SavedSchema(
    declared={"a": "int64"},
    columns=type_names(SCHEMA),
    findings={"delimiter": ";"},
    writes=["/results"],
    classes=("no", "yes"),
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    SAVED.write(tmp_path / "run")
    read = SavedSchema.read(tmp_path / "run")
    assert read.schema({"a": "int64"}) == SCHEMA
    assert (read.findings, list(read.writes)) == (SAVED.findings, ["/results"])
    assert read.classes == ("no", "yes")


def test_other_declared_columns_are_not_those_of_the_start() -> None:
    assert SAVED.schema({"a": "float64"}) == {}


@pytest.mark.parametrize("text", ["", "[1]", "{", "null", '{"columns": 5, "classes": [1]}'])
def test_a_damaged_file_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / SCHEMA_FILE).write_text(text)
    read = SavedSchema.read(tmp_path)
    assert read.schema({}) == {}
    assert read.classes == ()


def test_a_folder_that_cannot_be_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    SAVED.write(tmp_path / "file" / "folder")
    assert "cannot be written" in caplog.text
