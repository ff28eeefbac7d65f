"""The documentation of Settings classes, in a user's words: type, unit, default and text of each
key. Error sentences, `headrace reference` and the editors' JSON Schema all read it here.

The text of a key is its entry under ``Attributes:`` in the docstring of the class that declares it.
The entry gives a number's unit in brackets behind the name, as in ``window [rows]: ...``; times and
sizes have theirs by their type.
"""

from __future__ import annotations

import inspect
import json
import math
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ByteSize, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from engine.types import Duration

SECONDS = 'seconds, or a duration ("250ms", "5m")'
BYTES = 'bytes ("64MiB", or a whole number)'
TYPE_WORDS: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    SecretStr: "text",
    ByteSize: BYTES,
    dict: "a table",
    list: "a list",
    type(None): "nothing",
    Any: "any value",
}
LIMITS = {
    "ge": ">= {:,}", "gt": "> {:,}", "le": "<= {:,}", "lt": "< {:,}",
    "min_length": "({} or more)", "pattern": "like {}",
}  # fmt: skip
"""Limit in pydantic -> how a sentence puts it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key of a table.

    Attributes:
        type: what it takes, limits included: ``a whole number >= 1``.
        unit: of a number: ``seconds``, ``rows``; empty where it has none.
        default: as a pipeline file would say it; empty if there is none, ``needed`` where the
            key must be given.
        text: what it is for, one paragraph.
    """

    name: str
    type: str
    unit: str
    default: str
    text: str


def keys(settings: type[BaseModel]) -> list[Key]:
    """Return the keys of a Settings class, in the order of its fields."""
    described, measured = texts(settings), units(settings)
    return [
        _key(key := field.alias or name, field, described.get(key, ""), measured.get(key, ""))
        for name, field in settings.model_fields.items()
    ]


@cache
def texts(settings: type[BaseModel]) -> Mapping[str, str]:
    """Return key -> its entry under ``Attributes:``, of this class or a base class."""
    return {name: text for name, (text, _) in _described(settings).items()}


@cache
def units(settings: type[BaseModel]) -> Mapping[str, str]:
    """Return key -> the unit in its entry, for keys that have one."""
    return {name: unit for name, (_, unit) in _described(settings).items() if unit}


def expected(field: FieldInfo) -> str:
    """Return what a key expects: ``a list of text``, ``'a' or 'b'``, ``a whole number >= 1``."""
    return _limited(_type(field.annotation), field.metadata)


def expected_in(field: FieldInfo) -> str | None:
    """Return what a value expects in a table with a user's own keys; None for another key."""
    origin, inner = get_origin(field.annotation), get_args(field.annotation)
    return _type(inner[1]) if isinstance(origin, type) and issubclass(origin, Mapping) else None


def field_of(settings: type[BaseModel], key: str) -> FieldInfo | None:
    """Return the field of a key as a file names it."""
    fields = settings.model_fields
    return fields.get(key) or next((f for f in fields.values() if f.alias == key), None)


def _described(settings: type[BaseModel]) -> dict[str, tuple[str, str]]:
    """Return key -> text and unit, of this class or a base class."""
    described: dict[str, tuple[str, str]] = {}
    for settings_class in reversed(settings.__mro__):
        described |= _entries(settings_class.__dict__.get("__doc__") or "")
    return described


def _key(name: str, field: FieldInfo, text: str, unit: str) -> Key:
    type_text = expected(field)
    return Key(
        name=name,
        type=type_text.removeprefix("a ").removeprefix("an "),
        unit=_unit(type_text) or unit,
        default=_default(field),
        text=text,
    )


def _entries(docstring: str) -> dict[str, tuple[str, str]]:
    """Parse ``name, name [unit]: text`` under ``Attributes:``, each text on one line."""
    _, heading, after = inspect.cleandoc(docstring).partition("Attributes:\n")
    if not heading:
        return {}
    entries: dict[str, tuple[str, str]] = {}
    names: list[str] = []
    margin = len(after) - len(after.lstrip(" "))
    for line in after.splitlines():
        if line.strip() and len(line) - len(line.lstrip(" ")) < margin:
            break
        entry = re.match(rf" {{{margin}}}([a-z][\w, ]*?)(?: \[(\w+)\])?: (.*)", line)
        if entry is not None:
            names = entry[1].split(", ")
            entries |= dict.fromkeys(names, (entry[3], entry[2] or ""))
        elif line.strip():
            entries |= {
                name: (f"{entries[name][0]} {line.strip()}", entries[name][1]) for name in names
            }
    return entries


def _type(annotation: Any) -> str:
    if annotation in TYPE_WORDS:
        return TYPE_WORDS[annotation]
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _limited(_type(inner[0]), inner[1:])
    if origin is Literal:
        return " or ".join(json.dumps(value) for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(part) for part in inner if part is not type(None)))
    if origin is tuple:
        if len(inner) == 2 and inner[1] is not Ellipsis:
            return f"a list of two {_plural(_type(inner[0]))}"
        return f"a list of {_plural(_type(inner[0]))}"
    if origin is list:
        return f"a list of {_plural(_type(inner[0]))}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a table" if inner[1] is Any else f"a table of {_plural(_type(inner[1]))}"
    return (
        "a table"
        if isinstance(annotation, type) and issubclass(annotation, BaseModel)
        else str(annotation)
    )


def _plural(words: str) -> str:
    plain = words.removeprefix("a ")
    return re.sub(r"\b(number|table|list)\b", r"\1s", plain, count=1) if plain != words else words


def _limited(words: str, metadata: Sequence[Any]) -> str:
    if get_args(Duration)[1] in metadata:
        words = SECONDS
    limits = [
        sign.format(limit)
        for name, sign in LIMITS.items()
        for item in metadata
        if (limit := getattr(item, name, None)) is not None
    ]
    return f"{words} {' and '.join(limits)}" if limits else words


def _unit(type_text: str) -> str:
    """Return the unit that the type implies."""
    return "bytes" if BYTES in type_text else "seconds" if SECONDS in type_text else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    value = field.get_default(call_default_factory=True) if _constant(field) else None
    if value is None or value is PydanticUndefined:
        return ""
    if isinstance(value, ByteSize):
        return json.dumps(value.human_readable().replace(".0", ""))
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"  # as TOML has it
    return json.dumps(value, default=str)


def _constant(field: FieldInfo) -> bool:
    return field.default_factory in (None, dict, list, tuple)


__all__ = ["Key", "expected", "expected_in", "field_of", "keys", "texts", "units"]
