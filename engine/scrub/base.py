"""What all stages share: a name, settings, and columns by glob."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

import polars as pl

from engine.types import Batch, Schema, Settings, Snapshot, Transform, UserError, require


def spread(patterns: Iterable[str], schema: Schema, *, where: str) -> list[str]:
    """Column names, globs among them spread over the schema, each once, in order.

    Raises: UserError when a name, or a glob, matches no column.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        matching = [column for column in schema if fnmatch.fnmatchcase(column, pattern)]
        found |= dict.fromkeys(matching or [pattern])
    require(schema, found, where=where)
    return list(found)


class Base:
    """A stage without state that cannot be written into a model file; others override what differs.

    Args:
        name: in the pipeline file, in metrics and in marks.
        settings: the stage's own.
    """

    def __init__(self, name: str, settings: Any) -> None:
        self.name = name
        self.settings = settings

    @property
    def where(self) -> str:
        """How error sentences call this stage."""
        return f"[scrub.{self.name}]"

    def bind(self, schema: Schema) -> Schema:
        """See `engine.types.Stage`."""
        return schema

    def apply(self, batch: Batch) -> Batch:
        """See `engine.types.Stage`."""
        raise NotImplementedError

    def snapshot(self) -> Snapshot:
        """See `engine.types.Stage`."""
        return None

    def restore(self, value: Snapshot) -> None:
        """See `engine.types.Stage`."""

    def transforms(self) -> Sequence[Transform] | None:
        """See `engine.types.Stage`."""
        return None

    def numbers(self, patterns: Iterable[str], schema: Schema) -> list[str]:
        """Numeric columns by glob. Raises: UserError for one that is no number."""
        columns = spread(patterns, schema, where=self.where)
        for column in columns:
            if not schema[column].is_numeric():
                raise UserError(
                    f"{self.where} expects numbers in column '{column}', got {schema[column]}: "
                    "leave it out, or make it a number with a 'derive' stage."
                )
        return columns


def as_floats(columns: Iterable[str], schema: Schema) -> Schema:
    """The schema with these columns as Float64."""
    return {**schema, **{column: pl.Float64() for column in columns}}


class ColumnSettings(Settings):
    """Settings of a stage that works on columns.

    Attributes:
        columns: names or globs ("count_lag_*").
    """

    columns: tuple[str, ...]


__all__ = ["Base", "ColumnSettings", "as_floats", "spread"]
