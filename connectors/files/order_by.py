"""Sorts the rows of all files, in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from polars.exceptions import PolarsError

from connectors.files.catalog import Catalog
from connectors.files.csv_dialects import CsvDialects
from connectors.files.inspection import raw_lines
from connectors.files.opening import Opener
from connectors.files.readers.table import open_table
from connectors.formats.inference.infer import split_broken
from connectors.formats.kernels.rows import BROKEN, parser_input
from connectors.formats.values.columns import PROBLEM, UNREAD_TEXT
from engine.columnar.expressions import expression
from engine.types import Schema, UserError


class SortedFiles:
    """The rows of all files, sorted by `order_by`."""

    def __init__(self, catalog: Catalog, dialects: CsvDialects, opener: Opener) -> None:
        self._catalog = catalog
        self._dialects = dialects
        self._opener = opener
        self._frame: pl.DataFrame | None = None

    def frame(self) -> pl.DataFrame:
        """Return the rows; reads them once. Raises: UserError if they cannot be sorted."""
        if self._frame is None:
            frames = [self._whole(path, name) for name, path in self._catalog.files.items()]
            try:
                keys = self._keys()
                frame = pl.concat(frames, how="diagonal_relaxed")
                frame = frame.sort(keys, maintain_order=True, nulls_last=True)
                wanted = [*(self._opener.columns or frame.columns), PROBLEM, UNREAD_TEXT]
                self._frame = frame.select(c for c in frame.columns if c in wanted)
            except PolarsError as error:
                raise self._unsorted(error, frames[0].columns) from None
        return self._frame

    def require_sortable(self, available: Schema) -> None:
        """Raises: UserError if these columns cannot be sorted, before anything is read."""
        of_text = self._catalog.format == "csv"
        columns = dict.fromkeys(available, pl.String()) if of_text else available
        try:
            pl.DataFrame(schema=columns).sort(self._keys())
        except PolarsError as error:
            raise self._unsorted(error, list(columns)) from None

    def _keys(self) -> list[pl.Expr]:
        return [expression(sql, "[source] order_by") for sql in self._catalog.settings.order_by]

    def _unsorted(self, error: PolarsError, columns: list[str]) -> UserError:
        return UserError(
            f"[source] order_by {list(self._catalog.settings.order_by)} cannot be done: "
            f"{_line(error)}; the columns are {columns}, of CSV all text."
        )

    def _whole(self, path: Path, name: str) -> pl.DataFrame:
        """Return all rows of a file; text columns for CSV."""
        if self._catalog.spec.layout == "table":
            return open_table(self._catalog.format, path, name).whole()
        file = self._opener.sampled(path, name)
        parts = []
        while (records := file.read(1 << 30, 1 << 40)) is not None:
            parts.append(raw_lines(records))
        file.close()
        schema = dict.fromkeys(self._dialects.headers.get(name, ()), pl.String())
        if not parts:
            return pl.DataFrame(schema=schema)
        lines = b"".join(parts)
        try:
            if self._catalog.format == "ndjson":
                return _objects(lines, name)
            data, blank = parser_input(np.frombuffer(lines, np.uint8))
            dialect = self._dialects.dialect
            return pl.read_csv(
                data,
                skip_lines=blank,
                has_header=False,
                schema=schema,
                separator=dialect.delimiter,
                quote_char=dialect.quote or None,
                null_values=list(dialect.null_values) or None,
            )
        except PolarsError as error:
            raise UserError(
                f"{name} cannot be read completely, as [source] order_by needs: {_line(error)}; "
                "fix the file, or sort it yourself and leave order_by out."
            ) from None


def _objects(lines: bytes, name: str) -> pl.DataFrame:
    """Return the rows of NDJSON; a line that is no object is a row with a `PROBLEM`."""
    objects, broken = split_broken(lines)
    frame = pl.DataFrame()
    if objects:
        data, _ = parser_input(np.frombuffer(objects, np.uint8))
        frame = pl.read_ndjson(data, infer_schema_length=None)
    if not broken.height:
        return frame
    where = pl.format(f"{BROKEN}: {{}} It is row {{}} of {{}}.", "why", "number", pl.lit(name))
    problems = broken.select(where.alias(PROBLEM), pl.col("text").alias(UNREAD_TEXT))
    return pl.concat([frame, problems], how="diagonal_relaxed")


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]


__all__ = ["SortedFiles"]
