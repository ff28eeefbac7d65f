"""Records that are already columnar (Parquet, Arrow, memory): only their types are checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.exceptions import PolarsError

from connectors.formats.kernels.paths import PathStep, parse_path, value_at
from connectors.formats.kernels.rows import as_json, make_rejects, with_position_columns
from connectors.formats.options import FormatOptions
from connectors.formats.values.casts import Coerce, conform
from engine.types import RESERVED, Format, HeadraceError, Records, Rejects, Schema, nearest

PROBLEM = "_problem"
"""The column in which a source says why it could not read a row, ``reason: sentence``; else
null."""

UNREAD_TEXT = "_unread"
"""The column with the text of such a row, where it has one."""


class Columns(Format):
    """Checks columnar records. A value that does not fit the schema's type rejects its row,
    ``wrong_type`` or ``out_of_range``; see `connectors.formats.values.casts`.

    Args:
        paths: column -> where its value is in a nested column, ``image.bytes``.
        coerce: see `connectors.formats.values.casts`.
        lenient: a column that a partition lacks is null there, no error.
        decimal: tells the decimal point of numbers in columns of a CSV's text; None for others.
    """

    def __init__(
        self,
        paths: Mapping[str, str] | None = None,
        *,
        coerce: Coerce = "lossless",
        lenient: bool = False,
        decimal: Callable[[], str] | None = None,
    ) -> None:
        """Raises: UserError for a text that is no path."""
        self._decimal = decimal
        self._steps = {c: parse_path(path, c) for c, path in (paths or {}).items()}
        self._coerce: Coerce = coerce
        self._lenient = lenient

    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        """Raises: HeadraceError when a file lacks a column that the schema has."""
        assert isinstance(records.values, pl.DataFrame)
        frame, at, rejects = readable_rows(records.values, records)
        available = self._there(frame, schema)
        if self._steps:
            frame = self._at_paths(frame, available, records.partition)
        else:
            present(list(available), frame.columns, records.partition)
            frame = frame[list(available)]
        if frame.dtypes == list(available.values()):
            result = with_position_columns(frame, records, at)
        else:
            result, more = conform(
                frame,
                records,
                available,
                at,
                coerce=self._coerce,
                written=self._decimal is not None,
                decimal="." if self._decimal is None else self._decimal(),
            )
            rejects = [*rejects, *more]
        return (result if len(available) == len(schema) else with_nulls(result, schema)), rejects

    def _there(self, frame: pl.DataFrame, schema: Schema) -> Schema:
        """Return the columns that the frame has, or must have."""
        if not self._lenient:
            return schema
        tops = {c: str(self._steps.get(c, (c,))[0]) for c in schema}
        return {c: dtype for c, dtype in schema.items() if tops[c] in frame.columns}

    def _at_paths(self, frame: pl.DataFrame, schema: Schema, partition: str) -> pl.DataFrame:
        steps: dict[str, tuple[PathStep, ...]] = {c: self._steps.get(c, (c,)) for c in schema}
        present([str(s[0]) for s in steps.values()], frame.columns, partition)
        try:
            return frame.select(value_at(s).alias(c) for c, s in steps.items())
        except PolarsError as error:
            raise HeadraceError(
                f"{partition} has other columns than [source] paths expects: "
                f"{str(error).partition(chr(10))[0]}."
            ) from None


def readable_rows(
    frame: pl.DataFrame, records: Records, at: NDArray[np.int64] | None = None
) -> tuple[pl.DataFrame, NDArray[np.int64] | None, list[Rejects]]:
    """Return the rows without a `PROBLEM`, their record numbers (None: all), and the others as
    rejects.

    Args:
        at: the record number of each row; None if each is its own.
    """
    if PROBLEM not in frame.columns:
        return frame, at, []
    why = frame.get_column(PROBLEM)
    text = frame.get_column(UNREAD_TEXT) if UNREAD_TEXT in frame.columns else None
    frame = frame.drop(PROBLEM, UNREAD_TEXT, strict=False)
    good = np.flatnonzero(why.is_null())
    if len(good) == frame.height:
        return frame, at, []
    lost = np.flatnonzero(why.is_not_null())
    numbers = np.arange(frame.height) if at is None else at
    value = as_json(frame.select(pl.all().gather(lost))) if text is None else text.gather(lost)
    unreadable = pl.DataFrame(
        {
            "at": numbers[lost],
            "reason": why.gather(lost).str.extract(r"^(\w+): "),
            "detail": why.gather(lost).str.replace(r"^\w+: ", ""),
            "value": value,
        }
    )
    rejects = [
        make_rejects(
            records, part["at"].to_numpy(), part["reason"][0], part["detail"], part["value"]
        )
        for part in unreadable.partition_by("reason", maintain_order=True)
    ]
    return frame.select(pl.all().gather(good)), numbers[good], rejects


def with_nulls(frame: pl.DataFrame, schema: Schema) -> pl.DataFrame:
    """Return all columns of the schema; missing ones are null."""
    lacking = [
        pl.lit(None, dtype).alias(c) for c, dtype in schema.items() if c not in frame.columns
    ]
    return frame.with_columns(lacking).select(*RESERVED, *schema)


def present(schema: Iterable[str], columns: list[str], partition: str) -> None:
    """Raises: HeadraceError when the partition lacks a column of the schema."""
    for column in schema:
        if column not in columns:
            raise HeadraceError(
                f"{partition} has no column '{column}', which the schema names."
                f"{nearest(column, columns)}"
            )


def make(options: FormatOptions) -> Columns:
    """Return the format; called by `connectors.formats.registry`."""
    return Columns(options.paths, coerce=options.coerce, lenient=True)


__all__ = ["PROBLEM", "UNREAD_TEXT", "Columns", "present", "readable_rows", "with_nulls"]
