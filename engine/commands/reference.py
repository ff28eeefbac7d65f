"""The reference of the pipeline file, generated from the Settings classes: `headrace reference`,
its page in deploy/, the JSON Schema for editors, and the table a misplaced key belongs to.

Importing this loads no connector and no model; `tables` imports every kind.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import rich.table
import rich.text
from pydantic import BaseModel

from engine import settings_docs
from engine.config import (
    OPTIONAL,
    DeadLetterSettings,
    ExportSettings,
    GrowSettings,
    LabelSettings,
    LoaderSettings,
    ModelSettings,
    NamedTable,
    Pipeline,
    SinkTable,
    SourceTable,
    load_class,
)
from engine.loading.sources.mix import Mix, MixTable, WeightedSourceTable
from engine.observing import traces
from engine.observing.service import Service
from engine.quality.evaluation import Evaluation
from engine.running.saving.checkpoint import Checkpoints
from engine.scrub import STAGES
from engine.types import UserError, nearest

TOP_LEVEL_KEYS = ("name", "base", "folder")
"""Keys of a pipeline file that are not tables."""
OUTPUT_COLUMNS = {
    "prediction": "the value, or for classes the predicted class as text",
    "probability": "classes only: of the second of two classes, or of the predicted one of more",
    "model_version": "serving only: which model said it",
    "_delay": "where labels come later: seconds from the row to its label; null if it did not come",
    "_partition": "where the row was read: a file's path, or topic/partition",
    "_position": "where in it: a byte or row, or an offset",
}
"""Columns that a run adds to the rows it writes."""


MIX = "mix"
"""The kind of a source made of sources."""
MAX_TABLES_NAMED = 3
"""Tables that a sentence names for a misplaced key."""
INTRODUCTION = """\
# Every key of a pipeline file

Written by `headrace reference --markdown` from the Settings classes: change those, not this page.
Bytes may be written "64MiB". `export = false` in a file with a `base`, or `--set export=false`,
takes a table out that a pipeline may lack; so does false for `scrub.NAME` and `augment.NAME`. A key
of it in a later `--set` begins it anew, without what it had.
A name that points at code of yours is `package.module:Class`.
`headrace schema` prints the same as a JSON Schema, for editors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsTable:
    """A table of a pipeline file.

    Attributes:
        section: ``loader``, ``scrub.NAME``; empty for the file's own keys.
        kind: the ``kind`` that has these keys; empty where there is one only.
        kind_key: the key that names it.
        settings: the classes that declare them, what all kinds have first.
        about: what it is for; nothing where its keys say enough.
        hidden: keys of theirs that are no user's.
    """

    section: str
    kind: str = ""
    kind_key: str = "kind"
    settings: tuple[type[BaseModel], ...]
    about: str = ""
    hidden: frozenset[str] = frozenset()

    @property
    def title(self) -> str:
        """``[source] kind = "kafka"``."""
        head = f"[{self.section}]" if self.section else "Keys of the file"
        of = " of [model]" if self.section == "train" else ""  # it has no kind of its own
        return f'{head}{of} {self.kind_key} = "{self.kind}"' if self.kind else head

    def entries(self) -> list[settings_docs.Key]:
        """Return the keys in the order of the classes and their fields; the first class defines
        a key."""
        keys: dict[str, settings_docs.Key] = {}
        for settings in self.settings:
            for key in settings_docs.keys(settings):
                keys.setdefault(key.name, key)
        return [key for name, key in keys.items() if name not in self.hidden]


@cache
def tables() -> tuple[SettingsTable, ...]:
    """Return every table, in the order of a pipeline file. Imports every kind."""
    return tuple(_tables())


