"""Projection: the columns a pipeline reads. The others are not decoded, so they cost no time and
reject no row.

A column is read where the pipeline's tables name it: as it is, by a glob, or as a word of an
expression. That is more than the truth at worst (a column that is called like a stage's kind), and
never less. Where a user's own class, a sink without `columns` or nothing but stages takes the rows,
all columns are read.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from engine.config import Pipeline
from engine.types import Schema, Settings, Stage

WORD = re.compile(r"\w+")
GLOB = re.compile(r"[*?\[]")


def projected(
    pipeline: Pipeline, schema: Schema, stages: Iterable[Stage], more: Iterable[str] = ()
) -> Schema:
    """Return the columns of the source that are read; all of them if that is unknown.

    Args:
        stages: those of [scrub], whose settings have defaults that name columns.
        more: further columns that are read, for instance by a model file.
    """
    tables = _tables(pipeline)
    if _takes_all(pipeline, tables):
        return schema
    own = [stage.settings for stage in stages]
    tables += [settings.model_dump() for settings in own if isinstance(settings, Settings)]
    read = {*named_columns(tables, schema), *more}
    return {c: dtype for c, dtype in schema.items() if c in read} or schema


def named_columns(tables: Iterable[Mapping[str, Any]], schema: Schema) -> list[str]:
    """Return the columns that the values of tables name."""
    texts = {text for table in tables for value in table.values() for text in _texts(value)}
    read = texts | {word for text in texts for word in WORD.findall(text)}
    globs = [text for text in texts if GLOB.search(text)]
    return [column for column in schema if column in read or _named(column, texts, globs)]


def _named(column: str, texts: Iterable[str], globs: Iterable[str]) -> bool:
    """Return whether a glob matches the column, or an expression contains it."""
    if any(fnmatch.fnmatchcase(column, glob) for glob in globs):
        return True
    return WORD.fullmatch(column) is None and any(column in text for text in texts)


def _tables(pipeline: Pipeline) -> list[Mapping[str, Any]]:
    """Return the tables whose values may name columns; their keys are those of settings."""
    sections = (pipeline.model, pipeline.train, pipeline.infer, pipeline.evaluation, pipeline.sink)
    export = None if pipeline.export is None else pipeline.export.model_dump()
    candidates = [*pipeline.scrub.values(), *pipeline.augment.values(), export, *sections]
    return [table for table in candidates if table is not None]


def _takes_all(pipeline: Pipeline, tables: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether rows are passed on unchanged, or to a class outside headrace."""
    if pipeline.sink is None:
        whole = pipeline.model is None and pipeline.infer is None
    else:
        whole = pipeline.sink.get("columns") is None
    return whole or any(":" in name for name in _kinds([*tables, pipeline.source]))


def _kinds(value: Any) -> Iterator[str]:
    """Return all values of `kind` and `format`."""
    if isinstance(value, Mapping):
        yield from (str(value[key]) for key in ("kind", "format") if key in value)
        for inner in value.values():
            yield from _kinds(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _kinds(inner)


def _texts(value: Any) -> Iterator[str]:
    """Return all strings of a value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from _texts(inner)
    elif isinstance(value, list | tuple | set | frozenset):
        for inner in value:
            yield from _texts(inner)


__all__ = ["named_columns", "projected"]
