"""What an unknown key, kind or format is answered with: the one that was meant."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from engine.commands import reference
from engine.config import Pipeline, suggestion
from engine.run import Run
from engine.types import UserError

CHANGELOG = (Path(__file__).parents[2] / "CHANGELOG.md").read_text()
(RENAMES,) = re.findall(r"^- Settings use the field's terms;.*?(?=^- )", CHANGELOG, re.M | re.S)
RENAMED = re.findall(r"`(\w+)` ->\s+`(\w+)`", RENAMES)


@pytest.mark.parametrize(("old", "new"), RENAMED)
def test_an_old_name_gives_its_new_one_in_every_table_that_has_it(old: str, new: str) -> None:
    tables = [{key.name for key in table.entries()} for table in reference.tables()]
    having = [keys for keys in tables if new in keys and old not in keys]
    assert having
    assert {suggestion(old, keys) for keys in having} == {f" Did you mean '{new}'?"}


def test_the_list_of_renames_is_read() -> None:
    assert len(RENAMED) >= 35


def refused(folder: Path, table: str, changes: Mapping[str, Any]) -> str:
    """Return the sentence about a pipeline with changes to one table."""
    (folder / "in.ndjson").write_text('{"a": 1, "b": 2}\n')
    tables: dict[str, Any] = {
        "source": {"kind": "files", "path": str(folder / "in.ndjson")},
        "sink": {"kind": "files", "path": str(folder / "out")},
        "dead_letters": {}, "export": {}, "train": {},
        "model": {"target": "a", "numeric": ["b"]},
    }  # fmt: skip
    name, _, stage = table.partition(".")
    changes = {stage: changes} if stage else changes
    tables[name] = {**tables.get(name, {}), **changes}
    with pytest.raises(UserError) as caught:
        build({"name": "n", "folder": str(folder / "run"), **tables})
    return str(caught.value)


def build(tables: Mapping[str, Any]) -> None:
    """Build every part of a pipeline."""
    parts = Run(Pipeline.of(tables)).parts
    _ = parts.endpoints.source, parts.endpoints.sinks, parts.scrub.stages
    _ = parts.model.common_settings, parts.model.learner


@pytest.mark.parametrize(
    ("table", "key", "said"),
    [
        ("dead_letters", "limits", "Did you mean 'limit'?"),
        ("dead_letters", "windows", "Did you mean 'window'?"),
        ("dead_letters", "kinds", "Did you mean 'kind'?"),
        ("sink", "column", "Did you mean 'columns'?"),
        ("sink", "probability", "Did you mean 'probabilities'?"),
        ("source", "schemas", "Did you mean 'schema'?"),
        ("source", "kinds", "Did you mean 'kind'?"),
        ("scrub.drift", "kinds", "Did you mean 'kind'?"),
        ("scrub.drift", "delta", "Did you mean 'confidence'?"),
        ("model", "convolutions", "Did you mean 'conv_channels'?"),
        ("model", "skip", "Did you mean 'skip_connection'?"),
        ("model", "labels", "Did you mean 'classes'?"),
        ("model", "lr", "'lr' is a key of [train] of [model] kind = \"tabular\""),
        ("train", "delta", "Did you mean 'huber_delta'?"),
        ("train", "kind", "Its kind is that of the model: [model] kind."),
        ("export", "holdout_every", "Did you mean 'holdout'?"),
    ],
)
def test_a_key_of_the_table_itself_is_suggested(
    tmp_path: Path, table: str, key: str, said: str
) -> None:
    assert said in refused(tmp_path, table, {key: 1})


def test_the_list_of_known_keys_has_those_of_every_kind(tmp_path: Path) -> None:
    said = refused(tmp_path, "dead_letters", {"zzzzzz": 1})
    known = said.partition("Known: ")[2].rstrip(".").split(", ")
    assert {"kind", "path", "limit", "window", "expected", "private"} <= set(known)


@pytest.mark.parametrize(
    ("table", "kind", "said"),
    [
        ("source", "csv", 'is a [source] format: kind = "files", format = "csv".'),
        ("source", "jsonl", 'is a [source] format: kind = "files", format = "ndjson".'),
        ("source", "tsv", 'is a [source] format: kind = "files", format = "csv".'),
        ("sink", "parquet", 'is a [sink] format: kind = "files", format = "parquet".'),
        ("sink", "xml", "Known: files, kafka, memory."),
        ("source", "nothing", "Known: files, kafka, memory, mix."),
        ("source", "mixed", "Did you mean 'mix'?"),
    ],
)
def test_a_format_in_place_of_a_kind_is_told(
    tmp_path: Path, table: str, kind: str, said: str
) -> None:
    assert said in refused(tmp_path, table, {"kind": kind})


@pytest.mark.parametrize(
    ("format", "meant"),
    [
        ("jsonl", "ndjson"),
        ("jsonlines", "ndjson"),
        ("JSONL", "ndjson"),
        ("tsv", "csv"),
        ("feather", "arrow"),
        ("tar", "webdataset"),
        ("jpeg", "images"),
        ("jsn", "json"),
    ],
)
def test_a_format_by_another_name_gives_its_own(tmp_path: Path, format: str, meant: str) -> None:
    assert refused(tmp_path, "source", {"format": format}).endswith(f"Did you mean '{meant}'?")


def test_lines_read_as_one_object_are_told_to_be_lines(tmp_path: Path) -> None:
    (tmp_path / "two.jsonl").write_text('{"a": 1, "b": 2}\n{"a": 2, "b": 1}\n')
    said = refused(tmp_path, "source", {"path": str(tmp_path / "two.jsonl"), "format": "json"})
    assert 'set [source] format = "ndjson"' in said
    assert 'format = "json"' not in said