def _tables() -> Iterator[SettingsTable]:
    from connectors import DEAD_LETTER_SINKS, SINKS, SOURCES
    from models import LEARNERS
    from models.augment import AUGMENTS
    from models.compress.gate import Compression
    from models.layers import LAYERS
    from models.learners.modules.learner import HeadSettings, NetInputSettings, StateSettings
    from models.learners.sampling import SamplingSettings
    from models.serving.answers import ANSWERS, answer_class_of
    from models.serving.settings import InferSettings, InputSettings

    others = frozenset(Pipeline.model_fields) - frozenset(TOP_LEVEL_KEYS)
    yield SettingsTable(section="", settings=(Pipeline,), hidden=others)
    yield from _kinds("source", SOURCES, SourceTable)
    yield SettingsTable(section="source", kind=MIX, settings=(SourceTable, Mix.Settings, MixTable))
    yield SettingsTable(section="source.sources.NAME", settings=(WeightedSourceTable,))
    yield SettingsTable(section="labels", settings=(LabelSettings,))
    yield from _kinds("scrub.NAME", STAGES, NamedTable)
    yield SettingsTable(section="loader", settings=(LoaderSettings,))
    yield from _kinds("model", LEARNERS, ModelSettings)
    yield SettingsTable(section="model.grow", settings=(GrowSettings,))
    yield SettingsTable(section="model.inputs.NAME", settings=(NetInputSettings,))
    yield SettingsTable(section="model.head", settings=(HeadSettings,))
    yield SettingsTable(section="model.state", settings=(StateSettings,))
    for layer in LAYERS:
        yield SettingsTable(
            section="model.inputs.NAME.layers",
            kind=layer.model_fields["kind"].default,
            settings=(layer,),
            about=_about(layer),
        )
    for name in LEARNERS:
        yield SettingsTable(
            section="train",
            kind=name,
            settings=(load_class(name, LEARNERS, "model").Training,),
        )
    yield SettingsTable(section="train.sampling", settings=(SamplingSettings,))
    yield from _kinds("augment.NAME", AUGMENTS, NamedTable)
    yield SettingsTable(section="infer", settings=(InferSettings,))
    yield SettingsTable(section="infer.inputs.NAME", settings=(InputSettings,))
    for name in ANSWERS:
        answer = answer_class_of({"answer": name})
        yield SettingsTable(
            section="infer.outputs.NAME",
            kind=name,
            kind_key="answer",
            settings=(answer.Settings,),
            about=_about(answer),
        )
    yield SettingsTable(section="evaluation", settings=(Evaluation.Settings,))
    yield from _kinds("sink", SINKS, SinkTable)
    yield from _kinds("dead_letters", DEAD_LETTER_SINKS, DeadLetterSettings)
    yield SettingsTable(section="checkpoint", settings=(Checkpoints.Settings,))
    yield SettingsTable(section="export", settings=(ExportSettings,))
    yield SettingsTable(section="export.compress", settings=(Compression,))
    yield SettingsTable(section="service", settings=(Service.Settings,))
    yield SettingsTable(section="traces", settings=(traces.Settings,))


def _kinds(
    section: str, known: Mapping[str, str], common: type[BaseModel]
) -> Iterator[SettingsTable]:
    for name in known:
        cls = load_class(name, known, section)
        yield SettingsTable(
            section=section,
            kind=name,
            settings=(common, cls.Settings),
            about=_about(cls),
            hidden=frozenset({"path"} - cls.Settings.model_fields.keys()),
        )


def _about(cls: type[Any]) -> str:
    """Return the first sentences of a class's docstring, unless they point to a protocol."""
    first = inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    return "" if first.startswith("See ") else first


def tables_with(names: Iterable[str]) -> str:
    """Return a sentence naming the tables that have one of these keys; empty if none has."""
    for name in names:
        titles = [
            table.title for table in tables() if any(key.name == name for key in table.entries())
        ]
        if titles:
            shown = ", ".join(titles[:MAX_TABLES_NAMED]) + (
                ", ..." if len(titles) > MAX_TABLES_NAMED else ""
            )
            return f"'{name}' is a key of {shown}."
    return ""


def format_named(name: str, section: str) -> str | None:
    """Return the format of files that a name means in this table; None if it means none there."""
    from connectors.files.sink import WRITERS
    from connectors.formats.registry import FILES, format_of

    known: Collection[str] = {"source": FILES, "sink": tuple(WRITERS)}.get(section, ())
    format = format_of(name)
    return format if format in known else None


# ------------------------------------------------------------------------------------------- pages


