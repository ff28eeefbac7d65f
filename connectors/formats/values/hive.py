"""Columns from folder names: ``year=2026/month=07/part-0.csv``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote

import polars as pl

from connectors.formats.values.casts import cast
from connectors.formats.wrapping import WrappingFormat
from engine.types import PARTITION, POSITION, Format, Records, Rejects, Schema, UserError, type_name

PAIR = re.compile(r"([A-Za-z_][\w.-]*)=(.*)")
NONE = "__HIVE_DEFAULT_PARTITION__"
"""Hive's and Spark's name for null."""
WHOLE = re.compile(r"0|-?[1-9]\d{0,17}")
DAY = re.compile(r"\d{4}-\d\d-\d\d")


def partition_values(path: Path) -> dict[str, str | None]:
    """Return column -> value from a file's folders, with escapes like %3A resolved."""
    if "=" not in str(path):
        return {}
    pairs = filter(None, (PAIR.fullmatch(part) for part in path.parts[:-1]))
    return {unquote(m[1]): None if m[2] == NONE else unquote(m[2]) for m in pairs}


def infer_type(values: Iterable[str | None]) -> pl.DataType:
    """Return the type of a column's values: integers (none with leading zeros), dates, or text."""
    known = [value for value in values if value is not None]
    if known and all(WHOLE.fullmatch(value) for value in known):
        return pl.Int64()
    if known and all(DAY.fullmatch(value) for value in known):
        days = cast(pl.Series(known), pl.Date(), written=True)
        return pl.String() if days.null_count() else pl.Date()
    return pl.String()


class HivePartitions(WrappingFormat):
    """Wraps a format and adds columns from folder names, which take precedence over columns in
    the files.

    Args:
        inner: of the files.
        values: partition -> column -> value; may grow.
    """

    def __init__(self, inner: Format, values: Mapping[str, Mapping[str, str | None]]) -> None:
        super().__init__(inner)
        self._values = values

    def folder_schema(self, declared: Schema) -> Schema:
        """Return the folders' columns, with declared or inferred types.

        Raises: UserError for a value that is none of its declared type.
        """
        columns = dict.fromkeys(c for values in self._values.values() for c in values)
        schema: Schema = {}
        for column in columns:
            values = list(dict.fromkeys(v.get(column) for v in self._values.values()))
            schema[column] = declared.get(column) or infer_type(values)
            _cast(column, values, schema[column])
        return schema

    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        """Decode with the inner format; add the columns of the folder.

        Raises: UserError for a folder that has come since, as `schema` does.
        """
        mine = self._values.get(records.partition, {})
        inside = {c: dtype for c, dtype in schema.items() if c not in mine}
        frame, rejects = self.inner.decode(records, inside)
        columns = [_cast(c, [mine[c]], dtype) for c, dtype in schema.items() if c in mine]
        frame = frame.with_columns(column.new_from_index(0, frame.height) for column in columns)
        return frame.select(PARTITION, POSITION, *schema), rejects


def _cast(column: str, values: Sequence[str | None], dtype: pl.DataType) -> pl.Series:
    result = cast(pl.Series(column, values, dtype=pl.String()), dtype, written=True)
    for value, is_null in zip(values, result.is_null(), strict=True):
        if is_null and value is not None:
            raise UserError(
                f"A folder is named '{column}={value}', and column '{column}' is "
                f"{type_name(dtype)}: expected "
                "a value of that type; declare another in [source.schema]."
            )
    return result


__all__ = ["HivePartitions", "infer_type", "partition_values"]
