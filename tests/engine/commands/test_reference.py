"""What a pipeline file may say: the reference, its page, and the schema of editors."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from engine.commands import reference
from engine.config import BATCH_DELAY, BLOCK_DELAY, OPTIONAL, LoaderSettings, Pipeline
from engine.settings_docs import Key, keys
from engine.types import Settings, UserError
from models import LEARNERS

DEPLOY = Path(__file__).parents[3] / "deploy"
SHIPPED = sorted((DEPLOY / "pipelines").glob("*.toml"))


@pytest.fixture(scope="module")
def editor() -> Draft7Validator:
    schema = reference.schema()
    Draft7Validator.check_schema(schema)
    return Draft7Validator(schema)


def _read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text())


def test_every_key_of_every_table_says_what_it_is_for() -> None:
    silent = [f"{t.title} {k.name}" for t in reference.tables() for k in t.entries() if not k.text]
    assert not silent


def test_no_table_of_a_pipeline_is_left_out() -> None:
    sections = {table.section.partition(".")[0] for table in reference.tables()}
    others = {"", *Pipeline.model_fields} - {"name", "base", "folder", "file"}
    assert sections == others


def test_a_key_has_its_type_unit_default_and_text() -> None:
    found = {key.name: key for key in keys(LoaderSettings)}
    assert found["read_rows"] == Key(
        name="read_rows",
        type="whole number >= 1",
        unit="records",
        default="65536",
        text="records asked of the source at a time.",
    )
    assert found["memory_budget"].default == '"256MiB"'
    assert found["memory_budget"].unit == "bytes"


def test_the_page_in_deploy_is_current() -> None:
    page = (DEPLOY / "reference.md").read_text()
    assert page == reference.markdown(), "run: headrace reference --markdown > deploy/reference.md"


@pytest.mark.parametrize(
    ("word", "titles"),
    [
        ("loader", ["[loader]"]),
        (
            "[train]",
            [f'[train] of [model] kind = "{kind}"' for kind in LEARNERS],
        ),
        ("attention", ['[model.inputs.NAME.layers] kind = "attention"']),
        ("source.kafka", ['[source] kind = "kafka"']),
        ("missing", ['[scrub.NAME] kind = "missing"']),
        ("pipeline", ["Keys of the file"]),
    ],
)
def test_a_word_names_tables(word: str, titles: list[str]) -> None:
    assert [table.title for table in reference.matching(word)] == titles


def test_a_table_that_there_is_not_has_a_neighbour() -> None:
    with pytest.raises(UserError, match=r"no table 'laoder'. Did you mean 'loader'"):
        reference.matching("laoder")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_an_editor_finds_nothing_amiss_in_a_shipped_pipeline(
    path: Path, editor: Draft7Validator
) -> None:
    assert [error.message for error in editor.iter_errors(_read(path))] == []


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_an_editor_finds_every_misspelt_key_of_a_shipped_pipeline(
    path: Path, editor: Draft7Validator
) -> None:
    table = _read(path)
    free = (
        "schema", "columns", "record", "paths", "baselines", "slices", "provenance", "aggregates",
    )  # fmt: skip
    for keys_of in _tables(table, free):
        for key in list(keys_of):
            value = keys_of.pop(key)
            keys_of[f"{key}x"] = value
            assert not editor.is_valid(table), key
            keys_of[key] = keys_of.pop(f"{key}x")


def _tables(table: dict[str, Any], free: tuple[str, ...]) -> list[dict[str, Any]]:
    """The file's tables whose keys are settings, not names of a user's own."""
    found = [table]
    for name, value in table.items():
        if name in ("scrub", "augment", "sources"):
            found += [t for part in value.values() for t in _tables(part, free)]
        elif isinstance(value, dict) and name not in free:
            found += _tables(value, free)
    return found


@pytest.mark.parametrize(
    ("table", "valid"),
    [
        ({"source": {"kind": "files", "path": ["a.csv", "b.csv"]}}, True),
        ({"source": {"kind": "files", "path": 3}}, False),
        ({"source": {"kind": "kafka", "topics": "one"}}, True),
        ({"source": {"kind": "kafka", "path": "one"}}, False),
        ({"source": {"kind": "my.package:Source", "anything": 1}}, True),
        ({"loader": {"memory_budget": "64MiB"}}, True),
        ({"loader": {"memory_budget": 64.5}}, False),
        ({"model": {"target": "y", "classes": [0, 1]}}, True),
        ({"train": {"sampling": {"method": "under"}}}, True),
        ({"train": {"sampling": {"methd": "under"}}}, False),
        ({"model": {"kind": "my.package:Learner"}, "train": {"anything": 1}}, True),
        ({"scrub": {"mine": {"kind": "missing", "columns": ["a"]}}}, True),
        ({"scrub": {"mine": {"columns": ["a"]}}}, False),
        ({"export": {"compress": {"candidates": ["int8"]}}}, True),
        ({"export": {"compress": {"candidate": ["int8"]}}}, False),
        ({"export": {"compress": False}}, True),
        *(({section: False}, True) for section in OPTIONAL),
        ({"scrub": {"mine": False, "missing": False}, "augment": {"noise": False}}, True),
        *(({section: False}, False) for section in ("source", "loader", "checkpoint")),
        ({"source": {"kind": "mix", "sources": {"a": {"kind": "files", "weight": 2}}}}, True),
        ({"source": {"kind": "mix", "sources": {"a": {"kind": "files", "wight": 2}}}}, False),
    ],
)
def test_an_editor_knows_kinds_and_types(
    table: dict[str, Any], valid: bool, editor: Draft7Validator
) -> None:
    assert editor.is_valid(table) == valid


def test_the_schema_is_json_of_a_size_for_an_editor(editor: Draft7Validator) -> None:
    assert len(json.dumps(editor.schema)) < 400_000


def _keys(section: str, kind: str = "") -> dict[str, Key]:
    for table in reference.tables():
        if (table.section, table.kind) == (section, kind):
            return {key.name: key for key in table.entries()}
    raise AssertionError(section)


def test_a_unit_is_declared_and_never_guessed() -> None:
    class Mine(Settings):
        """Mine.

        Attributes:
            window [rows]: how far back.
            seed: of the rows that are drawn, in bytes.
            batch_rows: rows of a batch.
            low, high [share]: the ends.
        """

        window: int = 3
        seed: int = 0
        batch_rows: int = 1
        low: float = 0
        high: float = float("inf")

    found = {key.name: (key.unit, key.default, key.text) for key in keys(Mine)}
    assert found == {
        "window": ("rows", "3", "how far back."),
        "seed": ("", "0", "of the rows that are drawn, in bytes."),
        "batch_rows": ("", "1", "rows of a batch."),
        "low": ("share", "0", "the ends."),
        "high": ("share", "inf", "the ends."),
    }


def test_only_numbers_have_units() -> None:
    for table in reference.tables():
        for key in table.entries():
            assert not key.unit or re.search("number|seconds|bytes", key.type), key.name
    units = {key.name: key.unit for key in _keys("train.sampling").values()}
    assert (units["seed"], units["smote_neighbors"], units["desired_dist"]) == ("", "", "share")
    assert _keys("loader")["shuffle_seed"].unit == ""
    assert _keys("export.compress")["max_quality_loss"].unit == ""


def test_a_key_that_a_run_can_do_without_is_not_needed() -> None:
    assert _keys("dead_letters", "files")["path"].default == ""
    assert "format" not in _keys("dead_letters", "files")
    assert "path" not in _keys("dead_letters", "kafka")
    assert _keys("checkpoint")["path"].default != "needed"


def test_texts_are_for_users_of_a_file() -> None:
    page = reference.markdown()
    assert f"{BATCH_DELAY * 1000:.0f} ms for an endless source" in page
    assert f"({BLOCK_DELAY:.0f} s with `shuffle_rows`" in page
    assert "_DELAY" not in page
    assert not re.search(r"\bNone\b", page), "TOML has no None"


def test_nothing_but_false_turns_the_gate_off() -> None:
    table = {"name": "a", "source": {"kind": "memory", "items": []}}
    made = Pipeline.of({**table, "export": {"compress": False}})
    assert made.export is not None
    assert made.export.compress is None
    with pytest.raises(UserError, match="expected a table for 'compress', got 3"):
        Pipeline.of({**table, "export": {"compress": 3}})
