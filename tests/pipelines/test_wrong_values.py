"""Every key of every table with values of every type: what comes of it is a pipeline or one
sentence, never another error."""

from __future__ import annotations

import contextlib
import datetime as dt
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import polars as pl
import pytest

from engine.commands.reference import SettingsTable, tables
from engine.config import Pipeline, validate
from engine.observing import logs
from engine.run import Run
from engine.settings_docs import field_of
from engine.types import HeadraceError, Settings

VALUES: tuple[Any, ...] = (
    0, -1, 1, 50_000, 2**63, -(2**63) - 1, 1.5, -0.0, 1e308, float("nan"), float("inf"),
    True, False,
    "", " ", "x", "0", "12", "1e9", "a" * 300, "\0", ":", "os:path", "json:JSONDecoder", "é",
    [], [[]], [0], [-1], ["a"], ["a", "a"], ["nope"], [1, "a"], [{}], [None], [2**63], ["*"], ["("],
    {}, {"a": 1}, {"a": "b"}, {"": ""}, {"a": {}}, {"a": ["b"]}, dt.date(2026, 1, 1),
    dt.datetime(2026, 1, 1), dt.time(1),
)  # fmt: skip
"""Whatever TOML, JSON in the environment or a notebook can hold."""
GIVEN: dict[str, Any] = {
    "columns": ["a"], "by": ["key"], "column": "a", "time": "n", "every": 1, "steps": [1],
    "size": 8, "score": "s", "topics": ["t"], "topic": "t", "target": "y", "model": "none.onnx",
    "probability": 0.5, "sources": {"one": {}}, "kind": "files", "name": "fuzz", "file": "none",
    "items": [{"a": 1.0, "key": "x", "n": 1, "y": 2.0}], "aggregates": {"a": ["sum", "distinct"]},
}  # fmt: skip
"""A fitting value of the keys that a table needs."""
SCHEMA = {"a": "float64", "n": "int64", "key": "string", "y": "float64"}
TRIED = 1
"""How many of the values that its settings take a key is tried with in a whole pipeline: chosen at
random, by a fixed seed."""


@pytest.fixture(autouse=True)
def no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that were taken for passwords would be hidden in what later tests read."""
    monkeypatch.setattr(logs, "_hidden", logs._Hidden())


@pytest.fixture
def base(tmp_path: Path) -> dict[str, Any]:
    frame = pl.DataFrame({"a": [1.0, 2.0], "n": [1, 2], "key": ["x", "y"], "y": [0.5, 1.5]})
    frame.write_csv(tmp_path / "a.csv")
    return {
        "name": "fuzz",
        "folder": str(tmp_path / "run"),
        "source": {"kind": "files", "path": str(tmp_path / "a.csv"), "schema": dict(SCHEMA)},
        "model": {"target": "y", "numeric": ["a"], "layers": [2]},
        "train": {},
        "evaluation": {},
        "export": {},
        "sink": {"kind": "files", "path": str(tmp_path / "out")},
        "dead_letters": {"kind": "files"},
        "checkpoint": {},
        "service": {},
        "loader": {},
    }


def _with(base: dict[str, Any], table: SettingsTable) -> tuple[dict[str, Any], dict[str, Any]]:
    """The base with this table in it, as small as it can be; and that table itself."""
    made = {name: dict(value) if isinstance(value, dict) else value for name, value in base.items()}
    needed = {
        key.name: GIVEN[key.name]
        for key in table.entries()
        if key.default == "needed" and key.name in GIVEN
    }
    own: dict[str, Any] = {"kind": table.kind} if table.kind and table.section != "train" else {}
    own |= needed
    section = table.section
    if not section:
        return made, made
    if section == "train" and table.kind in ("linear", "trees"):
        made["model"] = {"kind": table.kind, "target": "y", "numeric": ["a"]}
    if section == "model" and table.kind in ("tabular", "trees"):
        own |= {"numeric": ["a"]}
    if section == "infer":
        del made["model"], made["train"], made["evaluation"], made["export"]
    if section == "source":
        own = ({"schema": dict(SCHEMA)} if table.kind != "memory" else {}) | own
        own |= {"path": base["source"]["path"]} if table.kind == "files" else {}
        own |= {"sources": {"one": _part(base)}} if table.kind == "mix" else {}
    if section in ("sink", "dead_letters") and table.kind == "files":
        own |= {"path": base["sink"]["path"]}
    if section == "source.sources.NAME":
        made["source"] = {"kind": "mix", "sources": {"one": (own := _part(base))}}
        return made, own
    *outer, last = section.replace("NAME", "one").split(".")
    inside = made
    for name in outer:
        inside = inside.setdefault(name, {})
    inside[last] = own
    return made, own


def _part(base: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in base["source"].items() if key != "schema"}


def _cases() -> Iterator[Any]:
    for table in tables():
        yield pytest.param(table, id=f"{table.section or 'file'}-{table.kind}")


@pytest.mark.parametrize("table", list(_cases()))
def test_a_value_of_any_type_is_taken_or_refused_in_one_sentence(
    table: SettingsTable, base: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = random.Random(table.title)
    for key in table.entries():
        taken = [value for value in VALUES if _taken(table, key.name, value)]
        for value in rng.sample(taken, min(TRIED, len(taken))):
            pipeline, own = _with(base, table)
            own[key.name] = value
            with _one_sentence(f"{table.title} {key.name} = {value!r}"):
                Run(Pipeline.of(pipeline)).assemble()


def _taken(table: SettingsTable, key: str, value: Any) -> bool:
    """Whether the table's own settings take the value."""
    for settings in table.settings:
        if field_of(settings, key) is None:
            continue
        needed = {
            name: GIVEN.get(name, "a")
            for name, f in settings.model_fields.items()
            if f.is_required()
        }
        with _one_sentence(f"{table.title} {key} = {value!r}") as refused:
            validate(
                cast("type[Settings]", settings), {**needed, key: value}, table.section, "a test"
            )
        if refused:
            return False
    return True


@contextlib.contextmanager
def _one_sentence(where: str) -> Iterator[list[str]]:
    """What is raised is one of ours; its sentence."""
    said: list[str] = []
    try:
        yield said
    except Exception as error:
        if not isinstance(error, HeadraceError) or "\n" in str(error):
            raise AssertionError(where) from error
        said.append(str(error))