def matching(word: str) -> list[SettingsTable]:
    """Return the tables that an argument names: ``source``, ``source.kafka``, ``scrub``,
    ``missing``, ``[train]``.

    Raises: UserError if there is none.
    """
    word = word.strip("[]").removesuffix(".NAME")
    matches = [table for table in tables() if word in _names(table)]
    if not matches:
        known = {name for table in tables() for name in _names(table)}
        raise UserError(f"A pipeline file has no table '{word}'.{nearest(word, known)}")
    return matches


def _names(table: SettingsTable) -> set[str]:
    section = table.section.removesuffix(".NAME")
    last = section.rpartition(".")[2]
    names = {section, last, table.kind, f"{section}.{table.kind}".strip(".")} - {""}
    return names if section else names | {"pipeline"}


def pages(word: str | None) -> Iterator[rich.table.Table | str]:
    """Return what the terminal shows: the list of tables, or those that `word` names with their
    keys.

    Raises: UserError for a table that there is not.
    """
    if word is None:
        yield "headrace reference TABLE says what a table may hold:\n"
        yield from dict.fromkeys(
            f"  {table.section or 'pipeline'}"
            + (f"  ({', '.join(kinds)})" if (kinds := _kinds_of(table.section)) else "")
            for table in tables()
        )
        return
    for table in matching(word):
        shown = rich.table.Table(
            title=rich.text.Text(table.title, style="bold"),
            title_justify="left",
            caption=rich.text.Text(table.about),
            caption_justify="left",
            box=None,
            pad_edge=False,
        )
        for heading in ("key", "type", "unit", "default", ""):
            shown.add_column(heading, overflow="fold")
        for key in table.entries():
            cells = (key.name, key.type, key.unit, key.default, key.text)
            shown.add_row(*(rich.text.Text(cell) for cell in cells))
        yield shown


def _kinds_of(section: str) -> list[str]:
    return [table.kind for table in tables() if table.section == section and table.kind]


def markdown() -> str:
    """Return the page: every table with its keys."""
    lines = [INTRODUCTION]
    for table in tables():
        lines += ["", f"## {table.title}", ""]
        if table.about:
            lines += [table.about, ""]
        lines += ["| key | type | unit | default | |", "|---|---|---|---|---|"]
        lines += [_line(key) for key in table.entries()]
    lines += ["", "## Columns of the output", "", "| column | |", "|---|---|"]
    lines += [f"| `{name}` | {text} |" for name, text in OUTPUT_COLUMNS.items()]
    return "\n".join(lines) + "\n"


def _line(key: settings_docs.Key) -> str:
    default = f"`{key.default}`" if key.default not in ("", "needed") else key.default
    cells = (f"`{key.name}`", key.type, key.unit, default, key.text)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


# ------------------------------------------------------------------------------------------ schema


