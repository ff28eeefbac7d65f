"""A resumed run keeps the columns it started with, and says nothing while they still fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from engine import artifacts
from engine.config import Pipeline
from engine.run import Run
from engine.types import UserError

TOPIC = {"kind": "kafka", "bootstrap_servers": "localhost:1", "topics": ["t"]}
RECORD = {"when": "timestamp", "id": "key"}
DECLARED = {"a": "float64", "b": "int64"}


def folder_of_parts(path: Path, name: str, text: str, folder: str = "") -> str:
    (path / "in" / folder).mkdir(parents=True, exist_ok=True)
    (path / "in" / folder / name).write_text(text)
    return str(path / "in")


def topic(path: Path) -> Mapping[str, Any]:
    return {**TOPIC, "record": RECORD, "schema": DECLARED}


def topic_with_paths(path: Path) -> Mapping[str, Any]:
    return {**topic(path), "paths": {"b": "deep.b"}}


def topic_of_text(path: Path) -> Mapping[str, Any]:
    return {**TOPIC, "format": "text", "record": RECORD, "schema": {"value": "string"}}


def topics_mixed(path: Path) -> Mapping[str, Any]:
    sources = {name: {**TOPIC, "topics": [name], "record": RECORD} for name in ("t", "u")}
    return {"kind": "mix", "sources": sources, "schema": DECLARED}


def nested(path: Path) -> Mapping[str, Any]:
    data = folder_of_parts(path, "x.ndjson", '{"a": 1, "deep": {"b": 2}}\n')
    return {"kind": "files", "path": data, "paths": {"b": "deep.b"}}


def folders(path: Path) -> Mapping[str, Any]:
    data = folder_of_parts(path, "x.csv", "a,b\n1,2\n", "year=2026")
    return {"kind": "files", "path": f"{data}/*/*.csv"}


def folders_declared(path: Path) -> Mapping[str, Any]:
    return {**folders(path), "schema": {"*": "drop", "year": "string", "a": "float64"}}


def text(path: Path) -> Mapping[str, Any]:
    data = folder_of_parts(path, "x.txt", "one\ntwo\n")
    return {"kind": "files", "path": f"{data}/*.txt", "format": "text"}


def documents(path: Path) -> Mapping[str, Any]:
    return {**text(path), "format": "documents"}


def json_files(path: Path) -> Mapping[str, Any]:
    data = folder_of_parts(path, "x.json", '{"a": 1}')
    return {"kind": "files", "path": data, "format": "json"}


def xml(path: Path) -> Mapping[str, Any]:
    data = folder_of_parts(path, "x.xml", "<r><a>1</a></r>")
    return {"kind": "files", "path": data, "format": "xml"}


def files_mixed(path: Path) -> Mapping[str, Any]:
    return {"kind": "mix", "sources": {"one": nested(path), "two": nested(path)}}


SOURCES = [
    topic, topic_with_paths, topic_of_text, topics_mixed, nested, folders, folders_declared, text,
    documents, json_files, xml, files_mixed,
]  # fmt: skip


def pipeline(path: Path, source: Mapping[str, Any]) -> Pipeline:
    return Pipeline.of({"name": "r", "folder": str(path / "run"), "source": source})


def started(path: Path, source: Mapping[str, Any]) -> Mapping[str, Any]:
    """Leave what a first run leaves before it is resumed; return its columns."""
    first = Run(pipeline(path, source))
    artifacts.write_schema(first.parts)
    first.checkpoints.save({}, {})
    return first.parts.scrub.source_schema


@pytest.mark.parametrize("source_of", SOURCES)
def test_columns_that_still_fit_are_kept_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, source_of: Any
) -> None:
    source = source_of(tmp_path)
    schema = started(tmp_path, source)
    resumed = Run(pipeline(tmp_path, source)).parts.scrub.source_schema
    assert list(resumed.items()) == list(schema.items())
    assert "no longer fit" not in caplog.text


def test_a_record_column_taken_out_is_gone_and_a_new_one_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = topic(tmp_path)
    started(tmp_path, source)
    now = {**source, "record": {"id": "key", "place": "offset"}}
    resumed = Run(pipeline(tmp_path, now)).parts.scrub.source_schema
    assert list(resumed) == ["a", "b", "id", "place"]
    assert "no longer fit" not in caplog.text


def test_columns_that_no_longer_fit_are_still_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = topic(tmp_path)
    started(tmp_path, source)
    now = {**source, "record": {"a": "key"}}
    with pytest.raises(UserError, match=r"'a' is in \[source.schema\] and in \[source.record\]"):
        _ = Run(pipeline(tmp_path, now)).parts.scrub.source_schema
    assert "no longer fit" in caplog.text


def test_mixed_files_keep_the_types_they_started_with(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = folder_of_parts(tmp_path, "x.csv", "a,b\n1,2\n")
    files = {"kind": "files", "path": data}
    source = {"kind": "mix", "sources": {"one": files, "two": files}}
    schema = started(tmp_path, source)
    (tmp_path / "in" / "x.csv").write_text("a,b\n1.5,2\n")
    assert Run(pipeline(tmp_path, source)).parts.scrub.source_schema == schema
    assert "no longer fit" not in caplog.text
