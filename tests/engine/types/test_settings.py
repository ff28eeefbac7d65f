"""Settings take values of their own type: text spells no number, and no number is true."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import BaseModel, ByteSize, Field, ValidationError

from engine import settings_docs
from engine.commands.reference import tables
from engine.config import Pipeline, validate
from engine.types import Duration, Settings, UserError
from engine.types.settings import Untyped


class Own(Settings):
    rows: int = Field(1, ge=1)
    rate: float | None = None
    flag: bool = False
    sizes: tuple[int, ...] = ()
    weights: dict[str, float] = Field(default_factory=dict)
    label: str | int | float = ""
    threshold: float | tuple[float, float] | None = None
    wait: Duration = 1.0
    memory: ByteSize | None = None


NUMBERS = [
    (settings, name)
    for settings in dict.fromkeys(each for table in tables() for each in table.settings)
    for name, field in settings.model_fields.items()
    if issubclass(settings, Settings)
    and settings_docs.expected(field).startswith(("a number", "a whole number"))
    and not re.search(r"text|bytes|table", settings_docs.expected(field))
]


def complaints(settings: type[BaseModel], table: dict[str, Any]) -> list[str]:
    try:
        settings.model_validate(table)
    except ValidationError as error:
        return [str(each["loc"][0]) for each in error.errors() if each["loc"]]
    return []


def test_no_number_of_the_reference_is_text() -> None:
    assert len(NUMBERS) > 100
    taken = [
        f"{settings.__qualname__}.{name}"
        for settings, name in NUMBERS
        if (key := settings.model_fields[name].alias or name)
        not in complaints(settings, {key: "3"})
        or (key in complaints(settings, {key: Untyped("3")}))
        is not (key in complaints(settings, {key: 3}))
    ]
    assert taken == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rows", "64"), ("rows", True), ("rate", "1e-3"), ("rate", False), ("flag", "no"),
        ("flag", 1), ("sizes", [1, "2"]), ("sizes", [True]), ("weights", {"a": "0.5"}),
        ("label", True), ("threshold", "0.5"), ("threshold", [0.1, "0.2"]), ("memory", True),
    ],
)  # fmt: skip
def test_what_only_spells_a_value_is_refused(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"expected .* for '{key}', got"):
        validate(Own, {key: value}, "own", "p.toml")


@pytest.mark.parametrize(
    ("key", "value", "read"),
    [
        ("rows", 64, 64), ("rate", 1, 1.0), ("flag", True, True), ("label", "64", "64"),
        ("label", 64, 64), ("wait", "250ms", 0.25), ("wait", "2", 2.0), ("memory", "1KiB", 1024),
        ("memory", 7, 7), ("threshold", [1, 2], (1.0, 2.0)), ("rows", Untyped("64"), 64),
        ("rate", Untyped(".1"), 0.1), ("flag", Untyped("true"), True),
        ("weights", {"a": Untyped("0.5"), "b": 1}, {"a": 0.5, "b": 1.0}),
    ],
)  # fmt: skip
def test_what_is_one_is_taken(key: str, value: Any, read: Any) -> None:
    assert getattr(validate(Own, {key: value}, "own", "p.toml"), key) == read


@pytest.mark.parametrize("text", ["64", "064", "+64"])
def test_a_variable_is_text_and_may_spell_a_number(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_LOADER__BATCH_ROWS", text)
    monkeypatch.setenv("HEADRACE_MODEL__ROWS", text)
    table = {"name": "p", "source": {"kind": "memory"}}
    pipeline = Pipeline.of(table)
    again = Pipeline.resolved(pipeline.table(), where="p.toml")
    for each in (pipeline, again):
        assert each.loader.batch_rows == 64
        assert validate(Own, each.model or {}, "model", "p.toml").rows == 64
    del table["name"]
    table |= {"name": "p", "loader": {"batch_rows": text}}
    monkeypatch.delenv("HEADRACE_LOADER__BATCH_ROWS")
    with pytest.raises(UserError, match="expected a whole number >= 1 for 'batch_rows', got"):
        Pipeline.of(table)
    with pytest.raises(UserError, match="expected a whole number >= 1 for 'batch_rows', got"):
        Pipeline.of({"name": "p", "source": {}}, [f'loader.batch_rows="{text}"'])
    assert Pipeline.of(table, ["loader.batch_rows=07"]).loader.batch_rows == 7