def schema() -> dict[str, Any]:
    """Return a JSON Schema of pipeline files. No key is required, since a ``base``, the
    environment or ``--set`` may set it; `headrace check` tells whether a file is complete."""
    from connectors import SOURCES
    from models.serving.answers import ANSWERS

    definitions = {_reference(table): _object(table) for table in tables()}
    gate = {"anyOf": [_to("export.compress"), {"const": False}]}
    definitions["export"]["properties"]["compress"] = gate
    for table in tables():
        if table.section == "train":
            definitions[_reference(table)]["properties"]["sampling"] = _to("train.sampling")
    weight = definitions.pop("source.sources.NAME")["properties"]
    for component in SOURCES:
        part = definitions[f"source.{component}"]
        definitions[f"source.sources.{component}"] = {
            **part,
            "properties": part["properties"] | weight,
        }
    parts = [*(_to(f"source.sources.{component}") for component in SOURCES), CUSTOM_TABLE]
    definitions["source.mix"]["properties"]["sources"]["additionalProperties"] = {"anyOf": parts}
    of_labels = [*(_to(f"source.{component}") for component in SOURCES), CUSTOM_TABLE]
    definitions["labels"]["properties"]["source"] |= {"anyOf": of_labels}
    for kind in ("lookup", "join"):
        definitions[f"scrub.{kind}"]["properties"]["source"] |= {"anyOf": of_labels}
    column: dict[str, Any] = {"type": "string"}
    given = {
        "inputs": [column, {"type": "array", "items": column}, _to("infer.inputs.NAME")],
        "outputs": [column, *(_to(f"infer.outputs.{answer}") for answer in ANSWERS)],
    }
    for key, any_of in given.items():
        table_of = {"additionalProperties": {"anyOf": any_of}}
        definitions["infer"]["properties"][key] |= table_of
    top = definitions.pop("")["properties"]
    for section in Pipeline.model_fields:
        kinds = [table.kind for table in tables() if table.section in (section, f"{section}.NAME")]
        if section in ("scrub", "augment"):
            top[section] = _named(section, kinds)
        elif section != "train" and kinds and section not in TOP_LEVEL_KEYS:
            any_of = [
                _to(f"{section}.{component}" if component else section) for component in kinds
            ]
            more = [CUSTOM_TABLE] * (len(any_of) > 1) + [TAKEN_OUT] * (section in OPTIONAL)
            top[section] = {"anyOf": [*any_of, *more]} if more else any_of[0]
    train = [
        _to(name) for name in definitions if name.startswith("train.") and "sampling" not in name
    ]
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A pipeline file of headrace",
        "type": "object",
        "properties": top | {"train": True},
        "additionalProperties": False,
        # A model of one's own has training settings of its own.
        "if": {"properties": {"model": CUSTOM_TABLE}, "required": ["model"]},
        "else": {"properties": {"train": {"anyOf": [*train, TAKEN_OUT]}}},
        "definitions": definitions,
    }


TAKEN_OUT = {"const": False}
"""What takes out a table of a `base`."""
CUSTOM_TABLE = {
    "type": "object",
    "properties": {"kind": {"type": "string", "pattern": ":"}},
    "required": ["kind"],
}
"""A table whose kind is a user's class: it may have any key."""


def _reference(table: SettingsTable) -> str:
    section = table.section if not table.kind else table.section.removesuffix(".NAME")
    return f"{section}.{table.kind}" if table.kind else section


def _to(name: str) -> dict[str, Any]:
    return {"$ref": f"#/definitions/{name}"}


def _named(section: str, kinds: Iterable[str]) -> dict[str, Any]:
    """Tables whose default kind is their name, each of which, or all, false takes out."""
    to = {name: _to(f"{section}.{name}") for name in kinds}
    explicit: list[dict[str, Any]] = [
        {"allOf": [name, {"required": ["kind"]}]} for name in to.values()
    ]
    explicit.append(TAKEN_OUT)
    named = {
        "type": "object",
        "properties": {
            name: {"anyOf": [reference, *explicit, CUSTOM_TABLE]} for name, reference in to.items()
        },
        "additionalProperties": {"anyOf": [*explicit, CUSTOM_TABLE]},
    }
    return {"anyOf": [named, TAKEN_OUT]}


def _object(table: SettingsTable) -> dict[str, Any]:
    """Return a table as a JSON Schema, with the keys' descriptions."""
    properties: dict[str, Any] = {}
    for settings in table.settings:
        properties |= _inlined(settings.model_json_schema(by_alias=True))["properties"]
    texts = {key.name: key.text for key in table.entries()}
    properties = {
        name: {**value, "description": texts[name]}
        for name, value in properties.items()
        if name in texts
    }
    if table.kind and (key := table.kind_key) in properties:
        properties[key] = {"const": table.kind, "description": texts[key]}
    result = {"type": "object", "properties": properties, "additionalProperties": False}
    return result if not table.about else {**result, "description": table.about}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema without references, so that schemas of several classes can be merged."""
    definitions = schema.pop("$defs", {})

    def inline(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return inline(definitions[value["$ref"].rsplit("/", 1)[1]])
            texts = {"title"} if isinstance(value.get("title"), str) else set()
            return {key: inline(part) for key, part in value.items() if key not in texts}
        return [inline(part) for part in value] if isinstance(value, list) else value

    inlined: dict[str, Any] = inline(schema)
    return inlined


__all__ = [
    "OUTPUT_COLUMNS",
    "SettingsTable",
    "markdown",
    "matching",
    "schema",
    "tables",
    "tables_with",
]
